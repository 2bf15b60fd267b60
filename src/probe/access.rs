//! What a probe logs in with, and what its series and its log say of how that was come by.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::credentials::{Asked, Logins};
use crate::failure::{Cause, Failure};
use crate::ids::Name;
use crate::metrics::{DatabaseMetrics, Mints};
use crate::secret::Login;
use crate::settings::plan::{DatabasePlan, ProbeLevel};
use crate::state::ProbeState;

/// The way into the database.
pub(super) struct Access {
    database: Name,
    logins: Logins,
    /// Where the logins are temporary.
    mints: Option<Mints>,
    /// Why there was no new one the last time.
    trouble: Option<Cause>,
}

impl Access {
    /// None where the probe does not log in.
    pub(super) fn new(plan: &DatabasePlan, metrics: &Arc<DatabaseMetrics>) -> Option<Self> {
        let login = plan.probe.login.as_ref().filter(|_| plan.probe.level >= ProbeLevel::Login)?;
        Some(Self {
            database: plan.name.clone(),
            mints: login.credentials.are_temporary().then(|| metrics.mints()),
            logins: Logins::new(login.clone(), plan.target.clone()),
            trouble: None,
        })
    }

    /// Whether it is the way in that this configuration describes.
    pub(super) fn is_for(&self, plan: &DatabasePlan) -> bool {
        let login = plan.probe.login.as_ref().filter(|_| plan.probe.level >= ProbeLevel::Login);
        login.is_some_and(|login| self.logins.are_for(login, &plan.target))
    }

    /// # Errors
    /// `credentials` failures.
    pub(super) async fn login(&mut self, state: &watch::Sender<ProbeState>) -> Result<Login, Failure> {
        let Asked { login, mint } = self.logins.get().await;
        if let (Some(mint), Some(mints)) = (mint, &self.mints) {
            mints.count(mint.as_ref().map(drop).map_err(|failure| failure.cause));
            match mint {
                Ok(expires) => {
                    state.send_modify(|state| state.credential_expires = expires);
                    if self.trouble.take().is_some() {
                        info!(database = %self.database, "logins are made again");
                    }
                }
                // Where there is none at all, the probe itself fails, and that is told.
                Err(failure) if login.is_ok() => self.warn_once(&failure),
                Err(failure) => self.trouble = Some(failure.cause),
            }
        }
        login
    }

    /// The database has refused the last one.
    pub(super) fn was_refused(&mut self) {
        self.logins.forget();
    }

    fn warn_once(&mut self, failure: &Failure) {
        if self.trouble.replace(failure.cause) != Some(failure.cause) {
            warn!(
                database = %self.database,
                phase = failure.cause.phase().as_str(),
                reason = failure.cause.reason(),
                detail = failure.detail(),
                hint = failure.hint(),
                "no new login can be made; the one before is used until it expires"
            );
        }
    }
}
