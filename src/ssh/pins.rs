//! Pinned host keys: a pin does not say of which type its key is, and a bastion shows the first key that it is asked for.

use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use super::algorithms::{asks_for, by_family};
use super::channel::Connection;
use super::connect::{Connected, meet};
use super::gate::Gate;
use super::guard::Scrutiny;
use crate::failure::{Cause, Failure};
use crate::host_keys::{Fingerprint, HostKey, Trust, not_pinned};
use crate::milestones::Milestones;
use crate::settings::plan::BastionPlan;

/// Asks a bastion whose `first` key is not pinned for those of the other families, each over a connection of its own, all
/// before `deadline`.
///
/// # Errors
/// `host_key` `changed` where none is pinned, naming all; else as [`meet`].
pub(super) async fn ask_for_others(
    plan: &BastionPlan,
    through: Option<&Connection>,
    trust: &Arc<Trust>,
    (pins, first): (&[Fingerprint], &HostKey),
    gate: &Gate,
    deadline: Instant,
    milestones: &Milestones,
) -> Result<Connected, Failure> {
    let mut shown = vec![first.clone()];
    for family in by_family(plan.legacy_algorithms) {
        if asks_for(&family, first) {
            continue;
        }
        let refused: Arc<OnceLock<HostKey>> = Arc::default();
        let scrutiny = Scrutiny::Judge(Arc::clone(trust), Arc::clone(&refused));
        let met = meet(plan, through, family, scrutiny, gate.anew(), deadline, milestones).await;
        match (met, refused.get()) {
            (Ok(connected), _) => return Ok(connected),
            (Err(_), Some(key)) => shown.push(key.clone()),
            (Err(failure), None) if failure.cause == Cause::KexNoCommonAlgorithm => {}
            (Err(failure), None) => return Err(failure),
        }
    }
    Err(not_pinned(pins, &plan.at, &shown))
}
