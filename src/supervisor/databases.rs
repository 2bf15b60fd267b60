//! The databases: a forward and a probe for each.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Supervisor;
use super::keep::keep;
use crate::dial::Route;
use crate::ids::Name;
use crate::listener::Claim;
use crate::metrics::DatabaseMetrics;
use crate::settings::plan::{DatabasePlan, Plan};
use crate::state::{ForwardState, ProbeState};
use crate::tunnel::Tunnel;
use crate::{forward, probe};

/// A database of the configuration that is applied.
pub(super) struct RunningDatabase {
    plan: Arc<DatabasePlan>,
    route: watch::Sender<Arc<Route<Tunnel>>>,
    claims: watch::Sender<Vec<Arc<Claim>>>,
    metrics: Arc<DatabaseMetrics>,
    forward: watch::Receiver<ForwardState>,
    probe: watch::Receiver<ProbeState>,
    drain: CancellationToken,
    stop_probe: CancellationToken,
    /// Told how long its clients may finish.
    removed: oneshot::Sender<Duration>,
}

impl RunningDatabase {
    /// Takes no new clients.
    pub(super) fn close(&self) {
        self.claims.send_replace(Vec::new());
        self.drain.cancel();
    }

    fn change(&mut self, route: Route<Tunnel>, claims: Option<Vec<Arc<Claim>>>) {
        info!(database = %route.plan.name, "the database's configuration has changed");
        self.plan = Arc::clone(&route.plan);
        self.metrics.set_bastions(&self.plan.bastions);
        if let Some(claims) = claims {
            set_access(&claims, &self.plan);
            self.claims.send_replace(claims);
        }
        self.route.send_replace(Arc::new(route));
    }
}

/// A socket may have been another database's, or this one's with other keys.
fn set_access(claims: &[Arc<Claim>], plan: &DatabasePlan) {
    for claim in claims {
        if let Err(why) = claim.set_access(&plan.forward.listen) {
            error!(database = %plan.name, listen = %claim.address(), why, "the socket stays as it was");
        }
    }
}

impl Supervisor {
    pub(super) fn apply_databases(&mut self, plan: &Plan, claims: &mut BTreeMap<Name, Vec<Arc<Claim>>>) {
        for database in &plan.databases {
            let claims = claims.remove(&database.name);
            let route = Route { plan: Arc::clone(database), ways: self.ways(database) };
            if let Some(running) = self.databases.get_mut(&database.name) {
                if running.plan != *database {
                    running.change(route, claims);
                    let (forward, probe) = (running.forward.clone(), running.probe.clone());
                    self.parts.board.put_database(Arc::clone(database), forward, probe);
                }
            } else {
                self.start_database(route, claims.unwrap_or_default());
            }
        }
    }

    pub(super) fn remove_databases(&mut self, plan: &Plan) {
        let patience = plan.daemon.drain_timeout;
        let stays = |name: &Name| plan.databases.iter().any(|database| database.name == *name);
        let gone: Vec<Name> = self.databases.keys().filter(|name| !stays(name)).cloned().collect();
        for name in gone {
            let Some(gone) = self.databases.remove(&name) else { continue };
            let clients = gone.forward.borrow().clients.len();
            info!(database = %name, clients, patience_s = patience.as_secs(), "the database has been removed");
            gone.close();
            gone.stop_probe.cancel();
            // Its forward may have ended already.
            let _ = gone.removed.send(patience);
        }
    }

    fn start_database(&mut self, route: Route<Tunnel>, claims: Vec<Arc<Claim>>) {
        let plan = Arc::clone(&route.plan);
        set_access(&claims, &plan);
        let metrics = Arc::new(self.parts.metrics.database(&plan.name, &plan.bastions));
        let (drain, cut) = (self.drain.child_token(), self.cut.child_token());
        let stop_probe = self.stop.child_token();
        let (send, route) = watch::channel(Arc::new(route));
        let (send_claims, claims) = watch::channel(claims);
        let (forward, forward_unit) = forward::new(forward::Parts {
            route: route.clone(),
            claims,
            metrics: Arc::clone(&metrics),
            sockets: Arc::clone(&self.sockets),
            room: self.parts.room.clone(),
            drain: drain.clone(),
            cut: cut.clone(),
        });
        let (probe, probe_unit) =
            probe::new(probe::Parts { route, metrics: Arc::clone(&metrics), stop: stop_probe.clone() });
        self.rolls.push(Arc::downgrade(&forward.borrow().clients));
        self.parts.board.put_database(Arc::clone(&plan), forward.clone(), probe.clone());
        let (removed, removal) = oneshot::channel();
        let life = keep(format!("forward {}", plan.name), forward_unit);
        let life = until_cut(life, plan.name.clone(), forward.clone(), removal, cut);
        let (board, name, state, series) =
            (Arc::clone(&self.parts.board), plan.name.clone(), forward.clone(), Arc::clone(&metrics));
        self.forwards.spawn(async move {
            life.await;
            board.remove_database(&name, &state);
            drop(series);
        });
        self.others.spawn(keep(format!("probe {}", plan.name), probe_unit));
        let name = plan.name.clone();
        let running = RunningDatabase {
            plan,
            route: send,
            claims: send_claims,
            metrics,
            forward,
            probe,
            drain,
            stop_probe,
            removed,
        };
        self.databases.insert(name, running);
    }
}

/// Lets the clients of a database that was removed finish for a while, and then cuts them.
async fn until_cut(
    life: impl Future<Output = ()>,
    database: Name,
    forward: watch::Receiver<ForwardState>,
    removal: oneshot::Receiver<Duration>,
    cut: CancellationToken,
) {
    let mut life = pin!(life);
    let too_late = async {
        match removal.await {
            Ok(patience) => sleep(patience).await,
            // Nobody will remove it any more.
            Err(_) => pending().await,
        }
    };
    tokio::select! {
        () = &mut life => return,
        () = too_late => {}
    }
    let clients = forward.borrow().clients.len();
    warn!(%database, clients, "clients are cut: the database has been removed, and the time to finish is over");
    cut.cancel();
    life.await;
}
