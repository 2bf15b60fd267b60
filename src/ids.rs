//! The names of things: bastions, databases, and what a bastion connects to.
//!
//! A value of these types has been checked once and cannot be wrong afterwards. Nothing here looks a name up.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// The name of a bastion or a database, as written in the configuration: `[a-z0-9][a-z0-9_-]*`, without `__`
/// (two underscores separate the parts of an environment variable's name) and at most 63 bytes long.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The longest accepted name, in bytes: long enough for any label, short enough for any file name.
    pub const MAX_LEN: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// Says in one sentence what the name must look like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let well_formed = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
            && !text.contains("__")
            && text.len() <= Self::MAX_LEN;
        if well_formed {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "\"{}\" is not a usable name: use lower-case letters, digits, '-' and single '_', starting with \
                 a letter or digit, at most {} characters",
                text.escape_debug(),
                Self::MAX_LEN
            ))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A host and port: of a bastion, or of a database as its bastion resolves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A host name or an IP address without brackets.
    pub host: Arc<str>,
    /// A TCP port.
    pub port: u16,
}

impl HostPort {
    /// Joins a host and a port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What a bastion connects to for a database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A host and port.
    Tcp(HostPort),
    /// The path of a Unix socket on the bastion.
    Unix(Arc<str>),
}

impl Target {
    /// The host, or the path.
    #[must_use]
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp(at) => &at.host,
            Self::Unix(path) => path,
        }
    }

    /// The port, where there is one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(at) => Some(at.port),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => at.fmt(f),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

/// PostgreSQL's Unix sockets are named this and the port (libpq, "Connection Strings", `host`).
pub const POSTGRES_SOCKET: &str = ".s.PGSQL.";

/// The longest path of a Unix socket, in bytes: Linux has 108, and the path ends with a zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Checks the path of a Unix socket: absolute, of a file and not too long.
///
/// # Errors
/// Says in one sentence what is wrong with it.
pub fn check_socket_path(path: &str) -> Result<(), String> {
    let shown = path.escape_debug();
    if path.len() > MAX_SOCKET_PATH {
        let len = path.len();
        return Err(format!(
            "\"{shown}\" is {len} bytes long: the path of a socket has at most {MAX_SOCKET_PATH}, so choose a shorter one"
        ));
    }
    if !path.starts_with('/') || path.contains(char::is_control) {
        return Err(format!("\"{shown}\" is not the path of a socket: write it from / on"));
    }
    if path.ends_with('/') {
        return Err(format!("\"{shown}\" is a directory: name the socket in it, \"{shown}.s.PGSQL.5432\""));
    }
    Ok(())
}

/// Checks the path of a Unix socket on a bastion: one that may also stand in a line of its `authorized_keys` and
/// `sshd_config`, where these characters would end it and begin an option.
///
/// # Errors
/// Says in one sentence what is wrong with it.
pub fn check_remote_socket_path(path: &str) -> Result<(), String> {
    check_socket_path(path)?;
    match path.chars().find(|c| c.is_whitespace() || r#""\,[]"#.contains(*c)) {
        Some(character) => Err(format!(
            "\"{}\" has {character:?} in it, which sshd cannot be told of: choose a path without",
            path.escape_debug()
        )),
        None => Ok(()),
    }
}

/// Checks the name of an account on a bastion. Commands that are printed for people to run there have it in them, so it
/// must mean nothing to a shell, nor to `sshd_config`, whose patterns have `*`, `?`, `!` and `,`.
///
/// # Errors
/// Says in one sentence what is wrong with it.
pub fn check_account(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    let odd = |c: char| c.is_whitespace() || c.is_control() || r#""'`$;&|<>()*?!,{}[]"#.contains(c);
    // A directory's accounts are DOMAIN\name.
    let loose_backslash = name.split('\\').any(str::is_empty);
    if loose_backslash || name.starts_with(['-', '#', '~']) || name.contains(odd) {
        return Err(format!("\"{}\" is not the name of an account", name.escape_debug()));
    }
    Ok(())
}

