//! A client with small questions, beside one that does not read and beside one that reads all it can get.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::arguments::Plan;
use crate::peers::{Forwarder, Target, Task, start_all};
use crate::report::{Figures, Sample, quantile};
use crate::servers::{BLOCK, answered, ask, exchange};
use crate::stage::Stage;

/// Between two questions, as a client that also works.
const PAUSE: Duration = Duration::from_millis(1);
/// For a load to fill what there is to fill, and for a pool to grow.
const SETTLE: Duration = Duration::from_secs(1);

/// How many milliseconds answers take.
struct Answers {
    p50: f64,
    p99: f64,
}

pub fn beside_others(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let task = Task {
        bastion_keys: "sessions = { min = 1, max = 4 }\n",
        ..Task::new(
            &stage.bastion,
            vec![Target::Echo(stage.servers.echo), Target::Source(stage.servers.source)],
        )
    };
    let forwarders = start_all(plan, &task);
    super::alternate(plan, &forwarders, figures, |forwarder| compare(plan, forwarder));
}

fn compare(plan: &Plan, forwarder: &Forwarder) -> Vec<Sample> {
    let (echo, source) = (forwarder.addresses[0], forwarder.addresses[1]);
    let alone = answers(echo, plan.window);
    let stalled = beside_stalled(plan, echo, source);
    let (bulk, speed) = beside_bulk(plan, echo, source);
    vec![
        ("p50 alone", "ms", alone.p50),
        ("p50 beside a stalled client", "ms", stalled.p50),
        ("p50 beside a download", "ms", bulk.p50),
        ("p99 alone", "ms", alone.p99),
        ("p99 beside a stalled client", "ms", stalled.p99),
        ("p99 beside a download", "ms", bulk.p99),
        ("p99 stalled to alone", "", stalled.p99 / alone.p99),
        ("p99 download to alone", "", bulk.p99 / alone.p99),
        ("speed of that download", "MB/s", speed),
    ]
}

fn beside_stalled(plan: &Plan, echo: SocketAddr, source: SocketAddr) -> Answers {
    let _stalled = ask(source, u64::MAX).unwrap();
    thread::sleep(SETTLE);
    answers(echo, plan.window)
}

fn beside_bulk(plan: &Plan, echo: SocketAddr, source: SocketAddr) -> (Answers, f64) {
    let mut bulk = ask(source, u64::MAX).unwrap();
    let (end, start) = (bulk.try_clone().unwrap(), Instant::now());
    let reader = thread::spawn(move || count(&mut bulk));
    thread::sleep(SETTLE);
    let answers = answers(echo, plan.window);
    end.shutdown(Shutdown::Both).unwrap();
    let bytes = reader.join().unwrap();
    (answers, bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// What came until it was over, whichever way.
fn count(bulk: &mut TcpStream) -> u64 {
    let (mut block, mut count) = (vec![0; BLOCK], 0);
    while let Ok(read @ 1..) = bulk.read(&mut block) {
        count += read as u64;
    }
    count
}

fn answers(address: SocketAddr, window: Duration) -> Answers {
    let mut socket = answered(address).unwrap();
    let (start, mut millis) = (Instant::now(), Vec::new());
    while start.elapsed() < window {
        let asked = Instant::now();
        exchange(&mut socket).unwrap();
        millis.push(asked.elapsed().as_secs_f64() * 1e3);
        thread::sleep(PAUSE);
    }
    Answers { p50: quantile(&millis, 0.5), p99: quantile(&millis, 0.99) }
}
