//! One database's local listeners and its clients: accepts, holds while no session can take a client, carries,
//! and explains to a client whose time is over why.
//!
//! A client is never refused while there is hope: it is held, carried as soon as a session is there, and begun
//! anew where its session dies before the database has said anything. Listeners stay open until the forward is
//! told to stop.

mod answer;
mod carry;
mod client;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::{OnceAMinute, now};
use crate::dial::Dial;
use crate::failure::{Cause, Failure};
use crate::listener::Bound;
use crate::metrics::{DatabaseMetrics, Outcome};
use crate::pgwire::SqlState;
use crate::settings::plan::DatabasePlan;
use crate::settings::show_duration;
use crate::socket_table::SocketTable;
use crate::state::{ClientState, ForwardState, Incident};
use client::Client;

/// Clients beyond a limit that are told so at a time; the rest is turned away without a word.
pub const MAX_TOLD: usize = 64;

/// Clients that try to reach a database at a time while it swallows every attempt.
const MAX_TRIALS: usize = 4;

/// Room for the clients of all forwards: each takes a descriptor of the process, which has other uses for some.
#[derive(Clone, Debug)]
pub struct Room {
    places: Arc<Semaphore>,
    told: Arc<Semaphore>,
}

impl Room {
    /// Room for so many.
    #[must_use]
    pub fn new(clients: usize) -> Self {
        let places = Arc::new(Semaphore::new(clients.min(Semaphore::MAX_PERMITS)));
        Self { places, told: Arc::new(Semaphore::new(MAX_TOLD)) }
    }
}

/// What a forward is made with.
pub struct Parts<D> {
    /// The database.
    pub plan: Arc<DatabasePlan>,
    /// Its listeners.
    pub bound: Bound,
    /// The way to it.
    pub dial: D,
    /// Its series.
    pub metrics: Arc<DatabaseMetrics>,
    /// Who is at the other end of a local connection.
    pub sockets: Arc<SocketTable>,
    /// What it shares with all other forwards.
    pub room: Room,
    /// When cancelled, no new clients are accepted, and the forward ends with its last one.
    pub drain: CancellationToken,
    /// When cancelled, all clients are cut.
    pub cut: CancellationToken,
}

/// What all clients of a forward share.
struct Shared<D> {
    plan: Arc<DatabasePlan>,
    dial: D,
    metrics: Arc<DatabaseMetrics>,
    sockets: Arc<SocketTable>,
    state: watch::Sender<ForwardState>,
    cut: CancellationToken,
    room: Room,
    turned_away: OnceAMinute,
    trials: Arc<Semaphore>,
}

impl<D> Shared<D> {
    /// Waits until the database may be tried. While it swallows every attempt only a few may go on trying, since each
    /// leaves the bastion with a connection that it waits for minutes to make.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let swallows = |state: &ForwardState| state.failing == Some(Cause::ChannelTimeout);
        let mut state = self.state.subscribe();
        tokio::select! {
            biased;
            _ = state.wait_for(|state| !swallows(state)) => None,
            turn = Arc::clone(&self.trials).acquire_owned() => turn.ok(),
        }
    }

    /// Waits until a client has been connected to the database after others have not.
    async fn recovery(&self) {
        let mut state = self.state.subscribe();
        // The forward outlives its clients.
        let _ = state.wait_for(|state| state.failing.is_none()).await;
    }

    /// Why clients are not connected at the moment, where they are not.
    fn current_failure(&self) -> Option<Failure> {
        let state = self.state.borrow();
        let incident = state.last_failure.as_ref().filter(|_| state.failing.is_some());
        incident.map(|incident| incident.failure.clone())
    }

    /// The bastion did not connect a client to the database.
    fn open_failed(&self, failure: &Failure) {
        self.metrics.channel_failed(failure.cause);
        // The loss of a session is reported by itself, and says nothing of the database.
        if failure.cause == Cause::ChannelSessionLost {
            return;
        }
        let mut news = false;
        self.state.send_modify(|state| {
            news = state.failing != Some(failure.cause);
            state.failing = Some(failure.cause);
            Incident::record(&mut state.last_failure, failure.clone(), now());
        });
        if news {
            warn!(
                database = %self.plan.name,
                bastion = %self.plan.bastion,
                phase = failure.cause.phase().as_str(),
                reason = failure.cause.reason(),
                detail = failure.detail(),
                hint = failure.hint(),
                "clients cannot be connected to the database"
            );
        }
    }

    /// It did.
    fn opened(&self) {
        let recovered = self.state.send_if_modified(|state| state.failing.take().is_some());
        if recovered {
            info!(database = %self.plan.name, bastion = %self.plan.bastion, "clients are connected again");
        }
    }
}

/// The forward itself.
pub struct Unit<D> {
    shared: Arc<Shared<D>>,
    drain: CancellationToken,
    /// Taken by the first run; later ones bind anew.
    bound: Mutex<Option<Bound>>,
    addresses: Vec<SocketAddr>,
}

