//! How much a session may take from its bastion before its clients have taken it from us.
//!
//! russh grants the sender new window as soon as data arrives, so the SSH window bounds nothing: without a gate a
//! client that does not read would either grow our memory without end or, through a full queue, freeze all other
//! clients of its session. The gate stands before the socket instead. While too much waits for clients it is shut:
//! nothing is read, TCP holds the bastion back, and writing goes on.
//!
//! A session with one client is held to [`SINGLE_LIMIT`]; one with several goes on until the memory of all
//! sessions together is used up, so that a client that does not read harms no other until then.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::clock::now;
use crate::idle_cut::pauses::{LastPause, Pauses};
use crate::state::SessionLoad;

/// The backlog at which the gate of a session with one client shuts, in bytes.
pub const SINGLE_LIMIT: usize = 16 << 20;

/// A session with less than this waiting is never shut, even when the memory is used up by others, in bytes.
const FLOOR: usize = 1 << 20;

/// A shut gate opens again when so much has been taken, in bytes, so that it does not flutter.
const HYSTERESIS: usize = 2 << 20;

/// A connection's own gate: the connection ends with it, also while it is still being made, where russh's task outlives
/// the future that nobody waits for any more.
pub(super) struct OwnGate(pub(super) Arc<Gate>);

impl Deref for OwnGate {
    type Target = Arc<Gate>;

    fn deref(&self) -> &Arc<Gate> {
        &self.0
    }
}

impl Drop for OwnGate {
    fn drop(&mut self) {
        self.0.condemn();
    }
}

fn reopening(limit: usize) -> usize {
    limit - (limit / 8).min(HYSTERESIS)
}

/// The memory of all sessions together.
#[derive(Debug)]
pub struct BufferMemory {
    limit: AtomicUsize,
    used: AtomicUsize,
    gates: Mutex<Vec<Weak<Gate>>>,
}

impl BufferMemory {
    /// Memory of `limit` bytes, the key `daemon.buffer_memory`.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0), gates: Mutex::default() })
    }

    /// From now on it is so many bytes.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
        self.wake_all();
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    fn wake_all(&self) {
        // One that is dropped here for the last time may want the lock for itself.
        let gates: Vec<_> = lock(&self.gates).iter().filter_map(Weak::upgrade).collect();
        gates.iter().for_each(|gate| gate.wake());
    }

    fn give_back(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        let reopening = reopening(self.limit());
        if before >= reopening && before - bytes < reopening {
            self.wake_all();
        }
    }
}

/// The gate of one session.
#[derive(Debug)]
pub struct Gate {
    memory: Arc<BufferMemory>,
    load: Arc<SessionLoad>,
    pauses: Mutex<Pauses>,
    condemned: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    blocked_since: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// An open gate. Its figures are published through `load`.
    #[must_use]
    pub fn new(memory: &Arc<BufferMemory>, load: Arc<SessionLoad>) -> Arc<Self> {
        let gate = Arc::new(Self {
            memory: Arc::clone(memory),
            load,
            pauses: Mutex::new(Pauses::new(now().instant)),
            condemned: AtomicBool::new(false),
            waiting: Mutex::default(),
        });
        let mut gates = lock(&memory.gates);
        gates.retain(|gate| gate.strong_count() > 0);
        gates.push(Arc::downgrade(&gate));
        gate
    }

    /// An open gate for another attempt at the same session.
    pub(super) fn anew(&self) -> Arc<Self> {
        Self::new(&self.memory, Arc::clone(&self.load))
    }

    /// The session's live figures.
    pub fn load(&self) -> &Arc<SessionLoad> {
        &self.load
    }

    /// Bytes have come from the bastion and wait for a client.
    pub fn hold(&self, bytes: usize) {
        self.load.backlog.fetch_add(bytes, Ordering::AcqRel);
        self.memory.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// A client has taken them, or never will.
    pub fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.load.backlog.fetch_sub(bytes, Ordering::AcqRel);
        self.memory.give_back(bytes);
        if !self.load.gate_open() && !self.is_full(true) {
            self.wake();
        }
    }

