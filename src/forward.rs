//! One database's local listeners and its clients: accepts, holds while no session can take a client, carries,
//! and explains to a client whose time is over why.
//!
//! A client is never refused while there is hope: it is held, carried as soon as a session is there, and begun
//! anew where its session dies before the database has said anything. Listeners stay open until the forward is
//! told to stop.

mod answer;
mod carry;
mod client;
mod explain;
mod reach;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::clock::{OnceAMinute, now};
use crate::dial::{Dial, Route};
use crate::failure::{Cause, plain};
use crate::ids::Name;
use crate::listener::{Bound, Claim};
use crate::local::LocalAddress;
use crate::metrics::{DatabaseMetrics, Outcome};
use crate::pgwire::SqlState;
use crate::pump::Limits;
use crate::settings::plan::DatabasePlan;
use crate::socket::Socket;
use crate::socket_table::SocketTable;
use crate::state::{ClientState, ForwardState};
use client::Client;
use reach::Reach;

/// Clients beyond a limit that are told so at a time; the rest is turned away without a word.
pub const MAX_TOLD: usize = 64;

/// How long to wait when the system has no descriptors left for a listener.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    /// The database and the ways to it, as the configuration has them at the moment.
    pub route: watch::Receiver<Arc<Route<D>>>,
    /// Where it listens at the moment; nowhere once it shall take no new clients.
    pub claims: watch::Receiver<Vec<Arc<Claim>>>,
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
    database: Name,
    route: watch::Receiver<Arc<Route<D>>>,
    metrics: Arc<DatabaseMetrics>,
    sockets: Arc<SocketTable>,
    state: watch::Sender<ForwardState>,
    cut: CancellationToken,
    room: Room,
    turned_away: OnceAMinute,
    reach: Reach,
    /// Of its clients, as the configuration has them at the moment.
    limits: watch::Sender<Limits>,
}

impl<D: Dial> Shared<D> {
    fn plan(&self) -> Arc<DatabasePlan> {
        Arc::clone(&self.route.borrow().plan)
    }

    /// Goes on as the configuration says, and takes note of when a tunnel for the database is up and when none is, for
    /// ever.
    async fn follow(&self) {
        let mut route = self.route.clone();
        let mut target = self.plan().target.clone();
        loop {
            let Route { plan, ways } = Route::clone(&route.borrow_and_update());
            let same = std::mem::replace(&mut target, plan.target.clone()) == plan.target;
            self.reach.forget(|bastion| same && plan.bastions.contains(bastion));
            self.limits.send_replace(limits(&plan));
            let up = ways.is_up();
            self.state.send_if_modified(|state| {
                let changed = state.uptime.since().is_some() != up;
                state.uptime.set(up, now());
                changed
            });
            tokio::select! {
                () = ways.wait_until(|ways| ways.is_up() != up) => {}
                Ok(()) = route.changed() => {}
            }
        }
    }
}

fn limits(plan: &DatabasePlan) -> Limits {
    Limits { idle: plan.forward.idle_timeout, stall: plan.forward.stall_timeout }
}

/// The forward itself.
pub struct Unit<D> {
    shared: Arc<Shared<D>>,
    drain: CancellationToken,
    claims: watch::Receiver<Vec<Arc<Claim>>>,
}

/// A forward's state, and the unit that gives it life.
pub fn new<D: Dial>(parts: Parts<D>) -> (watch::Receiver<ForwardState>, Unit<D>) {
    let Parts { route, claims, metrics, sockets, room, drain, cut } = parts;
    let database = route.borrow().plan.name.clone();
    let state =
        ForwardState { listening: addresses(&claims.borrow()), accepting: true, ..ForwardState::default() };
    let (state, receiver) = watch::channel(state);
    let reach = Reach::new(database.clone(), Arc::clone(&metrics), state.clone());
    let turned_away = OnceAMinute::default();
    let limits = watch::Sender::new(limits(&route.borrow().plan));
    let shared =
        Arc::new(Shared { database, route, metrics, sockets, state, cut, room, turned_away, reach, limits });
    (receiver, Unit { shared, drain, claims })
}

impl<D: Dial> Unit<D> {
    /// Begins to accept from what is claimed at the moment.
    async fn accept_from(&self, claims: &mut watch::Receiver<Vec<Arc<Claim>>>) -> Bound {
        loop {
            let claimed = claims.borrow_and_update().clone();
            self.shared.state.send_modify(|state| state.listening = addresses(&claimed));
            match Bound::new(claimed) {
                Ok(bound) => return bound,
                Err(error) => {
                    let (database, hint) = (&self.shared.database, Cause::ClientLimit.hint());
                    error!(%database, error = plain(&error), hint, "the forward cannot accept clients yet");
                    sleep(LISTEN_AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Serves clients until it is told to drain and the last one has gone. May be called again after it broke.
    pub async fn run(&self) {
        let shared = &self.shared;
        let mut claims = self.claims.clone();
        let mut bound = self.accept_from(&mut claims).await;
        let roll = shared.state.borrow().clients.clone();
        let mut clients = JoinSet::new();
        let mut next_id = 1;
        let mut follow = pin!(shared.follow());
        loop {
            tokio::select! {
                biased;
                () = self.drain.cancelled() => break,
                Some(ended) = clients.join_next() => report_panic(shared, ended),
                () = &mut follow => {}
                Ok(()) = claims.changed() => bound = self.accept_from(&mut claims).await,
                (socket, peer) = bound.accept() => {
                    // Only a good end is shown as one (`answer::finish`).
                    socket.reset_on_drop(true);
                    if roll.len() >= shared.plan().forward.max_clients {
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
        loop {
            tokio::select! {
                ended = clients.join_next() => match ended {
                    Some(ended) => report_panic(shared, ended),
                    None => return,
                },
                () = &mut follow => {}
            }
        }
    }
}

/// Where clients connect.
fn addresses(claims: &[Arc<Claim>]) -> Vec<LocalAddress> {
    claims.iter().map(|claim| claim.address().clone()).collect()
}

fn report_panic<D>(shared: &Shared<D>, ended: Result<(), tokio::task::JoinError>) {
    if let Err(broken) = ended {
        error!(database = %shared.database, %broken, "a client's task broke; please report this");
    }
}

/// One client too many: it is told so, unless too many are being told already.
fn turn_away<D: Dial>(
    shared: &Arc<Shared<D>>,
    clients: &mut JoinSet<()>,
    mut socket: Socket,
    limit: &'static str,
) {
    shared.metrics.connection(Outcome::Limit);
    let (database, served) = (&shared.database, shared.state.borrow().clients.len());
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

#[cfg(test)]
mod tests;
