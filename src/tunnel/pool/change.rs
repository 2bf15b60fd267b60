//! Another configuration: which sessions it makes anew, and when those go that were made with the one before.

use std::sync::Arc;
use std::time::Duration;

use super::Pool;
use crate::backoff::Bounds;
use crate::placement::PoolBounds;
use crate::session::Command;
use crate::settings::plan::BastionPlan;
use crate::tunnel::Parts;
use crate::tunnel::cuts::Cuts;
use crate::tunnel::files::Files;

/// What decides how a session is made; the rest applies to those that exist.
fn dialled(plan: &BastionPlan) -> BastionPlan {
    BastionPlan {
        keepalive_interval: Duration::ZERO,
        keepalive_timeout: Duration::ZERO,
        connect_timeout: Duration::ZERO,
        open_timeout: Duration::ZERO,
        pool: PoolBounds { min: 1, max: 1 },
        reconnect: Bounds { min: Duration::ZERO, max: Duration::ZERO },
        ..plan.clone()
    }
}

/// Whether any of the bastions is to be trusted for another reason: then no client shall meet one that was trusted
/// for the reason before.
fn trusts_anew<'a>(
    before: impl Iterator<Item = &'a BastionPlan>,
    mut after: impl Iterator<Item = &'a BastionPlan>,
) -> bool {
    let before: Vec<&BastionPlan> = before.collect();
    let differs = |plan: &BastionPlan| {
        before.iter().any(|before| before.name == plan.name && before.trust != plan.trust)
    };
    after.any(differs)
}

impl Pool {
    /// Goes on with another configuration.
    pub(in crate::tunnel) fn change(&mut self, parts: Parts) {
        let way = |parts: &Parts| parts.bastions().map(dialled).collect::<Vec<_>>();
        let anew = way(&self.parts) != way(&parts);
        let keepalive =
            |parts: &Parts| parts.bastions().map(|plan| plan.keepalive_interval).collect::<Vec<_>>();
        let keepalive_before = keepalive(&self.parts);
        let at_once = trusts_anew(self.parts.bastions(), parts.bastions());
        self.parts = parts;
        let plan = Arc::clone(&self.parts.plan);
        if anew || keepalive(&self.parts) != keepalive_before {
            self.cuts = Cuts::default();
        }
        for pace in [&mut self.recovery, &mut self.growth] {
            pace.restart(plan.reconnect);
        }
        for slot in &self.slots {
            let (interval, timeout) = (plan.keepalive_interval, plan.keepalive_timeout);
            let _ = slot.handle.commands.send(Command::Keepalive { interval, timeout });
        }
        if anew {
            self.files = Files::of(self.parts.bastions());
            self.outdate(at_once);
            // What was wrong with the way before says nothing of the new one.
            (self.state.last_failure, self.warned) = (None, None);
            self.state.public_key = None;
            self.state.jumps.clear();
        }
        self.offer();
    }

    /// The sessions are not made as they would be now. They take clients until one is there that is, or not even that.
    fn outdate(&mut self, at_once: bool) {
        for slot in &mut self.slots {
            slot.outdated = true;
        }
        self.retire(|slot| at_once || slot.handle.connection().is_none());
        self.changing = at_once && self.state.is_up();
    }
}
