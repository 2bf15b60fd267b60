//! When a bastion is dialled again: a pure rule from what failed to how long to wait.
//!
//! Most failures pass, and are tried again soon. A bastion that could not be reached is tried every second at least while
//! clients wait: that it has been back for half a minute is of no use to a job that was given up meanwhile. A refused
//! login or host key does not pass by itself and hammering
//! on it gets an address banned, so after three tries it is asked every five minutes only. A bastion that says it
//! is busy is left alone for at least ten seconds (sshd's MaxStartups and PerSourcePenalties count attempts).

use std::time::Duration;

use crate::backoff::Bounds;
use crate::failure::{Cause, Failure, Phase};

/// How long a session must have been established to prove that the bastion is well again.
pub const PROVEN_AFTER: Duration = Duration::from_secs(30);

/// The longest that an attempt is put off while clients wait for it.
const AWAITED: Duration = Duration::from_secs(1);
const REFUSED_TRIES: u32 = 3;
const REFUSED_PACE: Duration = Duration::from_secs(300);
const BUSY: Bounds = Bounds { min: Duration::from_secs(10), max: Duration::from_secs(120) };

/// What follows a failed attempt or a lost session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// How long to wait before the next attempt.
    pub after: Duration,
    /// The same while clients wait for it, at most `after`.
    pub awaited: Duration,
    /// The bastion refuses us: it will not change its mind soon, so no client should wait for it.
    pub refusing: bool,
}

/// The failures of one bastion since it last proved well.
#[derive(Clone, Debug)]
pub struct Retry {
    bounds: Bounds,
    failures: u32,
    refusals: u32,
    busy: u32,
}

impl Retry {
    /// Starts without failures; `bounds` is the bastion's `reconnect`.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, failures: 0, refusals: 0, busy: 0 }
    }

    /// A session has been established for [`PROVEN_AFTER`]: what failed before no longer counts.
    pub fn proven(&mut self) {
        *self = Self::new(self.bounds);
    }

    /// Takes note of a failure. `random` is uniform in `0.0..1.0`.
    pub fn after(&mut self, failure: &Failure, random: f64) -> Next {
        let cause = failure.cause;
        self.failures = self.failures.saturating_add(1);
        self.refusals = if is_refusal(failure) { self.refusals.saturating_add(1) } else { 0 };
        self.busy = if cause == Cause::BannerBusy { self.busy.saturating_add(1) } else { 0 };
        if self.refusals >= REFUSED_TRIES {
            let after = REFUSED_PACE.mul_f64(0.9 + 0.2 * random);
            Next { after, awaited: after, refusing: true }
        } else if self.busy > 0 {
            let after = BUSY.ceiling(self.busy).mul_f64(1.0 + 0.2 * random).min(BUSY.max);
            Next { after, awaited: after, refusing: false }
        } else {
            // A bastion that has come as far as to refuse us is there again, however long it was away before.
            let failures = if self.refusals > 0 { self.refusals } else { self.failures };
            let after = self.bounds.delay(failures, random);
            let soon = Bounds { max: self.bounds.max.min(AWAITED.max(self.bounds.min)), ..self.bounds };
            let awaited = if is_absence(failure) { soon.delay(failures, random) } else { after };
            Next { after, awaited, refusing: false }
        }
    }
}

/// As far as one can tell nobody was there yet, so that asking again is a burden to nobody.
fn is_absence(failure: &Failure) -> bool {
    match failure.cause.phase() {
        _ if failure.is_shortage() => true,
        Phase::Dns | Phase::Banner => true,
        // A command may cost anything.
        Phase::Tcp => failure.cause != Cause::TcpProxyCommandFailed,
        _ => false,
    }
}

