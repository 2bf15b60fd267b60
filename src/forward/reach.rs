//! What clients have found out about the ways to their database: which bastion does not connect them, why, and when
//! it may be tried again. Clients learn from each other here; each one's own course is [`super::client`]'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock::now;
use crate::dial::{Dial, Ways};
use crate::failure::{Cause, Failure};
use crate::ids::Name;
use crate::metrics::DatabaseMetrics;
use crate::state::{ForwardState, Incident};

/// Clients that try to reach a database at a time while it swallows every attempt.
const MAX_TRIALS: usize = 4;

/// How often a client is sent through a bastion that has failed others, where another bastion does better.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);

pub(super) struct Reach {
    database: Name,
    metrics: Arc<DatabaseMetrics>,
    state: watch::Sender<ForwardState>,
    trials: Arc<Semaphore>,
    /// When one client shall try a failing bastion again.
    again_at: Mutex<BTreeMap<Name, Instant>>,
}

impl Reach {
    pub(super) fn new(
        database: Name,
        metrics: Arc<DatabaseMetrics>,
        state: watch::Sender<ForwardState>,
    ) -> Self {
        let trials = Arc::new(Semaphore::new(MAX_TRIALS));
        Self { database, metrics, state, trials, again_at: Mutex::default() }
    }

    /// Waits until the database may be tried. While it swallows every attempt only a few may go on trying, since each
    /// leaves the bastion with a connection that it waits for minutes to make.
    pub(super) async fn turn<D: Dial>(&self, ways: &Ways<D>) -> Option<OwnedSemaphorePermit> {
        let swallows = |state: &ForwardState| {
            let mut failing = state.failing.values();
            failing.any(|cause| *cause == Cause::ChannelTimeout)
                && ways.states().all(|(name, tunnel)| state.failing.contains_key(name) || !tunnel.is_up())
        };
        let mut state = self.state.subscribe();
        tokio::select! {
            biased;
            _ = state.wait_for(|state| !swallows(state)) => None,
            // A bastion that comes up may do better.
            () = ways.wait_until(|_| !swallows(&self.state.borrow())) => None,
            turn = Arc::clone(&self.trials).acquire_owned() => turn.ok(),
        }
    }

    /// Waits until one of these bastions, which have failed, has connected another client.
    pub(super) async fn recovery(&self, tried: &[Name]) {
        let mut state = self.state.subscribe();
        // The forward outlives its clients.
        let _ =
            state.wait_for(|state| tried.iter().any(|bastion| !state.failing.contains_key(bastion))).await;
    }

    /// Whether it is known of this bastion that it does not connect clients.
    pub(super) fn has_failed(&self, bastion: &Name) -> bool {
        self.state.borrow().failing.contains_key(bastion)
    }

    /// The bastions that have failed others, except where it is time that somebody tries one again.
    pub(super) fn failing(&self) -> Vec<Name> {
        let now = Instant::now();
        let again_at = self.lock();
        again_at.iter().filter(|(_, at)| now < **at).map(|(bastion, _)| bastion.clone()).collect()
    }

    /// A client is about to be connected through this bastion: where it has failed others, the rest need not try it for
    /// a while.
    pub(super) fn trying(&self, bastion: &Name) {
        if let Some(at) = self.lock().get_mut(bastion) {
            *at = Instant::now() + TRY_AGAIN_AFTER;
        }
    }

    /// The configuration has changed: what is known of bastions that it does not name any more is forgotten, and
    /// everything where it is another database.
    pub(super) fn forget(&self, except: impl Fn(&Name) -> bool) {
        self.lock().retain(|bastion, _| except(bastion));
        self.state.send_if_modified(|state| {
            let before = state.failing.len();
            state.failing.retain(|bastion, _| except(bastion));
            state.failing.len() != before
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Instant>> {
        self.again_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why clients are not connected at the moment, where they are not.
    pub(super) fn current_failure(&self) -> Option<Failure> {
        let state = self.state.borrow();
        let incident = state.last_failure.as_ref().filter(|_| !state.failing.is_empty());
        incident.map(|incident| incident.failure.clone())
    }

    /// A bastion did not connect a client to the database.
    pub(super) fn failed(&self, bastion: &Name, failure: &Failure) {
        self.metrics.channel_failed(bastion, failure.cause);
        // The loss of a session is reported by itself, and says nothing of the database.
        if failure.cause == Cause::ChannelSessionLost {
            return;
        }
        self.lock().insert(bastion.clone(), Instant::now() + TRY_AGAIN_AFTER);
        let mut news = false;
        self.state.send_modify(|state| {
            news = state.failing.insert(bastion.clone(), failure.cause) != Some(failure.cause);
            Incident::record(&mut state.last_failure, failure.clone(), now());
        });
        if news {
            warn!(
                database = %self.database,
                %bastion,
                phase = failure.cause.phase().as_str(),
                reason = failure.cause.reason(),
                detail = failure.detail(),
                hint = failure.hint(),
                "clients cannot be connected to the database through this bastion"
            );
        }
    }

    /// It did.
    pub(super) fn succeeded(&self, bastion: &Name) {
        let recovered = self.state.send_if_modified(|state| state.failing.remove(bastion).is_some());
        if recovered {
            self.lock().remove(bastion);
            info!(database = %self.database, %bastion, "clients are connected through this bastion again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test(start_paused = true)]
    async fn one_client_now_and_then_tries_what_has_failed_others() {
        let bastion = Name::parse("first").unwrap();
        let one = std::slice::from_ref(&bastion);
        let metrics = Metrics::new().unwrap();
        let metrics = Arc::new(metrics.database(&Name::parse("analytics").unwrap(), one));
        let reach = Reach::new(Name::parse("analytics").unwrap(), metrics, watch::Sender::default());
        assert!(reach.failing().is_empty());
        reach.failed(&bastion, &Failure::new(Cause::ChannelProhibited, "no"));
        assert_eq!(reach.failing(), one);
        tokio::time::advance(TRY_AGAIN_AFTER).await;
        assert!(reach.failing().is_empty(), "it is somebody's turn");
        reach.trying(&bastion);
        assert_eq!(reach.failing(), one, "and nobody else's");
        reach.forget(|name| *name == bastion);
        assert_eq!(reach.failing(), one);
        reach.forget(|_| false);
        assert!(reach.failing().is_empty() && reach.current_failure().is_none());
        reach.failed(&bastion, &Failure::new(Cause::ChannelProhibited, "no"));
        reach.succeeded(&bastion);
        assert!(reach.failing().is_empty() && reach.current_failure().is_none());
    }
}
