//! What the units say of themselves: the values that travel up through `watch` channels.
//!
//! A unit publishes a value when its state changes; figures that change with every packet are atomics behind an
//! `Arc` inside that value. Nothing here decides anything; [`crate::board`] turns it into a [`crate::snapshot`].

mod client;
mod cut;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::failure::{Cause, Failure};
use crate::ids::Name;
use crate::local::LocalAddress;
pub use client::{Activity, ClientEntry, ClientRoll, ClientState, Doing, StartupParameters};
pub use cut::{CutAfter, SessionCut};

/// A point in time, for arithmetic (monotonic) and for people (wall clock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// For measuring how long ago it was.
    pub instant: Instant,
    /// For showing when it was.
    pub wall: SystemTime,
}

/// A failure and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// What failed.
    pub failure: Failure,
    /// When the failing began; repeated failures of one cause keep the first time.
    pub since: Moment,
    /// When it failed last.
    pub last: Moment,
}

impl Incident {
    /// Records a failure: one of the same cause continues the incident, any other begins a new one.
    pub fn record(slot: &mut Option<Self>, failure: Failure, now: Moment) {
        let since = match slot {
            Some(incident) if incident.failure.cause == failure.cause => incident.since,
            _ => now,
        };
        *slot = Some(Self { failure, since, last: now });
    }
}

/// How long something has been up, in total, for a counter whose rate is the availability.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uptime {
    before: Duration,
    since: Option<Moment>,
}

impl Uptime {
    /// Notes that it is up or down from `now` on; noting the same twice changes nothing.
    pub fn set(&mut self, up: bool, now: Moment) {
        match (up, self.since) {
            (true, None) => self.since = Some(now),
            (false, Some(since)) => {
                self.before += now.instant.saturating_duration_since(since.instant);
                self.since = None;
            }
            _ => {}
        }
    }

    /// When it came up, if it is up.
    #[must_use]
    pub fn since(&self) -> Option<Moment> {
        self.since
    }

    /// All the time it has been up until `now`.
    #[must_use]
    pub fn total(&self, now: Instant) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since.instant))
    }
}

/// The time for which a user certificate is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateTerm {
    /// Its file; none if an agent has it.
    pub file: Option<PathBuf>,
    /// Its first moment.
    pub from: SystemTime,
    /// The first moment at which it is not good any more.
    pub until: SystemTime,
}

impl CertificateTerm {
    /// So long before its end a certificate of months should have been renewed.
    const NEAR: Duration = Duration::from_secs(7 * 24 * 3600);

    /// Whether it has ended or will do so soon: within seven days, or for one that is made for a short time within the
    /// last third of it, when whoever renews it should have done so.
    #[must_use]
    pub fn is_ending(&self, now: SystemTime) -> bool {
        let life = self.until.duration_since(self.from).unwrap_or_default();
        !self.until.duration_since(now).is_ok_and(|left| left > Self::NEAR.min(life / 3))
    }
}

/// The stages of one SSH connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPhase {
    /// Name look-up to the first answered ping.
    Connecting,
    /// Logged in, and one ping was answered.
    Established,
    /// A ping has gone unanswered for 10 s: it takes no new clients.
    Suspect,
    /// It takes no new clients and ends when its last one has left.
    Retiring,
}

impl SessionPhase {
    /// The word shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Established => "established",
            Self::Suspect => "suspect",
            Self::Retiring => "retiring",
        }
    }
}

/// What a session says of itself.
#[derive(Clone, Debug)]
pub struct SessionState {
    /// Counts up from 1 for each bastion and is not used again.
    pub id: u64,
    /// Where in its life it is.
    pub phase: SessionPhase,
    /// Since when it is in this phase.
    pub since: Moment,
    /// The bastion's address that won the race, once connected.
    pub address: Option<SocketAddr>,
    /// The certificate that it logs in with, or would have.
    pub certificate: Option<CertificateTerm>,
    /// Its live figures.
    pub load: Arc<SessionLoad>,
    /// The sessions to other bastions that it goes through, outermost first; each is its own.
    pub jumps: Vec<JumpState>,
}

