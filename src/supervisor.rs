//! Makes what runs into what the configuration wants: starts, changes and ends units, and keeps them running. A start, a
//! reload and an end are one mechanism.
//!
//! A unit that breaks is started again; the others do not notice. The only place that spawns units.

mod bastions;
mod databases;
mod keep;
mod pulse;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::Board;
use crate::forward::Room;
use crate::ids::Name;
use crate::lanes::Lanes;
use crate::listener::Claim;
use crate::metrics::{BastionMetrics, Metrics};
use crate::settings::plan::{BastionPlan, Plan};
use crate::socket_table::SocketTable;
use crate::ssh::BufferMemory;
use crate::state::ClientRoll;
use bastions::RunningBastion;
use databases::RunningDatabase;
pub use pulse::Pulse;

/// How long units may take to end once nothing keeps them.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// And how long once there is a hurry: enough to say goodbye to those who listen.
const HURRIED_PATIENCE: Duration = Duration::from_millis(500);

/// What all units have in common.
pub struct Parts {
    /// Where sessions live.
    pub lanes: Arc<Lanes>,
    /// Every series.
    pub metrics: Arc<Metrics>,
    /// Where units leave word of themselves.
    pub board: Arc<Board>,
    /// Room for clients.
    pub room: Room,
    /// The memory of all sessions.
    pub memory: Arc<BufferMemory>,
}

impl Parts {
    fn bastion_metrics(&self, plan: &BastionPlan) -> Arc<BastionMetrics> {
        let metrics = self.metrics.bastion(&plan.name);
        if plan.jump.is_some() {
            metrics.expect_jump();
        }
        Arc::new(metrics)
    }
}

/// Everything that runs.
pub struct Supervisor {
    parts: Parts,
    sockets: Arc<SocketTable>,
    bastions: BTreeMap<Name, RunningBastion>,
    databases: BTreeMap<Name, RunningDatabase>,
    forwards: JoinSet<()>,
    /// The clients of every forward, those of databases that were removed and still drain included.
    rolls: Vec<Weak<ClientRoll>>,
    pulse: Pulse,
    others: JoinSet<()>,
    drain: CancellationToken,
    cut: CancellationToken,
    stop: CancellationToken,
}

impl Supervisor {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let pulse = Pulse::new(Arc::clone(&parts.lanes));
        Self {
            parts,
            pulse,
            sockets: Arc::default(),
            bastions: BTreeMap::new(),
            databases: BTreeMap::new(),
            forwards: JoinSet::new(),
            rolls: Vec::new(),
            others: JoinSet::new(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Makes what runs into what the plan wants, and touches nothing that is the same. `claims` are the
    /// addresses of databases that are new or listen elsewhere.
    pub fn apply(&mut self, plan: &Plan, mut claims: BTreeMap<Name, Vec<Arc<Claim>>>) {
        self.apply_bastions(plan);
        self.apply_databases(plan, &mut claims);
        self.remove_databases(plan);
        self.remove_bastions(plan);
        self.tell_jumps();
        self.pulse.set_tunnels(self.tunnels());
        self.forget_ended();
    }

    /// What tells whether all of it makes progress.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// What ended after it was removed leaves nothing behind.
    fn forget_ended(&mut self) {
        while self.forwards.try_join_next().is_some() {}
        while self.others.try_join_next().is_some() {}
        self.rolls.retain(|roll| roll.strong_count() > 0);
    }

    /// Dials every bastion that waits for its next attempt.
    pub fn dial_now(&self) {
        self.bastions.values().for_each(RunningBastion::dial_now);
    }

    /// Ends everything: takes no new clients, lets those that are there finish for `patience` or until there is a
    /// `hurry`, cuts the rest, and closes the sessions in good order.
    pub async fn end(mut self, patience: Duration, hurry: CancellationToken) {
        // Whoever accepts has to be the last to hold an address, to serve those who wait there.
        self.databases.values().for_each(RunningDatabase::close);
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
        self.rolls.iter().filter_map(Weak::upgrade).map(|roll| roll.len()).sum()
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
