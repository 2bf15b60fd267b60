//! A session that is made for one look, hop by hop as the daemon makes them: for those who want to know how far it gets.
//! It learns and stores nothing, and nobody keeps it alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::identities::{fetch_password, load_identities};
use super::way::Owned;
use super::{first_ping, trust};
use crate::failure::Failure;
use crate::milestones::{Milestone, Milestones};
use crate::settings::plan::BastionPlan;
use crate::ssh::{self, BufferMemory, Connection, Gate, Identities};

/// A session to a bastion, and to those that it goes through. Dropping it ends it.
pub struct Visit {
    plan: Arc<BastionPlan>,
    connection: Owned,
    /// It lives as long as what goes through it.
    _outer: Option<Arc<Self>>,
}

impl Visit {
    /// Goes as far as the login, and tells of each stage. Where there is nothing to log in with it goes as far as it can
    /// without. A first host key under `accept-new` is believed, and forgotten.
    ///
    /// # Errors
    /// Those of a session that is not established; those of `outer` where it ends meanwhile.
    pub async fn make(
        plan: &Arc<BastionPlan>,
        outer: Option<Arc<Self>>,
        milestones: &Milestones,
    ) -> Result<Self, Failure> {
        let identities = load_identities(plan).await;
        milestones.tell(|| Milestone::Identities(identities.as_ref().map(list).map_err(Clone::clone)));
        if let Some(line) = identities.as_ref().ok().and_then(|all| all.own_public_key.as_ref()) {
            milestones.tell(|| Milestone::OwnKey(line.clone()));
        }
        let trusted = Arc::new(trust::read(plan).await?);
        let deadline = Instant::now() + plan.connect_timeout;
        let gate = Gate::new(&BufferMemory::new(usize::MAX), Arc::default());
        let through = outer.as_deref().map(Self::connection);
        let connected = ssh::connect(plan, through, Arc::clone(&trusted), gate, deadline, milestones).await;
        let connected = connected.map_err(|failure| trust::advise(plan, failure))?;
        let key = &connected.seen.key;
        milestones.tell(|| {
            Milestone::HostKey(format!("{}: {}", trusted.grounds(&plan.at, key), key.fingerprint()))
        });
        let connection = connected.login(&plan.user, &identities?, fetch_password(plan), deadline).await?;
        Ok(Self { plan: Arc::clone(plan), connection: Owned(connection), _outer: outer })
    }

    /// The session itself.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Has the bastion answer, as a session must before it serves anybody. Returns the round trip.
    ///
    /// # Errors
    /// `session` `not_established`.
    pub async fn ping(&self) -> Result<Duration, Failure> {
        first_ping(&self.plan, &self.connection).await
    }

    /// Says goodbye to the bastion, and ends the session. Those that it goes through are left alone.
    pub async fn close(&self) {
        self.connection.close().await;
    }
}

/// What there is to log in with, and what should be.
fn list(identities: &Identities) -> Vec<String> {
    let setbacks = identities.setbacks().iter().map(|setback| format!("but {}", setback.detail()));
    identities.names().into_iter().chain(setbacks).collect()
}
