//! One database's health, checked through its tunnel: connects, agrees on TLS, logs in and asks, as far as the
//! configuration says, and keeps a verdict.
//!
//! A connection is kept for the query, so that its time is the database's and not the login's; a login is made
//! anew now and then, since a kept connection does not notice what only logins meet. There is never more than one
//! probe of a database under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::now;
use crate::credentials;
use crate::dial::{Dial, Seat};
use crate::failure::{Cause, Failure, Phase};
use crate::metrics::{DatabaseMetrics, ProbePhase};
use crate::postgres::{Canceller, Session, negotiate};
use crate::pump::ferry;
use crate::secret::Secret;
use crate::settings::plan::{DatabasePlan, ProbeLevel, ProbeWhen, TlsMode};
use crate::state::{Health, Incident, ProbeState};
use crate::verdict::{Outcome, Verdict};

/// A login that was rejected is not tried more often: databases lock accounts, and log each try.
const REJECTED_PACE: Duration = Duration::from_secs(60);

/// What a probe is made with.
pub struct Parts<D> {
    /// The database.
    pub plan: Arc<DatabasePlan>,
    /// The way to it.
    pub dial: D,
    /// Its series.
    pub metrics: Arc<DatabaseMetrics>,
    /// When cancelled, the probe ends.
    pub stop: CancellationToken,
}

/// A connection that is kept for the next query.
struct Kept<S> {
    session: Session,
    seat: Arc<S>,
    since: Instant,
}

struct Probe<D: Dial> {
    plan: Arc<DatabasePlan>,
    dial: D,
    metrics: Arc<DatabaseMetrics>,
    kept: Option<Kept<D::Seat>>,
    /// What clients had moved at the last look.
    moved: u64,
    verdict: Verdict,
    /// The failure that was logged last, since the database answered.
    reported: Option<Cause>,
    state: watch::Sender<ProbeState>,
}

/// What one probe found.
enum Found {
    /// It was answered; the last phase took so long.
    Answered(Duration),
    Failed(Failure),
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
        let Parts { plan, dial, metrics, stop } = &self.parts;
        if plan.probe.level == ProbeLevel::Off {
            self.state.send_modify(|state| state.health = Health::NotProbed);
            return stop.cancelled().await;
        }
        let mut probe = Probe {
            plan: Arc::clone(plan),
            dial: dial.clone(),
            metrics: Arc::clone(metrics),
            kept: None,
            moved: metrics.passed_in_total(),
            verdict: Verdict::new(plan.probe.failures),
            reported: None,
            state: self.state.clone(),
        };
        tokio::select! {
            () = probe.go_on() => {}
            () = stop.cancelled() => {}
        }
        if let Some(kept) = probe.kept.take() {
            kept.session.close().await;
        }
    }
}

/// The first probe is made as soon as it can be; a tunnel that takes long is probed in vain meanwhile.
async fn wait_until_up<D: Dial>(dial: &D) {
    let mut state = dial.state();
    let up = state.wait_for(|tunnel| tunnel.is_up());
    // The state of a tunnel that is gone never comes.
    let _ = timeout(Duration::from_secs(5), up).await;
}

fn is_rejection(failure: &Failure) -> bool {
    matches!(
        failure.cause,
        Cause::DbLoginRejected | Cause::DbLoginNoHbaEntry | Cause::DbLoginUnsupportedMethod
    )
}

