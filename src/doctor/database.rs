//! One database through one bastion, from the channel to the query.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{MutexGuard, OnceCell};

use super::advice::RunsAs;
use super::progress::Record;
use super::{Arrived, Check, Kind, Outcome, Stage, Subject, Way};
use crate::credentials::Logins;
use crate::failure::{Cause, Failure};
use crate::ids::Target;
use crate::probe::{Passed, cancel, walk};
use crate::secret;
use crate::session::Visit;
use crate::settings::plan::{DatabasePlan, Kind as DatabaseKind, ProbeLevel, TlsMode};
use crate::tunnel::Seat;

/// What a database is logged in to with: fetched once, for all its ways.
#[derive(Clone)]
pub(super) struct Login {
    plan: Arc<DatabasePlan>,
    fetched: Arc<OnceCell<Result<secret::Login, Failure>>>,
}

pub(super) fn login(plan: &Arc<DatabasePlan>) -> Login {
    Login { plan: Arc::clone(plan), fetched: Arc::default() }
}

impl Login {
    /// None where nobody is to log in, or there is nothing to log in with.
    pub(super) async fn obtain(&self, record: &Record, runs_as: &RunsAs) -> Option<secret::Login> {
        let login = self.plan.probe.login.as_ref().filter(|_| asks_for_login(&self.plan))?;
        let fetch = async || Logins::new(login.clone(), self.plan.target.clone()).get().await.login;
        record.begin();
        match self.fetched.get_or_init(fetch).await {
            Ok(login) => {
                record.pass(Kind::Credentials, &describe_login(login));
                Some(login.clone())
            }
            Err(failure) => {
                record.fail_at(Kind::Credentials, runs_as.explain(failure.clone()));
                None
            }
        }
    }
}

fn asks_for_login(plan: &DatabasePlan) -> bool {
    plan.probe.login.is_some() && plan.probe.level >= ProbeLevel::Login
}

/// What is to be found out of a database. What its probe does not do is not done here: it may cost.
pub(super) fn check(way: &Way) -> Check {
    let plan = &way.database;
    let awaited = |kind| Stage::new(kind, Outcome::Awaited);
    let mut stages = Vec::new();
    stages.extend(asks_for_login(plan).then(|| awaited(Kind::Credentials)));
    // For a socket sshd has one answer, whether it forbids it or cannot open it.
    stages.extend(matches!(plan.target, Target::Tcp(_)).then(|| awaited(Kind::Forwarding)));
    stages.push(awaited(Kind::Reach));
    for kind in [Kind::Tls, Kind::DatabaseLogin, Kind::Query] {
        let outcome = not_asked(plan, kind).map_or(Outcome::Awaited, Outcome::NotAsked);
        stages.push(Stage::new(kind, outcome));
    }
    Check { subject: Subject::Database(way.clone()), source: None, own_key: None, stages }
}

/// Why a stage is left out, if it is.
fn not_asked(plan: &DatabasePlan, kind: Kind) -> Option<String> {
    let probe = &plan.probe;
    let needed = match kind {
        Kind::Tls => ProbeLevel::Tls,
        Kind::DatabaseLogin => ProbeLevel::Login,
        _ => ProbeLevel::Query,
    };
    let level = format!("probe.level is \"{}\"", probe.level.as_str());
    match (kind, plan.kind) {
        (Kind::Tls, _) if probe.level < needed => Some(level),
        (Kind::Tls, _) if probe.tls.mode == TlsMode::Disable => Some("tls.mode is \"disable\"".to_owned()),
        (Kind::Tls, _) => None,
        (_, DatabaseKind::RedshiftServerless) if probe.level < needed => {
            Some(format!("{level}, since a query bills at least 60 s"))
        }
        (_, DatabaseKind::Lakebase) if probe.level < needed => {
            Some(format!("{level}, since a login wakes a database at rest"))
        }
        // Without it no level goes further than TLS.
        _ if probe.login.is_none() => Some("no `user` is set for the database".to_owned()),
        _ => (probe.level < needed).then_some(level),
    }
}

/// Goes the way that the probe goes, once it has its turn.
pub(super) async fn examine(
    way: &Way,
    arrived: &Arrived,
    login: Option<&secret::Login>,
    record: &Record,
    runs_as: &RunsAs,
) {
    let mut turn = Some(arrived.turn.lock().await);
    record.begin();
    let gone = Box::pin(go(way, &arrived.visit(), &mut turn, login, record)).await;
    let Err(failure) = gone else { return };
    if matches!(failure.cause, Cause::ChannelConnectFailed | Cause::ChannelTimeout) {
        // A forward that sshd forbids it refuses at once, and says so.
        record.pass_over(Kind::Forwarding);
    }
    let is_owed = failure.cause == Cause::ChannelTimeout;
    record.fail(runs_as.explain(failure));
    if is_owed {
        arrived.renew().await;
    }
}

async fn go(
    way: &Way,
    visit: &Visit,
    turn: &mut Option<MutexGuard<'_, ()>>,
    login: Option<&secret::Login>,
    record: &Record,
) -> Result<(), Failure> {
    let plan = &way.database;
    let seat = Arc::new(Seat::of_visit(visit.connection(), way.open_timeout));
    let session = walk(plan, &seat, login, |passed| match passed {
        Passed::Channel => {
            // The next one may open his.
            turn.take();
            record.pass_over(Kind::Forwarding);
            record.pass(Kind::Reach, "");
        }
        Passed::Tls { encrypted, certificate_expires } => {
            record.pass(Kind::Tls, &describe_tls(plan, encrypted, certificate_expires));
        }
        Passed::Login => record.pass(Kind::DatabaseLogin, ""),
    });
    let Some(session) = session.await? else { return Ok(()) };
    if plan.probe.level >= ProbeLevel::Query {
        if let Err(failure) = session.query(&plan.probe.query, plan.probe.timeout).await {
            if failure.cause == Cause::DbQueryTimeout {
                cancel(plan, &seat, session.canceller()).await;
            }
            return Err(failure);
        }
        record.pass(Kind::Query, &plan.probe.query);
    }
    session.close().await;
    Ok(())
}

fn describe_tls(plan: &DatabasePlan, encrypted: bool, certificate_expires: Option<SystemTime>) -> String {
    let mode = plan.probe.tls.mode.as_str();
    match (encrypted, certificate_expires) {
        (false, _) => format!("the database has none, and tls.mode \"{mode}\" goes on without"),
        (true, None) => format!("tls.mode \"{mode}\""),
        (true, Some(end)) => {
            let end = humantime::format_rfc3339_seconds(end);
            format!("tls.mode \"{mode}\", certificate good until {end}")
        }
    }
}

fn describe_login(login: &secret::Login) -> String {
    let with = if login.password.is_some() { "with a password" } else { "without a password" };
    format!("user \"{}\" {with}", login.user)
}
