//! From single probe results to a verdict that an alert can trust: one success is proof, one failure is not.

use crate::state::Health;

/// What one probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The database answered.
    Answered,
    /// It did not.
    Failed,
    /// It was not asked, since there was nothing to log in with: as far as the probe came all was well.
    Unable,
    /// The probe was not made, since no session could take it: neither good nor bad news.
    Skipped,
}

/// The verdict on one database.
#[derive(Clone, Debug)]
pub struct Verdict {
    failures_to_be_down: u32,
    failures: u32,
    health: Health,
}

impl Verdict {
    /// Starts without knowing. `failures_to_be_down` is the key `probe.failures`, at least 1.
    #[must_use]
    pub fn new(failures_to_be_down: u32) -> Self {
        Self { failures_to_be_down, failures: 0, health: Health::Unknown }
    }

    /// Takes note of a result and says what holds then.
    pub fn record(&mut self, outcome: Outcome) -> Health {
        match outcome {
            Outcome::Skipped => {}
            Outcome::Answered => {
                self.failures = 0;
                self.health = Health::Up;
            }
            Outcome::Failed => self.doubt(Health::Down),
            Outcome::Unable => self.doubt(Health::Unknown),
        }
        self.health
    }

    fn doubt(&mut self, health: Health) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.failures_to_be_down {
            self.health = health;
        }
    }
}

#[cfg(test)]
mod tests {
    use Outcome::{Answered, Failed, Skipped, Unable};

    use super::*;

    #[test]
    fn verdicts() {
        for (outcomes, expected) in [
            (&[][..], Health::Unknown),
            (&[Skipped], Health::Unknown),
            (&[Answered], Health::Up),
            (&[Failed], Health::Unknown),
            (&[Failed, Failed], Health::Down),
            (&[Answered, Failed], Health::Up),
            (&[Answered, Failed, Skipped, Failed], Health::Down),
            (&[Failed, Answered, Failed], Health::Up),
            (&[Failed, Failed, Skipped], Health::Down),
            (&[Failed, Failed, Answered], Health::Up),
            (&[Unable, Unable], Health::Unknown),
            (&[Answered, Unable], Health::Up),
            (&[Answered, Unable, Unable], Health::Unknown),
            (&[Failed, Failed, Unable], Health::Unknown),
            (&[Answered, Unable, Failed], Health::Down),
        ] {
            let mut verdict = Verdict::new(2);
            for outcome in outcomes {
                verdict.record(*outcome);
            }
            assert_eq!(verdict.health, expected, "{outcomes:?}");
        }
    }
}