/// A bastion that refuses our key or shows a wrong one needs a person.
fn is_refusal(failure: &Failure) -> bool {
    match failure.cause.phase() {
        _ if failure.is_shortage() => false,
        Phase::HostKey => true,
        // The bastion had no say in these.
        Phase::Auth => !matches!(failure.cause, Cause::AuthTimeout | Cause::AuthClosed | Cause::AuthSecret),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Retry {
        Retry::new(Bounds { min: Duration::from_millis(200), max: Duration::from_secs(30) })
    }

    fn failure(cause: Cause) -> Failure {
        Failure::new(cause, "x")
    }

    fn waits(retry: &mut Retry, cause: Cause, random: f64, n: usize) -> Vec<(u128, bool)> {
        (0..n)
            .map(|_| retry.after(&failure(cause), random))
            .map(|next| (next.after.as_millis(), next.refusing))
            .collect()
    }

    #[test]
    fn passing_failures_are_tried_soon_and_for_ever() {
        let expected = [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000];
        assert_eq!(waits(&mut retry(), Cause::TcpRefused, 1.0, 10), expected.map(|ms| (ms, false)));
        assert_eq!(waits(&mut retry(), Cause::SessionClosed, 0.0, 2), [(0, false), (0, false)]);
    }

    #[test]
    fn clients_that_wait_are_not_kept_waiting_for_the_next_attempt() {
        let mut retry = retry();
        let mut awaited = |cause| retry.after(&failure(cause), 1.0).awaited.as_millis();
        let causes =
            [Cause::TcpRefused, Cause::TcpTimeout, Cause::BannerClosed, Cause::TcpRefused, Cause::DnsFailed];
        assert_eq!(causes.map(&mut awaited), [200, 400, 800, 1000, 1000]);
        assert_eq!(awaited(Cause::BannerBusy), 12_000);
        assert_eq!(awaited(Cause::AuthClosed), 12_800);
        assert_eq!([Cause::AuthRejected; 3].map(&mut awaited), [200, 400, 330_000]);
        let patient = Bounds { min: Duration::from_secs(10), max: Duration::from_secs(300) };
        assert_eq!(Retry::new(patient).after(&failure(Cause::TcpRefused), 1.0).awaited, patient.min);
    }

    #[test]
    fn refusals_get_three_tries_then_five_minutes() {
        for cause in [Cause::AuthRejected, Cause::HostKeyChanged, Cause::AuthIdentityUnreadable] {
            let expected = [(200, false), (400, false), (330_000, true), (330_000, true)];
            assert_eq!(waits(&mut retry(), cause, 1.0, 4), expected);
        }
        let mut retry = retry();
        waits(&mut retry, Cause::AuthRejected, 0.5, 3);
        assert!(!retry.after(&failure(Cause::TcpRefused), 0.5).refusing);
        assert!(!retry.after(&failure(Cause::AuthRejected), 0.5).refusing);
    }

    #[test]
    fn a_refusal_after_a_long_outage_gets_its_tries_soon() {
        let mut retry = retry();
        waits(&mut retry, Cause::TcpRefused, 1.0, 9);
        assert_eq!(waits(&mut retry, Cause::AuthRejected, 1.0, 2), [(200, false), (400, false)]);
    }

    #[test]
    fn a_login_that_was_cut_off_is_no_refusal() {
        for cause in [Cause::AuthTimeout, Cause::AuthClosed] {
            assert!(waits(&mut retry(), cause, 1.0, 5).iter().all(|(_, refusing)| !refusing));
        }
    }

    #[test]
    fn a_shortage_of_our_own_is_no_refusal() {
        let error = std::io::Error::from_raw_os_error(24);
        let short = failure(Cause::HostKeyUnreadable).from_system(&error);
        let mut retry = retry();
        let last = (0..9).map(|_| retry.after(&short, 1.0)).last().unwrap();
        assert_eq!((last.refusing, last.awaited), (false, AWAITED));
    }

    #[test]
    fn a_busy_bastion_is_left_alone() {
        let expected = [10_000, 20_000, 40_000, 80_000, 120_000, 120_000];
        assert_eq!(waits(&mut retry(), Cause::BannerBusy, 0.0, 6), expected.map(|ms| (ms, false)));
        assert!(
            waits(&mut retry(), Cause::BannerBusy, 1.0, 9)
                .iter()
                .all(|(ms, _)| (10_000..=120_000).contains(ms))
        );
    }

    #[test]
    fn proof_of_life_forgives() {
        let mut retry = retry();
        waits(&mut retry, Cause::TcpRefused, 1.0, 6);
        retry.proven();
        assert_eq!(waits(&mut retry, Cause::SessionClosed, 1.0, 1), [(200, false)]);
    }
}
