//! What clients have found out about the ways to their database: which bastion does not connect them, why, and when
//! it may be tried again. Clients learn from each other here; each one's own course is [`super::client`]'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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

    /// The bastions that one more client shall pass by where it can: they have failed others, and it is nobody's turn
    /// to try them again.
    pub(super) fn avoid(&self) -> Vec<Name> {
        let mut again_at = self.again_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut avoid = Vec::new();
        for (bastion, at) in again_at.iter_mut() {
            if now < *at {
                avoid.push(bastion.clone());
            } else {
                *at = now + TRY_AGAIN_AFTER;
            }
        }
        avoid
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
        let mut again_at = self.again_at.lock().unwrap_or_else(PoisonError::into_inner);
        again_at.insert(bastion.clone(), Instant::now() + TRY_AGAIN_AFTER);
        drop(again_at);
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
                "clients cannot be connected to the database"
            );
        }
    }

    /// It did.
    pub(super) fn succeeded(&self, bastion: &Name) {
        let recovered = self.state.send_if_modified(|state| state.failing.remove(bastion).is_some());
        if recovered {
            self.again_at.lock().unwrap_or_else(PoisonError::into_inner).remove(bastion);
            info!(database = %self.database, %bastion, "clients are connected again");
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
        assert!(reach.avoid().is_empty());
        reach.failed(&bastion, &Failure::new(Cause::ChannelProhibited, "no"));
        assert_eq!(reach.avoid(), one);
        tokio::time::advance(TRY_AGAIN_AFTER).await;
        assert!(reach.avoid().is_empty(), "it is somebody's turn");
        assert_eq!(reach.avoid(), one, "and nobody else's");
        reach.succeeded(&bastion);
        assert!(reach.avoid().is_empty() && reach.current_failure().is_none());
    }
}