/// A session that exists only for another one to go through.
#[derive(Clone, Debug)]
pub struct JumpState {
    /// The bastion it is to.
    pub bastion: Name,
    /// Since when it is established.
    pub since: Moment,
    /// The bastion's address, where it is the outermost.
    pub address: Option<SocketAddr>,
    /// The certificate that it logs in with.
    pub certificate: Option<CertificateTerm>,
    /// Its live figures.
    pub load: Arc<SessionLoad>,
}

/// What is wrong with a bastion that others go through.
#[derive(Clone, Debug)]
pub struct JumpTrouble {
    /// Why the last attempt got no further, or the last session was lost.
    pub incident: Incident,
    /// The public half of the key that it has to be told, where it rejected that.
    pub public_key: Option<String>,
    /// The certificate that it was to be shown.
    pub certificate: Option<CertificateTerm>,
}

/// Live figures of a session, written by its lane, read by everyone.
#[derive(Debug, Default)]
pub struct SessionLoad {
    /// Clients seated on it.
    pub clients: AtomicUsize,
    /// Clients that have gone, but for their channels.
    pub leaving: AtomicUsize,
    /// Bytes taken from the bastion and not yet taken by a client.
    pub backlog: AtomicUsize,
    gate_shut: AtomicBool,
    /// How long its gate has been shut.
    stalled: Mutex<Uptime>,
    /// The last measured round trip, in microseconds; 0 = not measured yet.
    pub round_trip_micros: AtomicU64,
    /// Pings sent since the last received byte.
    pub unanswered: AtomicU32,
    /// The longest pause that its connection has come through, in microseconds.
    pub longest_pause_micros: AtomicU64,
}

impl SessionLoad {
    /// Clients seated on it.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Whether it carries nothing for a client, not even one that has gone.
    pub fn is_unused(&self) -> bool {
        self.clients() == 0 && self.leaving.load(Ordering::Relaxed) == 0
    }

    /// Whether its gate lets bytes in.
    pub fn gate_open(&self) -> bool {
        !self.gate_shut.load(Ordering::Acquire)
    }

    /// Opens or shuts its gate.
    pub fn set_gate(&self, open: bool, now: Moment) {
        let mut stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.set(!open, now);
        self.gate_shut.store(!open, Ordering::Release);
    }

    /// For how long its gate has been shut in total until `now`.
    pub fn stalled(&self, now: Instant) -> Duration {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner).total(now)
    }

    /// The longest time without a byte in either direction after which one was received.
    pub fn longest_pause(&self) -> Duration {
        Duration::from_micros(self.longest_pause_micros.load(Ordering::Relaxed))
    }

    /// The last measured round trip.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.round_trip_micros.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }
}

/// What a tunnel says of itself.
#[derive(Clone, Debug, Default)]
pub struct TunnelState {
    /// All its sessions, also those that are still connecting.
    pub sessions: Vec<SessionState>,
    /// Since when it is up, and for how long it was in total.
    pub uptime: Uptime,
    /// It is up only by sessions of an earlier configuration: there is none yet of the one in force.
    pub outdated: bool,
    /// It has failed since it was last up for 30 s: another bastion is the better choice.
    pub wavering: bool,
    /// Since when it is down: from the start, or from when it was up last.
    pub down_since: Option<Moment>,
    /// How long gates were shut on sessions that have ended.
    pub stalled_before: Duration,
    /// The last attempt that failed or session that was lost.
    pub last_failure: Option<Incident>,
    /// When the next session is dialled, while it waits for that.
    pub next_attempt: Option<Moment>,
    /// The bastion refuses us and is asked again only every few minutes: waiting for it helps no client.
    pub refusing: bool,
    /// The public half of the key that the bastion has to be told, while it rejects it.
    pub public_key: Option<String>,
    /// The bastions on the way that it failed at last, since it was up.
    pub jumps: BTreeMap<Name, JumpTrouble>,
    /// The certificate that the last login was tried with.
    pub certificate: Option<CertificateTerm>,
    /// What cuts sessions again and again, by the bastion on the way that it befalls.
    pub cuts: BTreeMap<Name, SessionCut>,
    /// The bastion behind it whose keepalives were cut, where it is only gone through.
    pub pinged_by: Option<Name>,
}

