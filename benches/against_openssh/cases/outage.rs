//! The bastion dies, and comes back: what its clients notice.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::arguments::Plan;
use crate::peers::{Forwarder, Peer, Target, Task};
use crate::report::{Figures, Sample};
use crate::servers::answered;
use crate::stage::{self, Stage};

/// A new client comes as often as this.
const PERIOD: Duration = Duration::from_millis(20);
/// How long before the outage, and after the first answer.
const MARGIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// A client: when it came, when it was served or given up on.
struct Visit {
    came: Instant,
    left: Instant,
    outcome: io::Result<()>,
}

/// ssh does not come back by itself, so autossh stands for it.
pub fn bastion_killed(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let mut peers: Vec<Peer> =
        plan.peers.iter().copied().filter(|peer| matches!(peer, Peer::Ours | Peer::Other)).collect();
    peers.push(Peer::Autossh);
    for _ in 0..plan.outages {
        for peer in &peers {
            figures.note(*peer, &outage(stage, plan, *peer));
        }
    }
}

fn outage(stage: &Stage, plan: &Plan, peer: Peer) -> Vec<Sample> {
    let mut bastion = stage::bastion();
    let task = Task::new(&bastion, vec![Target::Echo(stage.servers.echo)]);
    let forwarder = Forwarder::start(plan, peer, &task);
    let (stop, stopped) = mpsc::channel();
    let clients = come_and_go(forwarder.address(), stopped);
    thread::sleep(MARGIN);
    bastion.kill();
    thread::sleep(plan.outage);
    let back = Instant::now();
    bastion.start_again();
    let answered = first_answer(forwarder.address(), back);
    thread::sleep(MARGIN);
    stop.send(()).unwrap();
    let visits = clients.join().unwrap();
    let failed = visits.iter().filter(|visit| visit.outcome.is_err()).count();
    let waits = visits.iter().filter(|visit| visit.outcome.is_ok()).map(|visit| visit.left - visit.came);
    vec![
        ("clients", "", visits.len() as f64),
        ("clients failed", "", failed as f64),
        ("first answer after", "s", answered.as_secs_f64()),
        ("longest wait of a client served", "s", waits.max().unwrap_or_default().as_secs_f64()),
    ]
}

/// Clients at a steady pace, each on its own; whoever is held does not keep the next one from coming.
fn come_and_go(address: SocketAddr, stopped: mpsc::Receiver<()>) -> JoinHandle<Vec<Visit>> {
    thread::spawn(move || {
        let mut visits = Vec::new();
        while stopped.recv_timeout(PERIOD).is_err() {
            visits.push(thread::spawn(move || visit(address)));
        }
        visits.into_iter().map(|visit| visit.join().unwrap()).collect()
    })
}

fn visit(address: SocketAddr) -> Visit {
    let came = Instant::now();
    let outcome = answered(address).map(drop);
    Visit { came, left: Instant::now(), outcome }
}

/// How long it took until somebody was served.
fn first_answer(address: SocketAddr, since: Instant) -> Duration {
    while since.elapsed() < LONGEST {
        if visit(address).outcome.is_ok() {
            return since.elapsed();
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody was served within {LONGEST:?} of the bastion's return");
}
