//! One request over HTTPS, to a service that makes logins. It follows no redirect, keeps no connection, and is bounded in
//! time and size. For the makers of logins beside it.

use std::error::Error;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::failure::{Cause, Failure};

/// For all of it, from the first look-up of the name to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);

/// More than any answer has, in bytes.
const MAX_LEN: usize = 64 << 10;

/// What came back.
pub(super) struct Answer {
    /// HTTP's.
    pub status: u16,
    /// It may have a secret in it.
    pub body: Zeroizing<Vec<u8>>,
}

/// Posts.
///
/// # Errors
/// `credentials` `unreachable`, or `invalid_answer` if it is too long.
pub(super) async fn post(url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, Failure> {
    send(Method::POST, url, headers, body).await
}

/// Gets.
///
/// # Errors
/// As those of [`post`].
pub(super) async fn get(url: &str, headers: &[(&str, &str)]) -> Result<Answer, Failure> {
    send(Method::GET, url, headers, Vec::new()).await
}

async fn send(method: Method, url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, Failure> {
    let place = url.split(['?', '#']).next().unwrap_or(url);
    let exchanged = timeout(DEADLINE, exchange(method, url, headers, body)).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", DEADLINE.as_secs());
        Err(Failure::new(Cause::CredentialsUnreachable, text))
    });
    exchanged.map_err(|failure| failure.at(place))
}

async fn exchange(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<Answer, Failure> {
    let mut client = Client::builder().redirect(Policy::none()).pool_max_idle_per_host(0);
    if url.starts_with("http:") {
        // Only this machine's own services are asked in clear, and no proxy shall see it.
        client = client.no_proxy();
    }
    let mut request = client.build().map_err(unreachable)?.request(method, url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send().await.map_err(unreachable)?;
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_LEN));
    while let Some(part) = response.chunk().await.map_err(unreachable)? {
        if body.len() + part.len() > MAX_LEN {
            let text = format!("the answer is longer than {MAX_LEN} bytes");
            return Err(Failure::new(Cause::CredentialsInvalidAnswer, text));
        }
        body.extend_from_slice(&part);
    }
    Ok(Answer { status: response.status().as_u16(), body })
}

fn unreachable(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let causes = std::iter::successors(Some(&error as &dyn Error), |error| (*error).source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    Failure::new(Cause::CredentialsUnreachable, causes.join(": "))
}
