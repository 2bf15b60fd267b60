//! What has been: the last hour of each bastion and each database in buckets of half a minute, and the last changes of all.
//!
//! It costs the same however much happens: a kilobyte for each of them, which goes when they go, and so many changes.
//! It looks at nothing by itself and knows no clock: [`crate::board`] tells it every few seconds how things are, and the
//! status page draws what it has kept.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use crate::failure::one_line;
use crate::ids::Name;
use crate::state::{Health, Incident, Moment, ProbeState, TunnelState};

/// How often it wants to be told: a few times for each bucket, and too seldom to be felt.
pub const TELL_EVERY: Duration = Duration::from_secs(5);
/// The time that a bucket covers.
const BUCKET: Duration = Duration::from_secs(30);
/// An hour of them.
pub const BUCKETS: usize = 120;
/// How many changes are kept.
const MAX_CHANGES: usize = 20;
/// The longest reason that is kept with a change, in characters.
const MAX_WHY: usize = 200;

/// What has a history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// A bastion, by its tunnel.
    Bastion(Name),
    /// A database, by its probe.
    Database(Name),
}

/// How one of them is at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sight<'a> {
    /// Whether clients get through; None while nobody knows.
    pub reachable: Option<bool>,
    /// The tunnel's round trip, or what the probe measured.
    pub took: Option<Duration>,
    /// The state whose changes are kept, which is the tunnel's or the probe's verdict, and since when it holds.
    pub state: Option<(bool, Moment)>,
    /// What failed last.
    pub failure: Option<&'a Incident>,
}

impl<'a> Sight<'a> {
    /// A bastion, as its tunnel tells of it.
    #[must_use]
    pub fn of_tunnel(tunnel: &'a TunnelState) -> Self {
        let up = tunnel.uptime.since().map(|since| (true, since));
        // One that was never up and has not failed yet is on its way for the first time.
        let down = tunnel.down_since.filter(|_| tunnel.last_failure.is_some()).map(|since| (false, since));
        let state = up.or(down);
        let round_trips = tunnel.sessions.iter().filter_map(|session| session.load.round_trip());
        Self {
            reachable: state.map(|(up, _)| up),
            took: round_trips.max().filter(|_| up.is_some()),
            state,
            failure: tunnel.last_failure.as_ref(),
        }
    }

    /// A database, as its probe tells of it; `tunnel`: whether one to it is up, if anybody knows.
    #[must_use]
    pub fn of_database(probe: &'a ProbeState, tunnel: Option<bool>) -> Self {
        let verdict = match probe.health {
            Health::Up => Some(true),
            Health::Down => Some(false),
            Health::Unknown | Health::NotProbed => None,
        };
        let reachable = match (tunnel, probe.health) {
            (Some(true), Health::NotProbed) => Some(true),
            (Some(true), _) => verdict,
            (other, _) => other,
        };
        Self {
            reachable,
            took: probe.latency.filter(|_| reachable == Some(true) && verdict == Some(true)),
            state: verdict.zip(probe.since),
            failure: probe.last_failure.as_ref(),
        }
    }
}

/// Half a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// How often it was seen reachable.
    up: u8,
    /// And how often not.
    down: u8,
    /// 0: nothing was measured.
    longest_micros: u32,
}

impl Bucket {
    /// Whether it was reachable all the time, if anybody knows.
    #[must_use]
    pub fn reachable(self) -> Option<bool> {
        (self.up > 0 || self.down > 0).then_some(self.down == 0)
    }

    /// The longest time that was measured.
    #[must_use]
    pub fn longest(self) -> Option<Duration> {
        (self.longest_micros > 0).then(|| Duration::from_micros(self.longest_micros.into()))
    }

    fn add(&mut self, sight: &Sight<'_>) {
        match sight.reachable {
            Some(true) => self.up = self.up.saturating_add(1),
            Some(false) => self.down = self.down.saturating_add(1),
            None => {}
        }
        if let Some(took) = sight.took {
            let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
            self.longest_micros = self.longest_micros.max(micros).max(1);
        }
    }
}

/// The last hour of one unit.
#[derive(Clone, Debug)]
pub struct Track {
    /// A ring: bucket number `n` stands at `n % BUCKETS`.
    buckets: [Bucket; BUCKETS],
    newest: usize,
    told: Instant,
    /// The last state that was known, and since when it held.
    state: Option<(bool, Moment)>,
}

