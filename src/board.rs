//! The notice board: one `watch` per unit, the snapshot of all, and what has been. Surfaces read it and nothing else.

use std::collections::BTreeMap;
use std::path::{self, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::failure::Cause;
use crate::history::{History, Sight, Unit};
use crate::ids::Name;
use crate::settings::plan::{BastionPlan, DatabasePlan, TlsPlan};
use crate::snapshot::{
    Bastion, Certificate, Client, Configuration, Cut, Daemon, Database, NextKey, Probe, Session, Snapshot,
    Stamp, Trouble,
};
use crate::state::{
    CertificateTerm, ClientState, CutAfter, ForwardState, Health, ProbeState, SessionCut, SessionState,
    TunnelState, WaitingKey,
};

/// How far the daemon is in its own life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Listeners are being bound.
    #[default]
    Starting,
    /// The configuration is applied and all listeners are bound.
    Ready,
    /// It takes no new clients and will end.
    Draining,
}

impl Stage {
    /// Why it is not ready, if it is not.
    fn remark(self) -> Option<&'static str> {
        match self {
            Self::Starting => Some("starting: not all listeners are bound yet"),
            Self::Ready => None,
            Self::Draining => Some("draining: the daemon was told to stop"),
        }
    }
}

struct BastionUnit {
    plan: Arc<BastionPlan>,
    tunnel: watch::Receiver<Arc<TunnelState>>,
    next_key: watch::Receiver<Option<WaitingKey>>,
}

struct DatabaseUnit {
    plan: Arc<DatabasePlan>,
    forward: watch::Receiver<ForwardState>,
    probe: watch::Receiver<ProbeState>,
}

#[derive(Default)]
struct Units {
    stage: Stage,
    configuration: Configuration,
    bastions: BTreeMap<Name, BastionUnit>,
    databases: BTreeMap<Name, DatabaseUnit>,
    history: History,
}

/// Where units leave word of themselves.
pub struct Board {
    started: SystemTime,
    units: Mutex<Units>,
}

impl Default for Board {
    fn default() -> Self {
        Self { started: SystemTime::now(), units: Mutex::default() }
    }
}

impl Board {
    /// Says how far the daemon is.
    pub fn set_stage(&self, stage: Stage) {
        self.lock().stage = stage;
    }

    /// The configuration has been read anew: what is wrong with it, or nothing.
    pub fn set_configuration(&self, at: Stamp, problems: Vec<String>) {
        let mut units = self.lock();
        let Units { configuration, history, .. } = &mut *units;
        // The one that the daemon has started with is no change.
        if configuration.loaded.is_some() {
            history.reloaded(at.0, &problems);
        }
        if problems.is_empty() {
            *configuration = Configuration { loaded: Some(at), ..Configuration::default() };
        } else {
            (configuration.refused, configuration.problems) = (Some(at), problems);
        }
    }

    /// Puts a tunnel up; one of the same name is replaced.
    pub fn put_tunnel(
        &self,
        plan: Arc<BastionPlan>,
        tunnel: watch::Receiver<Arc<TunnelState>>,
        next_key: watch::Receiver<Option<WaitingKey>>,
    ) {
        self.lock().bastions.insert(plan.name.clone(), BastionUnit { plan, tunnel, next_key });
    }

    /// Takes a tunnel down, unless another one of the same name has replaced it.
    pub fn remove_tunnel(&self, name: &Name, tunnel: &watch::Receiver<Arc<TunnelState>>) {
        let mut units = self.lock();
        if units.bastions.get(name).is_some_and(|unit| unit.tunnel.same_channel(tunnel)) {
            units.bastions.remove(name);
        }
    }

    /// Takes a database down, unless another one of the same name has replaced it.
    pub fn remove_database(&self, name: &Name, forward: &watch::Receiver<ForwardState>) {
        let mut units = self.lock();
        if units.databases.get(name).is_some_and(|unit| unit.forward.same_channel(forward)) {
            units.databases.remove(name);
        }
    }

    /// Puts a database up; one of the same name is replaced.
    pub fn put_database(
        &self,
        plan: Arc<DatabasePlan>,
        forward: watch::Receiver<ForwardState>,
        probe: watch::Receiver<ProbeState>,
    ) {
        self.lock().databases.insert(plan.name.clone(), DatabaseUnit { plan, forward, probe });
    }

