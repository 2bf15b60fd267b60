//! The sessions of one bastion, and the clients that wait for a seat on one.

mod change;
mod report;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::certificate::Certificate;
use super::cuts::Cuts;
use super::files::Files;
use super::offer::{Offer, Place, Terms, candidate};
use super::pace::Pace;
use super::{Parts, Seat, Sitter, Waiting};
use crate::clock::now;
use crate::failure::Cause;
use crate::placement::{self, Candidate, EMPTY_FOR, Placement};
use crate::retry::PROVEN_AFTER;
use crate::session::{self, Command, Exit, Handle};
use crate::state::{SessionPhase, SessionState, TunnelState};

/// What russh may keep of ended channels before their session is replaced, in bytes.
const MAX_REMNANTS: usize = 8 << 20;

/// How often sessions are looked after.
const TEND_EVERY: Duration = Duration::from_secs(5);
/// How often clients are placed anew while all gates are shut.
const PLACE_EVERY: Duration = Duration::from_millis(100);
/// How long all sessions together may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

struct Slot {
    id: u64,
    task: Id,
    handle: Handle,
    /// It serves the clients it has, and takes no more.
    retiring: bool,
    /// It was made with a configuration that is not in force any more, and retires once one is there that was not.
    outdated: bool,
    /// It has been established for long enough to prove that the bastion is well.
    proven: bool,
    empty_since: Option<Instant>,
}

impl Slot {
    fn state(&self) -> SessionState {
        let mut state = self.handle.state.borrow().clone();
        if self.retiring && state.phase == SessionPhase::Established {
            state.phase = SessionPhase::Retiring;
        }
        state
    }

    /// What placement sees of it, once it is established.
    fn candidate(&self) -> Option<Candidate> {
        Some(candidate(self.id, self.handle.connection()?, &self.state()))
    }

    /// It is established, and carries nothing for a client.
    fn is_unused(&self) -> bool {
        self.handle.connection().is_some() && self.handle.state.borrow().load.is_unused()
    }

    fn place(&self) -> Option<Place> {
        let connection = self.handle.connection()?.clone();
        Some(Place { id: self.id, connection, state: self.handle.state.clone() })
    }
}

pub(super) struct Pool {
    parts: Parts,
    offer: Arc<Offer>,
    publish: watch::Sender<Arc<TunnelState>>,
    slots: Vec<Slot>,
    exits: JoinSet<Exit>,
    changed: Arc<Notify>,
    waiting: VecDeque<Waiting>,
    next_id: u64,
    /// The pace of dials until there is a session as the configuration has it.
    recovery: Pace,
    /// And while there is: what keeps it from growing must not delay its return when it falls.
    growth: Pace,
    /// A client was placed where it would be better off with one more session.
    grow: bool,
    files: Files,
    certificate: Certificate,
    cuts: Cuts,
    state: TunnelState,
    /// The state differs from the published one.
    dirty: bool,
    warned: Option<(Cause, Instant)>,
    /// All sessions have retired since the configuration has changed.
    changing: bool,
    /// The bastion is not wanted any more.
    leaving: bool,
}

impl Drop for Pool {
    /// Its sessions go with it.
    fn drop(&mut self) {
        self.offer.set(None);
    }
}

impl Pool {
    pub(super) fn new(parts: Parts, offer: Arc<Offer>, publish: watch::Sender<Arc<TunnelState>>) -> Self {
        let (bounds, files) = (parts.plan.reconnect, Files::of(parts.bastions()));
        let state = TunnelState { down_since: Some(now()), ..TunnelState::default() };
        Self {
            parts,
            offer,
            publish,
            slots: Vec::new(),
            exits: JoinSet::new(),
            changed: Arc::default(),
            waiting: VecDeque::new(),
            next_id: 1,
            recovery: Pace::new(bounds),
            growth: Pace::new(bounds),
            grow: false,
            files,
            certificate: Certificate::default(),
            cuts: Cuts::default(),
            state,
            dirty: true,
            warned: None,
            changing: false,
            leaving: false,
        }
    }

