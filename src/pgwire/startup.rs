//! The untyped messages with which a connection begins.

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

#[cfg(test)]
mod tests {
    use super::*;

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
