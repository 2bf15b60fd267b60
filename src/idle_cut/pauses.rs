//! The pauses of one connection: how long nothing passed in either direction, and what ended them.

use std::time::{Duration, Instant};

/// Shorter ones are no pauses.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Kept by whoever moves the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// The last byte received.
    heard: Instant,
    /// The last byte in either direction.
    last: Instant,
    /// We spoke since the last byte received: first after the longest of these pauses.
    asked: Option<Duration>,
    survived: Duration,
    /// The last pause that was ended by the other side.
    answered_by_peer: Option<Duration>,
    ended: Option<Instant>,
}

/// How the pauses of a connection were when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastPause {
    /// From the last byte to the end.
    pub tail: Duration,
    /// The longest pause after which we said something and got no answer; zero where none was asked for.
    pub asked: Duration,
    /// The longest pause after which a byte was received.
    pub survived: Duration,
    /// The last pause that the other side ended of itself.
    pub rhythm: Option<Duration>,
}

impl Pauses {
    /// Of a connection that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            heard: now,
            last: now,
            asked: None,
            survived: Duration::ZERO,
            answered_by_peer: None,
            ended: None,
        }
    }

    /// Bytes were sent.
    pub fn sent(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last);
        self.asked = Some(self.asked.unwrap_or_default().max(pause));
        self.last = now;
    }

    /// Bytes were received.
    pub fn received(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last);
        self.survived = self.survived.max(pause).max(self.asked.take().unwrap_or_default());
        if pause >= SHORTEST {
            self.answered_by_peer = Some(pause);
        }
        (self.heard, self.last) = (now, now);
    }

    /// The connection has ended. The first time stands.
    pub fn end(&mut self, now: Instant) {
        self.ended.get_or_insert(now);
    }

    /// When a byte was received last; at first, when the connection began.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// The longest pause after which a byte was received.
    #[must_use]
    pub fn survived(&self) -> Duration {
        self.survived
    }

    /// How it was at its end, which is now unless it was seen before.
    #[must_use]
    pub fn last(&self, now: Instant) -> LastPause {
        LastPause {
            tail: self.ended.unwrap_or(now).saturating_duration_since(self.last),
            asked: self.asked.unwrap_or_default(),
            survived: self.survived,
            rhythm: self.answered_by_peer,
        }
    }
}
