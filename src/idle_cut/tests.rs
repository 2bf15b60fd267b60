use super::*;

const S: Duration = Duration::from_secs(1);

/// A connection that had an end after such a pause, and the longest it had come through.
fn pause(tail: u32, asked: u32, survived: u32) -> LastPause {
    LastPause { tail: tail * S, asked: asked * S, survived: survived * S, rhythm: None }
}

struct Case {
    cuts: IdleCuts,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        Self { cuts: IdleCuts::default(), now: Instant::now() }
    }

    fn lose(&mut self, cause: Cause, age: u32, pause: LastPause) -> bool {
        self.now += age * S;
        self.cuts.lost(Loss { cause, age: age * S, pause }, self.now)
    }

    fn found(&self) -> Option<(&'static str, u64, u32)> {
        self.cuts.finding().map(|cut| (cut.after.as_str(), cut.seconds(), cut.losses))
    }
}

#[test]
fn three_losses_after_the_same_idle_time_are_a_cut() {
    let mut case = Case::new();
    for (age, tail) in [(500, 61), (90, 60)] {
        case.lose(Cause::SessionClosed, age, pause(tail, 0, 31));
        assert_eq!(case.found(), None);
    }
    assert!(case.lose(Cause::SessionReset, 1200, pause(62, 0, 50)));
    assert_eq!(case.found(), Some(("idle", 61, 3)));
    let cut = case.cuts.finding().unwrap();
    assert_eq!(cut.detail(), "3 sessions were cut after about 1m 1s idle");
    let hint = cut.hint(&crate::ids::Name::parse("prod").unwrap());
    assert!(hint.contains("`keepalive_interval = \"30s\"` into [bastions.prod]"), "{hint}");
    // A restart of sshd in between has nothing to do with it.
    case.lose(Cause::SessionClosed, 700, pause(10, 0, 40));
    assert_eq!(case.found(), Some(("idle", 61, 3)));
    case.cuts.lives(60 * S, 300 * S);
    assert_eq!(case.found(), Some(("idle", 61, 3)));
    case.cuts.lives(80 * S, 300 * S);
    assert_eq!(case.found(), None);
}

#[test]
fn what_a_session_has_lived_through_did_not_kill_it() {
    let mut case = Case::new();
    // Restarts of a bastion whose sessions are pinged every 30 s.
    for (age, tail) in [(3000, 20), (100, 21), (5000, 20), (60, 20), (700, 21)] {
        case.lose(Cause::SessionClosed, age, pause(tail, 0, 30));
        // It vanished, and answered the next ping with a reset.
        case.lose(Cause::SessionReset, age + 1000, pause(0, 30, 30));
    }
    assert_eq!(case.found(), None);
}

#[test]
fn an_end_that_is_found_by_asking_is_at_most_so_late() {
    for (cause, tail) in [(Cause::SessionReset, 0), (Cause::SessionKeepaliveTimeout, 600)] {
        let mut case = Case::new();
        for age in [800, 4000, 700] {
            case.lose(cause, age, pause(tail, 600, 100));
        }
        assert_eq!(case.found(), Some(("idle", 600, 3)));
        let cut = case.cuts.finding().unwrap();
        assert_eq!(cut.after, CutAfter::Idle { at_most: true });
        assert_eq!(cut.detail(), "3 sessions were found cut after 10m idle");
        // That it was asked after this time, and answered, is the opposite.
        case.cuts.lives(600 * S, 601 * S);
        assert_eq!(case.found(), None);
    }
}

#[test]
fn what_is_lost_together_is_one_loss() {
    let mut case = Case::new();
    for age in [300, 0, 1, 1] {
        case.now += age * S;
        let loss = Loss { cause: Cause::SessionClosed, age: 3600 * S, pause: pause(61, 0, 31) };
        case.cuts.lost(loss, case.now);
    }
    assert_eq!(case.found(), None);
}

#[test]
fn sessions_that_end_at_one_age_are_cut_for_it_whatever_they_do() {
    let mut case = Case::new();
    for (age, tail) in [(3601, 0), (3600, 12), (3602, 3)] {
        case.lose(Cause::SessionClosed, age, pause(tail, 0, 20));
    }
    assert_eq!(case.found(), Some(("age", 3601, 3)));
    case.cuts.lives(20 * S, 3600 * S);
    assert!(case.found().is_some());
    case.cuts.lives(20 * S, 4000 * S);
    assert_eq!(case.found(), None);
    // Chance, and sessions that never came to life.
    for age in [300, 320, 350, 310, 290] {
        case.lose(Cause::SessionClosed, age, pause(0, 0, 20));
    }
    for _ in 0..5 {
        case.lose(Cause::SessionClosed, 1, pause(0, 0, 0));
    }
    assert_eq!(case.found(), None);
}

#[test]
fn an_sshd_that_hangs_up_when_it_would_have_asked_again_got_no_answer() {
    let mut case = Case::new();
    let asking =
        |tail: u64| LastPause { tail: Duration::from_millis(tail), rhythm: Some(15 * S), ..pause(0, 0, 15) };
    for age in [100, 400, 260] {
        case.lose(Cause::SessionClosed, age, asking(15_010));
    }
    assert_eq!(case.found(), Some(("client_alive", 15, 3)));
    let cut = case.cuts.finding().unwrap();
    let hint = cut.hint(&crate::ids::Name::parse("prod").unwrap());
    assert!(hint.contains("`ClientAliveInterval 30` and `ClientAliveCountMax 10`"), "{hint}");
    case.cuts.lives(15 * S, 1400 * S);
    assert!(case.found().is_some());
    case.cuts.lives(15 * S, 1600 * S);
    assert_eq!(case.found(), None);
    for (age, tail) in [(100, 3000), (400, 11_000), (333, 700), (800, 14_000)] {
        case.lose(Cause::SessionClosed, age, asking(tail));
    }
    assert_eq!(case.found(), None);
}

#[test]
fn pauses_are_told_by_what_ends_them() {
    use pauses::Pauses;
    let start = Instant::now();
    let at = |s: u32| start + s * S;
    let mut pauses = Pauses::new(start);
    // Asked after 30 s, and answered.
    pauses.sent(at(30));
    assert_eq!(pauses.survived(), Duration::ZERO);
    pauses.received(at(30));
    assert_eq!((pauses.survived(), pauses.heard()), (30 * S, at(30)));
    // The other side speaks after 10 s, and gets an answer.
    pauses.received(at(40));
    pauses.sent(at(40));
    assert_eq!(pauses.last(at(45)), LastPause { rhythm: Some(10 * S), ..pause(5, 0, 30) });
    // Asked after 40 s, and again after 20 more: no answer.
    pauses.sent(at(80));
    pauses.sent(at(100));
    pauses.end(at(101));
    pauses.end(at(150));
    let last = LastPause { rhythm: Some(10 * S), ..pause(1, 40, 30) };
    assert_eq!(pauses.last(at(200)), last);
    let loss = |cause| Loss { cause, age: S, pause: last }.idle();
    assert_eq!(loss(Cause::SessionReset), (40 * S, true));
    assert_eq!(loss(Cause::SessionKeepaliveTimeout), (40 * S, true));
}
