//! Where Alertmanager sends its notifications.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::PATIENCE;

pub struct Webhook {
    pub port: u16,
    /// Each alert with the path that its notification came by.
    alerts: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Webhook {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let alerts = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&alerts);
        // It ends when nobody could ask for what it receives.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if Arc::strong_count(&received) == 1 {
                    return;
                }
                let notification = stream.ok().and_then(|stream| receive(stream).ok());
                received.lock().unwrap().extend(notification.into_iter().flatten());
            }
        });
        Self { port, alerts }
    }

    /// The alerts of this name that have come so far.
    pub fn alerts(&self, name: &str) -> Vec<(String, Value)> {
        let alerts = self.alerts.lock().unwrap();
        alerts.iter().filter(|(_, alert)| alert["labels"]["alertname"] == name).cloned().collect()
    }

    /// Only what comes from now on counts.
    pub fn forget(&self) {
        self.alerts.lock().unwrap().clear();
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.alerts = Arc::default();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn receive(stream: TcpStream) -> std::io::Result<Vec<(String, Value)>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        if let Some((name, value)) =
            line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value.trim().parse().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let notification: Value = serde_json::from_slice(&body)?;
    let alerts = notification["alerts"].as_array().cloned().unwrap_or_default();
    Ok(alerts.into_iter().map(|alert| (path.clone(), alert)).collect())
}
