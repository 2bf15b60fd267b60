//! Many connections: one after another, and at the same time.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use super::alternate;
use crate::arguments::Plan;
use crate::peers::{Forwarder, Target, Task, start_all};
use crate::report::{Figures, quantile};
use crate::servers::{answered, connect};
use crate::stage::Stage;
use crate::usage::{cpu_seconds, memory};

/// The time to an answer when the client speaks first, as PostgreSQL's do.
pub fn that_ask(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let target = Target::Echo(stage.servers.echo);
    one_after_another(stage, plan, figures, target, plan.connections, |address| {
        answered(address).unwrap();
    });
}

/// The time to a byte that the server says unasked: sshd's own answer and that byte are two small packets, and sshd
/// keeps the second one until the first one is acknowledged. So it takes long, and fewer of them do.
pub fn that_listen(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let target = Target::Greeter(stage.servers.greeter);
    one_after_another(stage, plan, figures, target, plan.connections / 10, |address| {
        connect(address).unwrap().read_exact(&mut [0]).unwrap();
    });
}

fn one_after_another(
    stage: &Stage,
    plan: &Plan,
    figures: &mut Figures,
    target: Target,
    count: usize,
    visit: fn(SocketAddr),
) {
    let task = Task::new(&stage.bastion, vec![target]);
    let forwarders = start_all(plan, &task);
    alternate(plan, &forwarders, figures, |forwarder| {
        let (before, start) = (cpu_seconds(forwarder.pid()), Instant::now());
        let visits = (0..count).map(|_| {
            let start = Instant::now();
            visit(forwarder.address());
            start.elapsed().as_secs_f64() * 1e3
        });
        let millis: Vec<f64> = visits.collect();
        let (seconds, count) = (start.elapsed().as_secs_f64(), count as f64);
        vec![
            ("connections", "1/s", count / seconds),
            ("answer p50", "ms", quantile(&millis, 0.5)),
            ("answer p99", "ms", quantile(&millis, 0.99)),
            ("processor", "us each", (cpu_seconds(forwarder.pid()) - before) * 1e6 / count),
        ]
    });
}

/// What idle clients hold. Each time with a new forwarder, since memory is seldom given back.
pub fn at_the_same_time(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let task = Task {
        // More than the default, which is there to protect a database.
        database_keys: "max_clients = 10000\n",
        ..Task::new(&stage.bastion, vec![Target::Echo(stage.servers.echo)])
    };
    for _ in 0..plan.runs {
        for peer in &plan.peers {
            let forwarder = Forwarder::start(plan, *peer, &task);
            let (before, start) = (memory(forwarder.pid()), Instant::now());
            let clients = open(forwarder.address(), plan.clients);
            let seconds = start.elapsed().as_secs_f64();
            let after = memory(forwarder.pid());
            let count = clients.len() as f64;
            let samples = [
                ("resident per client", "kB", (after.resident - before.resident) / count),
                ("proportional per client", "kB", (after.proportional - before.proportional) / count),
                ("without clients", "kB", before.resident),
                ("to open and echo", "s", seconds),
            ];
            figures.note(*peer, &samples);
        }
    }
}

/// So many at a time come, as jobs that all start on the hour do.
const AT_A_TIME: usize = 20;

fn open(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    thread::scope(|scope| {
        let some = || (0..count / AT_A_TIME).map(|_| answered(address).unwrap()).collect::<Vec<_>>();
        let openers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(some)).collect();
        openers.into_iter().flat_map(|opener| opener.join().unwrap()).collect()
    })
}