    /// Makes no more sessions, and gives no more seats.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
        self.waiting.clear();
        self.retire(|_| true);
        self.offer();
    }

    /// It has left, and its last session has ended.
    pub(super) fn has_left(&self) -> bool {
        self.leaving && self.slots.is_empty()
    }

    /// These sessions finish the clients they have.
    fn retire(&mut self, which: impl Fn(&Slot) -> bool) {
        for slot in self.slots.iter_mut().filter(|slot| which(slot)) {
            slot.retiring = true;
            if slot.handle.connection().is_none() {
                let _ = slot.handle.commands.send(Command::Close);
            }
        }
        self.dirty = true;
    }

    /// Waits until something has happened to a session, and takes note of it. The future may be dropped at any
    /// time.
    pub(super) async fn event(&mut self) {
        tokio::select! {
            () = self.changed.notified() => self.dirty = true,
            Some(exit) = self.exits.join_next_with_id(), if !self.exits.is_empty() => self.session_ended(exit),
        }
    }

    pub(super) fn ask_for_seat(&mut self, client: Waiting) {
        // A bastion that is not wanted any more has none.
        if !self.leaving {
            self.waiting.push_back(client);
        }
    }

    /// A client was placed where it would be better off with one more session.
    pub(super) fn grow(&mut self) {
        // The pool may have grown since.
        let next = placement::place(&self.candidates(), self.dialling(), self.parts.plan.pool, None);
        self.grow |= next.grow;
    }

    /// A place on a session whose gate is open, for a probe.
    pub(super) fn probe_seat(&self) -> Option<Seat> {
        let candidates = self.candidates();
        let best = candidates.iter().filter(|candidate| candidate.usable && candidate.gate_open);
        self.seat_on(best.min_by_key(|candidate| candidate.clients)?.id, Sitter::Probe)
    }

    /// Asks every session whether it lives.
    pub(super) fn doubt(&self) {
        for slot in &self.slots {
            // A session that has just ended needs no asking.
            let _ = slot.handle.commands.send(Command::Ping);
        }
    }

    /// Waits no longer for the next attempt.
    pub(super) fn dial_now(&mut self) {
        for pace in [&mut self.recovery, &mut self.growth] {
            pace.hurry();
        }
    }

    /// Does whatever is due, and says when to come again.
    pub(super) fn tend(&mut self) -> Instant {
        self.replace_outdated();
        self.place_waiting();
        self.forgive();
        let steady_at = self.steady();
        self.replace_heavy();
        self.shrink();
        self.offer();
        self.close_retired();
        let files_at = self.look_at_files();
        let certificate_at = self.look_at_certificate();
        self.look_for_cuts();
        let dial_at = self.dial();
        self.announce(dial_at);
        self.offer();
        self.publish();
        // Clients come and go without a word to the pool.
        let tend_at = (!self.slots.is_empty()).then(|| Instant::now() + TEND_EVERY);
        let place_at = (!self.waiting.is_empty() && self.is_up()).then(|| Instant::now() + PLACE_EVERY);
        let proven_at =
            self.unproven().map(|slot| Instant::from_std(slot.state().since.instant) + PROVEN_AFTER);
        let soonest = [dial_at, files_at, certificate_at, tend_at, place_at, steady_at, proven_at.min()];
        soonest.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    /// Ends all sessions in good order.
    pub(super) async fn close(mut self) {
        self.offer.set(None);
        if self.has_left() {
            // Whoever still looks shall not see its last session for ever.
            self.publish();
        }
        for slot in &self.slots {
            let _ = slot.handle.commands.send(Command::Close);
        }
        let all = async { while self.exits.join_next().await.is_some() {} };
        let _ = timeout(GOODBYE, all).await;
    }

    /// The sessions that may take clients.
    fn candidates(&self) -> Vec<Candidate> {
        self.slots.iter().filter(|slot| !slot.retiring).filter_map(Slot::candidate).collect()
    }

    /// Those of them that were made as the configuration has it.
    fn current(&self) -> Vec<Candidate> {
        let current = self.slots.iter().filter(|slot| !slot.retiring && !slot.outdated);
        current.filter_map(Slot::candidate).collect()
    }

    fn dialling(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.retiring && slot.handle.connection().is_none()).count()
    }

    fn is_up(&self) -> bool {
        self.candidates().iter().any(|candidate| candidate.usable)
    }

    /// Clients wait for a session.
    fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The tunnel is up, and not only by what an earlier configuration has left.
    fn is_settled(&self) -> bool {
        self.current().iter().any(|candidate| candidate.usable)
    }

    /// Sessions finish their clients: nobody is refused for it.
    fn finishes_clients(&self) -> bool {
        self.slots.iter().any(|slot| slot.state().phase == SessionPhase::Retiring)
    }

    fn seat_on(&self, id: u64, sitter: Sitter) -> Option<Seat> {
        let slot = self.slots.iter().find(|slot| slot.id == id)?;
        Some(Seat::new(slot.handle.connection()?, id, self.parts.plan.open_timeout, sitter))
    }

    fn place_waiting(&mut self) {
        while let Some(client) = self.waiting.pop_front() {
            if client.seat.is_closed() {
                continue;
            }
            let Placement { seat, grow } =
                placement::place(&self.candidates(), self.dialling(), self.parts.plan.pool, client.avoid);
            self.grow |= grow;
            match seat.and_then(|id| self.seat_on(id, Sitter::Client)) {
                // A client that has left meanwhile gives the seat back by itself.
                Some(seat) => drop(client.seat.send(seat)),
                None => {
                    self.waiting.push_front(client);
                    self.waiting.retain(|client| !client.seat.is_closed());
                    return;
                }
            }
        }
    }

    /// Says what those can have who do not wait: nothing, as long as others do.
    fn offer(&self) {
        let closed = self.leaving || self.is_awaited();
        let places = || self.slots.iter().filter(|slot| !slot.retiring).filter_map(Slot::place);
        self.offer.set((!closed).then(|| Terms {
            places: places().collect(),
            dialling: self.dialling(),
            bounds: self.parts.plan.pool,
            open_timeout: self.parts.plan.open_timeout,
        }));
    }

    fn unproven(&self) -> impl Iterator<Item = &Slot> {
        let served = |slot: &&Slot| slot.state().phase == SessionPhase::Established;
        self.slots.iter().filter(served).filter(|slot| !slot.proven)
    }

    fn forgive(&mut self) {
        let now = Instant::now();
        let mut proven = false;
        for slot in self.slots.iter_mut().filter(|slot| !slot.proven) {
            let state = slot.state();
            slot.proven = state.phase == SessionPhase::Established
                && now.duration_since(Instant::from_std(state.since.instant)) >= PROVEN_AFTER;
            proven |= slot.proven;
        }
        if proven {
            self.recovery.proven();
            self.growth.proven();
        }
    }

    /// Forgets that the tunnel wavered once it has been up for long enough. Returns when that may be.
    fn steady(&mut self) -> Option<Instant> {
        let up_since = self.state.uptime.since().filter(|_| self.state.wavering)?;
        let at = Instant::from_std(up_since.instant) + PROVEN_AFTER;
        if Instant::now() < at {
            return Some(at);
        }
        (self.state.wavering, self.dirty) = (false, true);
        None
    }

    /// Sessions that an earlier configuration has left go once there is one of the configuration in force.
    fn replace_outdated(&mut self) {
        if self.is_settled() && self.slots.iter().any(|slot| slot.outdated && !slot.retiring) {
            info!(bastion = %self.parts.plan.name, "a session of the new configuration is there: those before it finish their clients");
            self.retire(|slot| slot.outdated);
        }
    }

    /// Replaces sessions in which russh has piled up too much: the new one is there before the old one goes.
    fn replace_heavy(&mut self) {
        let heavy = |slot: &Slot| {
            slot.handle.connection().is_some_and(|connection| connection.remnants() > MAX_REMNANTS)
        };
        let spare =
            self.slots.iter().any(|slot| !heavy(slot) && slot.state().phase == SessionPhase::Established);
        if !self.slots.iter().any(|slot| heavy(slot) && !slot.retiring) {
            return;
        }
        if spare {
            debug!(bastion = %self.parts.plan.name, "sessions retire: they have served enough");
            self.retire(heavy);
        } else {
            self.grow = true;
        }
    }

    /// Retires sessions that are not needed any more.
    fn shrink(&mut self) {
        let now = Instant::now();
        let candidates = self.candidates();
        let mut dispensable = placement::dispensable(&candidates, self.parts.plan.pool);
        for slot in &mut self.slots {
            let empty = slot.is_unused();
            slot.empty_since = if empty { Some(slot.empty_since.unwrap_or(now)) } else { None };
            let long_empty = slot.empty_since.is_some_and(|since| now.duration_since(since) >= EMPTY_FOR);
            if long_empty && dispensable {
                slot.retiring = true;
                dispensable = false;
            }
        }
    }

    /// Closes sessions that have retired and finished their clients. They are not on offer any more, so that nobody takes
    /// a seat on one at this moment.
    fn close_retired(&self) {
        for slot in self.slots.iter().filter(|slot| slot.retiring && slot.is_unused()) {
            let _ = slot.handle.commands.send(Command::Close);
        }
    }

    /// Dials a session if one is wanted and may be dialled now. Returns when it may, if later.
    fn dial(&mut self) -> Option<Instant> {
        let pool = self.parts.plan.pool;
        let dialling = self.dialling();
        let current = self.current();
        let wanted = placement::too_small(&current, dialling, pool) || self.grow;
        if !wanted || dialling > 0 || self.leaving || current.len() >= pool.max.saturating_mul(2) {
            self.grow = false;
            return None;
        }
        let settled = self.is_settled();
        let pace = if settled { &self.growth } else { &self.recovery };
        let not_before = pace.not_before(self.is_awaited());
        if Instant::now() < not_before {
            return Some(not_before);
        }
        self.grow = false;
        if self.state.last_failure.is_some() && !settled {
            // Taken before the dial, so that what is mended meanwhile is noticed.
            self.files.remember();
        }
        let lease = self.parts.lanes.lease()?;
        let id = self.next_id;
        self.next_id += 1;
        let (handle, life) = session::new(session::Parts {
            id,
            plan: Arc::clone(&self.parts.plan),
            jumps: Arc::clone(&self.parts.jumps),
            memory: Arc::clone(&self.parts.memory),
            metrics: Arc::clone(&self.parts.metrics),
            changed: Arc::clone(&self.changed),
        });
        let lane = lease.handle.clone();
        let life = async move {
            let _lease = lease;
            life.await
        };
        let task = self.exits.spawn_on(life, &lane).id();
        self.slots.push(Slot {
            id,
            task,
            handle,
            retiring: false,
            outdated: false,
            proven: false,
            empty_since: None,
        });
        self.dirty = true;
        None
    }
}