impl TunnelState {
    /// Up while at least one session is established and not suspect.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.uptime.since().is_some()
    }
}

/// A key that waits for its bastion to accept it, and then takes the place of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingKey {
    /// What the bastion has to be told.
    pub public_key: String,
    /// When it was made.
    pub since: SystemTime,
    /// When the bastion was asked last.
    pub asked: Option<SystemTime>,
}

/// What a forward says of itself.
#[derive(Clone, Debug, Default)]
pub struct ForwardState {
    /// Where it listens: the addresses as bound, so with the real port.
    pub listening: Vec<LocalAddress>,
    /// It takes new clients.
    pub accepting: bool,
    /// The last time a client could not be connected to the database though a session was there.
    pub last_failure: Option<Incident>,
    /// The bastions that do not connect clients to the database at the moment, and why.
    pub failing: BTreeMap<Name, Cause>,
    /// How long a tunnel for the database was up.
    pub uptime: Uptime,
    /// Its clients.
    pub clients: Arc<ClientRoll>,
}

/// What is known of a database's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// No probe has finished yet, or none could log in.
    #[default]
    Unknown,
    /// The last probes were answered.
    Up,
    /// Several probes in a row failed.
    Down,
    /// The configuration says not to probe.
    NotProbed,
}

impl Health {
    /// The word shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::NotProbed => "not probed",
        }
    }
}

/// What a probe says of itself.
#[derive(Clone, Debug, Default)]
pub struct ProbeState {
    /// The verdict.
    pub health: Health,
    /// Since when the verdict holds.
    pub since: Option<Moment>,
    /// How long the last successful probe's last phase took: the query's, where there is one.
    pub latency: Option<Duration>,
    /// When a probe succeeded last.
    pub last_success: Option<Moment>,
    /// The last probe that failed.
    pub last_failure: Option<Incident>,
    /// The last moment at which the certificate that the database showed last is good.
    pub certificate_expires: Option<SystemTime>,
    /// When the temporary login that was made last expires.
    pub credential_expires: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments() -> impl Fn(u64) -> Moment {
        let (instant, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        move |s| Moment { instant: instant + Duration::from_secs(s), wall: wall + Duration::from_secs(s) }
    }

    #[test]
    fn a_certificate_is_ending_when_it_should_have_been_renewed() {
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        const DAY: u64 = 24 * 3600;
        for (life, ends_at) in [(365 * DAY, 358 * DAY), (30 * DAY, 23 * DAY), (9 * 3600, 6 * 3600), (0, 0)] {
            let term = CertificateTerm { file: None, from: at(0), until: at(life) };
            assert!(ends_at == 0 || !term.is_ending(at(ends_at - 1)), "{life}");
            assert!(term.is_ending(at(ends_at)) && term.is_ending(at(life)) && term.is_ending(at(2 * life)));
        }
    }

    #[test]
    fn uptime_adds_up_over_outages() {
        let at = moments();
        let mut uptime = Uptime::default();
        assert_eq!(uptime.total(at(5).instant), Duration::ZERO);
        uptime.set(true, at(10));
        uptime.set(true, at(15));
        assert_eq!(uptime.total(at(20).instant), Duration::from_secs(10));
        uptime.set(false, at(20));
        uptime.set(false, at(25));
        assert_eq!(uptime.since(), None);
        uptime.set(true, at(30));
        assert_eq!(uptime.total(at(31).instant), Duration::from_secs(11));
        assert_eq!(uptime.since(), Some(at(30)));
    }

    #[test]
    fn an_incident_keeps_its_beginning_while_the_cause_stays() {
        let at = moments();
        let mut slot = None;
        Incident::record(&mut slot, Failure::new(Cause::TcpRefused, "a"), at(1));
        Incident::record(&mut slot, Failure::new(Cause::TcpRefused, "b"), at(2));
        let incident = slot.clone().unwrap();
        assert_eq!((incident.since, incident.last, incident.failure.detail()), (at(1), at(2), "b"));
        Incident::record(&mut slot, Failure::new(Cause::TcpTimeout, "c"), at(3));
        assert_eq!(slot.unwrap().since, at(3));
    }
}
