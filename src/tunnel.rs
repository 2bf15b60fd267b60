//! All sessions to one bastion: dials them, replaces what is lost, and gives clients their seats.
//!
//! One loop owns the pool; everything it decides comes from the rules ([`crate::retry`], [`crate::placement`]).
//! It goes on for ever: a bastion that is down is dialled again until the daemon ends.

mod certificate;
mod cuts;
mod files;
pub mod jump;
mod offer;
mod pace;
mod pool;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant as Clock};

use tokio::runtime;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::dial::{self, Dial};
use crate::failure::Failure;
use crate::ids::Target;
use crate::lanes::Lanes;
use crate::metrics::BastionMetrics;
use crate::session::Hop;
use crate::settings::plan::BastionPlan;
use crate::ssh::{BufferMemory, Connection, Inbound, Outbound};
use crate::state::TunnelState;
use offer::{Offer, Withdrawal};
use pool::Pool;

/// What others ask of a tunnel.
enum Request {
    Seat(Waiting),
    /// One more session would serve the next client better.
    Grow,
    ProbeSeat(oneshot::Sender<Option<Seat>>),
    Doubt,
    DialNow,
    Pulse(oneshot::Sender<()>),
    Change(Arc<BastionPlan>, Arc<[Hop]>, Withdrawal),
    Leave(Withdrawal),
}

/// A client that waits for a seat.
struct Waiting {
    seat: oneshot::Sender<Seat>,
    avoid: Option<u64>,
}

/// A tunnel, from outside.
#[derive(Clone)]
pub struct Tunnel {
    requests: mpsc::UnboundedSender<Request>,
    offer: Arc<Offer>,
    state: watch::Receiver<Arc<TunnelState>>,
}

/// What a tunnel is made with.
#[derive(Clone)]
pub struct Parts {
    /// The bastion.
    pub plan: Arc<BastionPlan>,
    /// The bastions that it is reached through, outermost first.
    pub jumps: Arc<[Hop]>,
    /// Where sessions live.
    pub lanes: Arc<Lanes>,
    /// The memory of all sessions.
    pub memory: Arc<BufferMemory>,
    /// The bastion's series.
    pub metrics: Arc<BastionMetrics>,
    /// When cancelled, all sessions are closed.
    pub stop: CancellationToken,
}

impl Parts {
    /// The bastions on the way, the last one being the tunnel's own.
    fn bastions(&self) -> impl Iterator<Item = &BastionPlan> {
        self.jumps.iter().map(|hop| &*hop.plan).chain([&*self.plan])
    }
}

impl Tunnel {
    /// Whoever knows that the bastion was mended need not wait for the next attempt.
    pub fn dial_now(&self) {
        let _ = self.requests.send(Request::DialNow);
    }

    /// Waits until the tunnel's loop has come round, or has ended: one that hangs never answers.
    pub async fn pulse(&self) {
        let (send, answer) = oneshot::channel();
        if self.requests.send(Request::Pulse(send)).is_ok() {
            let _ = answer.await;
        }
    }

    /// The configuration has changed. Sessions that would be made in another way now serve until a new one is
    /// established, or no longer where the daemon trusts something else now, and finish their clients.
    pub fn change(&self, plan: Arc<BastionPlan>, jumps: Arc<[Hop]>) {
        // No client shall meet a session that is not trusted any more, however late the pool hears of it.
        let _ = self.requests.send(Request::Change(plan, jumps, self.offer.withdraw()));
    }

    /// The bastion is not wanted any more: its sessions finish their clients, and the unit ends with the last.
    pub fn leave(&self) {
        let _ = self.requests.send(Request::Leave(self.offer.withdraw()));
    }
}

/// The tunnel itself: what [`Tunnel`] asks, this does.
pub struct Unit {
    parts: std::sync::Mutex<Parts>,
    leaving: AtomicBool,
    requests: Mutex<mpsc::UnboundedReceiver<Request>>,
    offer: Arc<Offer>,
    publish: watch::Sender<Arc<TunnelState>>,
}

/// A tunnel's handle, and the unit that gives it life.
#[must_use]
pub fn new(parts: Parts) -> (Tunnel, Unit) {
    let (send, requests) = mpsc::unbounded_channel();
    let (publish, state) = watch::channel(Arc::default());
    let offer = Arc::<Offer>::default();
    let unit = Unit {
        parts: std::sync::Mutex::new(parts),
        leaving: AtomicBool::new(false),
        requests: Mutex::new(requests),
        offer: Arc::clone(&offer),
        publish,
    };
    (Tunnel { requests: send, offer, state }, unit)
}

