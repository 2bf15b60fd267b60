//! One database's health, checked through its tunnel: connects, agrees on TLS, logs in and asks, as far as the
//! configuration says, and keeps a verdict.
//!
//! A connection is kept for the query, so that its time is the database's and not the login's; a login is made
//! anew now and then, since a kept connection does not notice what only logins meet. There is never more than one
//! probe of a database under way.

mod access;
mod walk;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::now;
use crate::dial::{Dial, Route, Seat, Ways};
use crate::failure::{Cause, Failure, Phase};
use crate::ids::Name;
use crate::metrics::{DatabaseMetrics, ProbePhase};
use crate::postgres::Session;
use crate::secret::Login;
use crate::settings::plan::{DatabasePlan, ProbeLevel, ProbeWhen, TlsMode};
use crate::state::{Health, Incident, ProbeState};
use crate::verdict::{Outcome, Verdict};
use access::Access;
pub use walk::{Passed, cancel, walk};

/// How long the first probe waits for the tunnel.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);

/// A login that was rejected is not tried more often: databases lock accounts, and log each try.
const REJECTED_PACE: Duration = Duration::from_secs(60);

/// What a probe is made with.
pub struct Parts<D> {
    /// The database and the ways to it, as the configuration has them at the moment.
    pub route: watch::Receiver<Arc<Route<D>>>,
    /// Its series.
    pub metrics: Arc<DatabaseMetrics>,
    /// When cancelled, the probe ends.
    pub stop: CancellationToken,
}

/// A connection that is kept for the next query.
struct Kept<S> {
    session: Session,
    seat: Arc<S>,
    bastion: Name,
    /// The bastions that it would rather go through, which did not connect it.
    instead_of: Vec<Name>,
    since: Instant,
}

struct Probe<D: Dial> {
    plan: Arc<DatabasePlan>,
    ways: Ways<D>,
    metrics: Arc<DatabaseMetrics>,
    /// None where it does not log in.
    access: Option<Access>,
    kept: Option<Kept<D::Seat>>,
    /// What clients had moved at the last look.
    moved: u64,
    verdict: Verdict,
    /// The bastions that did not connect it, and why.
    passed_by: BTreeMap<Name, Cause>,
    /// The failure that was logged last, since the database answered.
    reported: Option<Cause>,
    /// How often in a row the login was rejected.
    rejections: u32,
    state: watch::Sender<ProbeState>,
}

/// What one probe found.
enum Found {
    /// It was answered; the last phase took so long.
    Answered(Name, Duration),
    /// Through this bastion, if it came as far as that.
    Failed(Option<Name>, Failure),
    /// No session could take it.
    Skipped,
    /// It was not wanted: no client is active.
    Unwanted,
}

/// The probe itself.
pub struct Unit<D> {
    parts: Parts<D>,
    state: watch::Sender<ProbeState>,
}

/// A probe's state, and the unit that gives it life.
pub fn new<D: Dial>(parts: Parts<D>) -> (watch::Receiver<ProbeState>, Unit<D>) {
    let (state, receiver) = watch::channel(ProbeState::default());
    (receiver, Unit { parts, state })
}

impl<D: Dial> Unit<D> {
    /// Probes until it is told to stop. May be called again after it broke.
    pub async fn run(&self) {
        let mut changes = self.parts.route.clone();
        let stop = &self.parts.stop;
        let mut access: Option<Access> = None;
        while !stop.is_cancelled() {
            let route = Arc::clone(&changes.borrow_and_update());
            let mut probe = self.begin(&route, access.take());
            tokio::select! {
                () = probe.go_on() => {}
                () = another(&mut changes, &route) => {}
                () = stop.cancelled() => {}
            }
            if let Some(kept) = probe.kept.take() {
                kept.session.close().await;
            }
            access = probe.access;
        }
    }

