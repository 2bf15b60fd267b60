//! The ways to one database: the tunnels of its bastions, in the user's order of preference.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Dial;
use crate::ids::Name;
use crate::placement::{Standing, rank};
use crate::state::TunnelState;

/// How long a bastion is asked for a seat before the next one is asked too. One that has a seat to give gives it at once.
const HEAD_START: Duration = Duration::from_millis(50);

/// What has failed a client: it is placed elsewhere where it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Avoid {
    /// Bastions that did not connect it to the database.
    pub bastions: Vec<Name>,
    /// The session it was on last.
    pub session: Option<(Name, u64)>,
}

impl Avoid {
    fn session_of(&self, bastion: &Name) -> Option<u64> {
        self.session.as_ref().filter(|(name, _)| name == bastion).map(|(_, session)| *session)
    }
}

/// The tunnels to one database, at least one, best first.
#[derive(Clone)]
pub struct Ways<D>(Arc<[(Name, D)]>);

impl<D: Dial> Ways<D> {
    /// In order of preference.
    #[must_use]
    pub fn new(ways: Vec<(Name, D)>) -> Self {
        Self(ways.into())
    }

    /// The names of the bastions.
    pub fn bastions(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|(bastion, _)| bastion)
    }

    /// The state of each tunnel.
    pub fn states(&self) -> impl Iterator<Item = (&Name, Arc<TunnelState>)> {
        self.0.iter().map(|(bastion, dial)| (bastion, Arc::clone(&*dial.state().borrow())))
    }

    /// Whether any is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.states().any(|(_, state)| state.is_up())
    }

    /// Whether one is up that need not be avoided.
    #[must_use]
    pub fn has_another(&self, avoid: &[Name]) -> bool {
        self.states().any(|(bastion, state)| state.is_up() && !avoid.contains(bastion))
    }

    /// Whether every bastion refuses us: waiting for them helps no client.
    #[must_use]
    pub fn all_refuse(&self) -> bool {
        self.states().all(|(_, state)| state.refusing)
    }

    /// Waits until the tunnels' states are so. The future may be dropped at any time.
    pub async fn wait_until(&self, so: impl Fn(&Self) -> bool) {
        let mut states: Vec<watch::Receiver<_>> = self.0.iter().map(|(_, dial)| dial.state()).collect();
        loop {
            states.iter_mut().for_each(watch::Receiver::mark_unchanged);
            if so(self) {
                return;
            }
            if states.is_empty() {
                return pending().await;
            }
            let changes = states.iter_mut().map(|state| Box::pin(state.changed()));
            let (changed, index, _) = select_all(changes).await;
            if changed.is_err() {
                // A tunnel that is gone says no more.
                drop(states.swap_remove(index));
            }
        }
    }

    /// Waits until a session of any bastion can take one more client, for as long as the caller likes, and says whose
    /// it is. The best bastion that is up is asked first. The future may be dropped at any time.
    pub async fn seat(&self, avoid: &Avoid) -> (Name, D::Seat) {
        let ranked = self.ranked(&avoid.bastions);
        let mut asked = FuturesUnordered::new();
        let mut head_start = Duration::ZERO;
        for (bastion, dial, up) in ranked {
            asked.push(async move {
                if !head_start.is_zero() {
                    sleep(head_start).await;
                }
                (bastion.clone(), dial.seat(avoid.session_of(bastion)).await)
            });
            // Those that are down have no seat until they are up, and then it is wanted at once.
            head_start += if up { HEAD_START } else { Duration::ZERO };
        }
        match asked.next().await {
            Some(seat) => seat,
            None => pending().await,
        }
    }

    /// A place for a probe, through the best bastion that has one and is not to be avoided.
    pub async fn probe_seat(&self, avoid: &[Name]) -> Option<(Name, D::Seat)> {
        for (bastion, dial, up) in self.ranked(avoid) {
            if up
                && !avoid.contains(bastion)
                && let Some(seat) = dial.probe_seat().await
            {
                return Some((bastion.clone(), seat));
            }
        }
        None
    }

    /// The bastion that the next client is placed on, if one is up.
    #[must_use]
    pub fn best(&self) -> Option<&Name> {
        self.ranked(&[]).into_iter().find(|(_, _, up)| *up).map(|(bastion, _, _)| bastion)
    }

    /// Something that goes through this bastion failed.
    pub fn doubt(&self, bastion: &Name) {
        self.0.iter().filter(|(name, _)| name == bastion).for_each(|(_, dial)| dial.doubt());
    }

    fn ranked(&self, avoid: &[Name]) -> Vec<(&Name, &D, bool)> {
        let standing = |(bastion, state): (&Name, Arc<TunnelState>)| Standing {
            up: state.is_up(),
            wavering: state.wavering,
            avoided: avoid.contains(bastion),
        };
        let standings: Vec<Standing> = self.states().map(standing).collect();
        let ranked = rank(&standings).into_iter();
        let way = |index: usize| {
            let (bastion, dial) = self.0.get(index)?;
            Some((bastion, dial, standings.get(index)?.up))
        };
        ranked.filter_map(way).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Seat;
    use crate::dial::fake::FakeDial;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn ways(up: [bool; 2]) -> (Ways<FakeDial>, FakeDial, FakeDial) {
        let (first, second) = (FakeDial::new(up[0]), FakeDial::new(up[1]));
        (Ways::new(vec![(name("first"), first.clone()), (name("second"), second.clone())]), first, second)
    }

    async fn placed(ways: &Ways<FakeDial>, avoid: &Avoid) -> String {
        ways.seat(avoid).await.0.to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_goes_to_the_best_that_is_up() {
        let (ways, first, _second) = ways([true, true]);
        assert_eq!(placed(&ways, &Avoid::default()).await, "first");
        first.set_up(false);
        assert_eq!(placed(&ways, &Avoid::default()).await, "second");
        assert_eq!(ways.best(), Some(&name("second")));
        first.set_up(true);
        first.waver(true);
        assert_eq!(placed(&ways, &Avoid::default()).await, "second");
        first.waver(false);
        assert_eq!(placed(&ways, &Avoid::default()).await, "first");
        let avoid = Avoid { bastions: vec![name("first")], session: None };
        assert_eq!(placed(&ways, &avoid).await, "second");
        assert_eq!(ways.probe_seat(&avoid.bastions).await.map(|(bastion, _)| bastion), Some(name("second")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_takes_whichever_comes_first() {
        let (ways, _first, second) = ways([false, false]);
        let waiting = tokio::spawn({
            let ways = ways.clone();
            async move { ways.seat(&Avoid::default()).await.0.to_string() }
        });
        tokio::task::yield_now().await;
        assert!(ways.best().is_none() && ways.probe_seat(&[]).await.is_none());
        second.set_up(true);
        assert_eq!(waiting.await.unwrap(), "second");
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_gates_are_all_shut_is_passed_by() {
        let (ways, first, _second) = ways([true, true]);
        first.give_no_seats();
        let (bastion, seat) = ways.seat(&Avoid::default()).await;
        assert_eq!((bastion, seat.session()), (name("second"), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn states_are_waited_for() {
        let (ways, first, _second) = ways([false, false]);
        let waiting = tokio::spawn({
            let ways = ways.clone();
            async move { ways.wait_until(Ways::is_up).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.set_up(true);
        waiting.await.unwrap();
    }
}
