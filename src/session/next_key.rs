//! Whether a bastion accepts the next key of the daemon's own, asked on a connection that carries nothing.

use std::sync::Arc;

use tokio::time::Instant;

use super::Visit;
use super::identities::load_identities;
use super::trust::{self, as_known};
use crate::failure::Failure;
use crate::milestones::Milestones;
use crate::settings::plan::{BastionPlan, IdentityPlan};
use crate::ssh::{self, BufferMemory, Gate, next_key_path};

/// Logs in to the jumps, outermost first, and shows the bastion the next key: that it accepts the signature, alone or as
/// one step of several, is a yes. Nothing is opened, and nothing is learnt of host keys. Each no counts as a failed
/// login there (sshd's PerSourcePenalties), so this is for whoever asks seldom.
///
/// # Errors
/// Those of any hop, and of a next key that cannot be read; that the bastion does not accept it is none.
pub async fn accepts_next(plan: &BastionPlan, jumps: &[Arc<BastionPlan>]) -> Result<bool, Failure> {
    accepts_next_through(plan, trust::pass(jumps).await?.as_deref()).await
}

/// The same where we are logged in to the jump already.
///
/// # Errors
/// The same.
pub async fn accepts_next_through(plan: &BastionPlan, outer: Option<&Visit>) -> Result<bool, Failure> {
    let IdentityPlan::Own { path, .. } = &plan.identity else { return Ok(false) };
    let identity = IdentityPlan::Own { path: next_key_path(path), generate: false };
    let next = Arc::new(BastionPlan { identity, password: None, agent: None, ..as_known(plan) });
    let trusted = Arc::new(trust::read(&next).await?);
    let identities = load_identities(&next).await?;
    let deadline = Instant::now() + next.connect_timeout;
    let (through, gate) =
        (outer.map(Visit::connection), Gate::new(&BufferMemory::new(usize::MAX), Arc::default()));
    let connected = ssh::connect(&next, through, trusted, gate, deadline, &Milestones::default()).await?;
    connected.accepts(&next.user, &identities, deadline).await
}
