//! Every Prometheus series, its name, labels and buckets. The only module that names the `prometheus` crate.
//!
//! Counters and histograms are handed out as handles, resolved once per bastion or database, so that counting
//! touches an atomic only; all of them exist at zero from then on, and go with the last of their handles: what was
//! removed may still be draining when it comes back, and both count into the same series. Gauges, and the counters of
//! seconds, are set from a [`Snapshot`] when somebody asks, so that they cannot disagree with the status page.

mod bastion;
mod database;
mod ledger;
mod tally;

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts,
    Registry, TextEncoder,
};

pub use bastion::BastionMetrics;
pub use database::{DatabaseMetrics, Direction, Mints, Outcome, ProbePhase};

use crate::failure::Cause;
use crate::ids::Name;
use crate::snapshot::{Snapshot, Stamp};
use ledger::Series;
use tally::{Cell, Tallies};

/// Seconds, for queries, turnaround, durations and holds.
const LONG: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0,
];

/// Seconds, for round trips, opens, establishing and probe phases.
const SHORT: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const PREFIX: &str = "tunnelkeeper";

/// Registers families under the product's prefix.
struct Registrar<'a> {
    registry: &'a Registry,
    series: Series,
}

impl Registrar<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, collector: Result<C, Error>) -> Result<C, Error> {
        let collector = collector?;
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.keep(IntCounterVec::new(Opts::new(name, help).namespace(PREFIX), labels))
    }

    /// Counters whose labels are known but for the owner's.
    fn tallies(&self, name: &str, help: &str, labels: &[&str]) -> Result<Tallies, Error> {
        self.keep(Tallies::new(&Opts::new(name, help).namespace(PREFIX), labels))
    }

    fn seconds_counter(&self, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec, Error> {
        self.keep(CounterVec::new(Opts::new(name, help).namespace(PREFIX), labels))
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.keep(GaugeVec::new(Opts::new(name, help).namespace(PREFIX), labels))
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, Error> {
        let opts = HistogramOpts::new(name, help).namespace(PREFIX).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(opts, labels))
    }
}

/// All series of the daemon.
pub struct Metrics {
    registry: Registry,
    reload_successful: Gauge,
    reload_timestamp: Gauge,
    bastions: bastion::Families,
    databases: database::Families,
    series: Series,
    /// When the snapshot was taken that was observed last. Two scrapes must not observe at the same time.
    observed: Mutex<Option<SystemTime>>,
}

impl Metrics {
    /// Creates all families.
    ///
    /// # Errors
    /// Only if two families had the same name.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let registrar = Registrar { registry: &registry, series: Series::default() };
        let build =
            registrar.gauge("build_info", "The version that runs; always 1.", &["version", "revision"])?;
        // `make build` names it.
        let revision = option_env!("TUNNELKEEPER_REVISION").filter(|revision| !revision.is_empty());
        let revision = revision.unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1.0);
        let reload_successful = registrar.gauge(
            "config_last_reload_successful",
            "Whether the last attempt to load the configuration succeeded.",
            &[],
        )?;
        let reload_timestamp = registrar.gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration was loaded last with success.",
            &[],
        )?;
        let metrics = Self {
            reload_successful: reload_successful.with_label_values::<&str>(&[]),
            reload_timestamp: reload_timestamp.with_label_values::<&str>(&[]),
            bastions: bastion::Families::new(&registrar)?,
            databases: database::Families::new(&registrar)?,
            series: registrar.series,
            observed: Mutex::default(),
            registry,
        };
        // `process_*` needs /proc, which a container may hide: the daemon runs without it then.
        let _ =
            metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        Ok(metrics)
    }

    /// The series of a bastion; at zero, unless there are handles of this bastion already.
    #[must_use]
    pub fn bastion(&self, name: &Name) -> BastionMetrics {
        BastionMetrics::new(&self.bastions, name)
    }

    /// The series of a database; at zero, unless there are handles of this database already.
    #[must_use]
    pub fn database(&self, name: &Name, bastions: &[Name]) -> DatabaseMetrics {
        DatabaseMetrics::new(&self.databases, name, bastions)
    }

    /// The configuration was loaded with success.
    pub fn configuration_loaded(&self, at: Stamp) {
        self.reload_successful.set(1.0);
        self.reload_timestamp.set(at.seconds());
    }

    /// It could not be loaded anew, and stays as it was.
    pub fn configuration_refused(&self) {
        self.reload_successful.set(0.0);
    }

    /// Everything in Prometheus' text format, with the gauges as `snapshot` has them.
    ///
    /// # Errors
    /// Only if the encoder fails, which would be a fault of this program.
    pub fn exposition(&self, snapshot: &Snapshot) -> Result<String, Error> {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = observed.replace(snapshot.at.0);
        // Another scrape may have come with a newer one. When the clock is set back, one is left out.
        if before.is_none_or(|before| before <= snapshot.at.0) {
            let mut series = self.series.lock();
            self.bastions.observe(&snapshot.bastions, &mut series);
            self.databases.observe(&snapshot.databases, &mut series);
        }
        let families: Vec<MetricFamily> = self.registry.gather();
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Sets a gauge that is absent while its value is not known.
fn set_if_known(family: &GaugeVec, labels: &[&str], value: Option<f64>) {
    match value {
        Some(value) => family.with_label_values(labels).set(value),
        // Removing what is not there is no error.
        None => drop(family.remove_label_values(labels)),
    }
}

/// As a cause is counted where both are labels.
fn by_phase(cause: Cause) -> Cell {
    [cause.phase().as_str(), cause.reason()]
}

/// And where the phase goes without saying.
fn by_reason(cause: Cause) -> Cell {
    [cause.reason(), ""]
}

/// A histogram's handle takes durations.
#[derive(Clone)]
pub struct Timings(Histogram);

impl Timings {
    /// Notes one duration.
    pub fn observe(&self, duration: std::time::Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
