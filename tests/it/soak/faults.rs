//! What goes wrong, and when: a shuffled deck of all faults is played in rounds, again and again.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::forwards::{BASTIONS, Hit};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Silence,
    SilenceOfOld,
    Reset,
    Delay,
    CutAfterBytes,
    SshdKilled,
    SessionsKilled,
    SshdStopped,
    ListenerStopped,
    PostgresRestarted,
    BackendsTerminated,
    NeverRead,
    LeaveWithReset,
    Nonsense,
    SameConfiguration,
    OtherLimits,
    OtherDatabase,
    OtherKey,
}

/// With how it is written.
const ALL: [(Kind, &str); 18] = [
    (Kind::Silence, "silence"),
    (Kind::SilenceOfOld, "silence of old connections"),
    (Kind::Reset, "reset"),
    (Kind::Delay, "delay"),
    (Kind::CutAfterBytes, "cut after some bytes"),
    (Kind::SshdKilled, "sshd killed"),
    (Kind::SessionsKilled, "sshd's sessions killed"),
    (Kind::SshdStopped, "sshd stopped"),
    (Kind::ListenerStopped, "sshd's listener stopped"),
    (Kind::PostgresRestarted, "PostgreSQL restarted"),
    (Kind::BackendsTerminated, "PostgreSQL's sessions terminated"),
    (Kind::NeverRead, "clients that do not read"),
    (Kind::LeaveWithReset, "clients that reset"),
    (Kind::Nonsense, "clients that speak nonsense"),
    (Kind::SameConfiguration, "SIGHUP, nothing new"),
    (Kind::OtherLimits, "SIGHUP, other limits"),
    (Kind::OtherDatabase, "SIGHUP, a database comes or goes"),
    (Kind::OtherKey, "SIGHUP, another key"),
];

/// Of one group only so many are played in a round: each on a bastion of its own, and some bastions are left alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Bastion,
    Database,
    Clients,
    Configuration,
}

impl Group {
    fn most(self) -> usize {
        if self == Self::Bastion { 2 } else { 1 }
    }
}

impl Kind {
    fn group(self) -> Group {
        match self {
            Self::PostgresRestarted | Self::BackendsTerminated => Group::Database,
            Self::NeverRead | Self::LeaveWithReset | Self::Nonsense => Group::Clients,
            Self::SameConfiguration | Self::OtherLimits | Self::OtherDatabase | Self::OtherKey => {
                Group::Configuration
            }
            _ => Group::Bastion,
        }
    }

    pub fn name(self) -> &'static str {
        ALL.iter().find(|(kind, _)| *kind == self).unwrap().1
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// Which bastion, if it is about one.
    pub bastion: usize,
    pub begins: Duration,
    pub ends: Duration,
    /// Bytes, or what else there is to be chosen.
    pub amount: u64,
}

impl Fault {
    /// Who may be cut by it. A listener that stands still, a delay, clients and configurations cut nobody.
    pub fn hits(&self) -> Hit {
        match self.kind {
            Kind::PostgresRestarted | Kind::BackendsTerminated => Hit { shaky: true, ..Hit::default() },
            Kind::Delay | Kind::ListenerStopped => Hit::default(),
            kind if kind.group() == Group::Bastion => Hit::bastion(self.bastion),
            _ => Hit::default(),
        }
    }

    fn is_about_a_bastion(&self) -> bool {
        self.kind.group() == Group::Bastion || self.kind == Kind::OtherKey
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.is_about_a_bastion() {
            write!(f, " at {}", BASTIONS[self.bastion])?;
        }
        write!(f, " for {:.1} s", (self.ends - self.begins).as_secs_f64())
    }
}

pub struct Faults {
    rng: StdRng,
    /// What has not been played yet; the next is the last.
    deck: Vec<Kind>,
    decks: u64,
    played: BTreeMap<Kind, u64>,
}

impl Faults {
    pub fn from(seed: u64) -> Self {
        let played = ALL.iter().map(|(kind, _)| (*kind, 0)).collect();
        Self { rng: StdRng::seed_from_u64(seed), deck: Vec::new(), decks: 0, played }
    }

    /// How often each was played.
    pub fn played(&self) -> Vec<(&'static str, u64)> {
        self.played.iter().map(|(kind, times)| (kind.name(), *times)).collect()
    }

    pub fn next_round(&mut self) -> Vec<Fault> {
        let mut bastions: Vec<usize> = (0..BASTIONS.len()).collect();
        bastions.shuffle(&mut self.rng);
        let wanted = self.rng.random_range(1..=5);
        let mut round: Vec<Fault> = Vec::new();
        while round.len() < wanted
            && let Some(kind) = self.next_kind(&round)
        {
            *self.played.entry(kind).or_default() += 1;
            round.push(self.fault(kind, bastions[round.len() % bastions.len()]));
        }
        round
    }

    /// The next in the deck that the round has room for.
    fn next_kind(&mut self, round: &[Fault]) -> Option<Kind> {
        if self.deck.is_empty() {
            self.deck = ALL.iter().map(|(kind, _)| *kind).collect();
            self.deck.shuffle(&mut self.rng);
            self.decks += 1;
        }
        let count = |group| round.iter().filter(|fault| fault.kind.group() == group).count();
        let at = self.deck.iter().rposition(|kind| count(kind.group()) < kind.group().most())?;
        Some(self.deck.remove(at))
    }

    fn fault(&mut self, kind: Kind, bastion: usize) -> Fault {
        let begins = Duration::from_millis(self.rng.random_range(0..500));
        // Once each kind was there, one in eight lasts for longer than a silent session lives.
        let millis = if self.decks > 1 && self.rng.random_ratio(1, 8) { 9_000..12_000 } else { 200..2_500 };
        let lasts = Duration::from_millis(self.rng.random_range(millis));
        Fault { kind, bastion, begins, ends: begins + lasts, amount: self.rng.random_range(100..200_000) }
    }
}
