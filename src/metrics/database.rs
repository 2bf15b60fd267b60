//! The series of a database: of its forward and of its probe.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{CounterVec, Error, GaugeVec, HistogramVec, IntCounter, IntCounterVec};

use super::bastion::{of_phases, session_losses};
use super::ledger::{Had, Ledger, Series};
use super::tally::{Cell, Tallies, Tally};
use super::{LONG, Registrar, SHORT, Timings, by_phase, by_reason, set_if_known};
use crate::failure::{Cause, Phase};
use crate::ids::Name;
use crate::pgwire::{Encryption, ErrorClass};
use crate::snapshot::{Database, Stamp};

/// What became of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was connected to the database.
    Carried,
    /// It was held until the hold ended.
    HoldTimeout,
    /// The bastion refuses us, or this forward.
    Refused,
    /// There were too many clients.
    Limit,
    /// It left while it was held.
    Gone,
    /// The bastion could not connect to the database until the hold ended.
    OpenFailed,
}

const OUTCOMES: [(Outcome, &str); 6] = [
    (Outcome::Carried, "carried"),
    (Outcome::HoldTimeout, "hold_timeout"),
    (Outcome::Refused, "refused"),
    (Outcome::Limit, "limit"),
    (Outcome::Gone, "gone"),
    (Outcome::OpenFailed, "open_failed"),
];

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToDatabase,
    /// From the database.
    FromDatabase,
}

/// The timed phases of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbePhase {
    /// The bastion connects to the database.
    Channel,
    /// TLS is agreed on.
    Tls,
    /// The probe logs in.
    Login,
    /// The query is answered.
    Query,
}

const PROBE_PHASES: [(ProbePhase, &str); 4] = [
    (ProbePhase::Channel, "channel"),
    (ProbePhase::Tls, "db_tls"),
    (ProbePhase::Login, "db_login"),
    (ProbePhase::Query, "db_query"),
];

pub(super) struct Families {
    series: Series,
    up: GaugeVec,
    uptime: CounterVec,
    bastion_info: GaugeVec,
    active: GaugeVec,
    held: GaugeVec,
    connections: Tallies,
    cut: Tallies,
    hold: HistogramVec,
    open: HistogramVec,
    duration: HistogramVec,
    bytes: IntCounterVec,
    startups: IntCounterVec,
    query_duration: HistogramVec,
    query_errors: Tallies,
    turnaround: HistogramVec,
    channel_failures: Tallies,
    probe_up: GaugeVec,
    probes: Tallies,
    probe_phase: HistogramVec,
    probe_last_success: GaugeVec,
    certificate_expiry: GaugeVec,
    credential_expiry: GaugeVec,
    credential_mints: Tallies,
}

