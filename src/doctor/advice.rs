//! What a failure means that was found by somebody else than the daemon.

use crate::failure::{Cause, Failure};
use crate::settings::plan::{BastionPlan, IdentityPlan};

/// Who runs this, and who the daemon runs as where that is somebody else: its state directory's owner.
#[derive(Clone, Debug)]
pub struct RunsAs {
    /// The user's name.
    pub me: String,
    /// That of the daemon's user, if it is known to be another one.
    pub daemon: Option<String>,
}

impl RunsAs {
    /// What everybody should know of it.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let Self { me, daemon } = self;
        daemon.as_ref().map(|daemon| {
            format!(
                "this runs as {me}, the daemon as {daemon} (the owner of daemon.state_dir): files and secrets that one can \
                 read the other may not; `sudo -u {daemon} tunnelkeeper doctor` sees what the daemon sees"
            )
        })
    }

    /// A failure that the daemon may not meet.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        use Cause::{AuthAgent, AuthIdentityUnreadable, AuthSecret, CredentialsMissing, HostKeyUnreadable};
        let hint = match (failure.cause, &self.daemon) {
            (AuthSecret | CredentialsMissing, _) => format!(
                "{}; the daemon's service may have variables and credentials that this shell has not",
                failure.hint()
            ),
            (AuthIdentityUnreadable | HostKeyUnreadable | AuthAgent, Some(daemon)) => format!(
                "{}; this runs as {} and the daemon as {daemon}: `sudo -u {daemon} tunnelkeeper doctor` sees what the daemon \
                 sees",
                failure.hint(),
                self.me
            ),
            _ => return failure,
        };
        failure.with_hint(hint)
    }
}

/// A key that is missing because nobody has made it yet.
pub(super) fn of_identity(plan: &BastionPlan, failure: Failure) -> Failure {
    match (&plan.identity, failure.cause) {
        (IdentityPlan::Own { generate: true, .. }, Cause::AuthNoIdentity) => failure.with_hint(format!(
            "the daemon makes it when it starts; `tunnelkeeper keygen {}` makes it now, and prints what the bastion needs",
            plan.name
        )),
        _ => failure,
    }
}

/// As the daemon goes about it, but that it makes no key.
pub(super) fn without_making_a_key(plan: &BastionPlan) -> BastionPlan {
    let mut plan = plan.clone();
    if let IdentityPlan::Own { generate, .. } = &mut plan.identity {
        *generate = false;
    }
    plan
}
