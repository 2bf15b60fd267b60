//! Random faults from a seed, against a daemon with four bastions, twelve databases and a hundred clients whose every answer
//! and every byte is checked.
//!
//! It goes by rounds: some faults begin, and end, on some of the bastions; then everything has to work again, and whoever was
//! not meant must have noticed nothing. `make soak MINUTES=10 SEED=1` goes on for longer, and the same seed plays the same
//! rounds; what the clients are about at that moment is up to the machine.

mod clients;
mod faults;
mod forwards;
mod ledger;
mod scene;
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::{eventually, runtime};
use clients::Outcome;
use faults::Faults;
use ledger::Ledger;
use scene::{BACKOFF_MAX, CONNECT_TIMEOUT, KEEPALIVE_TIMEOUT, Scene};

const CLIENTS: u64 = 100;
/// Of those, so many move bytes of their own; the others ask PostgreSQL.
const STREAMS: u64 = 30;

/// The longest that anything may be down once nothing is wrong any more: a session that is dead has to be given up, and the next
/// attempt may come as late as the back-off allows and first meet a dial through a jump that still waits for an answer. The rest is
/// for a busy machine.
const MAX_RECOVERY: Duration = Duration::from_secs(
    KEEPALIVE_TIMEOUT.as_secs() + 2 * (BACKOFF_MAX.as_secs() + CONNECT_TIMEOUT.as_secs()) + 15,
);
/// How much more memory the daemon may have in the end than before the first fault: the history and the series of what has
/// happened since, and what its allocator keeps of the largest backlog.
const MAX_GROWTH_KB: u64 = 48 << 10;
/// How many descriptors more than before, besides those of sessions that the pools have not let go yet.
const MAX_MORE_DESCRIPTORS: usize = 4;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn random_faults_break_no_promise() {
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(25));
    let seed = number("SOAK_SEED").unwrap_or(1);
    eprintln!("soak: SEED={seed}, {} s", length.as_secs());
    let (runtime, ledger) = (runtime(), Arc::new(Ledger::new()));
    let mut scene = Scene::start(&runtime, &ledger);
    everyone_once(&runtime, &scene, &ledger, seed);
    let before = scene.measure();

    let (stop, stopped) = watch::channel(false);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| {
            let rng = StdRng::seed_from_u64(seed ^ (index << 32));
            let forwards = scene.forwards(index >= CLIENTS - STREAMS);
            runtime.spawn(clients::keep_working(forwards, rng, Arc::clone(&ledger), stopped.clone()))
        })
        .collect();
    let watched = scene.watch_health(&ledger);
    let (start, mut faults) = (Instant::now(), Faults::from(seed));
    while start.elapsed() < length && ledger.broken().is_empty() {
        let losses = scene.losses();
        let (round, hit) = scene.play(&faults.next_round(), &runtime, &ledger);
        let (recovered, last) = recover(&runtime, &scene, &ledger);
        ledger.recovered(recovered);
        for (bastion, lost) in scene.losses_since(&losses) {
            if lost > 0.0 && !hit.reaches_bastion(bastion) {
                ledger.breach(format!(
                    "{} lost {lost} sessions though nothing was wrong with it",
                    scene.name(bastion)
                ));
            }
        }
        let (passed, recovered) = (start.elapsed().as_secs_f64(), recovered.as_secs_f64());
        eprintln!("{passed:7.1} s  {round}; well after {recovered:.1} s ({last}); {}", ledger.line());
    }
    stop.send(true).unwrap();
    for client in clients {
        runtime.block_on(client).unwrap();
    }
    let after = scene.settle(&before, MAX_GROWTH_KB, MAX_MORE_DESCRIPTORS);
    watched.end();
    for (series, value) in scene.refusals() {
        ledger.breach(format!("{series} is {value}"));
    }
    if let Err(error) = &after {
        ledger.breach(error.clone());
    }
    let after = after.unwrap_or_else(|_| scene.measure());
    eprintln!("{}", ledger.table(&faults.played(), &before, &after));
    let broken = ledger.broken();
    assert!(broken.is_empty(), "with SEED={seed}: {broken:#?}");
    scene.end();
}

/// A client or two through each forward, so that tables, pools and the allocator's arenas have grown to what they need.
fn everyone_once(runtime: &Runtime, scene: &Scene, ledger: &Arc<Ledger>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let forwards: Vec<_> = [scene.forwards(false), scene.forwards(true)].concat();
    for _ in 0..3 {
        let visits: Vec<_> = forwards
            .iter()
            .cycle()
            .take(usize::try_from(CLIENTS).unwrap())
            .map(|forward| {
                let (forward, ledger, rng) =
                    (forward.clone(), Arc::clone(ledger), StdRng::seed_from_u64(rng.random()));
                runtime.spawn(async move { clients::work(&forward, rng, &ledger).await })
            })
            .collect();
        for visit in visits {
            runtime.block_on(visit).unwrap();
        }
    }
    eventually("the first clients have left", || scene.is_empty().then_some(()));
}

/// Waits until every tunnel is up and every forward carries; how long that took, and who was the last.
fn recover(runtime: &Runtime, scene: &Scene, ledger: &Arc<Ledger>) -> (Duration, String) {
    let start = Instant::now();
    let mut seeds = StdRng::seed_from_u64(0);
    let mut visits = JoinSet::new();
    for forward in [scene.forwards(false), scene.forwards(true)].concat() {
        let mut rng = StdRng::seed_from_u64(seeds.random());
        let visit = async move {
            while !matches!(clients::visit(&forward, &mut rng, 1).await, Outcome::Done(_)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            forward.name
        };
        visits.spawn_on(visit, runtime.handle());
    }
    let mut last = String::new();
    let all_carry = async {
        while let Some(name) = visits.join_next().await {
            last = name.unwrap();
        }
    };
    let carried = runtime.block_on(async { tokio::time::timeout(MAX_RECOVERY, all_carry).await.is_ok() });
    while start.elapsed() < MAX_RECOVERY
        && let Some(bastion) = scene.down().first()
    {
        last = format!("the tunnel to {bastion}");
        std::thread::sleep(Duration::from_millis(20));
    }
    if !carried || !scene.down().is_empty() {
        let down = scene.down();
        ledger.breach(format!(
            "not well {MAX_RECOVERY:?} after the last fault had ended; the last to carry was {last}, down are {down:?}"
        ));
    }
    (start.elapsed(), last)
}
