//! Exponential back-off with full jitter, as arithmetic: the caller brings the random number and does the waiting.
//!
//! Full jitter (a uniform choice between zero and the exponential bound) spreads a crowd of clients best; see
//! "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// The bounds of a back-off. `min <= max`, both at least a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The bound of the first delay.
    pub min: Duration,
    /// The bound of any delay.
    pub max: Duration,
}

impl Bounds {
    /// The bound of the delay that follows `failures` failures in a row: `min`, doubled for each one after the
    /// first, at most `max`.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.min.saturating_mul(1 << doublings).min(self.max)
    }

    /// The delay after `failures` failures in a row, with full jitter. `random` is uniform in `0.0..1.0`.
    #[must_use]
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        self.ceiling(failures).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { min: Duration::from_millis(200), max: Duration::from_secs(30) };

    #[test]
    fn doubles_up_to_its_maximum() {
        let ceilings: Vec<u128> = (1..=10).map(|n| BOUNDS.ceiling(n).as_millis()).collect();
        assert_eq!(ceilings, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    }

    proptest! {
        #[test]
        fn never_above_its_ceiling(failures in 0u32.., random in -1.0..2.0) {
            prop_assert!(BOUNDS.delay(failures, random) <= BOUNDS.ceiling(failures));
            prop_assert!(BOUNDS.ceiling(failures) <= BOUNDS.max);
        }
    }
}
