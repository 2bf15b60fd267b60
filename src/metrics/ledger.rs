//! What series there are, and who has them: each goes with the last bastion or database that has it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Atomic, Collector, GenericCounterVec, GenericGaugeVec};
use prometheus::{CounterVec, GaugeVec, HistogramVec, IntCounter, IntCounterVec};

use super::Timings;

/// By how many seconds a total may go back and still be the same unit's: it is put together from parts that end at
/// slightly different moments.
const TOLERANCE: f64 = 1.0;

/// A family that can forget one of its series.
trait Forget: Collector {
    /// Forgetting what is not there is no error.
    fn forget(&self, labels: &[&str]);
}

impl Forget for HistogramVec {
    fn forget(&self, labels: &[&str]) {
        drop(self.remove_label_values(labels));
    }
}

impl<P: Atomic + 'static> Forget for GenericCounterVec<P> {
    fn forget(&self, labels: &[&str]) {
        drop(self.remove_label_values(labels));
    }
}

impl<P: Atomic + 'static> Forget for GenericGaugeVec<P> {
    fn forget(&self, labels: &[&str]) {
        drop(self.remove_label_values(labels));
    }
}

/// The name of the family, and the values of the labels.
type Key = (String, Vec<String>);

fn key(family: &dyn Collector, labels: &[&str]) -> Key {
    let name = family.desc().first().map(|description| description.fq_name.clone());
    (name.unwrap_or_default(), labels.iter().map(|label| (*label).to_owned()).collect())
}

/// All series that some ledger has.
#[derive(Clone, Default)]
pub(super) struct Series(Arc<Mutex<Had>>);

impl Series {
    /// Nothing comes or goes meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, Had> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The series while nothing comes or goes.
#[derive(Default)]
pub(super) struct Had(BTreeMap<Key, Use>);

#[derive(Default)]
struct Use {
    ledgers: usize,
    /// The total that was seen last, of a counter that is raised.
    seen: f64,
}

impl Had {
    /// Whether some ledger has it.
    pub(super) fn has(&self, family: &dyn Collector, labels: &[&str]) -> bool {
        self.0.contains_key(&key(family, labels))
    }

    /// Adds to a counter of seconds what has been measured elsewhere since. What measures begins at zero when it is
    /// replaced; the counter goes on.
    pub(super) fn raise(&mut self, family: &CounterVec, labels: &[&str], total: f64) {
        let Some(used) = self.0.get_mut(&key(family, labels)) else { return };
        let is_another = total < used.seen - TOLERANCE;
        let before = if is_another { 0.0 } else { used.seen };
        if total > before {
            family.with_label_values(labels).inc_by(total - before);
        }
        used.seen = total.max(before);
    }
}

/// Hands out series and lets go of all of them when dropped.
pub(super) struct Ledger {
    series: Series,
    entries: Vec<(Box<dyn Forget>, Key)>,
}

impl Ledger {
    /// An empty one.
    pub(super) fn new(series: &Series) -> Self {
        Self { series: series.clone(), entries: Vec::new() }
    }

    /// A counter; at zero, unless another ledger has it too.
    pub(super) fn counter(&mut self, family: &IntCounterVec, labels: &[&str]) -> IntCounter {
        self.note(family, labels, || family.with_label_values(labels))
    }

    /// A histogram; empty, unless another ledger has it too.
    pub(super) fn timings(&mut self, family: &HistogramVec, labels: &[&str]) -> Timings {
        Timings(self.note(family, labels, || family.with_label_values(labels)))
    }

    /// A gauge that is always 1.
    pub(super) fn info(&mut self, family: &GaugeVec, labels: &[&str]) {
        self.note(family, labels, || family.with_label_values(labels).set(1.0));
    }

    /// Series that are set from snapshots.
    pub(super) fn observed<P: Atomic + 'static>(
        &mut self,
        families: &[&GenericGaugeVec<P>],
        labels: &[&str],
    ) {
        for family in families {
            self.note(*family, labels, || ());
        }
    }

    /// Counters that are raised from snapshots; at zero, unless another ledger has them too.
    pub(super) fn raised<P: Atomic + 'static>(
        &mut self,
        families: &[&GenericCounterVec<P>],
        labels: &[&str],
    ) {
        for family in families {
            self.note(*family, labels, || drop(family.with_label_values(labels)));
        }
    }

    fn note<F: Forget + Clone + 'static, T>(
        &mut self,
        family: &F,
        labels: &[&str],
        make: impl FnOnce() -> T,
    ) -> T {
        let key = key(family, labels);
        // Made under the lock, so that another ledger's end does not take it away again.
        let mut series = self.series.lock();
        series.0.entry(key.clone()).or_default().ledgers += 1;
        self.entries.push((Box::new(family.clone()), key));
        make()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let mut series = self.series.lock();
        for (family, key) in &self.entries {
            let Some(used) = series.0.get_mut(key) else { continue };
            used.ledgers -= 1;
            if used.ledgers == 0 {
                series.0.remove(key);
                let labels: Vec<&str> = key.1.iter().map(String::as_str).collect();
                family.forget(&labels);
            }
        }
    }
}
