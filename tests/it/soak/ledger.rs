//! What was promised and what came of it: who was carried, cut or refused, and whether a fault excuses it.

use std::fmt::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::clients::Outcome;
use super::forwards::{Forward, Hit};
use super::scene::Measure;

/// A fault, and when all was well again.
struct Window {
    until: Option<Instant>,
    hit: Hit,
}

#[derive(Default)]
struct Counts {
    carried: u64,
    cut: u64,
    refused: u64,
    bytes: u64,
    longest_recovery: Duration,
    windows: Vec<Window>,
    broken: Vec<String>,
}

#[derive(Default)]
pub struct Ledger(Mutex<Counts>);

impl Ledger {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on a fault may be felt.
    pub fn fault_begins(&self, hit: Hit) {
        self.0.lock().unwrap().windows.push(Window { until: None, hit });
    }

    /// All is well: from now on no fault excuses anything.
    pub fn recovered(&self, after: Duration) {
        let mut counts = self.0.lock().unwrap();
        counts.longest_recovery = counts.longest_recovery.max(after);
        for window in counts.windows.iter_mut().filter(|window| window.until.is_none()) {
            window.until = Some(Instant::now());
        }
    }

    /// A promise is broken.
    pub fn breach(&self, what: String) {
        eprintln!("BROKEN: {what}");
        self.0.lock().unwrap().broken.push(what);
    }

    pub fn broken(&self) -> Vec<String> {
        self.0.lock().unwrap().broken.clone()
    }

    /// A client that came at `began` has left.
    pub fn judge(&self, forward: &Forward, began: Instant, outcome: Outcome) {
        let (cut_excused, refusal_excused) = {
            let counts = self.0.lock().unwrap();
            let during = |window: &&Window| window.until.is_none_or(|until| until >= began);
            let felt: Vec<Hit> = counts.windows.iter().filter(during).map(|window| window.hit).collect();
            (felt.iter().any(|hit| hit.reaches(forward)), felt.iter().any(|hit| hit.shakes(forward)))
        };
        let who = &forward.name;
        match outcome {
            Outcome::Done(bytes) => {
                let mut counts = self.0.lock().unwrap();
                counts.carried += 1;
                counts.bytes += bytes;
            }
            Outcome::Cut(why) => {
                self.0.lock().unwrap().cut += 1;
                if !cut_excused {
                    self.breach(format!("a client of {who} was cut though nothing was wrong: {why}"));
                }
            }
            Outcome::Refused(why) => {
                self.0.lock().unwrap().refused += 1;
                if !refusal_excused {
                    self.breach(format!(
                        "a client of {who} was refused where it should have been held: {why}"
                    ));
                }
            }
            Outcome::Wrong(what) => self.breach(format!("a client of {who}: {what}")),
        }
    }

    /// One line of progress.
    pub fn line(&self) -> String {
        let counts = self.0.lock().unwrap();
        let (carried, cut, refused, mb) = (counts.carried, counts.cut, counts.refused, counts.bytes >> 20);
        format!("{carried} carried, {cut} cut, {refused} refused, {mb} MiB checked")
    }

    pub fn table(&self, played: &[(&str, u64)], before: &Measure, after: &Measure) -> String {
        let counts = self.0.lock().unwrap();
        let mut table = String::new();
        for (name, times) in played {
            writeln!(table, "{name:36} {times:>10}").unwrap();
        }
        let was_then = |was: String, is: String| format!("{was} then {is}");
        for (name, value) in [
            ("clients carried", counts.carried.to_string()),
            ("clients cut by a fault", counts.cut.to_string()),
            ("clients refused by their database", counts.refused.to_string()),
            ("bytes checked", counts.bytes.to_string()),
            ("longest recovery, s", format!("{:.1}", counts.longest_recovery.as_secs_f64())),
            ("memory, kB", was_then(before.memory_kb.to_string(), after.memory_kb.to_string())),
            ("memory at the peak, kB", after.peak_kb.to_string()),
            ("descriptors", was_then(before.descriptors.to_string(), after.descriptors.to_string())),
            ("sessions", was_then(before.sessions.to_string(), after.sessions.to_string())),
            ("promises broken", counts.broken.len().to_string()),
        ] {
            writeln!(table, "{name:36} {value:>10}").unwrap();
        }
        table
    }
}
