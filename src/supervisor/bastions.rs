//! The tunnels: one for each bastion that databases are reached through, and word of those that are only gone through.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Supervisor;
use super::keep::keep;
use crate::board::Board;
use crate::dial::{Dial, Ways};
use crate::ids::Name;
use crate::metrics::BastionMetrics;
use crate::session::Hop;
use crate::settings::plan::{BastionPlan, DatabasePlan, Plan};
use crate::state::TunnelState;
use crate::tunnel::jump::{self, Behind};
use crate::tunnel::{self, Tunnel};

/// A bastion of the configuration that is applied.
pub(super) struct RunningBastion {
    plan: Arc<BastionPlan>,
    /// Those that it is reached through, outermost first.
    jumps: Vec<Arc<BastionPlan>>,
    part: Part,
}

/// What a bastion is for.
enum Part {
    /// Databases are reached through it.
    Tunnel(Tunnel),
    /// Only other bastions are.
    Jump {
        state: watch::Receiver<Arc<TunnelState>>,
        behind: watch::Sender<Vec<Behind>>,
        stop: CancellationToken,
    },
}

impl RunningBastion {
    pub(super) fn dial_now(&self) {
        if let Part::Tunnel(tunnel) = &self.part {
            tunnel.dial_now();
        }
    }

    fn state(&self) -> watch::Receiver<Arc<TunnelState>> {
        match &self.part {
            Part::Tunnel(tunnel) => tunnel.state(),
            Part::Jump { state, .. } => state.clone(),
        }
    }

    /// Ends it once it has no clients any more.
    fn leave(&self) {
        match &self.part {
            Part::Tunnel(tunnel) => tunnel.leave(),
            Part::Jump { stop, .. } => stop.cancel(),
        }
    }
}

impl Supervisor {
    pub(super) fn apply_bastions(&mut self, plan: &Plan) {
        for bastion in &plan.bastions {
            let jumps = plan.jumps(bastion);
            let hop = |plan: &Arc<BastionPlan>| Hop {
                plan: Arc::clone(plan),
                metrics: self.parts.bastion_metrics(plan),
            };
            let hops: Arc<[Hop]> = jumps.iter().map(hop).collect();
            let metrics = self.parts.bastion_metrics(bastion);
            let is_tunnel = !plan.is_only_jump(&bastion.name);
            let before = self.bastions.remove(&bastion.name);
            let part = match before {
                Some(before) if matches!(before.part, Part::Tunnel(_)) == is_tunnel => {
                    if before.plan != *bastion || before.jumps != jumps {
                        info!(bastion = %bastion.name, "the bastion's configuration has changed");
                        if let Part::Tunnel(tunnel) = &before.part {
                            tunnel.change(Arc::clone(bastion), hops);
                        }
                    }
                    before.part
                }
                before => {
                    if let Some(before) = before {
                        before.leave();
                    }
                    if is_tunnel {
                        Part::Tunnel(self.start_tunnel(bastion, hops, &metrics))
                    } else {
                        self.start_jump(bastion, &metrics)
                    }
                }
            };
            let running = RunningBastion { plan: Arc::clone(bastion), jumps, part };
            self.parts.board.put_tunnel(Arc::clone(bastion), running.state());
            self.bastions.insert(bastion.name.clone(), running);
        }
        self.tell_jumps();
    }

    /// The tunnels of a database's bastions.
    pub(super) fn ways(&self, plan: &DatabasePlan) -> Ways<Tunnel> {
        let way = |name: &Name| match &self.bastions.get(name)?.part {
            Part::Tunnel(tunnel) => Some((name.clone(), tunnel.clone())),
            // The configuration names none for a database that is only gone through.
            Part::Jump { .. } => None,
        };
        Ways::new(plan.bastions.iter().filter_map(way).collect())
    }

    pub(super) fn remove_bastions(&mut self, plan: &Plan) {
        let stays = |name: &Name| plan.bastions.iter().any(|bastion| bastion.name == *name);
        let gone: Vec<Name> = self.bastions.keys().filter(|name| !stays(name)).cloned().collect();
        for name in gone {
            let Some(gone) = self.bastions.remove(&name) else { continue };
            info!(bastion = %name, "the bastion has been removed: its sessions end with their last clients");
            gone.leave();
        }
    }

    fn start_tunnel(
        &mut self,
        plan: &Arc<BastionPlan>,
        jumps: Arc<[Hop]>,
        metrics: &Arc<BastionMetrics>,
    ) -> Tunnel {
        let (tunnel, unit) = tunnel::new(tunnel::Parts {
            plan: Arc::clone(plan),
            jumps,
            lanes: Arc::clone(&self.parts.lanes),
            memory: Arc::clone(&self.parts.memory),
            metrics: Arc::clone(metrics),
            stop: self.stop.clone(),
        });
        let life = keep(format!("tunnel {}", plan.name), unit);
        let (board, name) = (Arc::clone(&self.parts.board), plan.name.clone());
        self.others.spawn(live(life, board, name, tunnel.state(), Arc::clone(metrics)));
        tunnel
    }

    fn start_jump(&mut self, plan: &Arc<BastionPlan>, metrics: &Arc<BastionMetrics>) -> Part {
        let (behind, changes) = watch::channel(Vec::new());
        let stop = self.stop.child_token();
        let (state, unit) = jump::new(plan.name.clone(), changes, stop.clone());
        let life = keep(format!("jump {}", plan.name), unit);
        let (board, name) = (Arc::clone(&self.parts.board), plan.name.clone());
        self.others.spawn(live(life, board, name, state.clone(), Arc::clone(metrics)));
        Part::Jump { state, behind, stop }
    }

    /// Tells those that are only gone through who goes through them.
    fn tell_jumps(&self) {
        for (name, running) in &self.bastions {
            let Part::Jump { behind, .. } = &running.part else { continue };
            let goes_through = |other: &&RunningBastion| other.jumps.iter().any(|jump| jump.name == *name);
            let tunnels = self.bastions.values().filter(goes_through).filter_map(|other| match &other.part {
                Part::Tunnel(tunnel) => {
                    Some(Behind { bastion: other.plan.name.clone(), state: tunnel.state() })
                }
                Part::Jump { .. } => None,
            });
            behind.send_replace(tunnels.collect());
        }
    }
}

/// A unit's life, and what has to go with it.
async fn live(
    life: impl Future<Output = ()>,
    board: Arc<Board>,
    bastion: Name,
    state: watch::Receiver<Arc<TunnelState>>,
    _series: Arc<BastionMetrics>,
) {
    life.await;
    board.remove_tunnel(&bastion, &state);
}
