//! A session without encryption, from its startup message on: query cycles, transactions, COPY and errors.
//!
//! Source: PostgreSQL documentation, "Message Flow". Of a body it looks at the status of a `ReadyForQuery` and the code of
//! an error, and at nothing else. Whatever it does not know puts it out of step, and [`super::Observer`] gives up then.

use std::time::{Duration, Instant};

use super::cycles::{Cycles, Forwarded};
use super::error::{ErrorClass, ErrorFields};
use super::frame::{Frames, OutOfStep, Part};
use crate::state::Activity;

/// Something to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A query, or a batch that ended with a `Sync`, was answered to its end: the time from when its last byte was forwarded
    /// until the `ReadyForQuery`. Zero where the answer was there first.
    Answered(Duration),
    /// The server answered a query with an error.
    Failed(ErrorClass),
    /// The time from the last byte that an encrypted client sent until the first that came back.
    TurnedAround(Duration),
}

/// What the server said of itself when it was ready last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    LoggingIn,
    Idle,
    InTransaction,
    InFailedTransaction,
    /// It has said that it ends the session.
    Over,
}

/// Which way the rows of a COPY go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    OneWay,
    /// A replication.
    BothWays,
}

/// Both directions of one session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    from_client: Frames,
    from_server: Frames,
    conversation: Conversation,
}

#[derive(Clone, Debug)]
struct Conversation {
    status: Status,
    cycles: Cycles,
    copy: Option<Copy>,
    error: ErrorFields,
    /// Its cycles say something of the database: a replication's do not.
    timed: bool,
}

impl Session {
    pub(super) fn new(replication: bool) -> Self {
        let conversation = Conversation {
            status: Status::LoggingIn,
            cycles: Cycles::default(),
            copy: None,
            error: ErrorFields::default(),
            timed: !replication,
        };
        Self { from_client: Frames::default(), from_server: Frames::default(), conversation }
    }

    pub(super) fn client_sends(&mut self, bytes: &[u8]) -> Result<(), OutOfStep> {
        let Self { from_client, conversation, .. } = self;
        from_client.feed(bytes, |kind| kind == COPY_DATA, |part| conversation.client_says(&part))
    }

    pub(super) fn forwarded(&mut self, now: Instant) {
        self.conversation.cycles.forwarded(now);
    }

    /// Whether a query was answered to its end by these bytes.
    pub(super) fn server_sends(
        &mut self,
        bytes: &[u8],
        now: &mut impl FnMut() -> Instant,
        report: &mut impl FnMut(Event),
    ) -> Result<bool, OutOfStep> {
        let Self { from_server, conversation, .. } = self;
        let mut answered = false;
        from_server.feed(
            bytes,
            |kind| kind == DATA_ROW || kind == COPY_DATA,
            |part| {
                answered |= part.kind == READY_FOR_QUERY && part.ends();
                conversation.server_says(&part, now, report)
            },
        )?;
        Ok(answered)
    }

    /// Whether the server's bytes so far end where a message ends.
    pub(super) fn at_boundary(&self) -> bool {
        self.from_server.at_boundary()
    }

    pub(super) fn activity(&self) -> Activity {
        self.conversation.activity()
    }
}

const READY_FOR_QUERY: u8 = b'Z';
const DATA_ROW: u8 = b'D';
const COPY_DATA: u8 = b'd';

impl Conversation {
    #[inline]
    fn client_says(&mut self, part: &Part<'_>) -> Result<(), OutOfStep> {
        match part.kind {
            COPY_DATA => Ok(()),
            // CopyDone, CopyFail.
            b'c' | b'f' if part.ends() => self.cycles.copy_ended(),
            // Query, FunctionCall; Parse, Bind, Describe, Execute.
            b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' => {
                if part.begins {
                    self.cycles.begin()?;
                }
                match part.kind {
                    b'Q' | b'F' if part.ends() => self.cycles.query(),
                    b'E' if part.ends() => {
                        self.cycles.executed();
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            b'S' if part.whole_len() == Some(0) => self.cycles.sync(),
            // Close, Flush, Terminate; a password, which is not looked at.
            b'c' | b'f' | b'C' | b'H' | b'X' | b'p' => Ok(()),
            _ => Err(OutOfStep),
        }
    }

    #[inline]
    fn server_says(
        &mut self,
        part: &Part<'_>,
        now: &mut impl FnMut() -> Instant,
        report: &mut impl FnMut(Event),
    ) -> Result<(), OutOfStep> {
        match part.kind {
            DATA_ROW | COPY_DATA => Ok(()),
            READY_FOR_QUERY => match part.body {
                [status] if part.ends() => self.ready(*status, now, report),
                [] if part.begins && part.left == 1 => Ok(()),
                _ => Err(OutOfStep),
            },
            b'E' => {
                self.error.feed(part.body);
                if part.ends() {
                    self.failed(report);
                }
                Ok(())
            }
            // CopyInResponse, CopyBothResponse, CopyOutResponse.
            b'G' | b'W' if part.ends() => {
                self.copy = Some(if part.kind == b'W' { Copy::BothWays } else { Copy::OneWay });
                self.cycles.copy_in_began()
            }
            b'H' if part.ends() => {
                self.copy = Some(Copy::OneWay);
                Ok(())
            }
            b'G' | b'W' | b'H' => Ok(()),
            // CommandComplete: of a COPY too.
            b'C' => {
                self.copy = None;
                Ok(())
            }
            // What a login consists of; what may come at any time; the rest of an answer.
            b'R' | b'K' | b'v' | b'S' | b'N' | b'A' | b'T' | b't' | b'I' | b'V' | b'1' | b'2' | b'3'
            | b'n' | b's' | b'c' => Ok(()),
            _ => Err(OutOfStep),
        }
    }

    #[cold]
    fn failed(&mut self, report: &mut impl FnMut(Event)) {
        let error = std::mem::take(&mut self.error).finish();
        // Without a question there is nothing that failed: the server has its own reason to end the session.
        if self.status != Status::LoggingIn && self.cycles.are_open() {
            report(Event::Failed(error.class));
        }
        self.copy = None;
        self.cycles.failed();
        if error.fatal {
            self.status = Status::Over;
        }
    }

    fn ready(
        &mut self,
        status: u8,
        now: &mut impl FnMut() -> Instant,
        report: &mut impl FnMut(Event),
    ) -> Result<(), OutOfStep> {
        let logged_in = self.status != Status::LoggingIn;
        self.status = match status {
            b'I' => Status::Idle,
            b'T' => Status::InTransaction,
            b'E' => Status::InFailedTransaction,
            _ => return Err(OutOfStep),
        };
        self.copy = None;
        if !logged_in {
            return Ok(());
        }
        let duration = match self.cycles.answered()? {
            Forwarded::At(at) => now().saturating_duration_since(at),
            Forwarded::NotYet => Duration::ZERO,
            Forwarded::Forgotten => return Ok(()),
        };
        if self.timed {
            report(Event::Answered(duration));
        }
        Ok(())
    }

    fn activity(&self) -> Activity {
        match (self.status, self.copy) {
            (Status::LoggingIn, _) => Activity::Starting,
            (Status::Over, _) => Activity::Dismissed,
            (_, Some(Copy::OneWay)) => Activity::Copying,
            (_, Some(Copy::BothWays)) => Activity::Replicating,
            _ if self.cycles.are_open() => Activity::InQuery,
            (Status::Idle, _) => Activity::Idle,
            (Status::InTransaction, _) => Activity::InTransaction,
            (Status::InFailedTransaction, _) => Activity::InFailedTransaction,
        }
    }
}