    /// A probe that knows nothing of what was found out with another configuration; what it logs in with stays where that
    /// is the same.
    fn begin(&self, route: &Route<D>, access: Option<Access>) -> Probe<D> {
        let Route { plan, ways } = route;
        let access = access.filter(|access| access.is_for(plan));
        let is_new = access.is_none();
        let health = if plan.probe.level == ProbeLevel::Off { Health::NotProbed } else { Health::Unknown };
        self.state.send_modify(|state| {
            set_health(state, health);
            // It may have been another database's.
            state.certificate_expires = None;
            if is_new {
                state.credential_expires = None;
            }
        });
        Probe {
            plan: Arc::clone(plan),
            ways: ways.clone(),
            metrics: Arc::clone(&self.parts.metrics),
            access: access.or_else(|| Access::new(plan, &self.parts.metrics)),
            kept: None,
            moved: self.parts.metrics.passed_in_total(),
            verdict: Verdict::new(plan.probe.failures),
            passed_by: BTreeMap::new(),
            reported: None,
            rejections: 0,
            state: self.state.clone(),
        }
    }
}

/// Waits for a configuration with which the database is probed in another way.
async fn another<D: Dial>(changes: &mut watch::Receiver<Arc<Route<D>>>, route: &Route<D>) {
    let how = |plan: &DatabasePlan| (plan.target.clone(), plan.probe.clone());
    let differs = |new: &Arc<Route<D>>| how(&new.plan) != how(&route.plan) || !new.ways.are(&route.ways);
    if changes.wait_for(differs).await.is_err() {
        pending::<()>().await;
    }
}

fn is_rejection(failure: &Failure) -> bool {
    matches!(
        failure.cause,
        Cause::DbLoginRejected | Cause::DbLoginNoHbaEntry | Cause::DbLoginUnsupportedMethod
    )
}

impl<D: Dial> Probe<D> {
    async fn go_on(&mut self) {
        if self.plan.probe.level == ProbeLevel::Off {
            return pending().await;
        }
        // The first probe is made as soon as it can be; a tunnel that takes long is probed in vain meanwhile.
        let _ = timeout(FIRST_PATIENCE, self.ways.wait_until(Ways::is_up)).await;
        loop {
            let started = Instant::now();
            let found = self.probe().await;
            let rejected = matches!(&found, Found::Failed(_, failure) if is_rejection(failure));
            self.rejections = if rejected { self.rejections.saturating_add(1) } else { 0 };
            self.conclude(found);
            let slow = self.rejections > 1;
            let pace = self.plan.probe.interval.max(if slow { REJECTED_PACE } else { Duration::ZERO });
            // A little jitter, so that many databases are not probed in step.
            sleep_until(started + pace.mul_f64(0.95 + 0.1 * rand::random::<f64>())).await;
        }
    }

    async fn probe(&mut self) -> Found {
        if self.plan.probe.when == ProbeWhen::Active && !self.clients_are_active() {
            self.kept = None;
            return Found::Unwanted;
        }
        if let Some(found) = self.probe_kept().await {
            return found;
        }
        if !self.ways.is_up() {
            return Found::Skipped;
        }
        // Before anything is opened: a secret may take its time, and nobody shall be kept waiting with an open link.
        let login = match &mut self.access {
            Some(access) => match access.login(&self.state).await {
                Ok(login) => Some(login),
                Err(failure) => return self.probe_without_login(failure).await,
            },
            None => None,
        };
        let found = self.probe_ways(login.as_ref()).await;
        if let (Found::Failed(_, failure), Some(access)) = (&found, &mut self.access)
            && is_rejection(failure)
        {
            access.was_refused();
        }
        found
    }

    /// Goes as far as it can: what is wrong before the login is worse than that there is none.
    async fn probe_without_login(&mut self, failure: Failure) -> Found {
        match self.probe_ways(None).await {
            Found::Answered(bastion, _) => Found::Failed(Some(bastion), failure),
            Found::Skipped => Found::Failed(None, failure),
            found => found,
        }
    }