impl Track {
    /// From an hour ago to now.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let (newer, older) = self.buckets.split_at((self.newest + 1) % BUCKETS);
        older.iter().chain(newer).copied()
    }

    /// The longest time that was measured in the hour.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        self.buckets.iter().filter_map(|bucket| bucket.longest()).max()
    }

    /// The share of the hour in which it was reachable, as far as anybody knows.
    #[must_use]
    pub fn availability(&self) -> Option<f64> {
        let sum = |count: fn(&Bucket) -> u8| self.buckets.iter().map(count).map(u32::from).sum::<u32>();
        let (up, down) = (sum(|bucket| bucket.up), sum(|bucket| bucket.down));
        (up + down > 0).then(|| f64::from(up) / f64::from(up + down))
    }

    fn new(newest: usize, told: Instant) -> Self {
        Self { buckets: [Bucket::default(); BUCKETS], newest, told, state: None }
    }

    /// The bucket of this number, when all before it are in the past.
    fn bucket(&mut self, number: usize) -> &mut Bucket {
        for later in 0..number.saturating_sub(self.newest).min(BUCKETS) {
            *self.slot(number - later) = Bucket::default();
        }
        self.newest = self.newest.max(number);
        self.slot(self.newest)
    }

    #[allow(clippy::indexing_slicing, reason = "the remainder is within the ring")]
    fn slot(&mut self, number: usize) -> &mut Bucket {
        &mut self.buckets[number % BUCKETS]
    }
}

/// A tunnel or a probe's verdict that went up or down, or a configuration that was loaded or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: SystemTime,
    /// Whose; None is the daemon's configuration.
    pub unit: Option<Unit>,
    /// It went up, or was loaded.
    pub good: bool,
    /// What was wrong where it is not good: phase, reason and detail of the failure, or the configuration's problem.
    pub why: Option<String>,
}

/// The history of everything.
#[derive(Clone, Debug, Default)]
pub struct History {
    begun: Option<Instant>,
    tracks: BTreeMap<Unit, Box<Track>>,
    /// Oldest first.
    changes: VecDeque<Change>,
}

impl History {
    /// Takes note of how a unit is.
    pub fn tell(&mut self, unit: &Unit, sight: &Sight<'_>, now: Instant) {
        let number = self.number(now);
        if !self.tracks.contains_key(unit) {
            self.tracks.insert(unit.clone(), Box::new(Track::new(number, now)));
        }
        let Some(track) = self.tracks.get_mut(unit) else { return };
        track.told = now;
        track.bucket(number).add(sight);
        // What nobody knows for a while is no change.
        let Some((up, since)) = sight.state else { return };
        let before = track.state.replace((up, since));
        let at = since.wall;
        match before {
            Some((before, known)) if before == up => {
                if known != since && has_wavered(unit, sight, known) {
                    track.bucket(number).add(&Sight { reachable: Some(false), ..Sight::default() });
                    self.note(at, unit, !up, sight);
                    self.note(at, unit, up, sight);
                }
            }
            _ => self.note(at, unit, up, sight),
        }
    }

    /// Forgets the units that were not told of at this moment: they are there no more.
    pub fn forget_others(&mut self, now: Instant) {
        self.tracks.retain(|_, track| track.told == now);
    }

    /// The configuration was read anew; the problems are what is wrong with it.
    pub fn reloaded(&mut self, at: SystemTime, problems: &[String]) {
        let why = problems.first().map(|first| match problems.len() {
            1 => one_line(first, MAX_WHY),
            many => format!("{} (and {} more)", one_line(first, MAX_WHY), many - 1),
        });
        self.insert(Change { at, unit: None, good: problems.is_empty(), why });
    }

    /// A unit's last hour.
    #[must_use]
    pub fn track(&self, unit: &Unit) -> Option<&Track> {
        self.tracks.get(unit).map(|track| &**track)
    }

    /// The last changes, newest first.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().rev()
    }

    fn number(&mut self, now: Instant) -> usize {
        let begun = *self.begun.get_or_insert(now);
        let passed = now.saturating_duration_since(begun).as_secs() / BUCKET.as_secs();
        usize::try_from(passed).unwrap_or(usize::MAX)
    }

    fn note(&mut self, at: SystemTime, unit: &Unit, up: bool, sight: &Sight<'_>) {
        let failure = sight.failure.filter(|_| !up);
        let why = failure.map(|incident| one_line(&incident.failure.to_string(), MAX_WHY));
        self.insert(Change { at, unit: Some(unit.clone()), good: up, why });
    }

    /// Units are told of one after the other, so changes come a little out of order.
    fn insert(&mut self, change: Change) {
        let place = self.changes.partition_point(|other| other.at <= change.at);
        self.changes.insert(place, change);
        if self.changes.len() > MAX_CHANGES {
            self.changes.pop_front();
        }
    }
}

/// Whether a tunnel has been in the other state since, too shortly to be seen in it. A probe whose configuration has changed
/// forms its verdict anew, which is no news.
fn has_wavered(unit: &Unit, sight: &Sight<'_>, known: Moment) -> bool {
    let failed = sight.failure.is_some_and(|incident| incident.last.instant > known.instant);
    matches!(unit, Unit::Bastion(_)) && failed
}

#[cfg(test)]
mod tests;
