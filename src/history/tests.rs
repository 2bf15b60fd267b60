use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::failure::{Cause, Failure};
use crate::state::{SessionLoad, SessionPhase, SessionState, Uptime};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn bastion() -> Unit {
    Unit::Bastion(name("prod"))
}

/// Moments in seconds after the beginning.
fn moments() -> impl Fn(u64) -> Moment {
    let instant = Instant::now();
    move |s| Moment {
        instant: instant + Duration::from_secs(s),
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(s),
    }
}

fn incident(last: Moment) -> Incident {
    Incident { failure: Failure::new(Cause::TcpRefused, "nobody listens"), since: last, last }
}

fn state(up: bool, since: Moment) -> Sight<'static> {
    Sight { reachable: Some(up), state: Some((up, since)), ..Sight::default() }
}

/// The changes, oldest first: when, whether it was good, and why not.
fn changes(history: &History) -> Vec<(u64, bool, Option<&str>)> {
    let seconds = |change: &Change| change.at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut changes: Vec<_> =
        history.changes().map(|change| (seconds(change), change.good, change.why.as_deref())).collect();
    changes.reverse();
    changes
}

#[test]
fn an_hour_is_kept_and_no_more() {
    let (at, mut history) = (moments(), History::default());
    for second in (0..3 * 3600).step_by(5) {
        // It slows down all the time, and is down in the first minute of each hour.
        let sight = Sight {
            reachable: Some(second % 3600 >= 60),
            took: Some(Duration::from_millis(second)),
            ..Sight::default()
        };
        history.tell(&bastion(), &sight, at(second).instant);
    }
    let track = history.track(&bastion()).unwrap();
    let buckets: Vec<Bucket> = track.buckets().collect();
    assert_eq!(buckets.len(), BUCKETS);
    let reachable: Vec<_> = buckets.iter().map(|bucket| bucket.reachable()).collect();
    assert_eq!(reachable[..3], [Some(false), Some(false), Some(true)]);
    assert!(reachable[2..].iter().all(|up| *up == Some(true)));
    let longest: Vec<_> = buckets.iter().map(|bucket| bucket.longest().unwrap().as_millis()).collect();
    assert_eq!((longest[0], longest[BUCKETS - 1]), (7225, 10795));
    assert!(longest.is_sorted());
    assert_eq!(track.longest(), Some(Duration::from_millis(10795)));
    assert_eq!(track.availability(), Some(708.0 / 720.0));
    assert!(size_of::<Track>() <= 1100, "{} bytes for each unit", size_of::<Track>());
}

#[test]
fn where_nobody_looked_there_is_a_gap() {
    let (at, mut history) = (moments(), History::default());
    let sight = Sight { reachable: Some(true), took: Some(Duration::ZERO), ..Sight::default() };
    for second in [0, 29, 30, 600, 600 + 3600 + 29] {
        history.tell(&bastion(), &sight, at(second).instant);
    }
    let known = |history: &History| {
        let buckets: Vec<_> = history.track(&bastion()).unwrap().buckets().collect();
        (0..BUCKETS).filter(|index| buckets[*index].longest().is_some()).collect::<Vec<_>>()
    };
    assert_eq!(
        known(&history),
        [BUCKETS - 1],
        "the machine slept for an hour, which is longer than the ring"
    );
    history.tell(&bastion(), &Sight::default(), at(600 + 3600 + 59).instant);
    assert_eq!(known(&history), [BUCKETS - 2]);
    assert_eq!(history.track(&bastion()).unwrap().availability(), Some(1.0));
    history.tell(&bastion(), &sight, at(0).instant);
    assert_eq!(known(&history), [BUCKETS - 2, BUCKETS - 1], "a clock that stands still harms nothing");
}

#[test]
fn what_is_gone_is_forgotten_and_what_stays_is_not() {
    let (at, mut history) = (moments(), History::default());
    let other = Unit::Database(name("prod"));
    for unit in [&bastion(), &other] {
        history.tell(unit, &state(true, at(0)), at(0).instant);
    }
    history.tell(&other, &state(true, at(0)), at(5).instant);
    history.forget_others(at(5).instant);
    assert!(history.track(&bastion()).is_none());
    assert_eq!(
        history.track(&other).unwrap().buckets().filter(|bucket| bucket.reachable().is_some()).count(),
        1
    );
    assert_eq!(history.changes().count(), 2, "what happened stays, whoever it happened to");
}

