//! What series belong to one bastion or database, so that they all go with it.

use prometheus::core::{Atomic, GenericCounterVec, GenericGaugeVec};
use prometheus::{HistogramVec, IntCounter, IntCounterVec};

use super::Timings;

/// A family that can forget one of its series.
trait Forget: Send + Sync {
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

/// Hands out series and removes all of them when dropped.
#[derive(Default)]
pub(super) struct Ledger(Vec<(Box<dyn Forget>, Vec<String>)>);

impl Ledger {
    /// A counter, at zero.
    pub(super) fn counter(&mut self, family: &IntCounterVec, labels: &[&str]) -> IntCounter {
        self.note(family, labels);
        family.with_label_values(labels)
    }

    /// A histogram, empty.
    pub(super) fn timings(&mut self, family: &HistogramVec, labels: &[&str]) -> Timings {
        self.note(family, labels);
        Timings(family.with_label_values(labels))
    }

    /// Series that are set from snapshots.
    pub(super) fn observed<P: Atomic + 'static>(
        &mut self,
        families: &[&GenericGaugeVec<P>],
        labels: &[&str],
    ) {
        for family in families {
            self.note(*family, labels);
        }
    }

    /// Counters that are raised from snapshots.
    pub(super) fn raised<P: Atomic + 'static>(
        &mut self,
        families: &[&GenericCounterVec<P>],
        labels: &[&str],
    ) {
        for family in families {
            self.note(*family, labels);
        }
    }

    fn note<F: Forget + Clone + 'static>(&mut self, family: &F, labels: &[&str]) {
        self.0.push((Box::new(family.clone()), labels.iter().map(|label| (*label).to_owned()).collect()));
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for (family, labels) in &self.0 {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            family.forget(&labels);
        }
    }
}
