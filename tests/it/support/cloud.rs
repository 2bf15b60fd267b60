//! A service on the web, of which each test says what it answers. It writes down what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::PATIENCE;

pub struct Cloud {
    pub port: u16,
    /// Keeps the port of one that is gone from others.
    _kept: Option<Socket>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A question, with the names of its headers in lower case.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Asked {
    /// Empty if it was not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_str(&self.body).unwrap()
    }

    /// A form's fields.
    pub fn form(&self) -> BTreeMap<String, String> {
        assert_eq!(self.header("content-type"), "application/x-www-form-urlencoded");
        form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }
}

pub enum Reply {
    Answer(u16, String),
    Json(u16, Value),
    /// The second is a header, whole and with its end of line.
    AnswerWith(u16, String, String),
    /// Byte by byte, with head and all.
    Raw(Vec<u8>),
    /// Nothing, for as long as the service lives.
    Silence,
}

impl Cloud {
    pub fn start(answer: impl FnMut(&Asked) -> Reply + Send + 'static) -> Self {
        Self::spawn(None, answer)
    }

    /// One that always gives the same answer.
    pub fn saying(status: u16, value: Value) -> Self {
        Self::start(move |_| Reply::Json(status, value.clone()))
    }

    /// Speaks TLS.
    pub fn secured(tls: ServerConfig, answer: impl FnMut(&Asked) -> Reply + Send + 'static) -> Self {
        Self::spawn(Some(Arc::new(tls)), answer)
    }

    fn spawn(
        tls: Option<Arc<ServerConfig>>,
        mut answer: impl FnMut(&Asked) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&asked);
        // It ends when nobody could ask for what it was asked.
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                if Arc::strong_count(&book) == 1 {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // Who goes away, or does not trust the certificate, has asked nothing.
                let served = match &tls {
                    None => serve(stream, &book, &mut answer),
                    Some(tls) => {
                        let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                        serve(StreamOwned::new(connection, stream), &book, &mut answer)
                    }
                };
                silent.extend(served.ok().flatten());
            }
        });
        Self { port, _kept: None, asked }
    }

    /// One that nobody is behind: its port refuses.
    pub fn gone() -> Self {
        let kept = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        kept.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = kept.local_addr().unwrap().as_socket().unwrap().port();
        Self { port, _kept: Some(kept), asked: Arc::default() }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where `path` is, which begins with a slash.
    pub fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url())
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The only question that came.
    pub fn only(&self) -> Asked {
        let [only] = <[Asked; 1]>::try_from(self.asked()).expect("one question");
        only
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.asked = Arc::default();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Returns the connection that is to stay open.
fn serve<S: Read + Write + Send + 'static>(
    stream: S,
    book: &Mutex<Vec<Asked>>,
    answer: &mut impl FnMut(&Asked) -> Reply,
) -> std::io::Result<Option<Box<dyn Send>>> {
    let mut reader = BufReader::new(stream);
    let asked = receive(&mut reader)?;
    let reply = answer(&asked);
    book.lock().unwrap().push(asked);
    let stream = reader.get_mut();
    let bytes = match reply {
        Reply::Answer(status, body) => framed(status, "", &body),
        Reply::AnswerWith(status, header, body) => framed(status, &header, &body),
        Reply::Json(status, value) => framed(status, "", &value.to_string()),
        Reply::Raw(bytes) => bytes,
        Reply::Silence => return Ok(Some(Box::new(reader))),
    };
    stream.write_all(&bytes)?;
    stream.flush()?;
    Ok(None)
}

/// A whole answer; `header` is one more, whole and with its end of line, or nothing.
pub fn framed(status: u16, header: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{header}\r\n");
    (head + body).into_bytes()
}

fn receive(reader: &mut impl BufRead) -> std::io::Result<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Asked { method, path, headers, body: String::from_utf8(body).unwrap() })
}