impl<D: Dial> Probe<D> {
    async fn go_on(&mut self) {
        wait_until_up(&self.dial).await;
        loop {
            let started = Instant::now();
            let found = self.probe().await;
            let rejected = matches!(&found, Found::Failed(failure) if is_rejection(failure));
            self.conclude(found);
            let slow = rejected && self.state.borrow().health == Health::Down;
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
        if !self.dial.state().borrow().is_up() {
            return Found::Skipped;
        }
        // Before anything is opened: a secret may take its time, and nobody shall be kept waiting with an open link.
        let password = match self.fetch_password().await {
            Ok(password) => password,
            Err(failure) => return Found::Failed(failure),
        };
        let Some(seat) = self.dial.probe_seat().await else { return Found::Skipped };
        let seat = Arc::new(seat);
        match self.probe_anew(&seat, password.as_ref()).await {
            Ok(took) => Found::Answered(took),
            // What a shut gate keeps from us is nobody's failure.
            Err(_) if !seat.is_open() => Found::Skipped,
            Err(failure) => Found::Failed(failure),
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
        if kept.since.elapsed() >= plan.probe.fresh_login {
            // The old connection goes first, so that its slot is free for the new login.
            kept.session.close().await;
            return None;
        }
        match self.ask(&kept.session, &kept.seat).await {
            Ok(took) => {
                self.kept = Some(kept);
                Some(Found::Answered(took))
            }
            Err(_) if !kept.seat.is_open() => None,
            // Servers, poolers and administrators end connections as they please; a login tells whether more is
            // wrong.
            Err(failure) if failure.cause == Cause::DbQueryClosed => None,
            Err(failure) => Some(Found::Failed(failure)),
        }
    }

    async fn fetch_password(&self) -> Result<Option<Secret>, Failure> {
        let probe = &self.plan.probe;
        let login = probe.login.as_ref().filter(|_| probe.level >= ProbeLevel::Login);
        let Some(source) = login.and_then(|login| login.password.as_ref()) else { return Ok(None) };
        let fetched = credentials::fetch(source).await;
        fetched
            .map(Some)
            .map_err(|text| Failure::new(Cause::CredentialsMissing, format!("the password: {text}")))
    }

    /// Goes through all phases from the beginning; returns the time of the last one.
    async fn probe_anew(
        &mut self,
        seat: &Arc<D::Seat>,
        password: Option<&Secret>,
    ) -> Result<Duration, Failure> {
        let plan = Arc::clone(&self.plan);
        let (target, probe) = (&plan.target, &plan.probe);
        let opened = Instant::now();
        let stream = open(&plan, seat).await?;
        let mut took = self.note(ProbePhase::Channel, opened);
        if probe.level == ProbeLevel::Connect {
            return Ok(took);
        }
        let asked = Instant::now();
        let wire = negotiate(stream, target, &probe.tls, probe.timeout).await?;
        if probe.tls.mode != TlsMode::Disable {
            took = self.note(ProbePhase::Tls, asked);
        }
        let (ProbeLevel::Login | ProbeLevel::Query, Some(login)) = (probe.level, &probe.login) else {
            return Ok(took);
        };
        let began = Instant::now();
        let session = Session::login(wire, login, password, &probe.tls, probe.timeout).await?;
        let took = self.note(ProbePhase::Login, began);
        if probe.level == ProbeLevel::Login {
            session.close().await;
            return Ok(took);
        }
        let took = self.ask(&session, seat).await?;
        self.kept = Some(Kept { session, seat: Arc::clone(seat), since: Instant::now() });
        Ok(took)
    }

    async fn ask(&self, session: &Session, seat: &Arc<D::Seat>) -> Result<Duration, Failure> {
        let probe = &self.plan.probe;
        let asked = Instant::now();
        match session.query(&probe.query, probe.timeout).await {
            Ok(()) => Ok(self.note(ProbePhase::Query, asked)),
            Err(failure) => {
                if failure.cause == Cause::DbQueryTimeout {
                    // By itself, since nobody waits for it: it is the failure that is news.
                    tokio::spawn(cancel(Arc::clone(&self.plan), Arc::clone(seat), session.canceller()));
                }
                Err(failure)
            }
        }
    }

    fn note(&self, phase: ProbePhase, since: Instant) -> Duration {
        let took = since.elapsed();
        self.metrics.probe_phase(phase, took);
        took
    }

    /// Counts a result, forms the verdict and publishes both.
    fn conclude(&mut self, found: Found) {
        let (outcome, failure, latency) = match found {
            Found::Answered(took) => {
                self.metrics.probe_answered();
                (Outcome::Answered, None, Some(took))
            }
            Found::Failed(failure) => {
                self.metrics.probe_failed(failure.cause);
                if failure.cause.phase() == Phase::Channel {
                    self.metrics.channel_failed(failure.cause);
                }
                // A link that is half open shows itself here first.
                self.dial.doubt();
                (Outcome::Failed, Some(failure), None)
            }
            Found::Skipped => {
                self.metrics.probe_skipped();
                (Outcome::Skipped, None, None)
            }
            Found::Unwanted => {
                self.metrics.probe_skipped();
                self.state.send_modify(|state| set_health(state, Health::NotProbed));
                return;
            }
        };
        let health = self.verdict.record(outcome);
        let before = self.state.borrow().health;
        self.report(before, health, failure.as_ref(), latency);
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
        failure: Option<&Failure>,
        latency: Option<Duration>,
    ) {
        let (database, bastion) = (&self.plan.name, &self.plan.bastion);
        let Some(failure) = failure else {
            if (before, health) != (Health::Up, Health::Up) && latency.is_some() {
                let latency_ms = latency.map(|latency| (latency.as_secs_f64() * 10_000.0).round() / 10.0);
                info!(%database, %bastion, latency_ms, "database up");
                self.reported = None;
            }
            return;
        };
        let (phase, reason) = (failure.cause.phase().as_str(), failure.cause.reason());
        let (detail, hint) = (failure.detail(), failure.hint());
        let news = self.reported.replace(failure.cause) != Some(failure.cause);
        match health {
            Health::Down if news || before != health => {
                error!(%database, %bastion, phase, reason, detail, hint, "database down");
            }
            // A single failure of a database that is up is no news yet.
            Health::Unknown if news => {
                warn!(%database, %bastion, phase, reason, detail, hint, "probe failed");
            }
            _ => debug!(%database, %bastion, phase, reason, detail, hint, "probe failed"),
        }
    }
}

fn set_health(state: &mut ProbeState, health: Health) {
    if state.health != health {
        (state.health, state.since) = (health, Some(now()));
    }
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
async fn cancel<S: Seat>(plan: Arc<DatabasePlan>, seat: Arc<S>, canceller: Canceller) {
    let DatabasePlan { target, probe, .. } = &*plan;
    if let Ok(stream) = open(&plan, &seat).await
        && let Ok(wire) = negotiate(stream, target, &probe.tls, probe.timeout).await
    {
        canceller.cancel(wire, probe.timeout).await;
    }
}

#[cfg(test)]
mod tests;
