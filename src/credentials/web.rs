//! Asks a service on the web, one question at a time: for those who make logins.
//!
//! It keeps no connection and no certificates: a login is made every few minutes, and may see new roots and another proxy.
//! It follows no redirect, and speaks without TLS to nobody but this machine.

use std::error::Error;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use reqwest::header::DATE;
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use zeroize::Zeroizing;

use crate::failure::{Cause, Failure};

/// How long a question may take, with everything: the name, the way, TLS, and the whole answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than any answer that holds a login, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// What a service answered.
pub(super) struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The time by the service's clock, to a second (RFC 9110 section 6.6.1).
    pub date: Option<SystemTime>,
    /// At most 64 KiB.
    pub body: Zeroizing<Vec<u8>>,
}

/// Asks a service, within 10 s. `HTTPS_PROXY` and `NO_PROXY` count.
///
/// # Errors
/// `unreachable` if there is no whole answer; `invalid_answer` if it is too long. Neither names more of the address than
/// the server.
pub(super) async fn post(url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, Failure> {
    ask(Method::POST, address(url)?, headers, body).await
}

/// Asks for what the machine's own services give, which speak without TLS, as [`post`] does.
///
/// # Errors
/// As those of [`post`].
pub(super) async fn get(url: &str, headers: &[(&str, &str)]) -> Result<Answer, Failure> {
    ask(Method::GET, parse(url)?, headers, Vec::new()).await
}

async fn ask(method: Method, url: Url, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, Failure> {
    let server = url.origin().ascii_serialization();
    let unreachable = |error: reqwest::Error| {
        let text = match error.is_timeout() {
            true => format!("{server} gave no answer within {} s", DEADLINE.as_secs()),
            false => format!("{server} could not be asked: {}", with_causes(&error.without_url())),
        };
        Failure::new(Cause::CredentialsUnreachable, text)
    };
    let client = client(&url).map_err(unreachable)?;
    let request = client.request(method, url);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    match exchange(request.body(body)).await.map_err(unreachable)? {
        Some(answer) => Ok(answer),
        None => Err(Failure::new(
            Cause::CredentialsInvalidAnswer,
            format!("the answer of {server} is longer than {MAX_ANSWER} bytes"),
        )),
    }
}

/// Reads the address of a service: `https`, or `http` for this machine itself.
///
/// # Errors
/// Says what is wrong with it, without showing it: it may hold a password.
pub(super) fn address(text: &str) -> Result<Url, Failure> {
    let url = parse(text)?;
    if names_somebody(&url) {
        return Err(wrong("has a user or password in it"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_this_machine(&url) => Ok(url),
        "http" => Err(wrong("is http://, which would show the login to others on the way")),
        _ => Err(wrong("is not one of the web")),
    }
}

/// Whether a user or a password stands in an address.
pub(super) fn has_userinfo(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| names_somebody(&url))
}

fn names_somebody(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// What may be shown of an address: the server, without a user, a path, or a query.
pub(super) fn server(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if url.has_host() => {
            let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        _ => "(which is no address)".to_owned(),
    }
}

fn parse(text: &str) -> Result<Url, Failure> {
    Url::parse(text).map_err(|error| wrong(&format!("is none: {error}")))
}

fn wrong(found: &str) -> Failure {
    let text = format!("the address of the service that makes the login {found}");
    Failure::new(Cause::CredentialsUnreachable, text)
        .with_hint("write it as https://HOST; http:// is for this machine only")
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn client(url: &Url) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .user_agent(concat!("tunnelkeeper/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .timeout(DEADLINE);
    // Without TLS a proxy would see the login.
    if url.scheme() == "http" { builder.no_proxy().build() } else { builder.build() }
}

/// None if the answer is too long.
async fn exchange(request: RequestBuilder) -> reqwest::Result<Option<Answer>> {
    let mut response = request.send().await?;
    let (status, date) = (response.status().as_u16(), date(&response));
    // A buffer that grows would leave copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while let Some(part) = response.chunk().await? {
        if body.len() + part.len() > MAX_ANSWER {
            return Ok(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(Some(Answer { status, date, body }))
}

fn date(response: &Response) -> Option<SystemTime> {
    let text = response.headers().get(DATE)?.to_str().ok()?;
    httpdate::parse_http_date(text).ok()
}

/// An error, and what it comes from, down to the system's word for it.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        below = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_never_asked_for_in_clear() {
        for text in [
            "https://redshift.us-east-1.amazonaws.com",
            "http://127.0.0.1:5000",
            "http://localhost/x",
            "http://[::1]:80/",
        ] {
            assert!(address(text).is_ok(), "{text}");
        }
        for (text, expected) in [
            ("http://redshift.us-east-1.amazonaws.com", "is http://"),
            ("http://127.0.0.1.example.com", "is http://"),
            ("http://localhost.example.com", "is http://"),
            ("ftp://127.0.0.1", "is not one of the web"),
            ("https://user:hunter2@example.com", "has a user or password"),
            ("redshift", "is none: relative URL without a base"),
        ] {
            let failure = address(text).unwrap_err();
            assert_eq!(failure.cause, Cause::CredentialsUnreachable);
            assert!(failure.detail().contains(expected), "{failure}");
            assert!(!failure.detail().contains("hunter2"), "{failure}");
        }
    }

    #[tokio::test]
    async fn an_error_names_the_server_and_the_reason_and_no_more_of_the_address() {
        // Bound, so that nobody else gets it, and listened on by nobody.
        let kept = tokio::net::TcpSocket::new_v4().unwrap();
        kept.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = kept.local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}/hunter2?token=hunter3");
        let failure = post(&url, &[], Vec::new()).await.err().unwrap();
        assert_eq!(failure.cause, Cause::CredentialsUnreachable);
        let text = failure.detail();
        assert!(text.contains(&format!("http://127.0.0.1:{port} could not")), "{text}");
        assert!(text.contains("Connection refused") && !text.contains("hunter"), "{text}");
    }
}