impl Families {
    pub(super) fn new(registrar: &Registrar<'_>) -> Result<Self, Error> {
        let database = &["database"][..];
        let with = |label| ["database", label];
        Ok(Self {
            series: registrar.series.clone(),
            up: registrar.gauge("database_up", "Whether a tunnel for the database is up.", database)?,
            uptime: registrar.seconds_counter(
                "database_uptime_seconds_total",
                "How long a tunnel for the database was up; its rate is the availability.",
                database,
            )?,
            bastion_info: registrar.gauge(
                "database_bastion_info",
                "The bastions of the database, 0 the preferred one; always 1.",
                &["database", "bastion", "preference"],
            )?,
            active: registrar.gauge("clients_active", "Clients carried or being placed.", database)?,
            held: registrar.gauge("clients_held", "Clients waiting for a session.", database)?,
            connections: registrar.tallies(
                "client_connections_total",
                "Client connections by what became of them.",
                &with("outcome"),
            )?,
            cut: registrar.tallies(
                "clients_cut_total",
                "Clients ended by us before they were done.",
                &with("reason"),
            )?,
            hold: registrar.histogram(
                "client_hold_seconds",
                "How long clients were held.",
                database,
                &LONG,
            )?,
            open: registrar.histogram(
                "client_open_seconds",
                "The bastion's time to connect a client to the database.",
                database,
                &SHORT,
            )?,
            duration: registrar.histogram(
                "client_duration_seconds",
                "How long clients stayed.",
                database,
                &LONG,
            )?,
            bytes: registrar.counter("client_bytes_total", "Bytes passed on.", &with("direction"))?,
            startups: registrar.counter(
                "client_startups_total",
                "Sessions begun by clients, with or without encryption.",
                &with("encryption"),
            )?,
            query_duration: registrar.histogram(
                "query_duration_seconds",
                "From the last byte of a client's query to the end of its answer; without encryption only.",
                database,
                &LONG,
            )?,
            query_errors: registrar.tallies(
                "query_errors_total",
                "Errors that answered clients' queries, by the class of their code; without encryption only.",
                &with("sqlstate_class"),
            )?,
            turnaround: registrar.histogram(
                "turnaround_seconds",
                "From the last byte that an encrypted client sent to the first that came back.",
                database,
                &LONG,
            )?,
            channel_failures: registrar.tallies(
                "channel_failures_total",
                "Connections to the database that the bastion did not make.",
                &["database", "bastion", "reason"],
            )?,
            probe_up: registrar.gauge(
                "probe_up",
                "The probe's verdict; absent until there is one.",
                database,
            )?,
            probes: registrar.tallies(
                "probes_total",
                "Probes by result.",
                &["database", "phase", "reason"],
            )?,
            probe_phase: registrar.histogram(
                "probe_phase_seconds",
                "How long each phase of a probe took.",
                &with("phase"),
                &SHORT,
            )?,
            probe_last_success: registrar.gauge(
                "probe_last_success_timestamp_seconds",
                "When a probe succeeded last.",
                database,
            )?,
            certificate_expiry: registrar.gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate expires that the database showed the probe.",
                database,
            )?,
            credential_expiry: registrar.gauge(
                "credential_expiry_timestamp_seconds",
                "When the temporary login expires that the probe has.",
                database,
            )?,
            credential_mints: registrar.tallies(
                "credential_mints_total",
                "Temporary logins that were asked for, by what came of it.",
                &["database", "result"],
            )?,
        })
    }

    pub(super) fn observe(&self, databases: &[Database], series: &mut Had) {
        for database in databases {
            let labels = &[database.name.as_str()][..];
            // It may have gone since the snapshot was taken, and nobody would remove what is set now.
            if !series.has(&self.up, labels) {
                continue;
            }
            self.up.with_label_values(labels).set(f64::from(u8::from(database.up)));
            series.raise(&self.uptime, labels, database.uptime_seconds);
            self.active.with_label_values(labels).set(database.clients_active as f64);
            self.held.with_label_values(labels).set(database.clients_held as f64);
            let verdict = match database.probe.verdict.as_str() {
                "up" => Some(1.0),
                "down" => Some(0.0),
                _ => None,
            };
            set_if_known(&self.probe_up, labels, verdict);
            set_if_known(&self.probe_last_success, labels, database.probe.last_success.map(Stamp::seconds));
            let expires = database.probe.certificate_expires.map(Stamp::seconds);
            set_if_known(&self.certificate_expiry, labels, expires);
            let expires = database.probe.credential_expires.map(Stamp::seconds);
            set_if_known(&self.credential_expiry, labels, expires);
        }
    }
}

/// The series of a database behind its bastions.
struct Ways {
    database: Name,
    series: Series,
    bastion_info: GaugeVec,
    channel_failures: Tallies,
    known: Mutex<Known>,
}

/// Those of the configuration.
#[derive(Default)]
struct Known {
    ways: Vec<Way>,
    /// What depends on the order, too.
    info: Option<Ledger>,
}

