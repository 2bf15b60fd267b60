//! One client from its acceptance to its end: waits for a seat as often as it takes, and says why where none comes.
//!
//! What is over soon, or comes only in the end, is boxed here and in [`super::carry`]: a client holds the memory of its
//! whole future for as long as it is there, and there may be thousands that are idle.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::carry::{Carried, Trial, Unserved, carry, read_more};
use super::explain::{FailedOpen, explain, outcome_of};
use super::{Shared, answer};
use crate::backoff::Bounds;
use crate::dial::{Avoid, Dial, Route, Seat, Ways};
use crate::failure::{Cause, Failure, Phase};
use crate::ids::Name;
use crate::metrics::Outcome;
use crate::pgwire::SqlState;
use crate::pump::{FirstBytes, MAX_FIRST_BYTES};
use crate::socket::Socket;
use crate::state::ClientEntry;

/// A seat that comes within this time was there all along: the client does not count as held.
const AT_ONCE: Duration = Duration::from_millis(10);

/// How long a bastion may be busy that has not said yet whether there is a seat.
const BUSY: Duration = Duration::from_secs(1);

/// The pace at which a client's database is tried again.
const OPEN_AGAIN: Bounds = Bounds { min: Duration::from_millis(250), max: Duration::from_secs(5) };

pub(super) struct Client<D> {
    shared: Arc<Shared<D>>,
    /// Tells of a new configuration.
    changes: watch::Receiver<Arc<Route<D>>>,
    route: Arc<Route<D>>,
    socket: Socket,
    entry: ClientEntry,
    first: FirstBytes,
    accepted: Instant,
    /// Since when it waits to be carried, holds and failed attempts together.
    waits_since: Instant,
    /// It has been connected to the database once, and is counted as such.
    carried: bool,
    failed_opens: u32,
    last_open: Option<FailedOpen>,
    /// What it has tried in vain since it last paused.
    avoid: Avoid,
    /// How often it has tried all there is to try.
    rounds: u32,
    pause: Option<Pause>,
}

/// A wait before the database is tried again.
#[derive(Clone)]
struct Pause {
    until: Instant,
    /// The bastions that failed; one that has connected somebody else meanwhile ends it.
    failed: Vec<Name>,
}

/// A seat of a bastion, and the turn to try with it where not everybody may.
struct Turn<S> {
    bastion: Name,
    seat: S,
    permit: Option<OwnedSemaphorePermit>,
}

