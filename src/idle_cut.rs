//! What cuts sessions again and again: a pure rule over how idle and how old they were when they were lost.
//!
//! A load balancer or NAT forgets what is idle for a time, or answers the next packet with a reset; a proxy ends
//! whatever has lasted for a time; an sshd hangs up where its ClientAlive questions stay unanswered: at the moment at
//! which it would have asked again (OpenSSH 9.2, serverloop.c, client_alive_check), and without a word. One loss proves
//! nothing, since every session is idle for some time when its bastion is restarted. So a cut is claimed from three
//! losses at the same time only, and not where sessions are known to have lived through more, before or since.

pub mod pauses;

use std::time::{Duration, Instant};

use crate::failure::Cause;
use crate::state::{CutAfter, SessionCut};
use pauses::{LastPause, SHORTEST};

/// So many losses are a pattern.
const PROVED_BY: u32 = 3;

/// Sessions that live less long are not cut for their age, but do not come to life.
const YOUNGEST: Duration = Duration::from_secs(4);

/// A session that was lost.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Why.
    pub cause: Cause,
    /// How long it had served.
    pub age: Duration,
    /// How its connection was at the end.
    pub pause: LastPause,
}

impl Loss {
    /// How long it was idle, and whether that was found out by asking.
    #[must_use]
    pub fn idle(&self) -> (Duration, bool) {
        let LastPause { tail, asked, .. } = self.pause;
        // We waited for an answer in vain, and ended it ourselves.
        let silent = self.cause == Cause::SessionKeepaliveTimeout;
        if silent || asked > tail { (asked, true) } else { (tail, false) }
    }
}

/// What the losses of one bastion look like.
#[derive(Clone, Debug, Default)]
pub struct IdleCuts {
    idle: Suspicion,
    /// Its ends showed themselves only when we asked.
    at_most: bool,
    client_alive: Suspicion,
    age: Suspicion,
}

impl IdleCuts {
    /// Takes note of a session that was lost at `now`. Says whether it was lost as the ones before it.
    pub fn lost(&mut self, loss: Loss, now: Instant) -> bool {
        if !matches!(loss.cause, Cause::SessionClosed | Cause::SessionReset | Cause::SessionKeepaliveTimeout)
        {
            return false;
        }
        let ended_by_others = loss.cause != Cause::SessionKeepaliveTimeout;
        let mut fits = false;
        let (idle, asked) = loss.idle();
        // We ask after one time of silence, always the same, which sessions live through as long as they are well.
        let lived_through = loss.pause.survived + if asked { idle_tolerance(idle) } else { Duration::ZERO };
        let rhythm = loss.pause.rhythm.filter(|_| ended_by_others && !asked);
        if let Some(rhythm) = rhythm.filter(|rhythm| rhythm.abs_diff(idle) <= RHYTHM_TOLERANCE) {
            fits |= self.client_alive.note(rhythm, idle_tolerance(rhythm), now);
        } else if idle >= SHORTEST && lived_through < idle {
            if asked != self.at_most {
                (self.idle, self.at_most) = (Suspicion::default(), asked);
            }
            fits |= self.idle.note(idle, idle_tolerance(idle), now);
        }
        if ended_by_others && loss.age >= YOUNGEST {
            fits |= self.age.note(loss.age, age_tolerance(loss.age), now);
        }
        fits
    }

    /// A session lives that has come through such a pause, and to such an age.
    pub fn lives(&mut self, survived: Duration, age: Duration) {
        // Where the end is found by asking, the time is that after which we ask.
        let tolerance = idle_tolerance(self.idle.typical);
        let survived = if self.at_most { survived + 2 * tolerance } else { survived };
        self.idle.refute(survived, tolerance);
        self.age.refute(age, age_tolerance(age));
        // While it answers, whoever asks is content: one that has lived for many questions had answers to them.
        if self.client_alive.typical * CONTENT_AFTER < age {
            self.client_alive = Suspicion::default();
        }
    }

    /// What cuts sessions, if that is proved.
    #[must_use]
    pub fn finding(&self) -> Option<SessionCut> {
        let idle = CutAfter::Idle { at_most: self.at_most };
        let all =
            [(idle, &self.idle), (CutAfter::ClientAlive, &self.client_alive), (CutAfter::Age, &self.age)];
        all.into_iter()
            .find(|(_, suspicion)| suspicion.losses >= PROVED_BY)
            .map(|(after, suspicion)| SessionCut { after, time: suspicion.typical, losses: suspicion.losses })
    }
}

/// sshd asks on the second, and hangs up on the second.
const RHYTHM_TOLERANCE: Duration = Duration::from_millis(300);

/// A session that has lived for so many times the rhythm has been content with our answers.
const CONTENT_AFTER: u32 = 100;

/// Timers of load balancers tick by the second, and their rounds take a while.
fn idle_tolerance(time: Duration) -> Duration {
    (time / 10).max(Duration::from_secs(1))
}

/// What ends sessions at an age is exact, and chance would look alike otherwise.
fn age_tolerance(time: Duration) -> Duration {
    (time / 50).max(Duration::from_millis(500))
}

/// Losses in succession that came after about the same time.
#[derive(Clone, Debug, Default)]
struct Suspicion {
    /// Their mean.
    typical: Duration,
    losses: u32,
    last: Option<Instant>,
}

impl Suspicion {
    fn note(&mut self, time: Duration, tolerance: Duration, now: Instant) -> bool {
        let fits = self.losses > 0 && self.typical.abs_diff(time) <= tolerance;
        // What is lost together has one reason, whatever that is.
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < time / 2) {
            return fits;
        }
        if !fits {
            *self = Self { typical: time, losses: 1, last: Some(now) };
            return false;
        }
        self.typical = (self.typical * self.losses + time) / (self.losses + 1);
        (self.losses, self.last) = (self.losses.saturating_add(1), Some(now));
        true
    }

    /// A session has lived through so much.
    fn refute(&mut self, time: Duration, tolerance: Duration) {
        if time > self.typical + tolerance {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests;
