//! A tunnel made of channels in memory: a test plays the bastion.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};

use super::*;

/// What a client sent through a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Data(Bytes),
    End,
}

/// The bastion's side of a link.
pub(crate) struct FarEnd {
    pub(crate) arrivals: mpsc::UnboundedSender<Arrival>,
    pub(crate) sent: mpsc::Receiver<Sent>,
}

impl FarEnd {
    pub(crate) fn say(&self, bytes: &'static [u8]) {
        self.arrive(Arrival::Data(Bytes::from_static(bytes)));
    }

    pub(crate) fn arrive(&self, arrival: Arrival) {
        self.arrivals.send(arrival).expect("the link is gone");
    }

    /// As a stream, for servers that want one.
    pub(crate) fn into_stream(self) -> DuplexStream {
        let (near, far) = duplex(1 << 16);
        let (mut read, mut write) = tokio::io::split(near);
        let Self { arrivals, mut sent } = self;
        tokio::spawn(async move {
            while let Some(Sent::Data(bytes)) = sent.recv().await {
                if write.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let _ = write.shutdown().await;
        });
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(1 << 14);
            while read.read_buf(&mut buffer).await.is_ok_and(|len| len > 0) {
                let _ = arrivals.send(Arrival::Data(buffer.split().freeze()));
                buffer.reserve(1 << 14);
            }
            let _ = arrivals.send(Arrival::Closed);
        });
        far
    }

    /// Everything the client sends until `len` bytes have come or it ends.
    pub(crate) async fn hear(&mut self, len: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < len {
            match self.sent.recv().await {
                Some(Sent::Data(bytes)) => heard.extend(bytes),
                Some(Sent::End) | None => break,
            }
        }
        heard
    }
}

pub(crate) struct FakeInbound {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    closed: bool,
    lost: Option<Failure>,
    pub(crate) backlog: Arc<AtomicUsize>,
    held: usize,
}

impl Inbound for FakeInbound {
    fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        if self.closed {
            return Poll::Ready(Arrival::Closed);
        }
        if let Some(failure) = &self.lost {
            return Poll::Ready(Arrival::Lost(failure.clone()));
        }
        match self.arrivals.poll_recv(context) {
            Poll::Ready(Some(arrival)) => {
                match &arrival {
                    Arrival::Data(bytes) => {
                        self.held += bytes.len();
                        self.backlog.fetch_add(bytes.len(), Ordering::SeqCst);
                    }
                    Arrival::End => {}
                    Arrival::Closed => self.closed = true,
                    Arrival::Lost(failure) => self.lost = Some(failure.clone()),
                }
                Poll::Ready(arrival)
            }
            _ => Poll::Pending,
        }
    }

    fn passed_on(&mut self, bytes: usize) {
        self.held -= bytes;
        self.backlog.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn forget(&mut self) {
        self.passed_on(self.held);
    }
}

impl Drop for FakeInbound {
    fn drop(&mut self) {
        self.backlog.fetch_sub(self.held, Ordering::SeqCst);
    }
}

pub(crate) struct FakeOutbound {
    sender: mpsc::Sender<Sent>,
    ended: bool,
}

impl Outbound for FakeOutbound {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.sender.send(Sent::Data(bytes)).await.map_err(|_| Gone)
    }

    async fn end(&mut self) -> Result<(), Gone> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        self.sender.send(Sent::End).await.map_err(|_| Gone)
    }
}

/// A link and its far end.
pub(crate) fn link() -> (FakeInbound, FakeOutbound, FarEnd) {
    let (arrivals, receive) = mpsc::unbounded_channel();
    let (send, sent) = mpsc::channel(4);
    let inbound =
        FakeInbound { arrivals: receive, closed: false, lost: None, backlog: Arc::default(), held: 0 };
    (inbound, FakeOutbound { sender: send, ended: false }, FarEnd { arrivals, sent })
}

/// What the bastion answers to the opens of a session.
pub(crate) type Answers = Arc<Mutex<VecDeque<Result<(FakeInbound, FakeOutbound), Failure>>>>;

pub(crate) struct FakeSeat {
    pub(crate) session: u64,
    pub(crate) lane: tokio::runtime::Handle,
    pub(crate) blocked_since: Arc<Mutex<Option<Instant>>>,
    pub(crate) answers: Answers,
    taken: Arc<AtomicUsize>,
}

impl Seat for FakeSeat {
    type Inbound = FakeInbound;
    type Outbound = FakeOutbound;

    fn session(&self) -> u64 {
        self.session
    }

    fn lane(&self) -> &tokio::runtime::Handle {
        &self.lane
    }

    async fn open(&self, _: &Target) -> Result<(FakeInbound, FakeOutbound), Failure> {
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn free(&mut self) {}

    fn is_open(&self) -> bool {
        self.blocked_since().is_none()
    }

    fn blocked_since(&self) -> Option<Instant> {
        *self.blocked_since.lock().unwrap()
    }
}

impl Drop for FakeSeat {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone)]
pub(crate) struct FakeDial(Arc<Inner>);