/// Checks a host: a DNS name or an IP address, without a port, a user or a scheme.
///
/// # Errors
/// Says in one sentence what is wrong with it.
pub fn check_host(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty: write a host name or an IP address".to_owned());
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if text.contains("://") || text.contains('@') || text.contains('/') {
        return Err(format!(
            "\"{}\" is not a host: write the name or IP address alone, without scheme, user or path",
            text.escape_debug()
        ));
    }
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && address.parse::<std::net::Ipv6Addr>().is_ok()
    {
        return Err(format!(
            "\"{text}\" is an address in brackets: write it without brackets, \"{address}\""
        ));
    }
    if text.contains(':') {
        return Err(format!("\"{}\" is not a host: write the port in the key `port`", text.escape_debug()));
    }
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if text.len() <= 253 && name.split('.').all(label_ok) {
        Ok(())
    } else {
        Err(format!("\"{}\" is not a host name or an IP address", text.escape_debug()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["prod", "a", "0", "a-b_c9", "analytics-eu_1"] {
            assert_eq!(Name::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "Prod", "-a", "_a", "a__b", "a.b", "a b", "ä", &"a".repeat(64)] {
            assert!(Name::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn hosts() {
        for good in
            ["db", "db.internal", "10.0.0.1", "::1", "fe80::1", "xn--bcher-kva.example", "a.b.", "my_db"]
        {
            assert_eq!(check_host(good), Ok(()), "{good}");
        }
        for bad in ["", "db:5432", "postgres://db", "user@db", "a b", "a..b", ".", "[::1]", "db/name"] {
            assert!(check_host(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_address_in_brackets_is_shown_without() {
        assert!(check_host("[::1]").unwrap_err().ends_with("write it without brackets, \"::1\""));
        assert!(check_host("[::1]:22").unwrap_err().contains("the key `port`"));
    }

    #[test]
    fn ipv6_is_shown_in_brackets() {
        assert_eq!(HostPort::new("::1", 22).to_string(), "[::1]:22");
        assert_eq!(HostPort::new("db.internal", 5432).to_string(), "db.internal:5432");
    }
    #[test]
    fn paths_of_sockets() {
        let longest = format!("/{}", "x".repeat(MAX_SOCKET_PATH - 1));
        for good in ["/run/postgresql/.s.PGSQL.5432", "/a", "/a b", longest.as_str()] {
            assert_eq!(check_socket_path(good), Ok(()), "{good}");
        }
        let too_long = format!("{longest}x");
        for (bad, expected) in [
            (too_long.as_str(), "is 108 bytes long: the path of a socket has at most 107"),
            ("run/x", "\"run/x\" is not the path of a socket: write it from / on"),
            ("/a\nb", "\"/a\\nb\" is not the path of a socket"),
            ("/run/postgresql/", "name the socket in it, \"/run/postgresql/.s.PGSQL.5432\""),
        ] {
            let text = check_socket_path(bad).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn paths_on_a_bastion_hold_no_options() {
        assert_eq!(check_remote_socket_path("/run/postgresql/.s.PGSQL.5432"), Ok(()));
        for bad in ["/a b", "/a\u{a0}b", "/a\"b", "/a\\b", "/a,b", "/a[b", "/a]b", "/a\nb", "a"] {
            assert!(check_remote_socket_path(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn accounts() {
        for good in
            ["tunnelkeeper", "_me", "a.b-c_d", "me@example.org", "me:target", "me#domain@host", "DOMAIN\\me"]
        {
            assert_eq!(check_account(good), Ok(()), "{good}");
        }
        for bad in [
            "", "-a", "a b", "a;b", "a$b", "a`b", "a|b", "a&b", "a<b", "a>b", "a\"b", "a'b", "a\nb", "a,b",
            "*", "a\\", "\\a", "a\\\\b",
        ] {
            assert!(check_account(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn targets_are_shown_as_they_were_written() {
        assert_eq!(Target::Tcp(HostPort::new("::1", 22)).to_string(), "[::1]:22");
        assert_eq!(Target::Unix("/run/x".into()).to_string(), "/run/x");
    }
}
