//! Watches both directions of one connection: whether it is encrypted, who the client says it is, what it is about, how
//! long its queries take, and whether a message of ours may be put in at this moment without breaking the stream that the
//! client reads. [`crate::pump`] shows it every byte; what it reports, the pump counts.
//!
//! Memory is bounded: the startup message until it is read, and a few kilobytes of queries in a pipeline. On anything odd it
//! gives up for good, which costs the client nothing but a reset in place of an explanation.

use std::time::Instant;

use super::frame::OutOfStep;
use super::session::{Event, Session};
use super::startup::{First, Request, first_request, read_startup};
use crate::state::{Activity, Doing, StartupParameters};

/// Whether a client's session is readable on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The server agreed to TLS or GSSAPI encryption.
    Tls,
    /// The session began without.
    Plain,
}

#[derive(Clone, Debug)]
enum Stage {
    /// The client's next untyped request, as far as it has come.
    Asking { packet: Vec<u8> },
    /// One byte of the server decides about encryption.
    AwaitingAnswer,
    /// Typed messages.
    Session(Box<Session>),
    /// When the client's last byte was forwarded, while nothing has come back since.
    Encrypted { forwarded: Option<Instant> },
    /// There is no answer to a cancel request.
    Cancelling,
    /// Something that is not PostgreSQL, or whose thread we have lost.
    Unknown,
}

/// The watcher of one connection.
#[derive(Clone, Debug)]
pub struct Observer {
    stage: Stage,
    startup: Option<StartupParameters>,
    /// The activity that was seen last, and since when.
    noted: Doing,
}

impl Stage {
    fn asking() -> Self {
        Self::Asking { packet: Vec::new() }
    }

    fn session(replication: bool) -> Self {
        Self::Session(Box::new(Session::new(replication)))
    }

    fn activity(&self) -> Activity {
        match self {
            Self::Asking { .. } | Self::AwaitingAnswer => Activity::Starting,
            Self::Session(session) => session.activity(),
            Self::Encrypted { .. } => Activity::Encrypted,
            Self::Cancelling => Activity::Cancelling,
            Self::Unknown => Activity::Unknown,
        }
    }
}

impl Observer {
    /// The watcher of a connection that begins, `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        // A build that shows what watching costs: RUSTFLAGS="--cfg observer_off".
        let stage = if cfg!(observer_off) { Stage::Unknown } else { Stage::asking() };
        let noted = Doing { activity: stage.activity(), since: Some(now) };
        Self { stage, startup: None, noted }
    }

    /// Bytes on their way to the database, in order. They count as forwarded when [`forwarded`](Self::forwarded) says so.
    pub fn client_sends(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.stage {
                Stage::Asking { .. } => bytes = self.client_asks(bytes),
                Stage::Session(session) => {
                    if session.client_sends(bytes).is_err() {
                        self.stage = Stage::Unknown;
                    }
                    return;
                }
                _ => return,
            }
        }
    }

    /// Takes bytes of a request, and returns what comes behind it.
    fn client_asks<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Stage::Asking { packet } = &mut self.stage else { return bytes };
        let wanted = match first_request(packet) {
            First::Request(_, len) => len,
            _ => 8,
        };
        let (taken, rest) = bytes.split_at(wanted.saturating_sub(packet.len()).min(bytes.len()));
        packet.extend_from_slice(taken);
        self.stage = match first_request(packet) {
            First::Incomplete => return rest,
            First::DirectTls => Stage::Encrypted { forwarded: None },
            First::Request(Request::Ssl | Request::Gss, _) => Stage::AwaitingAnswer,
            First::Request(Request::Startup, len) if packet.len() < len => return rest,
            First::Request(Request::Startup, _) => {
                let startup = read_startup(packet);
                self.startup = startup.names;
                Stage::session(startup.replication)
            }
            First::Request(Request::Cancel, _) => Stage::Cancelling,
            First::Foreign => Stage::Unknown,
        };
        rest
    }

    /// All that the client has sent so far has been forwarded, `now`.
    pub fn forwarded(&mut self, now: Instant) {
        match &mut self.stage {
            Stage::Session(session) => session.forwarded(now),
            Stage::Encrypted { forwarded } => *forwarded = Some(now),
            _ => {}
        }
        self.note(false, || now);
    }

    /// Bytes on their way to the client, in order. `now` is only asked when something ends.
    pub fn server_sends(
        &mut self,
        mut bytes: &[u8],
        mut now: impl FnMut() -> Instant,
        mut report: impl FnMut(Event),
    ) {
        if matches!(self.stage, Stage::AwaitingAnswer)
            && let Some((answer, rest)) = bytes.split_first()
        {
            (self.stage, bytes) = match answer {
                b'S' | b'G' => (Stage::Encrypted { forwarded: None }, rest),
                b'N' => (Stage::asking(), rest),
                b'E' => (Stage::session(false), bytes),
                _ => (Stage::Unknown, rest),
            };
        }
        let watched = match &mut self.stage {
            _ if bytes.is_empty() => Ok(false),
            Stage::Session(session) => session.server_sends(bytes, &mut now, &mut report),
            Stage::Encrypted { forwarded } => {
                if let Some(at) = forwarded.take() {
                    report(Event::TurnedAround(now().saturating_duration_since(at)));
                }
                Ok(false)
            }
            // A server that speaks before it is asked is none of PostgreSQL's.
            Stage::Asking { .. } => Err(OutOfStep),
            _ => Ok(false),
        };
        let answered = watched.unwrap_or_else(|OutOfStep| {
            self.stage = Stage::Unknown;
            false
        });
        self.note(answered, now);
    }

    /// Notes since when the client is about something else, or about the same once more.
    fn note(&mut self, again: bool, now: impl FnOnce() -> Instant) {
        let activity = self.stage.activity();
        if again || activity != self.noted.activity {
            self.noted = Doing { activity, since: Some(now()) };
        }
    }

    /// Whether an error message may be sent to the client after all bytes that came from the server so far.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        match &self.stage {
            Stage::Asking { .. } => true,
            Stage::Session(session) => session.at_boundary(),
            _ => false,
        }
    }

    /// What the client is about.
    #[must_use]
    pub fn doing(&self) -> Doing {
        let activity = self.stage.activity();
        if activity == self.noted.activity { self.noted } else { Doing { activity, since: None } }
    }

    /// What the client said of itself, until it is taken.
    pub fn take_startup(&mut self) -> Option<StartupParameters> {
        self.startup.take()
    }

    /// Whether the session is encrypted, once that is known.
    #[must_use]
    pub fn encryption(&self) -> Option<Encryption> {
        match &self.stage {
            Stage::Encrypted { .. } => Some(Encryption::Tls),
            Stage::Session(_) => Some(Encryption::Plain),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
