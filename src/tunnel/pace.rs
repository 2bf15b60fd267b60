//! When a bastion may be dialled next.

use tokio::time::Instant;

use crate::backoff::Bounds;
use crate::failure::Failure;
use crate::retry::{Next, Retry};

pub(super) struct Pace {
    retry: Retry,
    not_before: Instant,
    /// The same while clients wait.
    awaited: Instant,
    /// The bastion refuses us, and will not change its mind soon.
    pub(super) refusing: bool,
}

impl Pace {
    pub(super) fn new(bounds: Bounds) -> Self {
        let now = Instant::now();
        Self { retry: Retry::new(bounds), not_before: now, awaited: now, refusing: false }
    }

    /// Begins anew with other bounds.
    pub(super) fn restart(&mut self, bounds: Bounds) {
        *self = Self::new(bounds);
    }

    /// The time of the next dial, which may be `awaited` by clients.
    pub(super) fn not_before(&self, awaited: bool) -> Instant {
        if awaited { self.awaited } else { self.not_before }
    }

    /// The next dial need not wait any longer.
    pub(super) fn hurry(&mut self) {
        (self.not_before, self.awaited) = (Instant::now(), Instant::now());
    }

    /// Takes note of a failure, and sets the time of the next dial.
    pub(super) fn after(&mut self, failure: &Failure) -> Next {
        let (now, next) = (Instant::now(), self.retry.after(failure, rand::random()));
        (self.not_before, self.awaited, self.refusing) =
            (now + next.after, now + next.awaited, next.refusing);
        next
    }

    /// The bastion is well: what failed before no longer counts.
    pub(super) fn proven(&mut self) {
        self.retry.proven();
    }
}
