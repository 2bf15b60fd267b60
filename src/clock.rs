//! The time, in one place: a clock that tests can stop.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::state::Moment;

/// This moment.
#[must_use]
pub fn now() -> Moment {
    Moment { instant: Instant::now().into_std(), wall: SystemTime::now() }
}

/// Keeps what may happen a thousand times a second from filling the log: once a minute is news enough.
#[derive(Debug, Default)]
pub struct OnceAMinute(Mutex<Option<Instant>>);

impl OnceAMinute {
    /// Whether it is time to speak; whoever asks and hears yes, speaks.
    pub fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(60));
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_a_minute() {
        let news = OnceAMinute::default();
        assert!(news.is_due() && !news.is_due());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!news.is_due());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(news.is_due() && !news.is_due());
    }
}
