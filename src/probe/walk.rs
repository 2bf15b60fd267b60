//! The stages of a look at a database, one after the other: what the probe does at its pace, and
//! [`crate::doctor`] once.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::DuplexStream;
use tokio::time::timeout;

use crate::dial::Seat;
use crate::failure::{Cause, Failure};
use crate::postgres::{Agreement, Canceller, Session, Wire, negotiate};
use crate::pump::ferry;
use crate::secret::Login;
use crate::settings::plan::{DatabasePlan, ProbeLevel};

/// A stage that was passed.
#[derive(Clone, Copy, Debug)]
pub enum Passed {
    /// The bastion has connected to the database.
    Channel,
    /// What becomes of TLS is agreed on.
    Tls {
        /// There is TLS.
        encrypted: bool,
        /// The last moment at which the database's certificate is good, where it showed one.
        certificate_expires: Option<SystemTime>,
    },
    /// The user is in.
    Login,
}

/// Goes as far as `probe.level` allows, and as it can with `login`; returns a session to ask the query in, where it has come
/// to that. `passed` hears of each stage at once.
///
/// # Errors
/// `channel`, `db_tls` and `db_login` failures.
pub async fn walk<S: Seat>(
    plan: &DatabasePlan,
    seat: &Arc<S>,
    login: Option<&Login>,
    mut passed: impl FnMut(Passed),
) -> Result<Option<Session>, Failure> {
    let (target, probe) = (&plan.target, &plan.probe);
    let stream = open(plan, seat).await?;
    passed(Passed::Channel);
    if probe.level <= ProbeLevel::Connect {
        return Ok(None);
    }
    let Agreement { wire, certificate_expires } =
        negotiate(stream, target, &probe.tls, probe.timeout).await?;
    passed(Passed::Tls { encrypted: matches!(wire, Wire::Tls(_)), certificate_expires });
    let (Some(login), Some(plan)) = (login, &probe.login) else { return Ok(None) };
    let session = Session::login(wire, login, plan, &probe.tls, probe.timeout).await?;
    passed(Passed::Login);
    Ok(Some(session))
}

async fn open<S: Seat>(plan: &DatabasePlan, seat: &Arc<S>) -> Result<DuplexStream, Failure> {
    let target = &plan.target;
    match timeout(plan.probe.timeout, seat.open(target)).await {
        Ok(link) => link.map(|(inbound, outbound)| ferry(Arc::clone(seat), inbound, outbound)),
        Err(_) => {
            let text = format!("the bastion did not connect to {target} in time");
            Err(Failure::new(Cause::ChannelTimeout, text))
        }
    }
}

/// Has the database give up a query that took too long, as far as it can be reached for that.
pub async fn cancel<S: Seat>(plan: &DatabasePlan, seat: &Arc<S>, canceller: Canceller) {
    let DatabasePlan { target, probe, .. } = plan;
    if let Ok(stream) = open(plan, seat).await
        && let Ok(Agreement { wire, .. }) = negotiate(stream, target, &probe.tls, probe.timeout).await
    {
        canceller.cancel(wire, probe.timeout).await;
    }
}
