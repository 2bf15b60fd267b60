//! The ways to one database: the tunnels of its bastions, in the user's order of preference.

use std::future::pending;
use std::sync::Arc;

use futures_util::future::{join_all, select_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::runtime;
use tokio::sync::watch;

use super::Dial;
use crate::ids::Name;
use crate::placement::{Standing, rank};
use crate::state::TunnelState;

/// What has failed a client: it is placed elsewhere where it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Avoid {
    /// Bastions that did not connect this client to the database.
    pub tried: Vec<Name>,
    /// Bastions that did not connect others.
    pub failing: Vec<Name>,
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

    /// Whether these are the same tunnels in the same order: one of the same name may be another.
    #[must_use]
    pub fn are(&self, others: &Self) -> bool {
        let same =
            |((_, one), (_, other)): (&(Name, D), &(Name, D))| one.state().same_channel(&other.state());
        self.0.len() == others.0.len() && self.0.iter().zip(others.0.iter()).all(same)
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

    /// Whether one is up besides these.
    #[must_use]
    pub fn has_another(&self, tried: &[Name]) -> bool {
        self.states().any(|(bastion, state)| state.is_up() && !tried.contains(bastion))
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
        loop {
            let ranked = self.ranked(avoid);
            for way in ranked.iter().filter(|way| way.up) {
                if let Some(seat) = way.dial.seat_now(avoid.session_of(way.bastion)) {
                    return (way.bastion.clone(), seat);
                }
            }
            let names = |ranked: &[Ranked<'_, D>]| -> Vec<Name> {
                ranked.iter().map(|way| way.bastion.clone()).collect()
            };
            let order = names(&ranked);
            tokio::select! {
                biased;
                Some(seat) = wait_for_any(&ranked, avoid) => return seat,
                // The best one may be another by then, or one that had to be left out.
                () = self.wait_until(|ways| names(&ways.ranked(avoid)) != order) => {}
            }
        }
    }

    /// Waits until it is certain of every bastion that it has no seat now for whoever has asked for one before.
    pub async fn settled(&self) {
        join_all(self.0.iter().map(|(_, dial)| dial.settled())).await;
    }

    /// A place for a probe, through the best bastion that has one, besides those that were tried.
    pub async fn probe_seat(&self, tried: &[Name]) -> Option<(Name, D::Seat)> {
        let avoid = Avoid { tried: tried.to_vec(), ..Avoid::default() };
        for way in self.ranked(&avoid).into_iter().filter(|way| way.up && !tried.contains(way.bastion)) {
            if let Some(seat) = way.dial.probe_seat().await {
                return Some((way.bastion.clone(), seat));
            }
        }
        None
    }

    /// The bastion that the next client is placed on, if one is up.
    #[must_use]
    pub fn best(&self) -> Option<&Name> {
        let ranked = self.ranked(&Avoid::default());
        ranked.into_iter().find(|way| way.up).map(|way| way.bastion)
    }

    /// The runtimes on which the next client may find its session, if a bastion is up.
    #[must_use]
    pub fn lanes(&self) -> Vec<runtime::Handle> {
        let ranked = self.ranked(&Avoid::default());
        ranked.into_iter().find(|way| way.up).map(|way| way.dial.lanes()).unwrap_or_default()
    }

    /// Something that goes through this bastion failed.
    pub fn doubt(&self, bastion: &Name) {
        self.0.iter().filter(|(name, _)| name == bastion).for_each(|(_, dial)| dial.doubt());
    }

    fn ranked(&self, avoid: &Avoid) -> Vec<Ranked<'_, D>> {
        let standing = |(bastion, state): (&Name, Arc<TunnelState>)| Standing {
            up: state.is_up(),
            wavering: state.wavering,
            tried: avoid.tried.contains(bastion),
            failing: avoid.failing.contains(bastion),
        };
        let standings: Vec<Standing> = self.states().map(standing).collect();
        let way = |index: usize| {
            let (bastion, dial) = self.0.get(index)?;
            Some(Ranked { bastion, dial, up: standings.get(index)?.up })
        };
        rank(&standings).into_iter().filter_map(way).collect()
    }
}

struct Ranked<'a, D> {
    bastion: &'a Name,
    dial: &'a D,
    up: bool,
}

/// The first seat that any of them has to give. None where there is nobody to ask.
async fn wait_for_any<D: Dial>(ranked: &[Ranked<'_, D>], avoid: &Avoid) -> Option<(Name, D::Seat)> {
    let mut asked: FuturesUnordered<_> = ranked
        .iter()
        .map(|way| async { (way.bastion.clone(), way.dial.seat(avoid.session_of(way.bastion)).await) })
        .collect();
    asked.next().await
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

    #[test]
    fn a_tunnel_of_the_same_name_may_be_another() {
        let (ways, first, second) = ways([true, true]);
        let others = |dials: &[(&str, &FakeDial)]| {
            Ways::new(dials.iter().map(|(bastion, dial)| (name(bastion), FakeDial::clone(dial))).collect())
        };
        assert!(ways.are(&others(&[("first", &first), ("second", &second)])));
        assert!(!ways.are(&others(&[("first", &first), ("second", &FakeDial::new(true))])));
        assert!(!ways.are(&others(&[("second", &second), ("first", &first)])));
        assert!(!ways.are(&others(&[("first", &first)])));
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
        for avoid in [
            Avoid { tried: vec![name("first")], ..Avoid::default() },
            Avoid { failing: vec![name("first")], ..Avoid::default() },
            Avoid { tried: vec![name("first")], failing: vec![name("first"), name("second")], session: None },
        ] {
            assert_eq!(placed(&ways, &avoid).await, "second");
        }
        let tried = [name("first")];
        assert_eq!(ways.probe_seat(&tried).await.map(|(bastion, _)| bastion), Some(name("second")));
        assert!(ways.probe_seat(&[tried[0].clone(), name("second")]).await.is_none());
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
        first.give_seats(false);
        let (bastion, seat) = ways.seat(&Avoid::default()).await;
        assert_eq!((bastion, seat.session()), (name("second"), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_left_out_is_asked_once_the_others_are_down() {
        let (ways, _first, second) = ways([true, true]);
        second.give_seats(false);
        let waiting = tokio::spawn({
            let ways = ways.clone();
            let avoid = Avoid { tried: vec![name("first")], ..Avoid::default() };
            async move { ways.seat(&avoid).await.0.to_string() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        second.set_up(false);
        assert_eq!(waiting.await.unwrap(), "first");
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