/// A forward's state, and the unit that gives it life.
pub fn new<D: Dial>(parts: Parts<D>) -> (watch::Receiver<ForwardState>, Unit<D>) {
    let Parts { plan, bound, dial, metrics, sockets, room, drain, cut } = parts;
    let addresses = bound.addresses().to_vec();
    let state = ForwardState { listening: addresses.clone(), accepting: true, ..ForwardState::default() };
    let (state, receiver) = watch::channel(state);
    let (turned_away, trials) = (OnceAMinute::default(), Arc::new(Semaphore::new(MAX_TRIALS)));
    let shared = Arc::new(Shared { plan, dial, metrics, sockets, state, cut, room, turned_away, trials });
    (receiver, Unit { shared, drain, bound: Mutex::new(Some(bound)), addresses })
}

impl<D: Dial> Unit<D> {
    /// Serves clients until it is told to drain and the last one has gone. May be called again after it broke.
    pub async fn run(&self) {
        let Some(mut bound) = self.listeners() else { return };
        let shared = &self.shared;
        let roll = shared.state.borrow().clients.clone();
        let mut clients = JoinSet::new();
        let mut next_id = 1;
        loop {
            tokio::select! {
                biased;
                () = self.drain.cancelled() => break,
                Some(ended) = clients.join_next() => report_panic(shared, ended),
                (socket, peer) = bound.accept() => {
                    answer::accepted(&socket);
                    if roll.len() >= shared.plan.forward.max_clients {
                        turn_away(shared, &mut clients, socket, "max_clients");
                        continue;
                    }
                    let Ok(place) = Arc::clone(&shared.room.places).try_acquire_owned() else {
                        turn_away(shared, &mut clients, socket, "the limit of open files, LimitNOFILE");
                        continue;
                    };
                    let entry = roll.enter(Arc::new(ClientState::new(next_id, peer, now())));
                    next_id += 1;
                    let client = Client::new(Arc::clone(shared), socket, entry).serve();
                    clients.spawn(async move {
                        client.await;
                        drop(place);
                    });
                }
            }
        }
        drop(bound);
        shared.state.send_modify(|state| state.accepting = false);
        while let Some(ended) = clients.join_next().await {
            report_panic(shared, ended);
        }
    }

    fn listeners(&self) -> Option<Bound> {
        if let Some(bound) = self.bound.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Some(bound);
        }
        match Bound::bind(&self.addresses) {
            Ok(bound) => Some(bound),
            Err(error) => {
                error!(database = %self.shared.plan.name, %error, "the forward cannot listen again");
                None
            }
        }
    }
}

fn report_panic<D>(shared: &Shared<D>, ended: Result<(), tokio::task::JoinError>) {
    if let Err(broken) = ended {
        error!(database = %shared.plan.name, %broken, "a client's task broke; please report this");
    }
}

/// One client too many: it is told so, unless too many are being told already.
fn turn_away<D: Dial>(
    shared: &Arc<Shared<D>>,
    clients: &mut JoinSet<()>,
    mut socket: TcpStream,
    limit: &'static str,
) {
    shared.metrics.connection(Outcome::Limit);
    let (database, served) = (&shared.plan.name, shared.state.borrow().clients.len());
    if shared.turned_away.is_due() {
        let hint = Cause::ClientLimit.hint();
        warn!(%database, clients = served, limit, hint, "clients are turned away: a limit is reached");
    }
    let Ok(turn) = Arc::clone(&shared.room.told).try_acquire_owned() else { return };
    let text = format!("tunnelkeeper: database \"{database}\" has {served} clients already ({limit})");
    clients.spawn(async move {
        answer::refuse(&mut socket, Vec::new(), SqlState::TooManyConnections, &text).await;
        drop(turn);
    });
}

/// Why a client is not served, in one sentence: which bastion, phase, reason, since when.
fn explain<D: Dial>(shared: &Shared<D>, last_open: Option<&Failure>) -> String {
    let (database, bastion) = (&shared.plan.name, &shared.plan.bastion);
    let tunnel = shared.dial.state().borrow().clone();
    let head = format!("tunnelkeeper: database \"{database}\" cannot be reached");
    if let Some(failure) = last_open.filter(|_| tunnel.is_up()) {
        return format!("{head} through bastion \"{bastion}\": {failure}; {}", failure.hint());
    }
    if tunnel.is_up() {
        return format!("{head}: all sessions of bastion \"{bastion}\" wait for clients that do not read");
    }
    let since = match tunnel.down_since {
        Some(since) => format!(
            "since {} ({} ago)",
            humantime::format_rfc3339_seconds(since.wall),
            show_duration(std::time::Duration::from_secs(since.instant.elapsed().as_secs()))
        ),
        None => "now".to_owned(),
    };
    match &tunnel.last_failure {
        Some(incident) => {
            let failure = &incident.failure;
            format!("{head}: bastion \"{bastion}\" is down {since}: {failure}; {}", failure.hint())
        }
        None => format!("{head}: bastion \"{bastion}\" is down {since}: it is being connected to"),
    }
}

/// What a client that waited in vain is counted as.
fn outcome_of<D: Dial>(shared: &Shared<D>, last_open: Option<&Failure>) -> Outcome {
    match last_open.map(|failure| failure.cause) {
        Some(Cause::ChannelProhibited) => Outcome::Refused,
        Some(_) => Outcome::OpenFailed,
        None if shared.dial.state().borrow().refusing => Outcome::Refused,
        None => Outcome::HoldTimeout,
    }
}

#[cfg(test)]
mod tests;
