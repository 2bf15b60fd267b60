//! Watches both directions of one connection to know whether it is encrypted and, where it is not, whether a
//! message of ours may be put in at this moment without breaking the stream that the client reads.
//!
//! Memory is bounded by a few words. On anything odd it gives up for good, which costs the client nothing but a
//! reset in place of an explanation.

use super::frame::Frames;
use super::startup::{First, MAX_STARTUP_LEN, Request, first_request};

/// Whether a client's session is readable on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The server agreed to TLS or GSSAPI encryption.
    Tls,
    /// The session began without.
    Plain,
}

/// What a client is about, as far as its connection shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It has not begun a session, or the session does not take queries yet.
    Starting,
    /// It has asked, and waits for the end of the answer.
    InQuery,
    /// The server waits for it.
    Idle,
    /// TLS hides it.
    Encrypted,
    /// It is not PostgreSQL, or nothing that we follow.
    Unknown,
}

impl Activity {
    /// The words for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::InQuery => "in a query",
            Self::Idle => "idle",
            Self::Encrypted => "encrypted",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug)]
enum Stage {
    /// The client's next untyped request: the bytes of its header so far, and what is left of its body.
    Asking {
        header: Vec<u8>,
        remaining: usize,
    },
    /// One byte of the server decides about encryption.
    AwaitingAnswer,
    /// Typed messages from the server.
    Session {
        frames: Frames,
        activity: Activity,
    },
    Encrypted,
    /// A cancel request, or something that is not PostgreSQL.
    Opaque,
}

/// The watcher of one connection.
#[derive(Clone, Debug)]
pub struct Observer {
    stage: Stage,
}

impl Default for Observer {
    fn default() -> Self {
        Self { stage: Stage::asking() }
    }
}

impl Stage {
    fn asking() -> Self {
        Self::Asking { header: Vec::new(), remaining: 0 }
    }

    fn session() -> Self {
        Self::Session { frames: Frames::default(), activity: Activity::Starting }
    }
}

impl Observer {
    /// Bytes on their way to the database, in order.
    pub fn client_sent(&mut self, mut bytes: &[u8]) {
        if let Stage::Session { activity: activity @ Activity::Idle, .. } = &mut self.stage {
            *activity = Activity::InQuery;
        }
        while !bytes.is_empty() {
            let Stage::Asking { header, remaining } = &mut self.stage else { return };
            if *remaining > 0 {
                let skipped = (*remaining).min(bytes.len());
                *remaining -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                if *remaining == 0 {
                    self.stage = Stage::session();
                }
                continue;
            }
            let (head, rest) = bytes.split_at((8 - header.len()).min(bytes.len()));
            header.extend_from_slice(head);
            bytes = rest;
            match first_request(header) {
                First::Incomplete => {}
                First::DirectTls => self.stage = Stage::Encrypted,
                First::Request(Request::Ssl | Request::Gss, _) => self.stage = Stage::AwaitingAnswer,
                First::Request(Request::Startup, len) => *remaining = len.min(MAX_STARTUP_LEN) - 8,
                First::Request(Request::Cancel, _) | First::Foreign => self.stage = Stage::Opaque,
            }
        }
    }

    /// Bytes on their way to the client, in order.
    pub fn server_sent(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if matches!(self.stage, Stage::AwaitingAnswer)
            && let Some((answer, rest)) = bytes.split_first()
        {
            (self.stage, bytes) = match answer {
                b'S' | b'G' => (Stage::Encrypted, rest),
                b'N' => (Stage::asking(), rest),
                b'E' => (Stage::session(), bytes),
                _ => (Stage::Opaque, rest),
            };
        }
        let out_of_step = match &mut self.stage {
            Stage::Session { frames, activity } => {
                let note = |kind, _, _: &[u8]| {
                    // ReadyForQuery.
                    if kind == b'Z' {
                        *activity = Activity::Idle;
                    }
                };
                frames.feed(bytes, note).is_err()
            }
            // A server that speaks before it is asked is none of PostgreSQL's.
            Stage::Asking { .. } => !bytes.is_empty(),
            _ => false,
        };
        if out_of_step {
            self.stage = Stage::Opaque;
        }
    }