    /// One more client sits on the session.
    pub fn seat(&self) {
        self.load.clients.fetch_add(1, Ordering::AcqRel);
        self.reconsider();
    }

    /// One less.
    pub fn unseat(&self) {
        self.load.clients.fetch_sub(1, Ordering::AcqRel);
        self.reconsider();
    }

    /// A client has left its seat to others, and only its channel is still to be closed.
    pub fn leave_seat(&self) {
        self.load.leaving.fetch_add(1, Ordering::AcqRel);
        self.unseat();
    }

    /// Its channel is closed as well.
    pub fn gone(&self) {
        self.load.leaving.fetch_sub(1, Ordering::AcqRel);
    }

    /// When a byte was received last; at first, when the session began.
    pub fn received(&self) -> Instant {
        lock(&self.pauses).heard()
    }

    pub(super) fn note_received(&self) {
        // For every block that is read, so it does not ask for the time of day as well.
        let now = tokio::time::Instant::now().into_std();
        let mut pauses = lock(&self.pauses);
        let before = pauses.survived();
        pauses.received(now);
        if pauses.survived() > before {
            let micros = u64::try_from(pauses.survived().as_micros()).unwrap_or(u64::MAX);
            self.load.longest_pause_micros.store(micros, Ordering::Relaxed);
        }
    }

    pub(super) fn note_sent(&self) {
        lock(&self.pauses).sent(tokio::time::Instant::now().into_std());
    }

    /// The other side has ended the connection, or it broke.
    pub(super) fn note_end(&self) {
        lock(&self.pauses).end(now().instant);
    }

    /// How the connection paused last.
    #[must_use]
    pub fn last_pause(&self) -> LastPause {
        lock(&self.pauses).last(now().instant)
    }

    /// Since when the gate has been shut while clients share the session.
    pub fn blocked_since(&self) -> Option<Instant> {
        lock(&self.waiting).blocked_since
    }

