//! What became of sessions, and what that means: when the bastion is dialled again, and what people are told.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinError};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{Pool, Slot};
use crate::clock::now;
use crate::failure::{Cause, Failure};
use crate::idle_cut::Loss;
use crate::idle_cut::pauses::LastPause;
use crate::ids::Name;
use crate::session::Exit;
use crate::state::{CertificateTerm, Incident, JumpTrouble, Moment, SessionPhase, SessionState};

/// How often a failure that goes on is logged.
const REMIND_EVERY: Duration = Duration::from_secs(600);

impl Pool {
    pub(super) fn session_ended(&mut self, exit: Result<(Id, Exit), JoinError>) {
        let (task, exit) = match exit {
            Ok((task, exit)) => (task, exit),
            Err(error) => {
                let text = format!("the session's task broke: {error}");
                let failure = Failure::new(Cause::SessionProtocol, text);
                let (lived, pause) = (Duration::ZERO, LastPause::default());
                (error.id(), Exit::Lost { failure, lived, pause, clients: 0, jump: None })
            }
        };
        let Some(index) = self.slots.iter().position(|slot| slot.task == task) else { return };
        let slot = self.slots.remove(index);
        self.dirty = true;
        self.state.stalled_before += slot.handle.state.borrow().load.stalled(Instant::now().into_std());
        match exit {
            Exit::Closed => debug!(bastion = %self.parts.plan.name, session = slot.id, "session closed"),
            Exit::Lost { failure, lived, pause, clients, jump } => {
                self.parts.metrics.lost(failure.cause);
                let loss = Loss { cause: failure.cause, age: lived, pause };
                let own = &self.parts.plan.name;
                let failure = match self.cuts.lost(own, jump.as_ref().unwrap_or(own), loss) {
                    Some(cut) => failure.with_hint(format!("{}: {}", cut.detail(), cut.hint(own))),
                    None => failure,
                };
                warn!(
                    bastion = %self.parts.plan.name,
                    session = slot.id,
                    phase = failure.cause.phase().as_str(),
                    reason = failure.cause.reason(),
                    detail = failure.detail(),
                    hint = failure.hint(),
                    clients,
                    lived_s = lived.as_secs(),
                    idle_s = loss.idle().0.as_secs(),
                    "session lost"
                );
                // Sessions that are lost together count as one failure of the bastion.
                if self.is_settled() || Instant::now() >= self.recovery.not_before(self.is_awaited()) {
                    self.schedule(&failure);
                }
                // What is wrong with the new configuration explains more than how the last of the old one went.
                if !slot.outdated || self.state.last_failure.is_none() {
                    self.blame(jump, &failure, None, None);
                    Incident::record(&mut self.state.last_failure, failure, now());
                }
            }
            // It says nothing of the configuration in force.
            Exit::NotEstablished { failure, .. } if slot.outdated => self.parts.metrics.failed(failure.cause),
            Exit::NotEstablished { failure, public_key, certificate, jump } => {
                self.parts.metrics.failed(failure.cause);
                let retry_at = self.schedule(&failure);
                self.state.public_key = public_key.clone().filter(|_| jump.is_none());
                if jump.is_none() && certificate.is_some() {
                    self.certificate.note(certificate.clone());
                }
                // Whatever is before the one that failed now was just reached.
                self.state.jumps.retain(|name, _| jump.as_ref() == Some(name));
                self.blame(jump, &failure, public_key, certificate);
                Incident::record(&mut self.state.last_failure, failure.clone(), now());
                self.warn_of(&failure, retry_at);
            }
        }
    }

    /// Remembers which bastion on the way it was that failed.
    fn blame(
        &mut self,
        jump: Option<Name>,
        failure: &Failure,
        public_key: Option<String>,
        certificate: Option<CertificateTerm>,
    ) {
        let Some(jump) = jump else { return };
        let mut incident = self.state.jumps.remove(&jump).map(|trouble| trouble.incident);
        Incident::record(&mut incident, failure.clone(), now());
        if let Some(incident) = incident {
            self.state.jumps.insert(jump, JumpTrouble { incident, public_key, certificate });
        }
    }

    /// Decides when the bastion is dialled again.
    fn schedule(&mut self, failure: &Failure) -> Instant {
        let awaited = self.is_awaited();
        if self.is_settled() {
            self.growth.after(failure);
            return self.growth.not_before(awaited);
        }
        self.state.wavering |= !self.is_up();
        let next = self.recovery.after(failure);
        if next.refusing {
            self.files.watch();
        } else {
            self.files.forget();
        }
        self.recovery.not_before(awaited)
    }

    /// Lets people see when the bastion is tried again, which clients that come and leave may change.
    pub(super) fn announce(&mut self, dial_at: Option<Instant>) {
        let next = dial_at.filter(|_| !self.is_settled()).map(Instant::into_std);
        if self.state.next_attempt.map(|moment| moment.instant) != next {
            let Moment { instant, wall } = now();
            let moment = |next: std::time::Instant| Moment {
                instant: next,
                wall: wall + next.saturating_duration_since(instant),
            };
            (self.state.next_attempt, self.dirty) = (next.map(moment), true);
        }
    }

