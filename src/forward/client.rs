//! One client from its acceptance to its end: waits for a seat as often as it takes, and says why where none comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::carry::{Carried, Trial, Unserved, carry, read_more};
use super::{Shared, answer, explain, outcome_of};
use crate::backoff::Bounds;
use crate::dial::{Dial, Seat};
use crate::failure::{Cause, Failure, Phase};
use crate::metrics::Outcome;
use crate::pgwire::SqlState;
use crate::pump::{FirstBytes, MAX_FIRST_BYTES};
use crate::state::ClientEntry;

/// A seat that comes within this time was there all along: the client does not count as held.
const AT_ONCE: Duration = Duration::from_millis(10);

/// The pace at which a client's database is tried again.
const OPEN_AGAIN: Bounds = Bounds { min: Duration::from_millis(250), max: Duration::from_secs(5) };

pub(super) struct Client<D> {
    shared: Arc<Shared<D>>,
    socket: TcpStream,
    entry: ClientEntry,
    first: FirstBytes,
    accepted: Instant,
    /// Since when it waits to be carried, holds and failed attempts together.
    waits_since: Instant,
    /// It has been connected to the database once, and is counted as such.
    carried: bool,
    failed_opens: u32,
    last_open: Option<Failure>,
    /// The session on which it failed.
    avoid: Option<u64>,
}

/// A seat, and the turn to try with it where not everybody may.
type Turn<S> = (S, Option<OwnedSemaphorePermit>);

impl<D: Dial> Client<D> {
    pub(super) fn new(shared: Arc<Shared<D>>, socket: TcpStream, entry: ClientEntry) -> Self {
        let accepted = Instant::now();
        Self {
            shared,
            socket,
            entry,
            first: FirstBytes::default(),
            accepted,
            waits_since: accepted,
            carried: false,
            failed_opens: 0,
            last_open: None,
            avoid: None,
        }
    }

    pub(super) async fn serve(self) {
        let (shared, accepted) = (Arc::clone(&self.shared), self.accepted);
        self.serve_to_its_end().await;
        shared.metrics.duration.observe(accepted.elapsed());
    }