/// And behind one of them.
struct Way {
    bastion: Name,
    channel_failures: Arc<Tally>,
}

impl Ways {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, bastions: &[Name]) {
        let mut known = self.lock();
        known.ways.retain(|way| bastions.contains(&way.bastion));
        for bastion in bastions {
            if !known.ways.iter().any(|way| way.bastion == *bastion) {
                known.ways.push(self.way(bastion));
            }
        }
        known.info = Some(self.info(bastions));
    }

    fn info(&self, bastions: &[Name]) -> Ledger {
        let mut ledger = Ledger::new(&self.series);
        for (preference, bastion) in bastions.iter().enumerate() {
            let labels = [self.database.as_str(), bastion.as_str(), &preference.to_string()];
            ledger.info(&self.bastion_info, &labels);
        }
        ledger
    }

    fn way(&self, bastion: &Name) -> Way {
        let owner = [self.database.as_str(), bastion.as_str()];
        let channel_failures = self.channel_failures.of(&owner, of_phases(&[Phase::Channel]).map(by_reason));
        Way { bastion: bastion.clone(), channel_failures }
    }
}

/// The handles of one database.
pub struct DatabaseMetrics {
    connections: Arc<Tally>,
    cut: Arc<Tally>,
    ways: Ways,
    probes: Arc<Tally>,
    probe_phases: Vec<(ProbePhase, Timings)>,
    to_database: IntCounter,
    from_database: IntCounter,
    startups_tls: IntCounter,
    startups_plain: IntCounter,
    query_errors: Arc<Tally>,
    /// For a database whose logins are temporary.
    mints: (Name, Tallies),
    /// From the last byte of a client's query to the end of its answer.
    pub query_duration: Timings,
    /// From the last byte that an encrypted client sent to the first that came back.
    pub turnaround: Timings,
    /// How long clients were held.
    pub hold: Timings,
    /// The bastion's time to connect a client to the database.
    pub open: Timings,
    /// How long clients stayed.
    pub duration: Timings,
    _ledger: Ledger,
}

/// Counts the temporary logins of one database.
pub struct Mints(Arc<Tally>);

impl Mints {
    /// One was asked for: it came, or did not for this cause.
    pub fn count(&self, result: Result<(), Cause>) {
        self.0.count(result.map_or_else(by_reason, |()| MINTED));
    }
}

const MINTED: Cell = ["ok", ""];

/// The phases in which a probe can fail.
const PROBED: [Phase; 5] = [Phase::Channel, Phase::Credentials, Phase::DbTls, Phase::DbLogin, Phase::DbQuery];

const PROBE_OK: Cell = ["ok", "ok"];
const PROBE_SKIPPED: Cell = ["skipped", "skipped"];

fn cut_causes() -> impl Iterator<Item = Cause> {
    session_losses().chain([Cause::ClientStalled, Cause::ClientIdle, Cause::ClientDrained])
}