    /// The transport waits for the socket: it has to be woken when the gate is condemned, since russh watches nothing
    /// else while it shakes hands or writes.
    pub(super) fn wake_when_condemned(&self, context: &Context<'_>) {
        let reader = &mut lock(&self.waiting).reader;
        if !reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            *reader = Some(context.waker().clone());
        }
    }

    /// Makes the transport fail at its next use: the only way to end a russh session at once.
    pub fn condemn(&self) {
        self.condemned.store(true, Ordering::Release);
        self.wake();
    }

    /// Lets the transport look at the socket though the gate is shut: to be called now and then while it is.
    pub fn look_in(&self) {
        self.wake();
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Acquire)
    }

    /// Waits until bytes may be let in. Only one reader waits at a time.
    pub(super) fn poll_open(&self, context: &mut Context<'_>) -> Poll<()> {
        let was_shut = !self.load.gate_open();
        if !self.is_full(was_shut) {
            if was_shut {
                self.set_shut(false, None);
            }
            return Poll::Ready(());
        }
        self.set_shut(true, Some(context.waker().clone()));
        // Somebody may have made room before the waker was in place.
        if self.is_full(true) {
            return Poll::Pending;
        }
        self.set_shut(false, None);
        Poll::Ready(())
    }

    fn is_full(&self, shut: bool) -> bool {
        let bound = |limit: usize| if shut { reopening(limit) } else { limit };
        let backlog = self.load.backlog.load(Ordering::Acquire);
        let alone = self.load.clients() <= 1;
        let single_limit = SINGLE_LIMIT.min(self.memory.limit());
        (alone && backlog >= bound(single_limit))
            || (backlog >= bound(FLOOR.min(single_limit))
                && self.memory.used.load(Ordering::Acquire) >= bound(self.memory.limit()))
    }

    fn set_shut(&self, shut: bool, reader: Option<Waker>) {
        let mut waiting = lock(&self.waiting);
        waiting.reader = reader;
        self.load.set_gate(!shut, now());
        self.update_blocked(&mut waiting);
    }

    fn update_blocked(&self, waiting: &mut Waiting) {
        if self.load.gate_open() || self.load.clients() <= 1 {
            waiting.blocked_since = None;
        } else {
            waiting.blocked_since.get_or_insert_with(|| now().instant);
        }
    }

    fn reconsider(&self) {
        self.update_blocked(&mut lock(&self.waiting));
        if !self.load.gate_open() && !self.is_full(true) {
            self.wake();
        }
    }

    fn wake(&self) {
        let reader = lock(&self.waiting).reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.memory.give_back(self.load.backlog.swap(0, Ordering::AcqRel));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate(memory: &Arc<BufferMemory>, clients: usize) -> Arc<Gate> {
        let gate = Gate::new(memory, Arc::default());
        (0..clients).for_each(|_| gate.seat());
        gate
    }

    fn is_open(gate: &Gate) -> bool {
        gate.poll_open(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn alone_a_session_is_held_to_its_limit() {
        let memory = BufferMemory::new(256 << 20);
        let gate = gate(&memory, 1);
        gate.hold(SINGLE_LIMIT - 1);
        assert!(is_open(&gate));
        gate.hold(1);
        assert!(!is_open(&gate));
        gate.release(1);
        assert!(!is_open(&gate), "it fluttered");
        gate.release(SINGLE_LIMIT / 8);
        assert!(is_open(&gate) && gate.load().gate_open());
    }

    #[test]
    fn shared_it_goes_on_until_all_memory_is_used_up() {
        let memory = BufferMemory::new(64 << 20);
        let (hoarder, other, idle) = (gate(&memory, 2), gate(&memory, 2), gate(&memory, 2));
        hoarder.hold(40 << 20);
        assert!(is_open(&hoarder));
        other.hold(24 << 20);
        assert!(!is_open(&hoarder) && !is_open(&other));
        assert!(is_open(&idle), "a session that holds nothing was shut");
        hoarder.release(40 << 20);
        assert!(is_open(&hoarder) && is_open(&other));
    }

    #[test]
    fn a_second_client_opens_the_gate_of_the_first_and_its_leaving_shuts_it() {
        let memory = BufferMemory::new(256 << 20);
        let gate = gate(&memory, 1);
        gate.hold(SINGLE_LIMIT);
        assert!(!is_open(&gate));
        assert!(gate.blocked_since().is_none(), "it blocks nobody");
        gate.seat();
        assert!(is_open(&gate));
        gate.unseat();
        assert!(!is_open(&gate));
    }

    #[test]
    fn whoever_shares_a_shut_session_is_blocked() {
        let memory = BufferMemory::new(8 << 20);
        let gate = gate(&memory, 2);
        gate.hold(8 << 20);
        assert!(!is_open(&gate));
        assert!(gate.blocked_since().is_some());
        gate.unseat();
        assert!(gate.blocked_since().is_none());
    }

    #[test]
    fn a_session_that_ends_gives_its_memory_back() {
        let memory = BufferMemory::new(8 << 20);
        let (first, second) = (gate(&memory, 2), gate(&memory, 2));
        first.hold(6 << 20);
        second.hold(2 << 20);
        assert!(!is_open(&second));
        drop(first);
        assert!(is_open(&second));
    }

    #[tokio::test(start_paused = true)]
    async fn room_wakes_the_reader_and_the_time_is_counted() {
        let memory = BufferMemory::new(256 << 20);
        let gate = gate(&memory, 1);
        gate.hold(SINGLE_LIMIT);
        let reader = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { std::future::poll_fn(|context| gate.poll_open(context)).await }
        });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!reader.is_finished());
        assert_eq!(gate.load().stalled(now().instant).as_secs(), 3);
        tokio::time::sleep(Duration::from_secs(4)).await;
        gate.release(SINGLE_LIMIT);
        reader.await.unwrap();
        assert_eq!(gate.load().stalled(now().instant).as_secs(), 7);
    }
}
