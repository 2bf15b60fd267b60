//! The address of a cloud's own service, which is shown secrets: it is asked over HTTPS, and otherwise only on this machine.

use std::net::IpAddr;

use serde_json::{Value as Json, json};

use super::reader::Given;
use super::values::{Setting, text};
use crate::ids::check_host;

/// `https://HOST[:PORT]`, or `http://` on a loopback address, without a slash at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceUrl(pub(super) String);

const FORM: &str = "write https://HOST, without a path";

impl ServiceUrl {
    fn parse(text: &str) -> Result<Self, String> {
        // A password may be any text, so that nothing of what has one is shown.
        if text.contains('@') {
            return Err(format!("has a user or a password in it, which no request would carry: {FORM}"));
        }
        let wrong = |what: &str| Err(format!("\"{}\" {what}: {FORM}", text.escape_debug()));
        let Some((scheme, rest)) = text.split_once("://") else { return wrong("has no scheme") };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return wrong("has a path");
        }
        let Some(host) = host_of(authority) else { return wrong("names no host") };
        match scheme.to_ascii_lowercase().as_str() {
            "https" => {}
            "http" if is_loopback(host) => {}
            "http" => return wrong("is not encrypted"),
            _ => return wrong("is not HTTPS"),
        }
        Ok(Self(format!("{}://{authority}", scheme.to_ascii_lowercase())))
    }
}

/// The host of `HOST`, `HOST:PORT` or `[IPv6]:PORT`, if all of it is well formed.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            check_host(host).ok()?;
            (host, port)
        }
    };
    let port_is_good = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    port_is_good.then_some(host)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Setting for ServiceUrl {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        Self::parse(text(given, "https://HOST")?)
    }
    fn show(&self) -> Json {
        json!(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_services() {
        for (text, expected) in [
            ("https://dbc-1.cloud.databricks.com", "https://dbc-1.cloud.databricks.com"),
            ("HTTPS://dbc-1.cloud.databricks.com/", "https://dbc-1.cloud.databricks.com"),
            ("https://10.0.0.1:8443", "https://10.0.0.1:8443"),
            ("https://[fd00::1]:8443", "https://[fd00::1]:8443"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("http://[::1]:5000/", "http://[::1]:5000"),
            ("http://localhost", "http://localhost"),
        ] {
            assert_eq!(ServiceUrl::parse(text).unwrap().0, expected);
        }
        for (text, expected) in [
            ("dbc-1.cloud.databricks.com", "has no scheme: write https://HOST"),
            ("https://host/?o=123", "has a path"),
            ("https://host#x", "has a path"),
            ("https://", "names no host"),
            ("https://host:", "names no host"),
            ("https://host:0", "names no host"),
            ("https://host:+1", "names no host"),
            ("https://host:70000", "names no host"),
            ("https://[::1", "names no host"),
            ("https://a b", "names no host"),
            ("http://10.0.0.1", "is not encrypted"),
            ("http://localhost.example.com", "is not encrypted"),
            ("ftp://host", "is not HTTPS"),
        ] {
            let error = ServiceUrl::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for text in [
            "https://u:hunter2@host",
            "https://u:hunter2/?#@host/x",
            "u:hunter2@host",
            "https://hunter2@host",
        ] {
            let error = ServiceUrl::parse(text).unwrap_err();
            assert!(error.starts_with("has a user or a password in it"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
