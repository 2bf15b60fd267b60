//! Asks a running daemon: plain HTTP to its status address.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::http::uri::Authority;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::{one_line, plain};
use crate::snapshot::Snapshot;

/// Where a daemon answers unless it is told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9822";

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 << 20;
/// How much of an answer that is no status is shown, in characters.
const MAX_SHOWN: usize = 200;

/// What a daemon says of everything.
pub struct Status {
    /// Everything at the moment it was asked.
    pub snapshot: Snapshot,
    /// The daemon's address, if it runs on another machine: its loopback listeners are not ours then.
    pub elsewhere: Option<IpAddr>,
}

/// Why a daemon said nothing: one sentence that names the address and says what to do.
#[derive(Debug)]
pub enum Silence {
    /// Nobody answers now; a daemon that starts may.
    Now(String),
    /// What is wrong with the address, or who answers there, does not change by itself.
    Lasting(String),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Now(text) | Self::Lasting(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Silence {}

/// Asks the daemon at `url` for its status.
///
/// # Errors
/// Why it said nothing.
pub async fn status(url: &str) -> Result<Status, Silence> {
    let Answer { text, elsewhere } = answer(url, "/api/v1/status").await?;
    let snapshot = serde_json::from_str(&text).map_err(|_| Silence::Lasting(not_a_daemon(url)))?;
    Ok(Status { snapshot, elsewhere })
}

/// Asks the daemon at `url` for `path`.
///
/// # Errors
/// Why it said nothing.
pub async fn get(url: &str, path: &str) -> Result<String, Silence> {
    Ok(answer(url, path).await?.text)
}

/// An answer, and the address of another machine that it came from.
struct Answer {
    text: String,
    elsewhere: Option<IpAddr>,
}

async fn answer(url: &str, path: &str) -> Result<Answer, Silence> {
    match timeout(PATIENCE, ask(url, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(Silence::Now(format!(
            "the daemon at {url} does not answer: is it overloaded, or is that another program?"
        ))),
    }
}

fn not_a_daemon(url: &str) -> String {
    format!("what answers at {url} is not tunnelkeeper: name its address with --url")
}

async fn ask(url: &str, path: &str) -> Result<Answer, Silence> {
    let (authority, port) = parse(url).map_err(Silence::Lasting)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, port)).await.map_err(|error| {
        let text = plain(&error);
        Silence::Now(format!(
            "no daemon answers at {url}: {text}: start it with `tunnelkeeper run`, or name its address (http.listen) \
             with --url"
        ))
    })?;
    let elsewhere = elsewhere(&socket);
    // A server of another kind sends what is no HTTP, or hangs up on what is none to it. So does a port that is
    // forwarded to a daemon which does not run yet.
    let foreign = |_: hyper::Error| Silence::Now(not_a_daemon(url));
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(foreign)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Silence::Lasting(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(foreign)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    driver.abort();
    let broken = |error| Silence::Now(format!("the daemon at {url} broke off its answer: {error}"));
    let text = String::from_utf8_lossy(&body.map_err(broken)?.to_bytes()).into_owned();
    let told = || format!("{url} answers {status}: {}", one_line(&text, MAX_SHOWN));
    match status {
        StatusCode::OK => Ok(Answer { text, elsewhere }),
        StatusCode::NOT_FOUND => Err(Silence::Lasting(not_a_daemon(url))),
        // A proxy in front of a daemon that does not run says so.
        _ if status.is_server_error() => Err(Silence::Now(told())),
        _ => Err(Silence::Lasting(told())),
    }
}

/// A connection to this machine has one address at both ends, or ends on loopback.
fn elsewhere(socket: &TcpStream) -> Option<IpAddr> {
    let peer = socket.peer_addr().ok()?.ip().to_canonical();
    let own = socket.local_addr().ok()?.ip().to_canonical();
    Some(peer).filter(|peer| !peer.is_loopback() && *peer != own)
}

/// The host and the port of a URL.
fn parse(url: &str) -> Result<(Authority, u16), String> {
    if url.contains('@') {
        return Err("the address of a daemon has no user and no password: write http://HOST:PORT".to_owned());
    }
    let wrong =
        || format!("\"{}\" is not the address of a daemon: write http://HOST:PORT", url.escape_debug());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
        return Err(format!(
            "\"{}\" has a path, and a daemon has none: write http://HOST:PORT",
            url.escape_debug()
        ));
    }
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => Some(80),
        rest => rest.and_then(|rest| rest.strip_prefix(':')).and_then(|port| port.parse().ok()),
    };
    Ok((authority.clone(), port.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What is said of a server that answers every request so.
    async fn told_of(answer: &'static [u8]) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(answer).await;
        });
        get(&url, "/").await.map_err(|silence| silence.to_string().replace(&url, "URL"))
    }

    #[tokio::test]
    async fn another_program_is_named_as_such() {
        let not_ours = "what answers at URL is not tunnelkeeper: name its address with --url";
        for (answer, expected) in [
            (&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], not_ours),
            (b"", not_ours),
            (b"E\0\0\0\x8cSFATAL\0VFATAL\0C0A000\0", not_ours),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", not_ours),
            (
                b"HTTP/1.1 403 Forbidden\r\ncontent-length: 18\r\n\r\nset this\r\n\x1b[2Jnow!\n",
                "URL answers 403 Forbidden: set this   [2Jnow!",
            ),
        ] {
            assert_eq!(told_of(answer).await.unwrap_err(), expected);
        }
        let good = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(told_of(good).await.unwrap(), "{}");
    }

    #[test]
    fn addresses() {
        for (url, port) in [("http://localhost", 80), ("http://[::1]:9822/", 9822), ("http://a.b:1", 1)] {
            assert_eq!(parse(url).unwrap().1, port, "{url}");
        }
        for bad in [
            "",
            "localhost:9822",
            "https://h:1",
            "http://h:99999",
            "http://h:",
            "http://h:x",
            "http://\n",
            "http://h:1/prefix",
            "http://h:1/?x",
            "http://h:1?x",
        ] {
            let text = parse(bad).unwrap_err();
            assert!(text.contains("write http://HOST:PORT") && !text.contains('\n'), "{bad}: {text}");
        }
        let text = parse("http://me:hunter2@h:1").unwrap_err();
        assert!(!text.contains("hunter2"), "{text}");
    }
}
