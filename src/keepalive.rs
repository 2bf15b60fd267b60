//! When a session is pinged, suspected and given up: a pure rule over what was received and when.
//!
//! A byte received is the only proof of life. A ping is sent after `interval` of silence; a ping unanswered for
//! ten seconds makes the session suspect, and `timeout` of silence ends it. While the session's gate is shut we
//! do not read, so silence means nothing: no deadline runs, but the bastion hears from us every ten seconds, which
//! is what resets its own ClientAlive counter. Which bytes answer which ping does not matter here.

use std::time::{Duration, Instant};

/// How long a ping may stay unanswered before its session takes no new clients.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(10);

const SHUT_GATE_INTERVAL: Duration = Duration::from_secs(10);

/// A suspect session is looked at this often, so that it serves again soon after it has answered.
const SUSPECT_INTERVAL: Duration = Duration::from_secs(1);

/// What the transport knows at the moment of a check.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    /// When a byte was received last.
    pub received: Instant,
    /// Whether we read at all.
    pub gate_open: bool,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Send a ping now.
    pub ping: bool,
    /// Take no new clients.
    pub suspect: bool,
    /// Give the session up.
    pub lost: bool,
    /// Check again then, or when something is received.
    pub next: Instant,
}

/// The pings and silences of one session.
#[derive(Clone, Debug)]
pub struct Keepalive {
    interval: Duration,
    timeout: Duration,
    /// Silence is counted from here: the last byte, or the moment the gate opened.
    alive: Instant,
    /// The first ping since then.
    asked: Option<Instant>,
    last_ping: Option<Instant>,
    unanswered: u32,
    gate_was_shut: bool,
}