impl Unit {
    /// As the configuration has it at the moment.
    fn parts(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the tunnel up until it is told to stop. May be called again after it broke.
    pub async fn run(&self) {
        let mut requests = self.requests.lock().await;
        let stop = self.parts().stop.clone();
        let mut pool = Pool::new(self.parts().clone(), Arc::clone(&self.offer), self.publish.clone());
        if self.leaving.load(Ordering::Relaxed) {
            pool.leave();
        }
        while !pool.has_left() {
            let next = pool.tend();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = pool.event() => {}
                Some(request) = requests.recv() => match request {
                    Request::Seat(client) => pool.ask_for_seat(client),
                    Request::Grow => pool.grow(),
                    Request::ProbeSeat(probe) => drop(probe.send(pool.probe_seat())),
                    Request::Doubt => pool.doubt(),
                    Request::DialNow => pool.dial_now(),
                    Request::Pulse(answer) => drop(answer.send(())),
                    Request::Change(plan, jumps, _withdrawal) => {
                        let parts = Parts { plan, jumps, ..self.parts().clone() };
                        *self.parts() = parts.clone();
                        pool.change(parts);
                    }
                    Request::Leave(_withdrawal) => {
                        self.leaving.store(true, Ordering::Relaxed);
                        pool.leave();
                    }
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
        pool.close().await;
    }
}

/// A place on a session.
pub struct Seat {
    connection: Connection,
    session: u64,
    open_timeout: Duration,
    sitter: Sitter,
}

/// Who has a seat.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sitter {
    Client,
    /// A client of which only the channel is left.
    Leaving,
    /// It does not count.
    Probe,
}

impl Seat {
    /// A place on a session that belongs to no tunnel, and is there for one look.
    #[must_use]
    pub fn of_visit(connection: &Connection, open_timeout: Duration) -> Self {
        Self::new(connection, 0, open_timeout, Sitter::Probe)
    }

    fn new(connection: &Connection, session: u64, open_timeout: Duration, sitter: Sitter) -> Self {
        if sitter == Sitter::Client {
            connection.gate().seat();
        }
        Self { connection: connection.clone(), session, open_timeout, sitter }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match self.sitter {
            Sitter::Client => self.connection.gate().unseat(),
            Sitter::Leaving => self.connection.gate().gone(),
            Sitter::Probe => {}
        }
    }
}

impl dial::Seat for Seat {
    type Inbound = Inbound;
    type Outbound = Outbound;

    fn session(&self) -> u64 {
        self.session
    }

    fn lane(&self) -> &runtime::Handle {
        self.connection.lane()
    }

    async fn open(&self, target: &Target) -> Result<(Inbound, Outbound), Failure> {
        self.connection.open(target, self.open_timeout).await
    }

    fn free(&mut self) {
        if self.sitter == Sitter::Client {
            self.connection.gate().leave_seat();
            self.sitter = Sitter::Leaving;
        }
    }

    fn is_open(&self) -> bool {
        self.connection.gate().load().gate_open()
    }

    fn blocked_since(&self) -> Option<Clock> {
        self.connection.gate().blocked_since()
    }
}

impl Dial for Tunnel {
    type Seat = Seat;

    fn seat_now(&self, avoid: Option<u64>) -> Option<Seat> {
        let (seat, grow) = self.offer.take(avoid);
        if grow {
            let _ = self.requests.send(Request::Grow);
        }
        seat
    }

    fn lanes(&self) -> Vec<runtime::Handle> {
        self.offer.lanes()
    }

    async fn seat(&self, avoid: Option<u64>) -> Seat {
        let (send, seat) = oneshot::channel();
        // A tunnel that has stopped gives no seats; the caller's own patience ends the wait.
        let _ = self.requests.send(Request::Seat(Waiting { seat: send, avoid }));
        match seat.await {
            Ok(seat) => seat,
            Err(_) => std::future::pending().await,
        }
    }

    async fn settled(&self) {
        // Requests are answered in their order, and seats given between them.
        self.pulse().await;
    }

    async fn probe_seat(&self) -> Option<Seat> {
        let (probe, seat) = oneshot::channel();
        let _ = self.requests.send(Request::ProbeSeat(probe));
        seat.await.ok().flatten()
    }

    fn state(&self) -> watch::Receiver<Arc<TunnelState>> {
        self.state.clone()
    }

    fn doubt(&self) {
        let _ = self.requests.send(Request::Doubt);
    }
}