#[test]
fn changes_are_told_with_their_reason() {
    let (at, mut history) = (moments(), History::default());
    let failed = incident(at(21));
    let why = Some("tcp refused: nobody listens");
    for (now, sight) in [
        (0, Sight::default()),
        (5, state(true, at(3))),
        (10, state(true, at(3))),
        // Nobody knows, and then it is as before.
        (15, Sight::default()),
        (20, state(true, at(17))),
        (25, Sight { failure: Some(&failed), ..state(false, at(21)) }),
        (30, Sight { failure: Some(&failed), ..state(false, at(21)) }),
        (35, Sight { failure: Some(&failed), ..state(true, at(31)) }),
    ] {
        history.tell(&bastion(), &sight, at(now).instant);
    }
    assert_eq!(changes(&history), [(3, true, None), (21, false, why), (31, true, None)]);
}

#[test]
fn a_tunnel_that_came_back_before_anybody_looked_was_down_nevertheless() {
    let (at, mut history) = (moments(), History::default());
    let failed = incident(at(6));
    history.tell(&bastion(), &state(true, at(1)), at(5).instant);
    let back = Sight { failure: Some(&failed), ..state(true, at(7)) };
    history.tell(&bastion(), &back, at(10).instant);
    let why = Some("tcp refused: nobody listens");
    assert_eq!(changes(&history), [(1, true, None), (7, false, why), (7, true, None)]);
    let track = history.track(&bastion()).unwrap();
    assert_eq!(track.buckets().last().unwrap().reachable(), Some(false), "the strip shows it");
    // A verdict that was formed anew, since the probe's configuration has changed, is no news.
    let database = Unit::Database(name("analytics"));
    history.tell(&database, &state(true, at(1)), at(5).instant);
    history.tell(&database, &back, at(10).instant);
    assert_eq!(history.changes().filter(|change| change.unit == Some(database.clone())).count(), 1);
}

#[test]
fn only_the_last_changes_are_kept_in_the_order_of_their_times() {
    let (at, mut history) = (moments(), History::default());
    for second in 0..100 {
        history.tell(&bastion(), &state(second % 2 == 0, at(2 * second)), at(2 * second).instant);
    }
    history.reloaded(at(191).wall, &[]);
    history.reloaded(at(193).wall, &["x".repeat(10_000), "another".to_owned()]);
    let seconds: Vec<u64> = changes(&history).iter().map(|(second, ..)| *second).collect();
    assert_eq!(seconds.len(), MAX_CHANGES);
    assert!(seconds.is_sorted() && seconds.contains(&191) && seconds.contains(&198));
    let refused = changes(&history).into_iter().find(|(second, ..)| *second == 193).unwrap();
    let why = refused.2.unwrap();
    assert!(!refused.1 && why.ends_with("… (and 1 more)") && why.chars().count() < 250, "{why}");
}

#[test]
fn a_tunnel_is_down_once_it_has_failed() {
    let at = moments();
    let session = |micros: u64| {
        let load = Arc::<SessionLoad>::default();
        load.round_trip_micros.store(micros, Ordering::Relaxed);
        let (phase, since) = (SessionPhase::Established, at(0));
        SessionState { id: 1, phase, since, address: None, certificate: None, load, jumps: Vec::new() }
    };
    let mut tunnel = TunnelState {
        sessions: vec![session(0), session(2000), session(1000)],
        down_since: Some(at(1)),
        ..TunnelState::default()
    };
    assert_eq!(Sight::of_tunnel(&tunnel).reachable, None, "it is dialled for the first time");
    tunnel.last_failure = Some(incident(at(2)));
    let sight = Sight::of_tunnel(&tunnel);
    assert_eq!((sight.reachable, sight.state, sight.took), (Some(false), Some((false, at(1))), None));
    tunnel.down_since = None;
    tunnel.uptime = Uptime::default();
    tunnel.uptime.set(true, at(3));
    let sight = Sight::of_tunnel(&tunnel);
    assert_eq!(sight.state, Some((true, at(3))));
    assert_eq!(sight.took, Some(Duration::from_millis(2)), "the slowest of its sessions");
}

#[test]
fn a_database_is_reachable_when_its_tunnel_and_its_probe_say_so() {
    let at = moments();
    for (tunnel, health, reachable, verdict) in [
        (Some(true), Health::Up, Some(true), Some(true)),
        (Some(true), Health::Down, Some(false), Some(false)),
        (Some(true), Health::Unknown, None, None),
        (Some(true), Health::NotProbed, Some(true), None),
        (Some(false), Health::Up, Some(false), Some(true)),
        (Some(false), Health::NotProbed, Some(false), None),
        (None, Health::Unknown, None, None),
    ] {
        let latency = Some(Duration::from_millis(3));
        let probe = ProbeState { health, since: Some(at(1)), latency, ..ProbeState::default() };
        let sight = Sight::of_database(&probe, tunnel);
        assert_eq!(
            (sight.reachable, sight.state.map(|(up, _)| up)),
            (reachable, verdict),
            "{tunnel:?} {health:?}"
        );
        assert_eq!(sight.took.is_some(), reachable == Some(true) && health == Health::Up);
    }
}