    async fn serve_to_its_end(mut self) {
        loop {
            let (seat, turn) = match self.wait().await {
                Ok(turn) => turn,
                Err(unserved) => return self.leave_unserved(unserved).await,
            };
            let session = seat.session();
            self.entry.client.session.store(session, Ordering::Relaxed);
            self.entry.set_held(self.failed_opens > 0);
            let trial = Trial { give_up_at: self.gives_up_at(), first_time: !self.carried, turn };
            let Self { shared, socket, entry, first, .. } = self;
            let (lane, job) = (seat.lane().clone(), Arc::clone(&shared));
            let on_lane = lane.spawn(async move {
                let carried = carry(&job, seat, socket, first, &entry, trial).await;
                (carried, entry)
            });
            // A panic on the lane is passed on to whoever watches this task.
            let (carried, entry) = match on_lane.await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The lane has ended, and the daemon with it.
                    Err(_) => return,
                },
            };
            entry.set_held(false);
            entry.client.session.store(0, Ordering::Relaxed);
            match carried {
                Carried::Over => return,
                Carried::Again(socket, first, failure) => {
                    self = Self { shared, socket, entry, first, avoid: Some(session), ..self };
                    self.note(failure);
                }
                Carried::Unserved(socket, first, unserved) => {
                    self = Self { shared, socket, entry, first, ..self };
                    return self.leave_unserved(unserved).await;
                }
            }
        }
    }

    fn note(&mut self, failure: Failure) {
        if failure.cause.phase() == Phase::Channel {
            self.failed_opens += 1;
            self.last_open = Some(failure);
        } else {
            // It was connected, and has to begin anew.
            (self.carried, self.waits_since) = (true, Instant::now());
            (self.failed_opens, self.last_open) = (0, None);
        }
    }

    /// Waits for a seat, and meanwhile for whatever ends the waiting.
    async fn wait(&mut self) -> Result<Turn<D::Seat>, Unserved> {
        if self.failed_opens > 0 && self.first.ended && !self.carried {
            return Err(Unserved::Gone);
        }
        let until = self.waits_since + self.shared.plan.forward.hold_timeout;
        if self.failed_opens > 0 && Instant::now() >= until {
            return Err(Unserved::InVain);
        }
        let (shared, avoid, not_before) = (Arc::clone(&self.shared), self.avoid, self.next_open());
        let mut turn: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            if let Some(not_before) = not_before {
                // Whoever is connected meanwhile proves that waiting is over.
                let _ = timeout_at(not_before, shared.recovery()).await;
            }
            let turn = shared.turn().await;
            (shared.dial.seat(avoid).await, turn)
        });
        if let Ok(turn) = timeout(AT_ONCE, &mut turn).await {
            return Ok(turn);
        }
        let held_already = self.shared.state.borrow().clients.held();
        if held_already >= self.shared.plan.forward.hold_max {
            return Err(Unserved::HoldFull(held_already));
        }
        let held_at = Instant::now();
        self.entry.set_held(true);
        let waited = self.hold(turn, until).await;
        self.entry.set_held(false);
        self.shared.metrics.hold.observe(held_at.elapsed());
        waited
    }

    async fn hold<T>(
        &mut self,
        mut turn: Pin<Box<dyn Future<Output = T> + Send>>,
        until: Instant,
    ) -> Result<T, Unserved> {
        let cut = self.shared.cut.clone();
        let mut tunnel = self.shared.dial.state();
        loop {
            let listen = !self.first.ended && self.first.bytes.len() < MAX_FIRST_BYTES;
            tokio::select! {
                biased;
                turn = &mut turn => return Ok(turn),
                read = read_more(&mut self.socket, &mut self.first), if listen => {
                    if !matches!(read, Ok(1..)) {
                        return Err(Unserved::Gone);
                    }
                }
                Ok(_) = tunnel.wait_for(|state| state.refusing) => return Err(Unserved::InVain),
                () = sleep_until(until) => return Err(Unserved::InVain),
                () = cut.cancelled() => return Err(Unserved::Stopping),
            }
        }
    }

    /// Tells the client why it is not served, if it is still there.
    async fn leave_unserved(mut self, unserved: Unserved) {
        let database = &self.shared.plan.name;
        let (outcome, text) = match unserved {
            // It may still listen, and then hears why there was no answer.
            Unserved::Gone => (Outcome::Gone, self.explain().1),
            Unserved::InVain => self.explain(),
            Unserved::HoldFull(held) => {
                let text = format!(
                    "tunnelkeeper: database \"{database}\" has {held} clients on hold already (hold.max)"
                );
                (Outcome::Limit, text)
            }
            Unserved::Stopping => {
                let text = format!(
                    "tunnelkeeper: database \"{database}\" cannot be reached: the daemon is stopping"
                );
                (Outcome::HoldTimeout, text)
            }
        };
        debug!(%database, peer = %self.entry.client.peer, text, "client answered");
        self.count(outcome);
        answer::refuse(&mut self.socket, self.first.bytes, SqlState::CannotConnectNow, &text).await;
    }

    fn explain(&self) -> (Outcome, String) {
        // One that waited for others to try knows of the failure from them.
        let failure = self.last_open.clone().or_else(|| self.shared.current_failure());
        (outcome_of(&self.shared, failure.as_ref()), explain(&self.shared, failure.as_ref()))
    }

    /// Each client is counted once.
    fn count(&self, outcome: Outcome) {
        if !self.carried {
            self.shared.metrics.connection(outcome);
        }
    }

    /// When the database may be tried again, after the bastion has failed to connect to it.
    fn next_open(&self) -> Option<Instant> {
        let cause = self.last_open.as_ref()?.cause;
        // Another session may do better at once; the database itself will not.
        let elsewhere = matches!(cause, Cause::ChannelTimeout | Cause::ChannelSessionLost);
        // Those who failed together shall not come back together.
        let wait = OPEN_AGAIN.ceiling(self.failed_opens).mul_f64(0.75 + 0.25 * rand::random::<f64>());
        (!elsewhere || self.failed_opens > 1).then(|| Instant::now() + wait)
    }

    /// The first attempt has the bastion's own time; all others share what the hold leaves.
    fn gives_up_at(&self) -> Option<Instant> {
        (self.failed_opens > 0).then(|| self.waits_since + self.shared.plan.forward.hold_timeout)
    }
}