impl Keepalive {
    /// Begins when the session is established. `interval < timeout`.
    #[must_use]
    pub fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        Self {
            interval,
            timeout,
            alive: now,
            asked: None,
            last_ping: None,
            unanswered: 0,
            gate_was_shut: false,
        }
    }

    /// Goes on with other bounds: `interval < timeout`.
    pub fn set_bounds(&mut self, interval: Duration, timeout: Duration) {
        (self.interval, self.timeout) = (interval, timeout);
    }

    /// How long the session has been silent.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.alive)
    }

    /// Pings sent since the last sign of life.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Asks for a ping out of turn, because something else about the session looks wrong. False where one is
    /// under way already, or would tell nothing since the gate is shut.
    pub fn ask(&mut self, now: Instant) -> bool {
        let due = self.asked.is_none() && !self.gate_was_shut;
        if due {
            self.pinged(now);
        }
        due
    }

    /// Looks at the session.
    pub fn check(&mut self, sign: Sign, now: Instant) -> Finding {
        if !sign.gate_open {
            return self.check_shut(now);
        }
        let heard = if self.gate_was_shut { now } else { sign.received };
        self.gate_was_shut = false;
        if heard > self.alive {
            self.alive = heard;
            if self.asked.is_some_and(|asked| heard >= asked) {
                self.asked = None;
                self.unanswered = 0;
            }
        }
        let due = self.last_ping.map_or(self.alive, |ping| ping.max(self.alive)) + self.interval;
        let ping = now >= due;
        if ping {
            self.pinged(now);
        }
        let lost_at = self.alive + self.timeout;
        let suspect_at = self.asked.map(|asked| asked + SUSPECT_AFTER);
        let suspect = suspect_at.is_some_and(|at| now >= at);
        let next_ping = if ping { now + self.interval } else { due };
        let next = match suspect_at {
            Some(_) if suspect => next_ping.min(now + SUSPECT_INTERVAL),
            Some(at) => at.min(next_ping),
            None => next_ping,
        };
        Finding { ping, suspect, lost: now >= lost_at, next: next.min(lost_at) }
    }

    fn check_shut(&mut self, now: Instant) -> Finding {
        if !self.gate_was_shut {
            self.gate_was_shut = true;
            self.asked = None;
            self.unanswered = 0;
            self.last_ping = Some(self.last_ping.unwrap_or(now));
        }
        let due = self.last_ping.map_or(now, |ping| ping + SHUT_GATE_INTERVAL);
        let ping = now >= due;
        if ping {
            self.last_ping = Some(now);
        }
        let next = if ping { now + SHUT_GATE_INTERVAL } else { due };
        Finding { ping, suspect: false, lost: false, next }
    }

    fn pinged(&mut self, now: Instant) {
        self.last_ping = Some(now);
        self.asked.get_or_insert(now);
        self.unanswered = self.unanswered.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const TIMEOUT: Duration = Duration::from_secs(300);

    /// Checks at every second, with bytes received and the gate shut at the given seconds; returns the seconds of
    /// pings, of being suspect, and of the loss.
    fn run(received: &[u64], shut: std::ops::Range<u64>, until: u64) -> (Vec<u64>, Vec<u64>, Option<u64>) {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut keepalive = Keepalive::new(INTERVAL, TIMEOUT, start);
        let (mut pings, mut suspect) = (Vec::new(), Vec::new());
        for second in 0..=until {
            let last =
                received.iter().copied().filter(|r| *r <= second && !shut.contains(r)).max().unwrap_or(0);
            let sign = Sign { received: at(last), gate_open: !shut.contains(&second) };
            let finding = keepalive.check(sign, at(second));
            assert!(finding.lost || finding.next > at(second), "a check at once again in second {second}");
            if finding.ping {
                pings.push(second);
            }
            if finding.suspect {
                suspect.push(second);
            }
            if finding.lost {
                return (pings, suspect, Some(second));
            }
        }
        (pings, suspect, None)
    }

    #[test]
    fn a_silent_session_is_pinged_suspected_and_lost() {
        let (pings, suspect, lost) = run(&[], 0..0, 400);
        assert_eq!(pings, (1..=10).map(|n| n * 30).collect::<Vec<_>>());
        assert_eq!(suspect.first(), Some(&40));
        assert_eq!(lost, Some(300));
    }

    #[test]
    fn any_byte_clears_the_suspicion() {
        let (pings, suspect, lost) = run(&[45, 80], 0..0, 100);
        assert_eq!(pings, [30, 75]);
        assert_eq!(suspect, (40..45).collect::<Vec<_>>());
        assert_eq!(lost, None);
    }

    #[test]
    fn a_busy_session_is_never_pinged() {
        let all: Vec<u64> = (0..=600).collect();
        assert_eq!(run(&all, 0..0, 600), (vec![], vec![], None));
    }

    #[test]
    fn behind_a_shut_gate_no_deadline_runs() {
        let (pings, suspect, lost) = run(&[10], 10..1000, 1000);
        assert_eq!(pings[..4], [20, 30, 40, 50]);
        assert!(suspect.is_empty());
        assert_eq!(lost, None);
        let (_, suspect, lost) = run(&[10], 10..1000, 2000);
        assert_eq!((suspect.first(), lost), (Some(&1040), Some(1300)));
    }

    #[test]
    fn a_ping_out_of_turn() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(INTERVAL, TIMEOUT, start);
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(keepalive.ask(at(5)));
        assert!(!keepalive.ask(at(6)), "one is under way");
        let silent = Sign { received: start, gate_open: true };
        assert_eq!(keepalive.check(silent, at(7)).next, at(15));
        assert!(keepalive.check(silent, at(15)).suspect);
        assert_eq!(keepalive.unanswered(), 1);
        let answered = Sign { received: at(16), gate_open: true };
        assert!(!keepalive.check(answered, at(16)).suspect);
        assert_eq!(keepalive.unanswered(), 0);
    }

    proptest! {
        #[test]
        fn lost_only_after_the_timeout(received in prop::collection::vec(0u64..500, 0..20), until in 0u64..900) {
            let (_, _, lost) = run(&received, 0..0, until);
            if let Some(second) = lost {
                let last = received.iter().copied().filter(|r| *r <= second).max().unwrap_or(0);
                prop_assert!(second - last >= 300);
            }
        }
    }
}