struct Inner {
    up: AtomicBool,
    /// Up, and with a seat for whoever asks.
    seats: AtomicBool,
    changed: Notify,
    answers: Answers,
    blocked_since: Arc<Mutex<Option<Instant>>>,
    taken: Arc<AtomicUsize>,
    doubts: AtomicUsize,
    lanes: Mutex<Vec<tokio::runtime::Handle>>,
    asked_on: Mutex<Option<tokio::runtime::Id>>,
    state: watch::Sender<Arc<TunnelState>>,
    busy: watch::Sender<bool>,
}

impl FakeDial {
    /// A tunnel that is up or down.
    pub(crate) fn new(up: bool) -> Self {
        let dial = Self(Arc::new(Inner {
            up: AtomicBool::new(up),
            seats: AtomicBool::new(true),
            changed: Notify::new(),
            answers: Arc::default(),
            blocked_since: Arc::default(),
            taken: Arc::default(),
            doubts: AtomicUsize::new(0),
            lanes: Mutex::default(),
            asked_on: Mutex::default(),
            state: watch::Sender::default(),
            busy: watch::Sender::default(),
        }));
        dial.set_up(up);
        dial
    }

    pub(crate) fn set_up(&self, up: bool) {
        let now = crate::clock::now();
        self.0.state.send_modify(|state| Arc::make_mut(state).uptime.set(up, now));
        self.0.up.store(up, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Its sessions live there from now on.
    pub(crate) fn move_to(&self, lane: tokio::runtime::Handle) {
        *self.0.lanes.lock().unwrap() = vec![lane];
        self.0.state.send_modify(|_| {});
    }

    /// The runtime of whoever asked for a seat last.
    pub(crate) fn asked_on(&self) -> Option<tokio::runtime::Id> {
        *self.0.asked_on.lock().unwrap()
    }

    /// It has failed lately, or has proved well again.
    pub(crate) fn waver(&self, wavering: bool) {
        self.0.state.send_modify(|state| Arc::make_mut(state).wavering = wavering);
    }

    /// Every gate is shut, or they are not.
    pub(crate) fn give_seats(&self, seats: bool) {
        self.0.seats.store(seats, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// It does not get round to say whether there is a seat, or does again.
    pub(crate) fn be_busy(&self, busy: bool) {
        self.0.busy.send_replace(busy);
    }

    fn has_seats(&self) -> bool {
        self.0.up.load(Ordering::SeqCst) && self.0.seats.load(Ordering::SeqCst)
    }

    /// The next open succeeds; returns its far end.
    pub(crate) fn answer(&self) -> FarEnd {
        let (inbound, outbound, far) = link();
        self.0.answers.lock().unwrap().push_back(Ok((inbound, outbound)));
        far
    }

    /// The next open fails.
    pub(crate) fn refuse(&self, failure: Failure) {
        self.0.answers.lock().unwrap().push_back(Err(failure));
    }

    pub(crate) fn publish(&self, state: TunnelState) {
        self.0.state.send_replace(Arc::new(state));
    }

    /// Clients share a session that takes nothing more, or do not.
    pub(crate) fn block(&self, blocked: bool) {
        let since = blocked.then(|| tokio::time::Instant::now().into_std());
        *self.0.blocked_since.lock().unwrap() = since;
    }

    pub(crate) fn seats_taken(&self) -> usize {
        self.0.taken.load(Ordering::SeqCst)
    }

    pub(crate) fn doubts(&self) -> usize {
        self.0.doubts.load(Ordering::SeqCst)
    }

    pub(crate) fn seat_now(&self) -> FakeSeat {
        self.0.taken.fetch_add(1, Ordering::SeqCst);
        FakeSeat {
            session: 1,
            lane: tokio::runtime::Handle::current(),
            blocked_since: Arc::clone(&self.0.blocked_since),
            answers: Arc::clone(&self.0.answers),
            taken: Arc::clone(&self.0.taken),
        }
    }
}

impl Dial for FakeDial {
    type Seat = FakeSeat;

    fn seat_now(&self, _: Option<u64>) -> Option<FakeSeat> {
        *self.0.asked_on.lock().unwrap() = Some(tokio::runtime::Handle::current().id());
        self.has_seats().then(|| self.seat_now())
    }

    fn lanes(&self) -> Vec<tokio::runtime::Handle> {
        self.0.lanes.lock().unwrap().clone()
    }

    async fn seat(&self, _: Option<u64>) -> FakeSeat {
        loop {
            let changed = self.0.changed.notified();
            if self.has_seats() {
                return self.seat_now();
            }
            changed.await;
        }
    }

    async fn settled(&self) {
        // The fake lives as long as whoever waits.
        let _ = self.0.busy.subscribe().wait_for(|busy| !busy).await;
    }

    async fn probe_seat(&self) -> Option<FakeSeat> {
        self.0.up.load(Ordering::SeqCst).then(|| self.seat_now())
    }

    fn state(&self) -> watch::Receiver<Arc<TunnelState>> {
        self.0.state.subscribe()
    }

    fn doubt(&self) {
        self.0.doubts.fetch_add(1, Ordering::SeqCst);
    }
}