    /// One warning when a bastion begins to fail in a new way, and a reminder now and then.
    fn warn_of(&mut self, failure: &Failure, retry_at: Instant) {
        let retry_in_s = (retry_at.duration_since(Instant::now()).as_secs_f64() * 10.0).round() / 10.0;
        let known =
            self.warned.is_some_and(|(cause, at)| cause == failure.cause && at.elapsed() < REMIND_EVERY);
        let (bastion, refusing) = (&self.parts.plan.name, self.recovery.refusing);
        let (phase, reason) = (failure.cause.phase().as_str(), failure.cause.reason());
        let (detail, hint) = (failure.detail(), failure.hint());
        let public_key = self.state.public_key.as_deref();
        if known && !refusing {
            debug!(%bastion, phase, reason, detail, hint, retry_in_s, "bastion not reached");
        } else {
            self.warned = Some((failure.cause, Instant::now()));
            warn!(%bastion, phase, reason, detail, hint, public_key, retry_in_s, "bastion not reached");
        }
    }

    /// While the bastion refuses us: has somebody mended the files? Returns when to look again.
    pub(super) fn look_at_files(&mut self) -> Option<Instant> {
        let (changed, again) = self.files.look();
        if changed {
            info!(bastion = %self.parts.plan.name, "a file that the login needs has changed: trying again now");
            self.dial_now();
        }
        again
    }

    /// Follows what logins find, and the file meanwhile. Returns when to look again.
    pub(super) fn look_at_certificate(&mut self) -> Option<Instant> {
        let established = self.slots.iter().filter(|slot| slot.handle.connection().is_some());
        if let Some(newest) = established.max_by_key(|slot| slot.id) {
            self.certificate.note(newest.state().certificate);
        }
        let again = self.certificate.look(&self.parts.plan.name);
        if self.state.certificate.as_ref() != self.certificate.term() {
            self.state.certificate = self.certificate.term().cloned();
            self.dirty = true;
        }
        again
    }

    /// Follows what the sessions live through.
    pub(super) fn look_for_cuts(&mut self) {
        let states: Vec<SessionState> = self.slots.iter().map(Slot::state).collect();
        self.cuts.learn(&self.parts.plan.name, states.iter());
        let findings = self.cuts.findings();
        if self.state.cuts != findings {
            (self.state.cuts, self.dirty) = (findings, true);
        }
    }

    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let (now, was_up, up) =
            (now(), self.state.is_up(), self.is_up() || self.leaving && self.finishes_clients());
        let settled = self.is_settled();
        self.state.sessions = self.slots.iter().map(Slot::state).collect();
        self.state.uptime.set(up, now);
        if was_up && !up {
            // What the configuration has ended was well.
            self.state.wavering |= !self.changing;
            self.note_silence();
        }
        self.report_change(was_up, up);
        if up {
            self.state.down_since = None;
        } else {
            self.state.down_since.get_or_insert(now);
        }
        if settled {
            self.recovery.refusing = false;
            self.state.public_key = None;
            self.state.jumps.clear();
            self.files.forget();
        }
        self.state.refusing = self.recovery.refusing && !up;
        self.state.outdated = up && !settled && !self.leaving;
        self.publish.send_replace(Arc::new(self.state.clone()));
    }

    /// The tunnel is down before any session is lost: the last one does not answer any more.
    fn note_silence(&mut self) {
        if self.slots.iter().any(|slot| slot.state().phase == SessionPhase::Suspect) {
            let text = format!("{} has not answered a ping for 10 s", self.parts.plan.at);
            let failure = Failure::new(Cause::SessionKeepaliveTimeout, text);
            Incident::record(&mut self.state.last_failure, failure, now());
        }
    }

    fn report_change(&mut self, was_up: bool, up: bool) {
        let bastion = &self.parts.plan.name;
        match (was_up, up) {
            (false, true) => {
                (self.warned, self.changing) = (None, false);
                let down_s = self.state.down_since.map(|since| since.instant.elapsed().as_secs());
                info!(%bastion, down_s, "tunnel up");
            }
            (true, false) if self.leaving => info!(%bastion, "its last session has ended"),
            (true, false) if self.changing => {
                info!(%bastion, "sessions finish their clients");
            }
            (true, false) => {
                let failure = self.state.last_failure.as_ref().map(|incident| &incident.failure);
                error!(
                    %bastion,
                    phase = failure.map(|failure| failure.cause.phase().as_str()),
                    reason = failure.map(|failure| failure.cause.reason()),
                    hint = failure.map(Failure::hint),
                    "tunnel down: clients are held"
                );
            }
            _ => {}
        }
    }
}
