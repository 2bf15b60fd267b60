//! One client from its acceptance to its end.

use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use super::{Shared, answer, explain, outcome_of};
use crate::backoff::Bounds;
use crate::dial::{Dial, Seat};
use crate::failure::{Cause, Failure, Phase};
use crate::metrics::Outcome;
use crate::pgwire::{Activity, SqlState};
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
    /// Since when it waits to be carried, holds and failed attempts together.
    waits_since: Instant,
    /// It has been connected to the database once, and is counted as such.
    carried: bool,
    failed_opens: u32,
    last_open: Option<Failure>,
    /// The session on which it failed.
    avoid: Option<u64>,
}

/// What waiting came to.
enum Waited<T> {
    Ready(T),
    /// The client left.
    Gone,
    /// Its time is over, or nobody can help it.
    InVain,
    /// So many wait already that it may not.
    HoldFull(usize),
    /// The daemon ends.
    Stopping,
}

/// A seat, and the turn to try with it where not everybody may.
type Turn<S> = (S, Option<OwnedSemaphorePermit>);

/// What came of a seat.
enum Carried {
    /// The client is done with, or was ended.
    Over,
    /// It has to wait for another seat: the session was lost, or the database not reached.
    Again(TcpStream, FirstBytes, Failure),
    /// It is not served any more.
    Unserved(TcpStream, FirstBytes, Waited<()>),
}

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
                Waited::Ready(turn) => turn,
                unserved => return self.leave_unserved(unserved).await,
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
    async fn wait(&mut self) -> Waited<Turn<D::Seat>> {
        if self.failed_opens > 0 && self.first.ended && !self.carried {
            return Waited::Gone;
        }
        let until = self.waits_since + self.shared.plan.forward.hold_timeout;
        if self.failed_opens > 0 && Instant::now() >= until {
            return Waited::InVain;
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
            return Waited::Ready(turn);
        }
        let held_already = self.shared.state.borrow().clients.held();
        if held_already >= self.shared.plan.forward.hold_max {
            return Waited::HoldFull(held_already);
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
    ) -> Waited<T> {
        let cut = self.shared.cut.clone();
        let mut tunnel = self.shared.dial.state();
        loop {
            let listen = !self.first.ended && self.first.bytes.len() < MAX_FIRST_BYTES;
            tokio::select! {
                biased;
                turn = &mut turn => return Waited::Ready(turn),
                read = read_more(&mut self.socket, &mut self.first), if listen => {
                    if !matches!(read, Ok(1..)) {
                        return Waited::Gone;
                    }
                }
                Ok(_) = tunnel.wait_for(|state| state.refusing) => return Waited::InVain,
                () = sleep_until(until) => return Waited::InVain,
                () = cut.cancelled() => return Waited::Stopping,
            }
        }
    }

    /// Tells the client why it is not served, if it is still there.
    async fn leave_unserved<T>(mut self, unserved: Waited<T>) {
        let database = &self.shared.plan.name;
        let (outcome, text) = match unserved {
            // It may still listen, and then hears why there was no answer.
            Waited::Gone | Waited::Ready(_) => (Outcome::Gone, self.explain().1),
            Waited::InVain => self.explain(),
            Waited::HoldFull(held) => {
                let text = format!(
                    "tunnelkeeper: database \"{database}\" has {held} clients on hold already (hold.max)"
                );
                (Outcome::Limit, text)
            }
            Waited::Stopping => {
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

/// Reads what a client sends that is not connected yet.
async fn read_more(socket: &mut TcpStream, first: &mut FirstBytes) -> io::Result<usize> {
    let room = MAX_FIRST_BYTES - first.bytes.len().min(MAX_FIRST_BYTES);
    socket.take(room as u64).read_buf(&mut first.bytes).await
}

/// One attempt to connect a client.
struct Trial {
    give_up_at: Option<Instant>,
    first_time: bool,
    turn: Option<OwnedSemaphorePermit>,
}

/// Connects a client through its seat and carries it. Runs on the session's lane.
async fn carry<D: Dial>(
    shared: &Arc<Shared<D>>,
    seat: D::Seat,
    socket: TcpStream,
    mut first: FirstBytes,
    entry: &ClientEntry,
    trial: Trial,
) -> Carried {
    let (plan, metrics) = (&shared.plan, &shared.metrics);
    // From here on the lane itself hears of the socket, and no other thread has to wake it.
    let Ok(mut socket) = socket.into_std().and_then(TcpStream::from_std) else {
        metrics.connection(Outcome::OpenFailed);
        return Carried::Over;
    };
    let asked = Instant::now();
    let opened = open(shared, &seat, &mut socket, &mut first, trial.give_up_at).await;
    drop(trial.turn);
    let (mut inbound, mut outbound) = match opened {
        Waited::Ready(Ok(link)) => link,
        Waited::Ready(Err(failure)) => {
            shared.open_failed(&failure);
            if matches!(failure.cause, Cause::ChannelTimeout | Cause::ChannelSessionLost) {
                shared.dial.doubt();
            }
            return Carried::Again(socket, first, failure);
        }
        Waited::Gone => return Carried::Unserved(socket, first, Waited::Gone),
        Waited::Stopping => return Carried::Unserved(socket, first, Waited::Stopping),
        Waited::InVain | Waited::HoldFull(_) => return Carried::Unserved(socket, first, Waited::InVain),
    };
    metrics.open.observe(asked.elapsed());
    shared.opened();
    entry.set_held(false);
    if trial.first_time {
        metrics.connection(Outcome::Carried);
    }
    let meter = Meter::new(&entry.client, metrics, &first);
    let bounds = pump::Bounds {
        idle: plan.forward.idle_timeout,
        stall: plan.forward.stall_timeout,
        stop: shared.cut.clone(),
    };
    let ending = pump(&mut socket, &seat, &mut inbound, &mut outbound, first, &meter, &bounds).await;
    if let Ending::Again(first, failure) = ending {
        return Carried::Again(socket, first, failure);
    }
    if ending == Ending::Done {
        drop((inbound, outbound, seat));
        answer::finish(&mut socket).await;
        return Carried::Over;
    }
    // The client is done with; its channel is not yet, and sits on the session until it is.
    tokio::spawn(async move {
        pump::abandon(inbound, outbound).await;
        drop(seat);
    });
    if let Ending::Cut { failure, at_boundary, activity } = ending {
        cut(shared, entry, socket, &failure, at_boundary, activity).await;
    }
    Carried::Over
}

type Link<S> = (<S as Seat>::Inbound, <S as Seat>::Outbound);

/// Connects to the database, and watches the client meanwhile.
async fn open<D: Dial>(
    shared: &Shared<D>,
    seat: &D::Seat,
    socket: &mut TcpStream,
    first: &mut FirstBytes,
    give_up_at: Option<Instant>,
) -> Waited<Result<Link<D::Seat>, Failure>> {
    let mut opening = pin!(seat.open(&shared.plan.target));
    let give_up = async {
        match give_up_at {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    };
    let mut give_up = pin!(give_up);
    loop {
        let listen = !first.ended && first.bytes.len() < MAX_FIRST_BYTES;
        tokio::select! {
            biased;
            link = &mut opening => return Waited::Ready(link),
            read = read_more(socket, first), if listen => match read {
                // It may have said all it wants to say, and wait for the answer.
                Ok(0) => first.ended = true,
                Ok(_) => {}
                Err(_) => return Waited::Gone,
            },
            () = &mut give_up => return Waited::InVain,
            () = shared.cut.cancelled() => return Waited::Stopping,
        }
    }
}

/// Ends a client that was not done: with words where the protocol allows it, else by a reset.
async fn cut<D>(
    shared: &Shared<D>,
    entry: &ClientEntry,
    mut socket: TcpStream,
    failure: &Failure,
    at_boundary: bool,
    activity: Activity,
) {
    let client = &entry.client;
    let user = match socket.local_addr() {
        Ok(local) => shared.sockets.look_up(client.peer, local).await,
        Err(_) => None,
    };
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
        activity = activity.as_str(),
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
        // A reset: the client sees an error, never an end (see `accepted`).
        drop(socket);
    }
}
