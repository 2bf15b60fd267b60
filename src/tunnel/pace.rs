//! When a bastion may be dialled next.

use tokio::time::Instant;

use crate::backoff::Bounds;
use crate::failure::Cause;
use crate::retry::{Next, Retry};

pub(super) struct Pace {
    retry: Retry,
    pub(super) not_before: Instant,
    /// The bastion refuses us, and will not change its mind soon.
    pub(super) refusing: bool,
}

impl Pace {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { retry: Retry::new(bounds), not_before: Instant::now(), refusing: false }
    }

    /// Begins anew with other bounds.
    pub(super) fn restart(&mut self, bounds: Bounds) {
        *self = Self::new(bounds);
    }

    /// Takes note of a failure, and sets the time of the next dial.
    pub(super) fn after(&mut self, cause: Cause) -> Next {
        let next = self.retry.after(cause, rand::random());
        (self.not_before, self.refusing) = (Instant::now() + next.after, next.refusing);
        next
    }

    /// The bastion is well: what failed before no longer counts.
    pub(super) fn proven(&mut self) {
        self.retry.proven();
    }
}
