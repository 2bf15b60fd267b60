//! The time, in one place: a clock that tests can stop.

use std::time::SystemTime;

use crate::state::Moment;

/// This moment.
#[must_use]
pub fn now() -> Moment {
    Moment { instant: tokio::time::Instant::now().into_std(), wall: SystemTime::now() }
}
