//! What cuts the sessions of a pool again and again, at the bastion itself or at one on the way to it.

use std::collections::BTreeMap;

use tracing::warn;

use crate::clock::now;
use crate::idle_cut::{IdleCuts, Loss};
use crate::ids::Name;
use crate::state::{SessionCut, SessionPhase, SessionState};

#[derive(Default)]
pub(super) struct Cuts(BTreeMap<Name, IdleCuts>);

impl Cuts {
    /// A session to `own` was lost at `bastion`, itself or a jump. Returns what it was that cut it, if that is proved.
    pub(super) fn lost(&mut self, own: &Name, bastion: &Name, loss: Loss) -> Option<SessionCut> {
        let cuts = self.0.entry(bastion.clone()).or_default();
        let before = cuts.finding();
        let fits = cuts.lost(loss, now().instant);
        let cut = cuts.finding().filter(|_| fits)?;
        if before.is_none_or(|before| before.after != cut.after) {
            let (detail, hint) = (cut.detail(), cut.hint(own));
            warn!(%bastion, after = cut.after.as_str(), seconds = cut.seconds(), detail, hint, "sessions are cut");
        }
        Some(cut)
    }

    /// What sessions live through is not what cuts them.
    pub(super) fn learn<'a>(&mut self, own: &Name, sessions: impl Iterator<Item = &'a SessionState>) {
        let now = now().instant;
        for session in sessions.filter(|session| session.phase != SessionPhase::Connecting) {
            let hops = session.jumps.iter().map(|jump| (&jump.bastion, jump.since, &jump.load));
            for (bastion, since, load) in hops.chain([(own, session.since, &session.load)]) {
                if let Some(cuts) = self.0.get_mut(bastion) {
                    cuts.lives(load.longest_pause(), now.saturating_duration_since(since.instant));
                }
            }
        }
    }

    /// All that is proved.
    pub(super) fn findings(&self) -> BTreeMap<Name, SessionCut> {
        self.0.iter().filter_map(|(bastion, cuts)| Some((bastion.clone(), cuts.finding()?))).collect()
    }
}
