//! One database's local listeners and its clients: accepts, holds while no session can take a client, carries,
//! and explains to a client whose time is over why.
//!
//! A client is never refused while there is hope: it is held, carried as soon as a session is there, and begun
//! anew where its session dies before the database has said anything. Listeners stay open until the forward is
//! told to stop.

mod acceptor;
mod answer;
mod carry;
mod client;
mod explain;
mod reach;

use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

use crate::clock::{OnceAMinute, now};
use crate::dial::{Dial, Route};
use crate::ids::Name;
use crate::listener::Claim;
use crate::local::LocalAddress;
use crate::metrics::DatabaseMetrics;
use crate::pump::Limits;
use crate::settings::plan::DatabasePlan;
use crate::socket_table::SocketTable;
use crate::state::{ClientRoll, ForwardState};
use reach::Reach;

/// Clients beyond a limit that are told so at a time; the rest is turned away without a word.
pub const MAX_TOLD: usize = 64;

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
    /// Those that are there, held or carried.
    clients: Arc<ClientRoll>,
    /// How many there have been.
    numbered: AtomicU64,
}

impl<D: Dial> Shared<D> {
    fn next_client_id(&self) -> u64 {
        self.numbered.fetch_add(1, Ordering::Relaxed) + 1
    }

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
    let clients = Arc::clone(&state.clients);
    let (state, receiver) = watch::channel(state);
    let reach = Reach::new(database.clone(), Arc::clone(&metrics), state.clone());
    let turned_away = OnceAMinute::default();
    let limits = watch::Sender::new(limits(&route.borrow().plan));
    let shared = Arc::new(Shared {
        database,
        route,
        metrics,
        sockets,
        state,
        cut,
        room,
        turned_away,
        reach,
        limits,
        clients,
        numbered: AtomicU64::new(0),
    });
    (receiver, Unit { shared, drain, claims })
}

/// Who accepts at the moment; dropped, it stops.
struct Accepting {
    lane: runtime::Handle,
    _stop: DropGuard,
}

impl<D: Dial> Unit<D> {
    /// Serves clients until it is told to drain and the last one has gone. May be called again after it broke.
    pub async fn run(&self) {
        let shared = &self.shared;
        let mut claims = self.claims.clone();
        let (mut acceptors, mut clients) = (JoinSet::new(), JoinSet::new());
        let mut accepting = self.accept(&mut acceptors, &mut claims, runtime::Handle::current());
        let mut follow = pin!(shared.follow());
        loop {
            let lane = tokio::select! {
                biased;
                () = self.drain.cancelled() => break,
                Some(ended) = clients.join_next() => {
                    report_panic(shared, ended);
                    continue;
                }
                Some(accepted) = acceptors.join_next() => {
                    self.finish(&mut clients, accepted);
                    continue;
                }
                () = &mut follow => continue,
                Ok(()) = claims.changed() => accepting.lane.clone(),
                lane = self.better_lane(accepting.lane.id()) => lane,
            };
            // Clients that come in between wait in the kernel.
            accepting = self.accept(&mut acceptors, &mut claims, lane);
        }
        drop(accepting);
        while let Some(accepted) = acceptors.join_next().await {
            self.finish(&mut clients, accepted);
        }
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

    /// Begins to accept on a lane from what is claimed at the moment.
    fn accept(
        &self,
        acceptors: &mut JoinSet<JoinSet<()>>,
        claims: &mut watch::Receiver<Vec<Arc<Claim>>>,
        lane: runtime::Handle,
    ) -> Accepting {
        let claimed = claims.borrow_and_update().clone();
        self.shared.state.send_modify(|state| state.listening = addresses(&claimed));
        let stop = self.drain.child_token();
        let acceptor = acceptor::accept(Arc::clone(&self.shared), self.claims.clone(), stop.clone());
        acceptors.spawn_on(acceptor, &lane);
        Accepting { lane, _stop: stop.drop_guard() }
    }

    /// Waits until clients had better be accepted elsewhere.
    async fn better_lane(&self, here: runtime::Id) -> runtime::Handle {
        let mut route = self.shared.route.clone();
        loop {
            let ways = route.borrow_and_update().ways.clone();
            if let Some(lane) = better_lane(here, ways.lanes()) {
                return lane;
            }
            tokio::select! {
                () = ways.wait_until(|ways| better_lane(here, ways.lanes()).is_some()) => {}
                Ok(()) = route.changed() => {}
            }
        }
    }

    /// The clients of an acceptor that has stopped are served to their end.
    fn finish(&self, clients: &mut JoinSet<()>, accepted: Result<JoinSet<()>, JoinError>) {
        let shared = Arc::clone(&self.shared);
        match accepted {
            Ok(mut accepted) => drop(clients.spawn(async move {
                while let Some(ended) = accepted.join_next().await {
                    report_panic(&shared, ended);
                }
            })),
            // Whoever keeps this unit starts it again.
            Err(broken) if broken.is_panic() => resume_unwind(broken.into_panic()),
            // Its lane has ended, and the daemon with it.
            Err(_) => {}
        }
    }
}

/// Whether clients had better be accepted on another lane than `here`: the one to go to, if so.
fn better_lane(here: runtime::Id, lanes: Vec<runtime::Handle>) -> Option<runtime::Handle> {
    if lanes.iter().any(|lane| lane.id() == here) {
        return None;
    }
    lanes.into_iter().next()
}

/// Where clients connect.
fn addresses(claims: &[Arc<Claim>]) -> Vec<LocalAddress> {
    claims.iter().map(|claim| claim.address().clone()).collect()
}

fn report_panic<D>(shared: &Shared<D>, ended: Result<(), JoinError>) {
    if let Err(broken) = ended {
        error!(database = %shared.database, %broken, "a client's task broke; please report this");
    }
}

#[cfg(test)]
mod tests;