    /// Whether an error message may be sent to the client after all bytes that came from the server so far.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        match &self.stage {
            Stage::Asking { .. } => true,
            Stage::Session { frames, .. } => frames.at_boundary(),
            _ => false,
        }
    }

    /// What the client is about.
    #[must_use]
    pub fn activity(&self) -> Activity {
        match &self.stage {
            Stage::Asking { .. } | Stage::AwaitingAnswer => Activity::Starting,
            Stage::Session { activity, .. } => *activity,
            Stage::Encrypted => Activity::Encrypted,
            Stage::Opaque => Activity::Unknown,
        }
    }

    /// Whether the session is encrypted, once that is known.
    #[must_use]
    pub fn encryption(&self) -> Option<Encryption> {
        match &self.stage {
            Stage::Encrypted => Some(Encryption::Tls),
            Stage::Session { .. } => Some(Encryption::Plain),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::SSL_REQUEST;
    use super::*;

    const STARTUP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    /// `c` and `s` say who sends.
    fn watch(exchange: &[(char, &[u8])]) -> Observer {
        let mut observer = Observer::default();
        for (who, bytes) in exchange {
            for byte in *bytes {
                match who {
                    'c' => observer.client_sent(&[*byte]),
                    _ => observer.server_sent(&[*byte]),
                }
            }
        }
        observer
    }

    #[test]
    fn boundaries_and_encryption() {
        let plain = Some(Encryption::Plain);
        let tls = Some(Encryption::Tls);
        for (exchange, boundary, encryption) in [
            (&[][..], true, None),
            (&[('c', &SSL_REQUEST[..])], false, None),
            (&[('c', &SSL_REQUEST), ('s', b"S")], false, tls),
            (&[('c', &SSL_REQUEST), ('s', b"N")], true, None),
            (&[('c', &SSL_REQUEST), ('s', b"N"), ('c', STARTUP)], true, plain),
            (&[('c', STARTUP), ('s', READY)], true, plain),
            (&[('c', STARTUP), ('s', &READY[..3])], false, plain),
            (&[('c', STARTUP), ('s', READY), ('c', b"Q\0\0\0\x06;\0"), ('s', READY)], true, plain),
            (&[('c', b"\x16\x03\x01")], false, tls),
            (&[('c', b"GET / HTTP/1.1\r\n")], false, None),
            (&[('c', STARTUP), ('s', b"\0\0\0\0\0")], false, None),
            (&[('s', b"220 hello")], false, None),
            (&[('c', &SSL_REQUEST), ('s', b"E\0\0\0\x04")], true, plain),
        ] {
            let observer = watch(exchange);
            assert_eq!(
                (observer.at_boundary(), observer.encryption()),
                (boundary, encryption),
                "{exchange:?}"
            );
        }
    }

    #[test]
    fn activities() {
        const QUERY: &[u8] = b"Q\0\0\0\x06;\0";
        for (exchange, expected) in [
            (&[][..], Activity::Starting),
            (&[('c', STARTUP)], Activity::Starting),
            (&[('c', STARTUP), ('s', READY)], Activity::Idle),
            (&[('c', STARTUP), ('s', READY), ('c', QUERY)], Activity::InQuery),
            (&[('c', STARTUP), ('s', READY), ('c', QUERY), ('s', b"C\0\0\0\x05\0")], Activity::InQuery),
            (&[('c', STARTUP), ('s', READY), ('c', QUERY), ('s', READY)], Activity::Idle),
            (&[('c', &SSL_REQUEST), ('s', b"S")], Activity::Encrypted),
            (&[('c', b"GET / HTTP/1.1\r\n")], Activity::Unknown),
        ] {
            assert_eq!(watch(exchange).activity(), expected, "{exchange:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            bytes in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..20),
        ) {
            let mut observer = Observer::default();
            for (client, bytes) in &bytes {
                if *client { observer.client_sent(bytes) } else { observer.server_sent(bytes) }
            }
        }
    }
}
