//! The untyped messages with which a connection begins.

use crate::failure::one_line;
use crate::state::StartupParameters;

/// PostgreSQL's own bound on a startup packet, in bytes (`MAX_STARTUP_PACKET_LENGTH` in its source).
pub const MAX_STARTUP_LEN: usize = 10_000;

/// Asks the server for TLS; it answers with one byte.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

const CODE_CANCEL: u32 = 80_877_102;
const CODE_SSL: u32 = 80_877_103;
const CODE_GSS: u32 = 80_877_104;

/// The first byte of a TLS record with a handshake message: libpq 17's `sslnegotiation=direct`.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client asks for in one untyped message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TLS, please; the answer is one byte.
    Ssl,
    /// GSSAPI encryption, please; the answer is one byte.
    Gss,
    /// Cancel the query of another connection; there is no answer.
    Cancel,
    /// Begin a session; typed messages follow.
    Startup,
}

/// What the first bytes of a client are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Too few bytes to tell.
    Incomplete,
    /// A TLS handshake without asking first.
    DirectTls,
    /// A request of so many bytes, of which some may not be there yet.
    Request(Request, usize),
    /// Not PostgreSQL.
    Foreign,
}

/// Reads the first request in `bytes`.
#[must_use]
pub fn first_request(bytes: &[u8]) -> First {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return First::DirectTls;
    }
    let Some((header, _)) = bytes.split_first_chunk::<8>() else {
        return if bytes.first().is_none_or(|byte| *byte == 0) { First::Incomplete } else { First::Foreign };
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let code = u32::from_be_bytes([c0, c1, c2, c3]);
    match code {
        CODE_SSL if len == 8 => First::Request(Request::Ssl, len),
        CODE_GSS if len == 8 => First::Request(Request::Gss, len),
        CODE_CANCEL if (16..=MAX_STARTUP_LEN).contains(&len) => First::Request(Request::Cancel, len),
        _ if code >> 16 == 3 && (9..=MAX_STARTUP_LEN).contains(&len) => First::Request(Request::Startup, len),
        _ => First::Foreign,
    }
}

/// The longest name that is kept, in characters. PostgreSQL cuts names at 63 bytes (`NAMEDATALEN` in its source), Amazon
/// Redshift at 127.
const MAX_NAME: usize = 127;

/// What a startup message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Startup {
    /// Whose session it is. No server lets in whoever names no user.
    pub(super) names: Option<StartupParameters>,
    /// It will stream a replication.
    pub(super) replication: bool,
}

/// Reads a whole startup message; of its parameters only those that we show.
pub(super) fn read_startup(packet: &[u8]) -> Startup {
    let mut texts = packet.get(8..).unwrap_or_default().split(|byte| *byte == 0);
    let (mut user, mut database, mut application_name, mut replication) = (None, None, None, false);
    // The list ends with an empty name.
    while let (Some(key @ [_, ..]), Some(value)) = (texts.next(), texts.next()) {
        let slot = match key {
            b"user" => &mut user,
            b"database" => &mut database,
            b"application_name" => &mut application_name,
            b"replication" => {
                replication = !matches!(value, b"" | b"false" | b"f" | b"off" | b"no" | b"n" | b"0");
                continue;
            }
            _ => continue,
        };
        *slot = Some(one_line(&String::from_utf8_lossy(value), MAX_NAME)).filter(|name| !name.is_empty());
    }
    let names = user.map(|user| {
        let database = database.unwrap_or_else(|| user.clone());
        StartupParameters { user, database, application_name }
    });
    Startup { names, replication }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[u8]) -> Startup {
        read_startup(&[b"\0\0\0\0\0\x03\0\0", pairs].concat())
    }

    #[test]
    fn startups() {
        let names = |user: &str, database: &str, application: Option<&str>| {
            let application_name = application.map(str::to_owned);
            Some(StartupParameters { user: user.to_owned(), database: database.to_owned(), application_name })
        };
        for (pairs, expected, replication) in [
            (&b"user\0me\0\0"[..], names("me", "me", None), false),
            (b"user\0me\0database\0d\0application_name\0psql\0\0", names("me", "d", Some("psql")), false),
            (b"application_name\0\0user\0me\0options\0-c x=y\0\0", names("me", "me", None), false),
            (b"user\0me\0replication\0database\0\0", names("me", "me", None), true),
            (b"user\0me\0replication\0off\0\0", names("me", "me", None), false),
            // What comes behind the end, and what has none.
            (b"user\0me\0\0database\0d\0", names("me", "me", None), false),
            (b"user\0me\0database\0d", names("me", "d", None), false),
            (b"user", None, false),
            (b"database\0d\0\0", None, false),
            (b"\0", None, false),
            (b"", None, false),
        ] {
            assert_eq!(parameters(pairs), Startup { names: expected, replication }, "{pairs:?}");
        }
    }

    #[test]
    fn names_are_short_and_harmless() {
        let pairs =
            [b"user\0\x1b[2J\nevil\xff\0application_name\0", &b"x".repeat(5000)[..], b"\0\0"].concat();
        let names = parameters(&pairs).names.unwrap();
        assert_eq!(names.user, " [2J evil\u{fffd}");
        assert_eq!(names.application_name.unwrap().chars().count(), MAX_NAME + 1);
    }

    #[test]
    fn first_requests() {
        let startup = [0, 0, 0, 9, 0, 3, 0, 0, 0];
        let newer = [0, 0, 0, 9, 0, 3, 0, 2, 0];
        let cancel = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2];
        for (bytes, expected) in [
            (&[][..], First::Incomplete),
            (&SSL_REQUEST[..7], First::Incomplete),
            (&SSL_REQUEST[..], First::Request(Request::Ssl, 8)),
            (&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30], First::Request(Request::Gss, 8)),
            (&startup, First::Request(Request::Startup, 9)),
            (&newer, First::Request(Request::Startup, 9)),
            (&cancel, First::Request(Request::Cancel, 16)),
            (&[0x16, 3, 1], First::DirectTls),
            (b"GET / HTTP/1.1\r\n", First::Foreign),
            (b"GET", First::Foreign),
            (&[0, 0, 0, 9, 0, 2, 0, 0, 0], First::Foreign),
            (&[0, 0, 0, 9, 0x04, 0xd2, 0x16, 0x2f, 0], First::Foreign),
            (&[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0], First::Foreign),
            (&[0, 1, 0, 0, 0, 3, 0, 0], First::Foreign),
        ] {
            assert_eq!(first_request(bytes), expected, "{bytes:?}");
        }
    }
}
