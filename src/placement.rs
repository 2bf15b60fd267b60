//! Which bastion and which session take a client, and when the pool of a bastion grows or shrinks: a pure rule over
//! their figures.
//!
//! A session that carries one client only can stall without harm to others, so clients are spread over as many
//! sessions as the pool allows before they share one, and the pool grows ahead of them.

use std::time::Duration;

/// How long a session above `min` may be empty before it is closed.
pub const EMPTY_FOR: Duration = Duration::from_secs(60);

/// The bounds of a pool: the key `sessions`. `1 <= min <= max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBounds {
    /// Sessions kept warm.
    pub min: usize,
    /// Sessions dialled to spread clients; twice as many at the most where all gates are shut.
    pub max: usize,
}

/// A session as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The session's number.
    pub id: u64,
    /// Established, not suspect, not retiring.
    pub usable: bool,
    /// Its gate lets bytes in.
    pub gate_open: bool,
    /// Clients seated on it.
    pub clients: usize,
}

/// What becomes of a client that asks for a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The session that takes it; none = it is held.
    pub seat: Option<u64>,
    /// The pool should grow by one session.
    pub grow: bool,
}

/// Places one client. `dialling` counts sessions on their way to be established; `avoid` is a session on which the
/// client has just failed: it is taken only if there is no other.
#[must_use]
pub fn place(pool: &[Candidate], dialling: usize, bounds: PoolBounds, avoid: Option<u64>) -> Placement {
    let usable = || pool.iter().filter(|candidate| candidate.usable);
    let best = usable()
        .filter(|candidate| candidate.gate_open)
        .min_by_key(|candidate| (avoid == Some(candidate.id), candidate.clients));
    let total = pool.len() + dialling;
    let grow = match best {
        // The next client shall find an empty session.
        Some(best) => usable().all(|other| other.id == best.id || other.clients > 0) && total < bounds.max,
        None if usable().next().is_some() => total < bounds.max.saturating_mul(2),
        None => false,
    };
    Placement { seat: best.map(|candidate| candidate.id), grow: grow && dialling == 0 }
}

/// Whether a session must be dialled to keep the pool warm: a suspect session does not count, so that its
/// replacement is there before it is lost.
#[must_use]
pub fn too_small(pool: &[Candidate], dialling: usize, bounds: PoolBounds) -> bool {
    let usable = pool.iter().filter(|candidate| candidate.usable).count();
    dialling == 0 && usable < bounds.min && pool.len() < bounds.max.saturating_mul(2)
}

/// Whether a session that has been empty for [`EMPTY_FOR`] may go.
#[must_use]
pub fn dispensable(pool: &[Candidate], bounds: PoolBounds) -> bool {
    pool.iter().filter(|candidate| candidate.usable).count() > bounds.min
}

/// A bastion of a database, as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its tunnel is up.
    pub up: bool,
    /// It has failed since it was last up for 30 s.
    pub wavering: bool,
    /// It has failed this client.
    pub tried: bool,
    /// It has failed others: it is the last choice.
    pub failing: bool,
}