impl DatabaseMetrics {
    pub(super) fn new(families: &Families, database: &Name, bastions: &[Name]) -> Self {
        let name = database.as_str();
        let mut ledger = Ledger::new(&families.series);
        let observed = [
            &families.up,
            &families.active,
            &families.held,
            &families.probe_up,
            &families.probe_last_success,
            &families.certificate_expiry,
            &families.credential_expiry,
        ];
        ledger.observed(&observed, &[name]);
        ledger.raised(&[&families.uptime], &[name]);
        let ways = Ways {
            database: database.clone(),
            series: families.series.clone(),
            bastion_info: families.bastion_info.clone(),
            channel_failures: families.channel_failures.clone(),
            known: Mutex::default(),
        };
        ways.set(bastions);
        let probes = [PROBE_OK, PROBE_SKIPPED].into_iter().chain(of_phases(&PROBED).map(by_phase));
        let probe_phases = PROBE_PHASES
            .map(|(phase, label)| (phase, ledger.timings(&families.probe_phase, &[name, label])))
            .to_vec();
        Self {
            connections: families.connections.of(&[name], OUTCOMES.map(|(_, label)| [label, ""])),
            cut: families.cut.of(&[name], cut_causes().map(by_reason)),
            ways,
            probes: families.probes.of(&[name], probes),
            probe_phases,
            to_database: ledger.counter(&families.bytes, &[name, "to_database"]),
            from_database: ledger.counter(&families.bytes, &[name, "from_database"]),
            startups_tls: ledger.counter(&families.startups, &[name, "tls"]),
            startups_plain: ledger.counter(&families.startups, &[name, "plain"]),
            query_errors: families
                .query_errors
                .of(&[name], ErrorClass::all().map(|class| [class.as_str(), ""])),
            mints: (database.clone(), families.credential_mints.clone()),
            query_duration: ledger.timings(&families.query_duration, &[name]),
            turnaround: ledger.timings(&families.turnaround, &[name]),
            hold: ledger.timings(&families.hold, &[name]),
            open: ledger.timings(&families.open, &[name]),
            duration: ledger.timings(&families.duration, &[name]),
            _ledger: ledger,
        }
    }

    /// A client's connection came to this.
    pub fn connection(&self, outcome: Outcome) {
        if let Some((_, label)) = OUTCOMES.iter().find(|(known, _)| *known == outcome) {
            self.connections.count([label, ""]);
        }
    }

    /// A client was ended by us.
    pub fn cut(&self, cause: Cause) {
        self.cut.count(by_reason(cause));
    }

    /// The database is behind these bastions from now on.
    pub fn set_bastions(&self, bastions: &[Name]) {
        self.ways.set(bastions);
    }

    /// The bastion did not connect a client or a probe to the database.
    pub fn channel_failed(&self, bastion: &Name, cause: Cause) {
        let known = self.ways.lock();
        let way = known.ways.iter().find(|way| way.bastion == *bastion);
        if let Some(way) = way {
            way.channel_failures.count(by_reason(cause));
        }
    }

    /// Bytes were passed on.
    pub fn passed(&self, direction: Direction, bytes: usize) {
        let counter = match direction {
            Direction::ToDatabase => &self.to_database,
            Direction::FromDatabase => &self.from_database,
        };
        counter.inc_by(bytes as u64);
    }

    /// All bytes passed on so far: it grows while clients are active.
    #[must_use]
    pub fn passed_in_total(&self) -> u64 {
        self.to_database.get() + self.from_database.get()
    }

    /// A client began a session.
    pub fn startup(&self, encryption: Encryption) {
        match encryption {
            Encryption::Tls => self.startups_tls.inc(),
            Encryption::Plain => self.startups_plain.inc(),
        }
    }

    /// A client's query was answered with an error.
    pub fn query_failed(&self, class: ErrorClass) {
        self.query_errors.count([class.as_str(), ""]);
    }

    /// A probe succeeded.
    pub fn probe_answered(&self) {
        self.probes.count(PROBE_OK);
    }

    /// A probe was not made.
    pub fn probe_skipped(&self) {
        self.probes.count(PROBE_SKIPPED);
    }

    /// A probe failed.
    pub fn probe_failed(&self, cause: Cause) {
        self.probes.count(by_phase(cause));
    }

    /// The counters of a database whose logins are temporary; they go with the last of these.
    #[must_use]
    pub fn mints(&self) -> Mints {
        let (database, family) = &self.mints;
        let failed = of_phases(&[Phase::Credentials]).map(by_reason);
        Mints(family.of(&[database.as_str()], std::iter::once(MINTED).chain(failed)))
    }

    /// A phase of a probe took so long.
    pub fn probe_phase(&self, phase: ProbePhase, duration: std::time::Duration) {
        if let Some((_, timings)) = self.probe_phases.iter().find(|(known, _)| *known == phase) {
            timings.observe(duration);
        }
    }
}
