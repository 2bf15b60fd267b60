//! A service on the web, of which each test says what it answers. It writes down what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::PATIENCE;

pub struct Cloud {
    pub port: u16,
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

pub enum Reply {
    Answer(u16, String),
    /// The second is a header, whole and with its end of line.
    AnswerWith(u16, String, String),
    /// The beginning of an answer, and the end of the connection.
    Half,
    /// Nothing, for as long as the service lives.
    Silence,
}

impl Cloud {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        Self::spawn(None, answer)
    }

    /// Speaks TLS.
    pub fn secured(tls: ServerConfig, answer: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        Self::spawn(Some(Arc::new(tls)), answer)
    }

    fn spawn(tls: Option<Arc<ServerConfig>>, answer: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
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
                    None => serve(stream, &book, &answer),
                    Some(tls) => {
                        let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                        serve(StreamOwned::new(connection, stream), &book, &answer)
                    }
                };
                silent.extend(served.ok().flatten());
            }
        });
        Self { port, asked }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
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
    answer: &impl Fn(&Asked) -> Reply,
) -> std::io::Result<Option<Box<dyn Send>>> {
    let mut reader = BufReader::new(stream);
    let asked = receive(&mut reader)?;
    let reply = answer(&asked);
    book.lock().unwrap().push(asked);
    let stream = reader.get_mut();
    let (status, header, body) = match reply {
        Reply::Answer(status, body) => (status, String::new(), body),
        Reply::AnswerWith(status, header, body) => (status, header, body),
        Reply::Half => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<GetCluster")?;
            stream.flush()?;
            return Ok(None);
        }
        Reply::Silence => return Ok(Some(Box::new(reader))),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{header}\r\n{body}"
    )?;
    stream.flush()?;
    Ok(None)
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
