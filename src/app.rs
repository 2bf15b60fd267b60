//! The daemon from its configuration to its end: binds everything, starts it, waits to be told to stop.

mod history;
mod reload;
mod service;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::{Board, Stage};
use crate::forward::{MAX_TOLD, Room};
use crate::http;
use crate::ids::Name;
use crate::lanes::Lanes;
use crate::listener::{BindError, Bound, Claim, Claims, Inherited};
use crate::local::LocalAddress;
use crate::metrics::Metrics;
use crate::settings::plan::{DatabasePlan, ListenAt, Plan};
use crate::settings::{Note, Settings, Surroundings, show_duration};
use crate::signals::{self, Request};
use crate::snapshot::Stamp;
use crate::ssh::BufferMemory;
use crate::supervisor::{self, Supervisor};
use crate::systemd;
use crate::telemetry::Telemetry;

/// Listeners, runtimes, standard streams, and files while they are read.
const OTHER_DESCRIPTORS: usize = 128;

/// What Linux gives a process unless told otherwise.
const USUAL_SOFT_LIMIT: usize = 1024;

/// Why the daemon could not start.
#[derive(Debug)]
pub enum StartError {
    /// A listener cannot be bound; the key that names its address.
    Bind(String, BindError),
    /// The system refuses something that every start needs.
    System(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(key, error) => write!(f, "{key}: {error}"),
            Self::System(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StartError {}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start; nothing runs then.
pub fn run(
    settings: &Settings,
    surroundings: &Surroundings,
    telemetry: &Telemetry,
) -> Result<(), StartError> {
    let system =
        |error: io::Error| StartError::System(format!("the system refuses to let us start: {error}"));
    // Before anything else is opened, as it wants it.
    let inherited = Inherited::take().map_err(StartError::System)?;
    // Before anything starts, so that no signal is lost.
    let signals = signals::listen().map_err(system)?;
    let lanes = Arc::new(Lanes::start(settings.plan.daemon.threads).map_err(system)?);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(system)?;
    let result = runtime.block_on(async {
        let daemon = Daemon::start(settings, &lanes, inherited)?;
        daemon.run(signals, surroundings, telemetry).await;
        Ok(())
    });
    // What still blocks (a look-up, say) does not keep us.
    runtime.shutdown_background();
    result
}

/// A daemon that runs.
pub struct Daemon {
    plan: Plan,
    board: Arc<Board>,
    supervisor: Supervisor,
    claims: Claims,
    metrics: Arc<Metrics>,
    memory: Arc<BufferMemory>,
    allow_remote_status: Arc<AtomicBool>,
    http: Option<SocketAddr>,
    http_stop: CancellationToken,
}

impl Daemon {
    /// Binds all listeners and starts all units. Must be called within a runtime.
    ///
    /// # Errors
    /// The first listener that cannot be bound; nothing runs then.
    pub fn start(settings: &Settings, lanes: &Arc<Lanes>, inherited: Inherited) -> Result<Self, StartError> {
        let plan = settings.plan.clone();
        let claims = Claims::new(inherited);
        let databases = stake(&claims, plan.databases.iter())?;
        let http = plan.http.listen.map(Bound::tcp).transpose();
        let http = http.map_err(|error| StartError::Bind("http.listen".to_owned(), error))?;
        let metrics = Arc::new(Metrics::new().map_err(|error| StartError::System(error.to_string()))?);
        let board = Arc::new(Board::default());
        settings.notes.iter().for_each(warn_of);
        note_unused(&plan, claims.inherited());
        let memory = BufferMemory::new(plan.daemon.buffer_memory);
        let describe = |(name, claims): (&Name, &Vec<_>)| format!("{name} on {}", addresses(claims));
        let listening: Vec<String> = databases.iter().map(describe).collect();
        let mut supervisor = Supervisor::new(supervisor::Parts {
            lanes: Arc::clone(lanes),
            metrics: Arc::clone(&metrics),
            board: Arc::clone(&board),
            room: Room::new(places_for_clients(&plan)),
            memory: Arc::clone(&memory),
        });
        supervisor.apply(&plan, databases);
        let loaded = Stamp(SystemTime::now());
        metrics.configuration_loaded(loaded);
        board.set_configuration(loaded, Vec::new());
        let http_stop = CancellationToken::new();
        let allow_remote_status = Arc::new(AtomicBool::new(plan.http.allow_remote_status));
        let mut address = None;
        if let Some(bound) = http {
            address = bound.addresses().next().and_then(LocalAddress::tcp);
            tokio::spawn(http::serve(
                bound,
                Arc::clone(&allow_remote_status),
                Arc::clone(&metrics),
                Arc::clone(&board),
                http_stop.clone(),
            ));
            tokio::spawn(history::keep(Arc::clone(&board), http_stop.clone()));
        }
        board.set_stage(Stage::Ready);
        let status = address.map(|address| format!("http://{address}/"));
        info!(version = env!("CARGO_PKG_VERSION"), databases = listening.join(", "), status, "started");
        Ok(Self {
            plan,
            board,
            supervisor,
            claims,
            metrics,
            memory,
            allow_remote_status,
            http: address,
            http_stop,
        })
    }

    /// What there is to know of it.
    #[must_use]
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Where it answers HTTP.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    async fn run(
        mut self,
        mut signals: mpsc::UnboundedReceiver<Request>,
        surroundings: &Surroundings,
        telemetry: &Telemetry,
    ) {
        systemd::ready().await;
        let service = tokio::spawn(service::report(Arc::clone(&self.board), self.supervisor.pulse()));
        until_stopped(&mut signals, async || self.reload(surroundings, telemetry).await).await;
        systemd::stopping().await;
        let hurry = CancellationToken::new();
        let second = async {
            while let Some(Request::Reload) = signals.recv().await {}
            hurry.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.end(hurry.clone()) => {}
            () = second => {}
        }
        service.abort();
    }

    /// Ends the daemon in good order; at once when there is a `hurry`.
    pub async fn end(self, hurry: CancellationToken) {
        let patience = self.plan.daemon.drain_timeout;
        info!(drain_timeout = show_duration(patience), "stopping");
        self.board.set_stage(Stage::Draining);
        self.supervisor.end(patience, hurry).await;
        self.http_stop.cancel();
        info!("stopped");
    }
}

/// Reloads as often as it is asked for, until it is asked to stop: a file system that hangs does not keep it from that.
/// All who ask while one is under way are served by one more.
async fn until_stopped(signals: &mut mpsc::UnboundedReceiver<Request>, mut reload: impl AsyncFnMut()) {
    let mut asked = false;
    loop {
        if !asked && signals.recv().await != Some(Request::Reload) {
            return;
        }
        asked = false;
        let meanwhile = async {
            while signals.recv().await == Some(Request::Reload) {
                asked = true;
            }
        };
        tokio::select! {
            () = reload() => {}
            () = meanwhile => return,
        }
    }
}

fn warn_of(note: &Note) {
    warn!(key = note.key, "{}", note.text);
}

/// The addresses of databases.
type Staked = BTreeMap<Name, Vec<Arc<Claim>>>;

/// Claims every address of these databases, or none.
fn stake<'a>(
    claims: &Claims,
    databases: impl Iterator<Item = &'a Arc<DatabasePlan>>,
) -> Result<Staked, StartError> {
    let stake = |database: &Arc<DatabasePlan>| match claims.stake(&database.forward.listen) {
        Ok(claims) => Ok((database.name.clone(), claims)),
        Err(error) => Err(StartError::Bind(format!("databases.{}.listen", database.name), error)),
    };
    databases.map(stake).collect()
}

/// Connections to a socket that nobody serves would wait for ever.
fn note_unused(plan: &Plan, inherited: &Inherited) {
    let listened_on = plan.databases.iter().flat_map(|database| &database.forward.listen.at);
    for name in inherited.names() {
        if !listened_on.clone().any(|at| matches!(at, ListenAt::Systemd(known) if known == name)) {
            let hint = format!(
                "write listen = \"systemd:{name}\" for the database that it is for, or stop its unit"
            );
            warn!(name, hint, "systemd handed over a socket that no database listens on");
        }
    }
}

fn addresses(claims: &[Arc<Claim>]) -> String {
    let addresses: Vec<String> = claims.iter().map(|claim| claim.address().to_string()).collect();
    addresses.join(" and ")
}

/// How many clients the process may have: each takes a descriptor, and enough are left for sessions, HTTP and files.
fn places_for_clients(plan: &Plan) -> usize {
    let limit = raise_descriptor_limit();
    let sessions: usize = plan.bastions.iter().map(|bastion| 2 * bastion.pool.max).sum();
    let kept = sessions + http::MAX_CONNECTIONS + MAX_TOLD + OTHER_DESCRIPTORS;
    let places = limit.saturating_sub(kept).max(limit / 2);
    let wanted: usize = plan.databases.iter().map(|database| database.forward.max_clients).sum();
    if places < wanted {
        warn!(
            clients = places,
            wanted,
            hint = "raise LimitNOFILE (ulimit -n), or lower `max_clients`",
            "the limit of open files allows fewer clients than the configuration"
        );
    }
    places
}

/// Raises the soft limit of descriptors to the hard one, and returns what it is now. The usual soft limit is meant for
/// programs that use select(2), which we do not.
fn raise_descriptor_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return USUAL_SOFT_LIMIT };
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_reload_that_hangs_does_not_keep_it_from_stopping() {
        let (send, mut signals) = mpsc::unbounded_channel();
        let mut reloads = 0;
        send.send(Request::Reload).unwrap();
        let reload = async || {
            reloads += 1;
            send.send(if reloads < 3 { Request::Reload } else { Request::Stop }).unwrap();
            if reloads == 3 {
                pending::<()>().await;
            }
            // Who asks while it runs is heard, and not forgotten.
            tokio::task::yield_now().await;
        };
        until_stopped(&mut signals, reload).await;
        assert_eq!(reloads, 3);
    }
}
