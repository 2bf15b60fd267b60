//! The seats that can be had at once. A client that finds one asks nobody: the pool says beforehand what there is, and
//! serves by itself those who have to wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::watch;

use super::{Seat, Sitter};
use crate::placement::{self, Candidate, Placement, PoolBounds};
use crate::ssh::Connection;
use crate::state::{SessionPhase, SessionState};

/// What the pool has to offer at the moment; nothing at first.
#[derive(Default)]
pub(super) struct Offer(Mutex<Offered>);

#[derive(Default)]
struct Offered {
    terms: Option<Terms>,
    /// How many have withdrawn whatever the pool says.
    withdrawn: usize,
}

/// As long as it lives there is nothing to be had: the pool is about to hear what it does not know yet.
pub(super) struct Withdrawal(Arc<Offer>);

impl Drop for Withdrawal {
    fn drop(&mut self) {
        self.0.lock().withdrawn -= 1;
    }
}

/// An offer to those who do not wait.
pub(super) struct Terms {
    /// The sessions that are established and not about to go.
    pub(super) places: Vec<Place>,
    /// Sessions on their way to be established.
    pub(super) dialling: usize,
    /// The key `sessions`.
    pub(super) bounds: PoolBounds,
    /// The key `open_timeout`.
    pub(super) open_timeout: Duration,
}

/// A session that may take a client.
pub(super) struct Place {
    pub(super) id: u64,
    pub(super) connection: Connection,
    pub(super) state: watch::Receiver<SessionState>,
}

impl Offered {
    fn available(&mut self) -> Option<&mut Terms> {
        self.terms.as_mut().filter(|_| self.withdrawn == 0)
    }
}

impl Place {
    fn candidate(&self) -> Candidate {
        candidate(self.id, &self.connection, &self.state.borrow())
    }
}

/// A session as placement sees it. That it has ended is known before the pool hears of it.
pub(super) fn candidate(id: u64, connection: &Connection, state: &SessionState) -> Candidate {
    Candidate {
        id,
        usable: state.phase == SessionPhase::Established && connection.end().is_none(),
        gate_open: state.load.gate_open(),
        clients: state.load.clients(),
    }
}

impl Offer {
    /// From now on this is to be had, or nothing.
    pub(super) fn set(&self, terms: Option<Terms>) {
        self.lock().terms = terms;
    }

    /// Nothing is to be had from now on, whatever the pool says meanwhile.
    pub(super) fn withdraw(self: &Arc<Self>) -> Withdrawal {
        let mut offered = self.lock();
        offered.withdrawn += 1;
        offered.terms = None;
        Withdrawal(Arc::clone(self))
    }

    /// A seat, if one is free, and whether the pool should grow.
    pub(super) fn take(&self, avoid: Option<u64>) -> (Option<Seat>, bool) {
        let mut offered = self.lock();
        let Some(terms) = offered.available() else { return (None, false) };
        let candidates: Vec<Candidate> = terms.places.iter().map(Place::candidate).collect();
        let Placement { seat, grow } = placement::place(&candidates, terms.dialling, terms.bounds, avoid);
        // The pool is asked once, until it says what has become of it.
        terms.dialling += usize::from(grow);
        let place = terms.places.iter().find(|place| Some(place.id) == seat);
        (place.map(|place| Seat::new(&place.connection, place.id, terms.open_timeout, Sitter::Client)), grow)
    }

    /// The runtimes on which the sessions live.
    pub(super) fn lanes(&self) -> Vec<runtime::Handle> {
        let mut offered = self.lock();
        let places = offered.available().into_iter().flat_map(|terms| &terms.places);
        places.map(|place| place.connection.lane().clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Offered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_to_be_had_until_all_withdrawals_have_ended() {
        let offer = Arc::new(Offer::default());
        let terms = || {
            let bounds = PoolBounds { min: 1, max: 1 };
            Terms { places: vec![], dialling: 0, bounds, open_timeout: Duration::ZERO }
        };
        let is_open = || offer.lock().available().is_some();
        assert!(!is_open(), "the pool has said nothing yet");
        offer.set(Some(terms()));
        assert!(is_open());
        drop(offer.withdraw());
        assert!(!is_open(), "the pool has not spoken since");
        let (first, second) = (offer.withdraw(), offer.withdraw());
        // The pool may speak before it has heard of either.
        offer.set(Some(terms()));
        drop(first);
        assert!(!is_open(), "one of two has ended");
        drop(second);
        assert!(is_open());
    }
}