    /// Goes the way that a client would go: through the best bastion, and through the next where that one does not
    /// connect it to the database.
    async fn probe_ways(&mut self, login: Option<&Login>) -> Found {
        let mut failed = Vec::new();
        let mut found = Found::Skipped;
        while let Some((bastion, seat)) = self.ways.probe_seat(&failed).await {
            let seat = Arc::new(seat);
            match self.probe_anew(&bastion, &seat, &failed, login).await {
                Ok(took) => {
                    self.passed_by.remove(&bastion);
                    return Found::Answered(bastion, took);
                }
                // What a shut gate keeps from us is nobody's failure.
                Err(_) if !seat.is_open() => failed.push(bastion),
                Err(failure) if failure.cause.phase() == Phase::Channel => {
                    self.metrics.channel_failed(&bastion, failure.cause);
                    self.ways.doubt(&bastion);
                    self.pass_by(&bastion, &failure);
                    failed.push(bastion.clone());
                    found = Found::Failed(Some(bastion), failure);
                }
                Err(failure) => return Found::Failed(Some(bastion), failure),
            }
        }
        found
    }

    /// One warning when the probe cannot go the best way, and for each new reason.
    fn pass_by(&mut self, bastion: &Name, failure: &Failure) {
        let news = self.passed_by.insert(bastion.clone(), failure.cause) != Some(failure.cause);
        if news && self.ways.has_another(std::slice::from_ref(bastion)) {
            warn!(
                database = %self.plan.name,
                %bastion,
                phase = failure.cause.phase().as_str(),
                reason = failure.cause.reason(),
                detail = failure.detail(),
                hint = failure.hint(),
                "the probe cannot go through this bastion, and goes through another"
            );
        }
    }

    fn clients_are_active(&mut self) -> bool {
        let moved = self.metrics.passed_in_total();
        std::mem::replace(&mut self.moved, moved) != moved
    }

    /// Asks over the kept connection, if there is one that is still good for it.
    async fn probe_kept(&mut self) -> Option<Found> {
        let plan = Arc::clone(&self.plan);
        let kept = self.kept.take()?;
        if kept.session.is_closed() || !kept.seat.is_open() {
            return None;
        }
        // It shall see what clients see, so it goes with them from one bastion to another.
        let best = self.ways.best();
        if best.is_some_and(|best| *best != kept.bastion && !kept.instead_of.contains(best)) {
            kept.session.close().await;
            return None;
        }
        if kept.since.elapsed() >= plan.probe.fresh_login {
            // The old connection goes first, so that its slot is free for the new login.
            kept.session.close().await;
            return None;
        }
        match self.ask(&kept.session, &kept.seat).await {
            Ok(took) => {
                let bastion = kept.bastion.clone();
                self.kept = Some(kept);
                Some(Found::Answered(bastion, took))
            }
            Err(_) if !kept.seat.is_open() => None,
            // Servers, poolers and administrators end connections as they please; a login tells whether more is
            // wrong.
            Err(failure) if failure.cause == Cause::DbQueryClosed => None,
            Err(failure) => Some(Found::Failed(Some(kept.bastion), failure)),
        }
    }

    /// Goes through all phases from the beginning; returns the time of the last one.
    async fn probe_anew(
        &mut self,
        bastion: &Name,
        seat: &Arc<D::Seat>,
        instead_of: &[Name],
        login: Option<&Login>,
    ) -> Result<Duration, Failure> {
        let plan = Arc::clone(&self.plan);
        let (metrics, state) = (&self.metrics, &self.state);
        let (mut since, mut took) = (Instant::now(), Duration::ZERO);
        let mut note = |phase| {
            took = since.elapsed();
            since = Instant::now();
            metrics.probe_phase(phase, took);
        };
        let session = walk(&plan, seat, login, |passed| match passed {
            Passed::Channel => note(ProbePhase::Channel),
            Passed::Tls { .. } if plan.probe.tls.mode == TlsMode::Disable => {}
            Passed::Tls { certificate_expires, .. } => {
                note(ProbePhase::Tls);
                state.send_if_modified(|state| {
                    let before = std::mem::replace(&mut state.certificate_expires, certificate_expires);
                    before != certificate_expires
                });
            }
            Passed::Login => note(ProbePhase::Login),
        });
        let Some(session) = session.await? else { return Ok(took) };
        if plan.probe.level == ProbeLevel::Login {
            session.close().await;
            return Ok(took);
        }
        let took = self.ask(&session, seat).await?;
        self.kept = Some(Kept {
            session,
            seat: Arc::clone(seat),
            bastion: bastion.clone(),
            instead_of: instead_of.to_vec(),
            since: Instant::now(),
        });
        Ok(took)
    }