/// The bastions that a client may wait for, best first; `standings` are in the user's order of preference. One that
/// wavers comes after those that do not, so that clients return to it only once it has proved well. One that the client
/// has tried in vain is left out while there is another that is up.
#[must_use]
pub fn rank(standings: &[Standing]) -> Vec<usize> {
    let choice = standings.iter().any(|standing| standing.up && !standing.tried);
    let all = standings.iter().enumerate().filter(|(_, standing)| !(choice && standing.tried));
    let mut ranked: Vec<_> = all.collect();
    // The sort is stable: what is equal stays in the order of preference.
    ranked.sort_by_key(|(_, standing)| (!standing.up, standing.failing, standing.wavering));
    ranked.into_iter().map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: PoolBounds = PoolBounds { min: 1, max: 4 };

    fn session(id: u64, clients: usize) -> Candidate {
        Candidate { id, usable: true, gate_open: true, clients }
    }

    fn shut(id: u64) -> Candidate {
        Candidate { gate_open: false, ..session(id, 1) }
    }

    fn suspect(id: u64) -> Candidate {
        Candidate { usable: false, ..session(id, 1) }
    }

    #[test]
    fn placements() {
        for (pool, dialling, seat, grow) in [
            (vec![], 0, None, false),
            (vec![session(1, 0)], 0, Some(1), true),
            (vec![session(1, 0), session(2, 0)], 0, Some(1), false),
            (vec![session(1, 3), session(2, 0)], 0, Some(2), true),
            (vec![session(1, 3), session(2, 0), session(3, 0)], 0, Some(2), false),
            (vec![session(1, 1)], 0, Some(1), true),
            (vec![session(1, 1)], 1, Some(1), false),
            (vec![session(1, 2), session(2, 1), session(3, 1), session(4, 1)], 0, Some(2), false),
            (vec![suspect(1)], 0, None, false),
            (vec![suspect(1), session(2, 5)], 0, Some(2), true),
            (vec![shut(1), session(2, 9)], 0, Some(2), true),
            (vec![shut(1)], 0, None, true),
            (vec![shut(1), shut(2), shut(3), shut(4)], 0, None, true),
            (vec![shut(1), shut(2), shut(3), shut(4)], 1, None, false),
            ((1..=8).map(shut).collect(), 0, None, false),
        ] {
            assert_eq!(
                place(&pool, dialling, BOUNDS, None),
                Placement { seat, grow },
                "{pool:?} dialling {dialling}"
            );
        }
    }

    #[test]
    fn bastions_in_order_of_preference() {
        let well = Standing { up: true, wavering: false, tried: false, failing: false };
        let down = Standing { up: false, ..well };
        let back = Standing { wavering: true, ..well };
        let tried = Standing { tried: true, ..well };
        let failing = Standing { failing: true, ..well };
        for (standings, expected) in [
            (&[well, well][..], &[0, 1][..]),
            (&[down, well], &[1, 0]),
            (&[back, well], &[1, 0]),
            (&[back, back], &[0, 1]),
            (&[down, back], &[1, 0]),
            (&[down, down], &[0, 1]),
            (&[tried, well], &[1]),
            (&[tried, down], &[0, 1]),
            (&[tried, tried], &[0, 1]),
            (&[tried, down, back], &[2, 1]),
            (&[failing, well], &[1, 0]),
            (&[failing, back], &[1, 0]),
            (&[failing, down], &[0, 1]),
            (&[failing, failing], &[0, 1]),
            (&[tried, failing], &[1]),
        ] {
            assert_eq!(rank(standings), expected, "{standings:?}");
        }
    }

    #[test]
    fn a_session_that_failed_is_avoided_where_there_is_another() {
        let pool = [session(1, 0), session(2, 7)];
        assert_eq!(place(&pool, 0, BOUNDS, Some(1)).seat, Some(2));
        assert_eq!(place(&pool[..1], 0, BOUNDS, Some(1)).seat, Some(1));
    }

    #[test]
    fn the_pool_is_kept_warm_and_no_warmer() {
        assert!(too_small(&[], 0, BOUNDS));
        assert!(!too_small(&[], 1, BOUNDS));
        assert!(!too_small(&[session(1, 0)], 0, BOUNDS));
        assert!(too_small(&[suspect(1)], 0, BOUNDS));
        assert!(too_small(&[suspect(1)], 0, PoolBounds { min: 1, max: 1 }));
        assert!(!too_small(&[suspect(1), suspect(2)], 0, PoolBounds { min: 1, max: 1 }));
        assert!(!dispensable(&[session(1, 0)], BOUNDS));
        assert!(!dispensable(&[session(1, 0), suspect(2)], BOUNDS));
        assert!(dispensable(&[session(1, 0), session(2, 0)], BOUNDS));
    }

    proptest! {
        #[test]
        fn a_seat_is_always_on_a_usable_session_with_an_open_gate(
            pool in prop::collection::vec((any::<bool>(), any::<bool>(), 0usize..5), 0..10),
            dialling in 0usize..2,
        ) {
            let pool: Vec<Candidate> = pool
                .into_iter()
                .enumerate()
                .map(|(id, (usable, gate_open, clients))| Candidate { id: id as u64, usable, gate_open, clients })
                .collect();
            let placement = place(&pool, dialling, BOUNDS, None);
            let good = |candidate: &&Candidate| candidate.usable && candidate.gate_open;
            match placement.seat {
                Some(id) => {
                    let seat = pool.iter().find(|candidate| candidate.id == id).unwrap();
                    prop_assert!(good(&seat));
                    prop_assert!(pool.iter().filter(good).all(|candidate| candidate.clients >= seat.clients));
                }
                None => prop_assert!(!pool.iter().any(|candidate| good(&candidate))),
            }
            prop_assert!(!placement.grow || pool.len() + dialling < 2 * BOUNDS.max);
        }
    }
}
