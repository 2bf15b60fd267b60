//! Gets together what a session logs in with: fetches secrets, asks the agent, reads keys and certificates. All anew at
//! each login, so that renewing one needs no reload.

use std::sync::Arc;

use tracing::info;

use crate::credentials;
use crate::failure::{Cause, Failure};
use crate::files;
use crate::secret::{Secret, SecretSource};
use crate::settings::plan::BastionPlan;
use crate::ssh::{self, FetchPassword};

pub(super) async fn load_identities(plan: &Arc<BastionPlan>) -> Result<ssh::Identities, Failure> {
    let passphrase = match &plan.passphrase {
        Some(source) => Some(fetch(plan, "identity_passphrase", source).await?),
        None => None,
    };
    let agent_keys = match &plan.agent {
        Some(agent) => Some(ssh::list_agent_keys(agent).await),
        None => None,
    };
    let for_thread = Arc::clone(plan);
    let load = move || ssh::load_identities(&for_thread, passphrase.as_ref(), agent_keys);
    let identities = files::read_aside(load).await.map_err(|text| {
        let text = format!("the private keys of bastion \"{}\": {text}", plan.name);
        Failure::new(Cause::AuthIdentityUnreadable, text)
    })??;
    if let (true, Some(public_key)) = (identities.just_made, &identities.own_public_key) {
        info!(
            bastion = %plan.name,
            public_key,
            hint = format!(
                "append the line that `tunnelkeeper keygen {}` prints to ~{}/.ssh/authorized_keys on {}",
                plan.name, plan.user, plan.at.host
            ),
            "made a key for this bastion"
        );
    }
    Ok(identities)
}

/// How to fetch the bastion's password, where it has one: most logins come to an end without it.
pub(super) fn fetch_password(plan: &BastionPlan) -> Option<FetchPassword<'_>> {
    let source = plan.password.as_ref()?;
    Some(Box::pin(fetch(plan, "password", source)))
}

async fn fetch(plan: &BastionPlan, key: &str, source: &SecretSource) -> Result<Secret, Failure> {
    credentials::fetch(source).await.map_err(|text| {
        Failure::new(Cause::AuthSecret, format!("`{key}` of bastion \"{}\": {text}", plan.name))
    })
}
