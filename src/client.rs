//! Asks a running daemon: plain HTTP to its status address.

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

/// Where a daemon answers unless it is told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9822";

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 << 20;
/// How much of an answer that is no status is shown, in characters.
const MAX_SHOWN: usize = 200;

/// Asks the daemon at `url` for `path`.
///
/// # Errors
/// One sentence that names the address and says what to do.
pub async fn get(url: &str, path: &str) -> Result<String, String> {
    match timeout(PATIENCE, ask(url, path)).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(format!("the daemon at {url} does not answer: is it overloaded, or is that another program?"))
        }
    }
}

/// Says that another program answers at `url`.
#[must_use]
pub fn not_a_daemon(url: &str) -> String {
    format!("what answers at {url} is not tunnelkeeper: name its address with --url")
}

async fn ask(url: &str, path: &str) -> Result<String, String> {
    let (authority, port) = parse(url)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, port)).await.map_err(|error| {
        let text = plain(&error);
        format!("no daemon answers at {url}: {text}: start it with `tunnelkeeper run`, or name its address with --url")
    })?;
    // A server of another kind sends what is no HTTP, or hangs up on what is none to it.
    let foreign = |_: hyper::Error| not_a_daemon(url);
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(foreign)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(foreign)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    driver.abort();
    let body = body.map_err(|error| format!("the daemon at {url} broke off its answer: {error}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::NOT_FOUND => Err(not_a_daemon(url)),
        status => Err(format!("{url} answers {status}: {}", one_line(&text, MAX_SHOWN))),
    }
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
        get(&url, "/api/v1/status").await.map_err(|text| text.replace(&url, "URL"))
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
        for bad in
            ["", "localhost:9822", "https://h:1", "http://h:99999", "http://h:", "http://h:x", "http://\n"]
        {
            let text = parse(bad).unwrap_err();
            assert!(text.contains("write http://HOST:PORT") && !text.contains('\n'), "{bad}: {text}");
        }
        let text = parse("http://me:hunter2@h:1").unwrap_err();
        assert!(!text.contains("hunter2"), "{text}");
    }
}
