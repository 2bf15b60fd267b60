//! The tunnels: one for each bastion that databases are reached through, and word of those that are only gone through.

use std::collections::BTreeMap;
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
use crate::rotation::{self, Rotation};
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
    rotation: Rotation,
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

impl Part {
    fn state(&self) -> watch::Receiver<Arc<TunnelState>> {
        match self {
            Self::Tunnel(tunnel) => tunnel.state(),
            Self::Jump { state, .. } => state.clone(),
        }
    }
}

impl RunningBastion {
    pub(super) fn dial_now(&self) {
        if let Part::Tunnel(tunnel) = &self.part {
            tunnel.dial_now();
        }
        self.rotation.ask_now();
    }

    /// Ends it once it has no clients any more.
    fn leave(&self) {
        self.rotation.leave();
        match &self.part {
            Part::Tunnel(tunnel) => tunnel.leave(),
            Part::Jump { stop, .. } => stop.cancel(),
        }
    }
}

impl Supervisor {
    pub(super) fn apply_bastions(&mut self, plan: &Plan) {
        let is_jump = |bastion: &&Arc<BastionPlan>| plan.is_only_jump(&bastion.name);
        // Whoever is only gone through tells of the others, so these come first.
        for bastion in plan.bastions.iter().filter(|bastion| !is_jump(bastion)) {
            self.apply_bastion(plan, bastion, false);
        }
        for bastion in plan.bastions.iter().filter(is_jump) {
            self.apply_bastion(plan, bastion, true);
        }
    }

    fn apply_bastion(&mut self, plan: &Plan, bastion: &Arc<BastionPlan>, is_jump: bool) {
        let jumps = plan.jumps(bastion);
        let hop = |plan: &Arc<BastionPlan>| Hop {
            plan: Arc::clone(plan),
            metrics: self.parts.bastion_metrics(plan),
        };
        let hops: Arc<[Hop]> = jumps.iter().map(hop).collect();
        let metrics = self.parts.bastion_metrics(bastion);
        let rotated = rotation::Parts { plan: Arc::clone(bastion), jumps: jumps.clone() };
        let (part, rotation) = match self.bastions.remove(&bastion.name) {
            Some(before) if matches!(before.part, Part::Jump { .. }) == is_jump => {
                if before.plan != *bastion || before.jumps != jumps {
                    info!(bastion = %bastion.name, "the bastion's configuration has changed");
                    if let Part::Tunnel(tunnel) = &before.part {
                        tunnel.change(Arc::clone(bastion), hops);
                    }
                    before.rotation.change(rotated);
                }
                (before.part, before.rotation)
            }
            before => {
                if let Some(before) = before {
                    before.leave();
                }
                let part = if is_jump {
                    self.start_jump(bastion, &metrics)
                } else {
                    Part::Tunnel(self.start_tunnel(bastion, hops, &metrics))
                };
                let rotation = self.start_rotation(rotated, part.state());
                (part, rotation)
            }
        };
        let running = RunningBastion { plan: Arc::clone(bastion), jumps, part, rotation };
        let (state, next_key) = (running.part.state(), running.rotation.waiting());
        self.parts.board.put_tunnel(Arc::clone(bastion), state, next_key);
        self.bastions.insert(bastion.name.clone(), running);
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

    pub(super) fn tunnels(&self) -> BTreeMap<Name, Tunnel> {
        let tunnel = |(name, running): (&Name, &RunningBastion)| match &running.part {
            Part::Tunnel(tunnel) => Some((name.clone(), tunnel.clone())),
            Part::Jump { .. } => None,
        };
        self.bastions.iter().filter_map(tunnel).collect()
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

    fn start_rotation(
        &mut self,
        parts: rotation::Parts,
        tunnel: watch::Receiver<Arc<TunnelState>>,
    ) -> Rotation {
        let name = format!("rotation {}", parts.plan.name);
        let (rotation, unit) = rotation::new(parts, tunnel, self.stop.child_token());
        self.others.spawn(keep(name, unit));
        rotation
    }

    fn start_jump(&mut self, plan: &Arc<BastionPlan>, metrics: &Arc<BastionMetrics>) -> Part {
        let (behind, changes) = watch::channel(self.behind(&plan.name));
        let stop = self.stop.child_token();
        let (state, unit) = jump::new(plan.name.clone(), changes, stop.clone());
        let life = keep(format!("jump {}", plan.name), unit);
        let (board, name) = (Arc::clone(&self.parts.board), plan.name.clone());
        self.others.spawn(live(life, board, name, state.clone(), Arc::clone(metrics)));
        Part::Jump { state, behind, stop }
    }

    /// Tells those that are only gone through who goes through them, and who did and may still have sessions that do.
    pub(super) fn tell_jumps(&self) {
        for (name, running) in &self.bastions {
            let Part::Jump { behind, .. } = &running.part else { continue };
            behind.send_modify(|behind| {
                let before = std::mem::replace(behind, self.behind(name));
                for tunnel in before.into_iter().filter(Behind::lives) {
                    if !behind.iter().any(|other| other.state.same_channel(&tunnel.state)) {
                        behind.push(Behind { former: true, ..tunnel });
                    }
                }
            });
        }
    }

    /// The tunnels that go through a bastion.
    fn behind(&self, jump: &Name) -> Vec<Behind> {
        let goes_through = |other: &&RunningBastion| other.jumps.iter().any(|other| other.name == *jump);
        let behind = |other: &RunningBastion| match &other.part {
            Part::Tunnel(tunnel) => {
                let bastion = other.plan.name.clone();
                Some(Behind { bastion, state: tunnel.state(), former: false })
            }
            Part::Jump { .. } => None,
        };
        self.bastions.values().filter(goes_through).filter_map(behind).collect()
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
