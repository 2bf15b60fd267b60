//! Waiting for what comes true by itself.

use std::time::{Duration, Instant};

/// How long anything may take that is bound to happen. One bound for all, far above what any of it needs: a test
/// that runs into it has failed, and no test's result depends on its size.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "it never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
