//! Starts what the configuration wants, keeps it running, and ends it in the right order.
//!
//! A unit that breaks is started again; the others do not notice. The only place that spawns units.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::board::Board;
use crate::dial::{Route, Ways};
use crate::forward::{self, Room};
use crate::ids::Name;
use crate::lanes::Lanes;
use crate::listener::Bound;
use crate::metrics::Metrics;
use crate::probe;
use crate::settings::plan::{DatabasePlan, Plan};
use crate::socket_table::SocketTable;
use crate::ssh::BufferMemory;
use crate::tunnel::{self, Tunnel};

/// How long a unit that broke stays down.
const START_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long units may take to end once nothing keeps them.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// And how long once there is a hurry: enough to say goodbye to those who listen.
const HURRIED_PATIENCE: Duration = Duration::from_millis(500);

/// A part of the daemon that runs until it is told to stop.
trait Unit: Send + Sync + 'static {
    fn run(&self) -> impl Future<Output = ()> + Send;
}

impl Unit for tunnel::Unit {
    async fn run(&self) {
        Self::run(self).await;
    }
}

impl Unit for forward::Unit<Tunnel> {
    async fn run(&self) {
        Self::run(self).await;
    }
}

impl Unit for probe::Unit<Tunnel> {
    async fn run(&self) {
        Self::run(self).await;
    }
}

/// Runs a unit until it ends by itself, however often it breaks on the way.
async fn keep(name: String, unit: impl Unit) {
    let unit = Arc::new(unit);
    loop {
        let runs = Arc::clone(&unit);
        match tokio::spawn(async move { runs.run().await }).await {
            Ok(()) => return,
            Err(broken) => {
                error!(unit = name, %broken, "a unit broke and is started again; please report this");
                sleep(START_AGAIN_AFTER).await;
            }
        }
    }
}

/// Everything that runs.
pub struct Supervisor {
    board: Arc<Board>,
    tunnels: Vec<(Name, Tunnel)>,
    forwards: JoinSet<()>,
    others: JoinSet<()>,
    drain: CancellationToken,
    cut: CancellationToken,
    stop: CancellationToken,
}

impl Supervisor {
    /// Starts all units of a plan. `bound` has the listeners of each of its databases.
    #[must_use]
    pub fn start(
        plan: &Plan,
        bound: Vec<(Arc<DatabasePlan>, Bound)>,
        lanes: &Arc<Lanes>,
        metrics: &Metrics,
        board: &Arc<Board>,
        room: &Room,
    ) -> Self {
        let mut supervisor = Self {
            board: Arc::clone(board),
            tunnels: Vec::new(),
            forwards: JoinSet::new(),
            others: JoinSet::new(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        supervisor.tunnels = supervisor.start_tunnels(plan, lanes, metrics);
        let tunnels = supervisor.tunnels.clone();
        let sockets: Arc<SocketTable> = Arc::default();
        for (plan, bound) in bound {
            // The configuration names no bastion that it does not describe.
            let way = |name| tunnels.iter().find(|(known, _)| known == name).cloned();
            let ways = Ways::new(plan.bastions.iter().filter_map(way).collect());
            supervisor.start_database(Route { plan, ways }, bound, metrics, (&sockets, room));
        }
        supervisor
    }

    fn start_tunnels(&mut self, plan: &Plan, lanes: &Arc<Lanes>, metrics: &Metrics) -> Vec<(Name, Tunnel)> {
        let memory = BufferMemory::new(plan.daemon.buffer_memory);
        let mut tunnels = Vec::new();
        for bastion in &plan.bastions {
            let (tunnel, unit) = tunnel::new(tunnel::Parts {
                plan: Arc::clone(bastion),
                lanes: Arc::clone(lanes),
                memory: Arc::clone(&memory),
                metrics: Arc::new(metrics.bastion(&bastion.name)),
                stop: self.stop.clone(),
            });
            self.board.put_tunnel(Arc::clone(bastion), crate::dial::Dial::state(&tunnel));
            self.others.spawn(keep(format!("tunnel {}", bastion.name), unit));
            tunnels.push((bastion.name.clone(), tunnel));
        }
        tunnels
    }

    fn start_database(
        &mut self,
        route: Route<Tunnel>,
        bound: Bound,
        metrics: &Metrics,
        (sockets, room): (&Arc<SocketTable>, &Room),
    ) {
        let plan = Arc::clone(&route.plan);
        let metrics = Arc::new(metrics.database(&plan.name, &plan.bastions));
        let (_, route) = watch::channel(Arc::new(route));
        let (forward_state, forward) = forward::new(forward::Parts {
            route: route.clone(),
            bound,
            metrics: Arc::clone(&metrics),
            sockets: Arc::clone(sockets),
            room: room.clone(),
            drain: self.drain.clone(),
            cut: self.cut.clone(),
        });
        let (probe_state, probe) = probe::new(probe::Parts { route, metrics, stop: self.stop.clone() });
        self.board.put_database(Arc::clone(&plan), forward_state, probe_state);
        self.forwards.spawn(keep(format!("forward {}", plan.name), forward));
        self.others.spawn(keep(format!("probe {}", plan.name), probe));
    }

    /// Dials every bastion that waits for its next attempt.
    pub fn dial_now(&self) {
        self.tunnels.iter().for_each(|(_, tunnel)| tunnel.dial_now());
    }

    /// Ends everything: takes no new clients, lets those that are there finish for `patience` or until there is a
    /// `hurry`, cuts the rest, and closes the sessions in good order.
    pub async fn end(mut self, patience: Duration, hurry: CancellationToken) {
        self.drain.cancel();
        let clients = self.clients();
        if clients > 0 {
            info!(clients, patience_s = patience.as_secs(), "waiting for clients to finish");
        }
        let too_late = tokio::select! {
            () = all_ended(&mut self.forwards) => None,
            () = sleep(patience) => Some("the time to finish is over"),
            () = hurry.cancelled() => Some("a second signal came"),
        };
        let clients = self.clients();
        if let (Some(because), 1..) = (too_late, clients) {
            warn!(clients, because, "clients are cut");
        }
        self.cut.cancel();
        end_soon(&mut self.forwards, &hurry).await;
        self.stop.cancel();
        end_soon(&mut self.others, &hurry).await;
    }

    fn clients(&self) -> usize {
        let databases = self.board.snapshot().databases;
        databases.iter().map(|database| database.clients_active + database.clients_held).sum()
    }
}

async fn all_ended(units: &mut JoinSet<()>) {
    while units.join_next().await.is_some() {}
}

/// Waits for units that nothing keeps any more.
async fn end_soon(units: &mut JoinSet<()>, hurry: &CancellationToken) {
    let hurried = async {
        hurry.cancelled().await;
        sleep(HURRIED_PATIENCE).await;
    };
    tokio::select! {
        () = all_ended(units) => {}
        () = sleep(END_PATIENCE) => {}
        () = hurried => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Clumsy(Arc<AtomicUsize>);

    impl Unit for Clumsy {
        async fn run(&self) {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) >= 2, "it stumbles twice");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_unit_that_breaks_is_started_again() {
        let runs = Arc::new(AtomicUsize::new(0));
        keep("clumsy".to_owned(), Clumsy(Arc::clone(&runs))).await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }
}
