//! One client from its acceptance to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::{Shared, answer, explain, outcome_of};
use crate::backoff::Bounds;
use crate::dial::{Dial, Seat};
use crate::failure::{Cause, Failure};
use crate::metrics::Outcome;
use crate::pgwire::SqlState;
use crate::pump::{self, Ending, FirstBytes, MAX_FIRST_BYTES, Meter, pump};
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
    /// It has been connected to the database once.
    carried: bool,
    failed_opens: u32,
    last_open: Option<Failure>,
    /// The session on which it failed.
    avoid: Option<u64>,
}

/// What waiting for a seat came to.
enum Waited<S> {
    Seat(S),
    /// The client left.
    Gone,
    /// It has to be told why not, and counts as this.
    Vain(Outcome, String),
}

/// What came of a seat.
enum Carried {
    /// The client is done with, or was ended.
    Over,
    /// It has to wait for another seat.
    Back(TcpStream, FirstBytes, Failure),
}

impl<D: Dial> Client<D> {
    pub(super) fn new(shared: Arc<Shared<D>>, socket: TcpStream, entry: ClientEntry) -> Self {
        Self {
            shared,
            socket,
            entry,
            first: FirstBytes::default(),
            accepted: Instant::now(),
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
        let mut hold_until = None;
        loop {
            let seat = match self.wait(&mut hold_until).await {
                Waited::Seat(seat) => seat,
                Waited::Gone => {
                    self.shared.metrics.connection(Outcome::Gone);
                    return;
                }
                Waited::Vain(outcome, text) => {
                    debug!(database = %self.shared.plan.name, peer = %self.entry.client.peer, text, "client answered");
                    self.shared.metrics.connection(outcome);
                    self.entry.set_held(false);
                    let code = SqlState::CannotConnectNow;
                    return answer::refuse(&mut self.socket, self.first.bytes, code, &text).await;
                }
            };
            self.entry.client.session.store(seat.session(), Ordering::Relaxed);
            let session = seat.session();
            let Self { shared, socket, entry, first, .. } = self;
            let (lane, job) = (seat.lane().clone(), Arc::clone(&shared));
            let first_time = !self.carried;
            let on_lane = lane.spawn(async move {
                let carried = carry(&job, seat, socket, first, &entry, first_time).await;
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
            entry.client.session.store(0, Ordering::Relaxed);
            let Carried::Back(socket, first, failure) = carried else { return };
            let opened = failure.cause.phase() != crate::failure::Phase::Channel;
            hold_until = hold_until.filter(|_| !opened);
            self = Self {
                shared,
                socket,
                entry,
                first,
                accepted: self.accepted,
                carried: self.carried || opened,
                failed_opens: if opened { 0 } else { self.failed_opens + 1 },
                last_open: (!opened).then_some(failure),
                avoid: Some(session),
            };
        }
    }

    /// Waits for a seat, and meanwhile for whatever ends the waiting.
    async fn wait(&mut self, hold_until: &mut Option<Instant>) -> Waited<D::Seat> {
        let dial = self.shared.dial.clone();
        let (avoid, not_before) = (self.avoid, self.next_open());
        let mut seat = Box::pin(async move {
            if let Some(not_before) = not_before {
                sleep_until(not_before).await;
            }
            dial.seat(avoid).await
        });
        if let Ok(seat) = timeout(AT_ONCE, &mut seat).await {
            return Waited::Seat(seat);
        }
        let plan = &self.shared.plan.forward;
        let held_already = self.shared.state.borrow().clients.held();
        if held_already >= plan.hold_max {
            let text = format!(
                "tunnelkeeper: database \"{}\" has {held_already} clients on hold already (hold.max)",
                self.shared.plan.name
            );
            return Waited::Vain(Outcome::Limit, text);
        }
        let until = *hold_until.get_or_insert(Instant::now() - AT_ONCE + plan.hold_timeout);
        let held_at = Instant::now();
        self.entry.set_held(true);
        let waited = self.hold(seat, until).await;
        self.entry.set_held(false);
        self.shared.metrics.hold.observe(held_at.elapsed());
        waited
    }

    async fn hold(
        &mut self,
        mut seat: Pin<Box<impl Future<Output = D::Seat>>>,
        until: Instant,
    ) -> Waited<D::Seat> {
        let cut = self.shared.cut.clone();
        let mut tunnel = self.shared.dial.state();
        loop {
            let listen = !self.first.ended && self.first.bytes.len() < MAX_FIRST_BYTES;
            tokio::select! {
                biased;
                seat = &mut seat => return Waited::Seat(seat),
                read = read_more(&mut self.socket, &mut self.first), if listen => if !read { return Waited::Gone },
                Ok(_) = tunnel.wait_for(|state| state.refusing) => return self.in_vain(),
                () = sleep_until(until) => return self.in_vain(),
                () = cut.cancelled() => {
                    let text = format!(
                        "tunnelkeeper: database \"{}\" cannot be reached: the daemon is stopping",
                        self.shared.plan.name
                    );
                    return Waited::Vain(Outcome::HoldTimeout, text);
                }
            }
        }
    }

    fn in_vain(&self) -> Waited<D::Seat> {
        let last_open = self.last_open.as_ref();
        Waited::Vain(outcome_of(&self.shared, last_open), explain(&self.shared, last_open))
    }

    /// When the database may be tried again, after the bastion has failed to connect to it.
    fn next_open(&self) -> Option<Instant> {
        let cause = self.last_open.as_ref()?.cause;
        // Another session may do better at once; the database itself will not.
        let elsewhere = matches!(cause, Cause::ChannelTimeout | Cause::ChannelSessionLost);
        let wait = OPEN_AGAIN.ceiling(self.failed_opens);
        (!elsewhere || self.failed_opens > 1).then(|| Instant::now() + wait)
    }
}

/// Reads what a held client sends; false when it has left.
async fn read_more(socket: &mut TcpStream, first: &mut FirstBytes) -> bool {
    let room = MAX_FIRST_BYTES - first.bytes.len().min(MAX_FIRST_BYTES);
    let mut limited = socket.take(room as u64);
    matches!(limited.read_buf(&mut first.bytes).await, Ok(read) if read > 0)
}

/// Connects a client through its seat and carries it. Runs on the session's lane.
async fn carry<D: Dial>(
    shared: &Arc<Shared<D>>,
    seat: D::Seat,
    mut socket: TcpStream,
    first: FirstBytes,
    entry: &ClientEntry,
    first_time: bool,
) -> Carried {
    let (plan, metrics) = (&shared.plan, &shared.metrics);
    let asked = Instant::now();
    let (mut inbound, mut outbound) = match seat.open(&plan.target).await {
        Ok(link) => link,
        Err(failure) => {
            shared.open_failed(&failure);
            if matches!(failure.cause, Cause::ChannelTimeout | Cause::ChannelSessionLost) {
                shared.dial.doubt();
            }
            return Carried::Back(socket, first, failure);
        }
    };
    metrics.open.observe(asked.elapsed());
    shared.opened();
    if first_time {
        metrics.connection(Outcome::Carried);
    }
    let meter = Meter::new(&entry.client, metrics);
    let bounds = pump::Bounds {
        idle: plan.forward.idle_timeout,
        stall: plan.forward.stall_timeout,
        stop: shared.cut.clone(),
    };
    match pump(&mut socket, &seat, &mut inbound, &mut outbound, first, &meter, &bounds).await {
        Ending::Done => {
            drop((inbound, outbound, seat));
            answer::finish(&mut socket).await;
            return Carried::Over;
        }
        Ending::ClientLeft => {}
        Ending::Again(first, failure) => return Carried::Back(socket, first, failure),
        Ending::Cut { failure, at_boundary } => {
            cut(shared, entry, socket, &failure, at_boundary).await;
        }
    }
    // The client is done with; its channel is not yet, and sits on the session until it is.
    tokio::spawn(async move {
        pump::abandon(inbound, outbound).await;
        drop(seat);
    });
    Carried::Over
}

/// Ends a client that was not done: with words where the protocol allows it, else by a reset.
async fn cut<D>(
    shared: &Shared<D>,
    entry: &ClientEntry,
    mut socket: TcpStream,
    failure: &Failure,
    at_boundary: bool,
) {
    let client = &entry.client;
    let user = socket.local_addr().ok().and_then(|local| shared.sockets.user(client.peer, local));
    shared.metrics.cut(failure.cause);
    warn!(
        database = %shared.plan.name,
        peer = %client.peer,
        user,
        phase = failure.cause.phase().as_str(),
        reason = failure.cause.reason(),
        detail = failure.detail(),
        hint = failure.hint(),
        age_s = client.since.instant.elapsed().as_secs(),
        to_database_bytes = client.to_database.load(Ordering::Relaxed),
        from_database_bytes = client.from_database.load(Ordering::Relaxed),
        told = at_boundary,
        "client cut"
    );
    if at_boundary {
        let code = match failure.cause {
            Cause::ClientIdle => SqlState::IdleSessionTimeout,
            _ => SqlState::AdminShutdown,
        };
        let text = format!(
            "tunnelkeeper: the connection to database \"{}\" was cut: {failure}; {}",
            shared.plan.name,
            failure.hint()
        );
        answer::say(&mut socket, code, &text).await;
        answer::finish(&mut socket).await;
    } else {
        answer::reset(socket);
    }
}
