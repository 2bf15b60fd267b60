//! The messages that the daemon itself sends to a client.

/// Our answer to a request for encryption while there is no server to encrypt with.
pub const ENCRYPTION_REFUSED: u8 = b'N';

/// The SQLSTATE codes of our errors (PostgreSQL documentation, appendix "PostgreSQL Error Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlState {
    /// 57P03: the server cannot be reached now; clients that retry at all retry this one.
    CannotConnectNow,
    /// 57P01: the connection was ended from the server's side.
    AdminShutdown,
    /// 57P05: the connection was idle for too long.
    IdleSessionTimeout,
    /// 53300: a limit on connections was reached.
    TooManyConnections,
}

impl SqlState {
    /// The five characters of the code.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CannotConnectNow => "57P03",
            Self::AdminShutdown => "57P01",
            Self::IdleSessionTimeout => "57P05",
            Self::TooManyConnections => "53300",
        }
    }
}

/// An `ErrorResponse` of severity FATAL: the client prints `message` and gives the connection up.
#[must_use]
pub fn fatal(code: SqlState, message: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(message.len() + 32);
    for (field, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code.as_str()), (b'M', message)] {
        body.push(field);
        body.extend(text.bytes().filter(|byte| *byte != 0));
        body.push(0);
    }
    body.push(0);
    let len = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut packet = vec![b'E'];
    packet.extend(len.to_be_bytes());
    packet.extend(body);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_as_the_protocol_wants_it() {
        let packet = fatal(SqlState::CannotConnectNow, "no\0pe");
        assert_eq!(packet, b"E\0\0\0\x20SFATAL\0VFATAL\0C57P03\0Mnope\0\0".to_vec());
        assert_eq!(u32::from_be_bytes(packet[1..5].try_into().unwrap()) as usize, packet.len() - 1);
    }
}