/// Runs it on its lane, which is mostly the one on which its client was accepted. None once the lane has ended, and the
/// daemon with it.
async fn on<T: Send + 'static>(lane: &Handle, task: Pin<Box<dyn Future<Output = T> + Send>>) -> Option<T> {
    if lane.id() == Handle::current().id() {
        return Some(task.await);
    }
    match lane.spawn(task).await {
        Ok(result) => Some(result),
        // A panic on the lane is passed on to whoever watches this task.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}

/// Waits until the time is over and there is no seat: on a busy machine one may be about to come.
async fn in_vain<D: Dial>(until: Instant, ways: &Ways<D>) {
    sleep_until(until).await;
    let _ = timeout(BUSY, ways.settled()).await;
}

impl<D: Dial> Client<D> {
    pub(super) fn new(shared: Arc<Shared<D>>, socket: Socket, entry: ClientEntry) -> Self {
        let accepted = Instant::now();
        let mut changes = shared.route.clone();
        let route = Arc::clone(&changes.borrow_and_update());
        Self {
            shared,
            changes,
            route,
            socket,
            entry,
            first: FirstBytes::default(),
            accepted,
            waits_since: accepted,
            carried: false,
            failed_opens: 0,
            last_open: None,
            avoid: Avoid::default(),
            rounds: 0,
            pause: None,
        }
    }

    /// Serves it to its end; `place` is its own in the process.
    pub(super) async fn serve(self, place: OwnedSemaphorePermit) {
        let (shared, accepted) = (Arc::clone(&self.shared), self.accepted);
        self.serve_to_its_end().await;
        shared.metrics.duration.observe(accepted.elapsed());
        drop(place);
    }

    async fn serve_to_its_end(mut self) {
        loop {
            let Turn { bastion, seat, permit } = match Box::pin(self.wait()).await {
                Ok(turn) => turn,
                Err(unserved) => return Box::pin(self.leave_unserved(unserved)).await,
            };
            let session = seat.session();
            self.entry.client.set_seat(Some((bastion.clone(), session)));
            self.entry.set_held(self.failed_opens > 0);
            let trial = Trial {
                plan: Arc::clone(&self.route.plan),
                bastion: bastion.clone(),
                give_up_at: self.gives_up_at(),
                first_time: !self.carried,
            };
            let Self { shared, socket, entry, first, .. } = self;
            let (lane, job) = (seat.lane().clone(), Arc::clone(&shared));
            let carrying = Box::pin(async move {
                let carried = carry(&job, seat, socket, first, &entry, &trial, permit).await;
                (carried, entry)
            });
            let Some((carried, entry)) = on(&lane, carrying).await else { return };
            entry.set_held(false);
            entry.client.set_seat(None);
            match carried {
                Carried::Over => return,
                Carried::Again(socket, first, failure) => {
                    self = Self { shared, socket, entry, first, ..self };
                    self.note(bastion, session, failure);
                }
                Carried::Unserved(socket, first, unserved) => {
                    self = Self { shared, socket, entry, first, ..self };
                    return Box::pin(self.leave_unserved(unserved)).await;
                }
            }
        }
    }

    /// Takes note of what failed, and decides where and when to try again.
    fn note(&mut self, bastion: Name, session: u64, failure: Failure) {
        self.avoid.session = Some((bastion.clone(), session));
        if failure.cause.phase() != Phase::Channel {
            // It was connected, and has to begin anew.
            (self.carried, self.waits_since) = (true, Instant::now());
            (self.failed_opens, self.last_open, self.rounds) = (0, None, 0);
            self.avoid.tried.clear();
            return;
        }
        let ways = &self.route.ways;
        // Another session may do better at once; the database itself will not.
        let by_session = matches!(failure.cause, Cause::ChannelTimeout | Cause::ChannelSessionLost);
        if by_session {
            ways.doubt(&bastion);
        }
        self.avoid.tried.push(bastion.clone());
        let elsewhere = ways.has_another(&self.avoid.tried) || (by_session && self.failed_opens == 0);
        if !elsewhere {
            self.rounds += 1;
            // Those who failed together shall not come back together.
            let wait = OPEN_AGAIN.ceiling(self.rounds).mul_f64(0.75 + 0.25 * rand::random::<f64>());
            let mut failed = std::mem::take(&mut self.avoid.tried);
            failed.retain(|bastion| self.shared.reach.has_failed(bastion));
            self.pause = Some(Pause { until: Instant::now() + wait, failed });
        }
        self.failed_opens += 1;
        self.last_open = Some(FailedOpen { bastion: Some(bastion), failure });
    }

    /// Waits for a seat, and meanwhile for whatever ends the waiting.
    async fn wait(&mut self) -> Result<Turn<D::Seat>, Unserved> {
        if self.failed_opens > 0 && self.first.ended && !self.carried {
            return Err(Unserved::Gone);
        }
        let mut held_at = None;
        let waited = self.wait_or_hold(&mut held_at).await;
        self.entry.set_held(false);
        if let Some(held_at) = held_at {
            self.shared.metrics.hold.observe(Instant::now() - held_at);
        }
        if let Ok(turn) = &waited {
            self.pause = None;
            self.shared.reach.trying(&turn.bastion);
        }
        waited
    }

    /// `held_at` is when it had to be held first.
    async fn wait_or_hold(&mut self, held_at: &mut Option<Instant>) -> Result<Turn<D::Seat>, Unserved> {
        loop {
            self.route = Arc::clone(&self.changes.borrow_and_update());
            let forward = &self.route.plan.forward;
            let (hold_max, until) = (forward.hold_max, self.waits_since + forward.hold_timeout);
            if self.failed_opens > 0 && Instant::now() >= until {
                return Err(Unserved::InVain);
            }
            let mut turn = self.take_turn();
            if held_at.is_none() {
                if let Ok(turn) = timeout(AT_ONCE, &mut turn).await {
                    return Ok(turn);
                }
                let held_already = self.shared.state.borrow().clients.held();
                if held_already >= hold_max {
                    return Err(Unserved::HoldFull(held_already));
                }
                *held_at = Some(Instant::now());
                self.entry.set_held(true);
            }
            if let Some(turn) = self.hold(turn, until).await? {
                return Ok(turn);
            }
        }
    }

    fn take_turn(&self) -> Pin<Box<dyn Future<Output = Turn<D::Seat>> + Send>> {
        let (shared, route) = (Arc::clone(&self.shared), Arc::clone(&self.route));
        let (pause, mut avoid) = (self.pause.clone(), self.avoid.clone());
        Box::pin(async move {
            if let Some(Pause { until, failed }) = pause {
                // Whoever is connected meanwhile proves that waiting is over.
                let _ = timeout_at(until, shared.reach.recovery(&failed)).await;
            }
            let permit = shared.reach.turn(&route.ways).await;
            loop {
                avoid.failing = shared.reach.failing();
                // What has failed may be well again by the time that the others have no seat.
                if let Ok((bastion, seat)) = timeout(OPEN_AGAIN.max, route.ways.seat(&avoid)).await {
                    return Turn { bastion, seat, permit };
                }
                avoid.tried.clear();
            }
        })
    }

    /// None once there is a new configuration to wait with.
    async fn hold<T>(
        &mut self,
        mut turn: Pin<Box<dyn Future<Output = T> + Send>>,
        until: Instant,
    ) -> Result<Option<T>, Unserved> {
        let (cut, ways) = (self.shared.cut.clone(), self.route.ways.clone());
        let mut hopeless = pin!(ways.wait_until(Ways::all_refuse));
        loop {
            let listen = !self.first.ended && self.first.bytes.len() < MAX_FIRST_BYTES;
            tokio::select! {
                biased;
                turn = &mut turn => return Ok(Some(turn)),
                read = read_more(&mut self.socket, &mut self.first), if listen => {
                    if !matches!(read, Ok(1..)) {
                        return Err(Unserved::Gone);
                    }
                }
                () = &mut hopeless => return Err(Unserved::InVain),
                Ok(()) = self.changes.changed() => return Ok(None),
                () = in_vain(until, &ways) => return Err(Unserved::InVain),
                () = cut.cancelled() => return Err(Unserved::Stopping),
            }
        }
    }

    /// Tells the client why it is not served, if it is still there.
    async fn leave_unserved(mut self, unserved: Unserved) {
        let database = &self.shared.database;
        let (outcome, text) = match unserved {
            // It may still listen, and then hears why there was no answer.
            Unserved::Gone => (Outcome::Gone, self.explain().1),
            Unserved::InVain => self.explain(),
            Unserved::HoldFull(held) => {
                let hint = Cause::ClientLimit.hint();
                let text = format!(
                    "tunnelkeeper: database \"{database}\" has {held} clients on hold already (hold.max); {hint}"
                );
                (Outcome::Limit, text)
            }
            Unserved::Stopping => {
                let text = format!(
                    "tunnelkeeper: database \"{database}\" cannot be reached: the daemon is stopping, or has no such \
                     database any more"
                );
                (Outcome::HoldTimeout, text)
            }
        };
        let cause = match outcome {
            Outcome::Limit => Some(Cause::ClientLimit),
            Outcome::HoldTimeout => Some(Cause::ClientHoldTimeout),
            _ => None,
        };
        debug!(
            %database,
            peer = %self.entry.client.peer,
            phase = cause.map(|cause| cause.phase().as_str()),
            reason = cause.map(Cause::reason),
            hint = cause.map(Cause::hint),
            text,
            "client answered"
        );
        self.count(outcome);
        answer::refuse(&mut self.socket, self.first.bytes, SqlState::CannotConnectNow, &text).await;
    }

    fn explain(&self) -> (Outcome, String) {
        // One that waited for others to try knows of the failure from them.
        let of_others = || Some(FailedOpen { bastion: None, failure: self.shared.reach.current_failure()? });
        let others = if self.last_open.is_none() { of_others() } else { None };
        let failed = self.last_open.as_ref().or(others.as_ref());
        let ways = &self.route.ways;
        (outcome_of(ways, failed), explain(&self.shared.database, ways, failed))
    }

    /// Each client is counted once.
    fn count(&self, outcome: Outcome) {
        if !self.carried {
            self.shared.metrics.connection(outcome);
        }
    }

    /// The first attempt has the bastion's own time; all others share what the hold leaves.
    fn gives_up_at(&self) -> Option<Instant> {
        (self.failed_opens > 0).then(|| self.waits_since + self.route.plan.forward.hold_timeout)
    }
}