    /// Everything at this moment. Never waits for a unit.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let units = self.lock();
        let now = Instant::now();
        let up = |name: &Name| units.bastions.get(name).is_some_and(|unit| unit.tunnel.borrow().is_up());
        Snapshot {
            at: Stamp(SystemTime::now()),
            daemon: self.daemon(&units),
            bastions: units.bastions.values().map(|unit| bastion(unit, now)).collect(),
            databases: units
                .databases
                .values()
                .map(|unit| database(unit, unit.plan.bastions.iter().any(up), now))
                .collect(),
        }
    }

    /// What else there is to say of the daemon: that it stops, or that a newer configuration was refused.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let units = self.lock();
        units.stage.remark().map(str::to_owned).into_iter().chain(units.configuration.warning()).collect()
    }

    /// Every tunnel that is down, with what failed last, and how many are up. Cheaper than a snapshot.
    #[must_use]
    pub fn tunnels(&self) -> (usize, Vec<(Name, Option<Cause>)>) {
        let (mut up, mut down) = (0, Vec::new());
        for (name, unit) in &self.lock().bastions {
            let tunnel = unit.tunnel.borrow();
            if tunnel.is_up() {
                up += 1;
            } else {
                down.push((
                    name.clone(),
                    tunnel.last_failure.as_ref().map(|incident| incident.failure.cause),
                ));
            }
        }
        (up, down)
    }

    /// Takes note of how everything is, for the history. `now` is this moment.
    pub fn record(&self, now: Instant) {
        let mut units = self.lock();
        let Units { bastions, databases, history, .. } = &mut *units;
        for (name, unit) in &*bastions {
            let tunnel = unit.tunnel.borrow().clone();
            history.tell(&Unit::Bastion(name.clone()), &Sight::of_tunnel(&tunnel), now);
        }
        for (name, unit) in &*databases {
            let ways = unit.plan.bastions.iter().filter_map(|bastion| bastions.get(bastion));
            let tunnel = any_up(ways.map(|way| Sight::of_tunnel(&way.tunnel.borrow()).reachable));
            let probe = unit.probe.borrow();
            history.tell(&Unit::Database(name.clone()), &Sight::of_database(&probe, tunnel), now);
        }
        history.forget_others(now);
    }

    /// What has been, as far as it was recorded.
    #[must_use]
    pub fn history(&self) -> History {
        self.lock().history.clone()
    }

    fn daemon(&self, units: &Units) -> Daemon {
        let not_ready_because: Vec<String> = units.stage.remark().map(str::to_owned).into_iter().collect();
        Daemon {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: Stamp(self.started),
            ready: not_ready_because.is_empty(),
            not_ready_because,
            configuration: units.configuration.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Units> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one of some is up. Nobody knows while none is and one may still come up for the first time.
fn any_up(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let rank = |up: &Option<bool>| match up {
        Some(false) => 0,
        None => 1,
        Some(true) => 2,
    };
    all.max_by_key(rank).unwrap_or(Some(false))
}

fn bastion(unit: &BastionUnit, now: Instant) -> Bastion {
    let BastionUnit { plan, tunnel, next_key } = unit;
    let tunnel = tunnel.borrow().clone();
    let sessions = tunnel.sessions.iter().map(|session| session.load.stalled(now));
    let stalled = tunnel.stalled_before + sessions.sum::<Duration>();
    Bastion {
        name: plan.name.to_string(),
        host: plan.at.host.to_string(),
        port: plan.at.port,
        user: plan.user.clone(),
        jump: plan.jump.as_ref().map(ToString::to_string),
        up: tunnel.is_up(),
        up_since: tunnel.uptime.since().map(|moment| Stamp(moment.wall)),
        down_since: tunnel.down_since.map(|moment| Stamp(moment.wall)),
        uptime_seconds: tunnel.uptime.total(now).as_secs_f64(),
        stalled_seconds: stalled.as_secs_f64(),
        refusing: tunnel.refusing,
        next_attempt: tunnel.next_attempt.map(|moment| Stamp(moment.wall)),
        last_failure: tunnel
            .last_failure
            .as_ref()
            .map(|incident| Trouble::new(incident, tunnel.outdated || !tunnel.is_up())),
        public_key: tunnel.public_key.clone(),
        next_key: next_key.borrow().as_ref().map(self::next_key),
        certificate: tunnel.certificate.as_ref().map(certificate),
        session_cut: tunnel
            .cuts
            .get(&plan.name)
            .map(|cut| self::cut(cut, tunnel.pinged_by.as_ref().unwrap_or(&plan.name))),
        sessions: tunnel.sessions.iter().map(session).collect(),
    }
}

fn next_key(waiting: &WaitingKey) -> NextKey {
    NextKey {
        public_key: waiting.public_key.clone(),
        since: Stamp(waiting.since),
        last_asked: waiting.asked.map(Stamp),
    }
}

fn certificate(term: &CertificateTerm) -> Certificate {
    Certificate {
        file: term.file.as_ref().map(|file| file.display().to_string()),
        valid_from: Stamp(term.from),
        expires: Stamp(term.until),
        ending: term.is_ending(SystemTime::now()),
    }
}

fn cut(cut: &SessionCut, bastion: &Name) -> Cut {
    Cut {
        after: cut.after.as_str().to_owned(),
        seconds: cut.seconds(),
        at_most: matches!(cut.after, CutAfter::Idle { at_most: true }),
        losses: cut.losses,
        detail: cut.detail(),
        hint: cut.hint(bastion),
    }
}

fn session(state: &SessionState) -> Session {
    Session {
        id: state.id,
        state: state.phase.as_str().to_owned(),
        since: Stamp(state.since.wall),
        address: state.address.map(|address| address.to_string()),
        clients: state.load.clients(),
        round_trip_seconds: state.load.round_trip().map(|time| time.as_secs_f64()),
        keepalives_unanswered: state.load.unanswered.load(Ordering::Relaxed),
        gate_open: state.load.gate_open(),
        backlog_bytes: state.load.backlog.load(Ordering::Relaxed),
    }
}

fn database(unit: &DatabaseUnit, up: bool, now: Instant) -> Database {
    let DatabaseUnit { plan, forward, probe } = unit;
    let forward = forward.borrow().clone();
    let probe = probe.borrow().clone();
    let clients = forward.clients.list();
    let held = clients.iter().filter(|client| client.held.load(Ordering::Relaxed)).count();
    Database {
        name: plan.name.to_string(),
        kind: plan.kind.as_str().to_owned(),
        host: plan.target.host().to_owned(),
        port: plan.target.port().unwrap_or(0),
        bastions: plan.bastions.iter().map(ToString::to_string).collect(),
        listen: forward.listening.iter().map(ToString::to_string).collect(),
        up,
        accepting: forward.accepting,
        uptime_seconds: forward.uptime.total(now).as_secs_f64(),
        clients_active: clients.len() - held,
        clients_held: held,
        last_failure: forward
            .last_failure
            .as_ref()
            .map(|incident| Trouble::new(incident, !forward.failing.is_empty())),
        probe: Probe {
            level: plan.probe.level.as_str().to_owned(),
            verdict: probe.health.as_str().to_owned(),
            since: probe.since.map(|moment| Stamp(moment.wall)).filter(|_| probe.health != Health::Unknown),
            latency_seconds: probe.latency.map(|time| time.as_secs_f64()),
            last_success: probe.last_success.map(|moment| Stamp(moment.wall)),
            last_failure: probe
                .last_failure
                .as_ref()
                .map(|incident| Trouble::new(incident, probe.health != Health::Up)),
            certificate_expires: probe.certificate_expires.map(Stamp),
            credential_expires: probe.credential_expires.map(Stamp),
        },
        clients: clients.iter().map(|client| self::client(client)).collect(),
        database: plan.probe.login.as_ref().and_then(|login| login.database.clone()),
        sslmode: Some(plan.probe.tls.mode.as_str().to_owned()),
        sslrootcert: roots(&plan.probe.tls),
    }
}

/// Whoever reads it stands in another directory than we do.
fn roots(tls: &TlsPlan) -> Option<String> {
    let file = |ca: &PathBuf| path::absolute(ca).unwrap_or_else(|_| ca.clone()).display().to_string();
    tls.mode.verifies().then(|| tls.ca.as_ref().map_or("system".to_owned(), file))
}

fn client(state: &ClientState) -> Client {
    let (bastion, session) = state.seat().unzip();
    let (doing, startup) = (state.doing(), state.startup.get());
    let wall = |at: Instant| Stamp(state.since.wall + at.saturating_duration_since(state.since.instant));
    Client {
        id: state.id,
        peer: state.peer.to_string(),
        since: Stamp(state.since.wall),
        held: state.held.load(Ordering::Relaxed),
        bastion: bastion.map(|bastion| bastion.to_string()),
        session,
        to_database_bytes: state.to_database.load(Ordering::Relaxed),
        from_database_bytes: state.from_database.load(Ordering::Relaxed),
        activity: doing.activity.as_str().to_owned(),
        activity_since: doing.since.map(wall),
        user: startup.map(|startup| startup.user.clone()),
        database: startup.map(|startup| startup.database.clone()),
        application_name: startup.and_then(|startup| startup.application_name.clone()),
    }
}
