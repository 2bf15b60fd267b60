//! Bulk data: how fast, and at what cost of processor time.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::alternate;
use crate::arguments::Plan;
use crate::link;
use crate::peers::{Target, Task, start_all};
use crate::report::{Figures, Sample};
use crate::servers::{ask, connect, drain, send};
use crate::stage::{self, Stage};
use crate::usage::cpu_seconds;

/// One stream of so many bytes, through a forward.
type Stream = fn(SocketAddr, u64);

pub fn download(stage: &Stage, plan: &Plan, figures: &mut Figures, streams: u64) {
    let task = Task::new(&stage.bastion, vec![Target::Source(stage.servers.source)]);
    transfer(plan, figures, &task, fetch, plan.size / streams, streams);
}

pub fn upload(stage: &Stage, plan: &Plan, figures: &mut Figures, streams: u64) {
    let task = Task::new(&stage.bastion, vec![Target::Sink(stage.servers.sink)]);
    transfer(plan, figures, &task, deliver, plan.size / streams, streams);
}

pub fn from_afar(stage: &Stage, plan: &Plan, figures: &mut Figures, round_trip_millis: u64) {
    let Some(_line) = link::Line::lay(Duration::from_millis(round_trip_millis) / 2) else {
        return eprintln!("  only root can make a network interface for it");
    };
    let bastion = stage::bastion_at(link::NEAR);
    let at = (link::Line::address(), bastion.port).into();
    let task = Task { at, ..Task::new(&bastion, vec![Target::Source(stage.servers.source)]) };
    transfer(plan, figures, &task, fetch, plan.size_over_long_link, 1);
}

pub fn through_proxy(stage: &Stage, plan: &Plan, figures: &mut Figures, round_trip_millis: u64) {
    let port = link::relay(stage.bastion.port, Duration::from_millis(round_trip_millis) / 2);
    let at = (Ipv4Addr::LOCALHOST, port).into();
    let task = Task { at, ..Task::new(&stage.bastion, vec![Target::Source(stage.servers.source)]) };
    transfer(plan, figures, &task, fetch, plan.size_over_long_link, 1);
}

fn transfer(plan: &Plan, figures: &mut Figures, task: &Task, stream: Stream, bytes: u64, streams: u64) {
    let forwarders = start_all(plan, task);
    for forwarder in &forwarders {
        timed(forwarder.address(), stream, bytes / 10, streams);
    }
    alternate(plan, &forwarders, figures, |forwarder| {
        let before = (cpu_seconds(forwarder.pid()), cpu_seconds(task.bastion.pid()));
        let seconds = timed(forwarder.address(), stream, bytes, streams);
        let after = (cpu_seconds(forwarder.pid()), cpu_seconds(task.bastion.pid()));
        let gigabytes = (bytes * streams) as f64 / 1e9;
        vec![
            ("speed", "MB/s", gigabytes * 1e3 / seconds),
            ("processor", "s/GB", (after.0 - before.0) / gigabytes),
            ("processor of sshd", "s/GB", (after.1 - before.1) / gigabytes),
        ] as Vec<Sample>
    });
}

/// How many seconds so many streams at a time take.
fn timed(address: SocketAddr, stream: Stream, bytes: u64, streams: u64) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| stream(address, bytes));
        }
    });
    start.elapsed().as_secs_f64()
}

fn fetch(address: SocketAddr, bytes: u64) {
    let mut socket = ask(address, bytes).unwrap();
    assert_eq!(drain(&mut socket).unwrap(), bytes, "bytes were lost");
}

fn deliver(address: SocketAddr, bytes: u64) {
    let mut socket = connect(address).unwrap();
    send(&mut socket, bytes).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut arrived = [0; 8];
    socket.read_exact(&mut arrived).unwrap();
    assert_eq!(u64::from_be_bytes(arrived), bytes, "bytes were lost");
}
