//! Asks a running daemon: plain HTTP to its status address.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::plain;

/// Where a daemon answers unless it is told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9822";

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 << 20;

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

async fn ask(url: &str, path: &str) -> Result<String, String> {
    let wrong =
        || format!("\"{}\" is not the address of a daemon: write http://HOST:PORT", url.escape_debug());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let socket = TcpStream::connect((host, port)).await.map_err(|error| {
        let text = plain(&error);
        format!("no daemon answers at {url}: {text}: start it with `tunnelkeeper run`, or name its address with --url")
    })?;
    let broken = |error: hyper::Error| format!("the daemon at {url} broke the conversation: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    driver.abort();
    let body = body.map_err(|error| format!("the daemon at {url} broke off its answer: {error}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
            Err(format!("{url} does not serve {path}: is it a daemon, and does it allow that from here?"))
        }
        status => Err(format!("the daemon at {url} answers {status}: {}", text.trim())),
    }
}
