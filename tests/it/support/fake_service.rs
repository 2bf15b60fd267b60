//! A cloud's service as a test wants it: answers each request, and remembers it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::PATIENCE;

#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    /// With its query.
    pub path: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Received {
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
    Json(u16, Value),
    /// Byte by byte, with head and all.
    Raw(Vec<u8>),
    /// It goes on waiting.
    Silence,
}

pub struct FakeService {
    pub port: u16,
    received: Arc<Mutex<Vec<Received>>>,
}

impl FakeService {
    pub fn start(mut reply: impl FnMut(&Received) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&received);
        // It ends when nobody could ask for what it receives.
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                if Arc::strong_count(&kept) == 1 {
                    return;
                }
                let Ok((request, mut stream)) = stream.and_then(receive) else { continue };
                let answer = reply(&request);
                kept.lock().unwrap().push(request);
                match answer {
                    Reply::Silence => silent.push(stream),
                    // Whom it is too long goes.
                    Reply::Raw(bytes) => drop(stream.write_all(&bytes)),
                    Reply::Json(status, value) => drop(stream.write_all(&framed(status, &value.to_string()))),
                }
            }
        });
        Self { port, received }
    }

    /// One that always gives the same answer.
    pub fn saying(status: u16, value: Value) -> Self {
        Self::start(move |_| Reply::Json(status, value.clone()))
    }

    /// Where `path` is; it begins with a slash, or is empty.
    pub fn address(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// All that has come so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The only request that came.
    pub fn only(&self) -> Received {
        let [only] = <[Received; 1]>::try_from(self.received()).expect("one request");
        only
    }
}

impl Drop for FakeService {
    fn drop(&mut self) {
        self.received = Arc::default();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// A whole answer.
pub fn framed(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").into_bytes()
}

fn receive(stream: TcpStream) -> std::io::Result<(Received, TcpStream)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    Ok((Received { method, path, headers, body }, reader.into_inner()))
}