    async fn ask(&self, session: &Session, seat: &Arc<D::Seat>) -> Result<Duration, Failure> {
        let probe = &self.plan.probe;
        let asked = Instant::now();
        match session.query(&probe.query, probe.timeout).await {
            Ok(()) => {
                let took = asked.elapsed();
                self.metrics.probe_phase(ProbePhase::Query, took);
                Ok(took)
            }
            Err(failure) => {
                if failure.cause == Cause::DbQueryTimeout {
                    // By itself, since nobody waits for it: it is the failure that is news.
                    let (plan, seat) = (Arc::clone(&self.plan), Arc::clone(seat));
                    let canceller = session.canceller();
                    tokio::spawn(async move { cancel(&plan, &seat, canceller).await });
                }
                Err(failure)
            }
        }
    }

    /// Counts a result, forms the verdict and publishes both.
    fn conclude(&mut self, found: Found) {
        let (outcome, bastion, failure, latency) = match found {
            Found::Answered(bastion, took) => {
                self.metrics.probe_answered();
                (Outcome::Answered, Some(bastion), None, Some(took))
            }
            Found::Failed(bastion, failure) => {
                self.metrics.probe_failed(failure.cause);
                // A link that is half open shows itself here first.
                let phase = failure.cause.phase();
                let says_nothing = matches!(phase, Phase::Channel | Phase::Credentials);
                if let Some(bastion) = bastion.as_ref().filter(|_| !says_nothing) {
                    self.ways.doubt(bastion);
                }
                let outcome = if phase == Phase::Credentials { Outcome::Unable } else { Outcome::Failed };
                (outcome, bastion, Some(failure), None)
            }
            Found::Skipped => {
                self.metrics.probe_skipped();
                (Outcome::Skipped, None, None, None)
            }
            Found::Unwanted => {
                self.metrics.probe_skipped();
                self.state.send_modify(|state| set_health(state, Health::NotProbed));
                return;
            }
        };
        let health = self.verdict.record(outcome);
        let before = self.state.borrow().health;
        self.report(before, health, bastion.as_ref(), failure.as_ref(), latency);
        self.state.send_modify(|state| {
            set_health(state, health);
            if let Some(latency) = latency {
                state.latency = Some(latency);
                state.last_success = Some(now());
            }
            if let Some(failure) = failure {
                Incident::record(&mut state.last_failure, failure, now());
            }
        });
    }

    /// One event when the verdict changes, and one when the reason does.
    fn report(
        &mut self,
        before: Health,
        health: Health,
        bastion: Option<&Name>,
        failure: Option<&Failure>,
        latency: Option<Duration>,
    ) {
        let (database, bastion) = (&self.plan.name, bastion.map(tracing::field::display));
        let Some(failure) = failure else {
            if (before, health) != (Health::Up, Health::Up) && latency.is_some() {
                let latency_ms = latency.map(|latency| (latency.as_secs_f64() * 10_000.0).round() / 10.0);
                info!(%database, bastion, latency_ms, "database up");
                self.reported = None;
            }
            return;
        };
        let (phase, reason) = (failure.cause.phase().as_str(), failure.cause.reason());
        let (detail, hint) = (failure.detail(), failure.hint());
        let news = self.reported.replace(failure.cause) != Some(failure.cause);
        match health {
            Health::Down if news || before != health => {
                error!(%database, bastion, phase, reason, detail, hint, "database down");
            }
            // A single failure of a database that is up is no news yet.
            Health::Unknown if news || before != health => {
                warn!(%database, bastion, phase, reason, detail, hint, "probe failed");
            }
            _ => debug!(%database, bastion, phase, reason, detail, hint, "probe failed"),
        }
    }
}

fn set_health(state: &mut ProbeState, health: Health) {
    if state.health != health {
        (state.health, state.since) = (health, Some(now()));
    }
}

#[cfg(test)]
mod tests;
