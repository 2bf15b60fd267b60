//! Counters whose labels are known beforehand but for whose they are: those of one bastion or database lie in one piece of
//! memory. In a family of the `prometheus` crate each would take half a kilobyte, and a database has a hundred of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Error, Opts};

/// The values of the labels behind the owner's; the second is empty where there is one only.
pub(super) type Cell = [&'static str; 2];

/// A family of such counters.
#[derive(Clone)]
pub(super) struct Tallies(Arc<Family>);

struct Family {
    desc: Desc,
    owners: Mutex<Owners>,
}

/// By the values of their labels. One may have several, which differ in their first cell.
type Owners = BTreeMap<(Vec<String>, Cell), Weak<Tally>>;

/// The counters of one owner. They go with the last handle.
pub(super) struct Tally(Box<[(Cell, AtomicU64)]>);

impl Tallies {
    pub(super) fn new(opts: &Opts, labels: &[&str]) -> Result<Self, Error> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(opts.fq_name(), opts.help.clone(), labels, opts.const_labels.clone())?;
        Ok(Self(Arc::new(Family { desc, owners: Mutex::default() })))
    }

    /// The counters of an owner; at zero, unless there are handles of them already.
    pub(super) fn of(&self, owner: &[&str], cells: impl IntoIterator<Item = Cell>) -> Arc<Tally> {
        let tally = Tally(cells.into_iter().map(|cell| (cell, AtomicU64::new(0))).collect());
        let first = tally.0.first().map(|(cell, _)| *cell).unwrap_or_default();
        let key = (owner.iter().map(|value| (*value).to_owned()).collect(), first);
        let mut owners = self.lock();
        owners.retain(|_, tally| tally.strong_count() > 0);
        if let Some(there) = owners.get(&key).and_then(Weak::upgrade) {
            return there;
        }
        let tally = Arc::new(tally);
        owners.insert(key, Arc::downgrade(&tally));
        tally
    }

    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.0.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metric(&self, owner: &[String], cell: &Cell, count: &AtomicU64) -> Metric {
        let values = owner.iter().map(String::as_str).chain(*cell);
        let mut labels: Vec<LabelPair> = self.0.desc.variable_labels.iter().zip(values).map(label).collect();
        labels.sort();
        let mut counter = Counter::default();
        counter.set_value(count.load(Ordering::Relaxed) as f64);
        let mut metric = Metric::from_label(labels);
        metric.set_counter(counter);
        metric
    }
}

fn label((name, value): (&String, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.clone());
    label.set_value(value.to_owned());
    label
}

impl Collector for Tallies {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics = Vec::new();
        for ((owner, _), tally) in self.lock().iter() {
            let Some(tally) = tally.upgrade() else { continue };
            metrics.extend(tally.0.iter().map(|(cell, count)| self.metric(owner, cell, count)));
        }
        let mut family = MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(MetricType::COUNTER);
        family.set_metric(metrics);
        vec![family]
    }
}

impl Tally {
    /// Counts one, where there is such a counter.
    pub(super) fn count(&self, cell: Cell) {
        if let Some((_, count)) = self.0.iter().find(|(known, _)| *known == cell) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
