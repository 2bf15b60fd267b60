//! What happens to the daemon's own process.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use super::Moment::{Carrying, Dialling};
use super::Newcomer::{Refused, Served};
use super::Streams::Survive;
use super::stage::Stage;
use super::{Moment, Row, Trouble, Why, run};
use crate::support::account::find;
use crate::support::client::job;
use crate::support::hosts::mount_before;
use crate::support::{Bastion, Relay, eventually};

const fn row<T>(fault: T, when: Moment) -> Row<T> {
    Row { fault, when, streams: Survive, lost: &[], then: &[], newcomer: Served }
}

/// It can open nothing: no connection, no file. Nobody can ask it anything either, so that it is over before anybody does.
#[derive(Debug)]
struct OutOfDescriptors;

fn limit(stage: &Stage, descriptors: &str) {
    let limit = format!("--nofile={descriptors}:");
    let pid = stage.daemon.pid().to_string();
    let status = Command::new(find("prlimit")).args(["--pid", &pid, &limit]).status().unwrap();
    assert!(status.success());
}

impl Trouble for OutOfDescriptors {
    fn begin(&self, stage: &mut Stage) {
        let (waiting, not_reached) =
            ("clients have to wait: the system lets no more in", "bastion not reached");
        let before = stage.daemon.events(not_reached).len();
        let address = stage.daemon.address("echo");
        limit(stage, "3");
        let job = stage.runtime.spawn(job(address));
        stage.daemon.wait_event(waiting);
        stage.prod.kill_sessions();
        eventually("several attempts to dial have failed", || {
            (stage.daemon.events(not_reached).len() >= before + 5).then_some(())
        });
        assert!(!job.is_finished(), "nobody is turned away");
        job.abort();
        limit(stage, "1024");
    }

    fn end(&self, _: &mut Stage) {}
}

#[test]
fn a_daemon_that_has_no_descriptors_left() {
    let mut stage = Stage::patient(Bastion::start());
    run(&mut stage, &row(OutOfDescriptors, Dialling));
    stage.end();
}

/// Its state directory is full.
#[derive(Debug)]
enum Disk {
    Full,
    /// And what it has learnt is gone.
    FullAndEmptied,
}

/// The state directory, which the daemon alone sees.
fn state(stage: &Stage) -> PathBuf {
    let dir = stage.daemon.dir.path().join("state");
    Path::new(&format!("/proc/{}/root", stage.daemon.pid())).join(dir.strip_prefix("/").unwrap())
}

impl Trouble for Disk {
    fn begin(&self, stage: &mut Stage) {
        let state = state(stage);
        if matches!(self, Self::FullAndEmptied) {
            fs::remove_file(state.join("known_hosts")).unwrap();
        }
        let mut filler = File::create(state.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn end(&self, stage: &mut Stage) {
        fs::remove_file(state(stage).join("filler")).unwrap();
        stage.daemon.signal(Signal::SIGHUP);
    }
}

#[test]
fn a_daemon_whose_state_directory_is_full() {
    let prod = Bastion::start();
    let relay = Relay::before(prod.port);
    let section = format!("{}host_key_policy = \"accept-new\"\n", prod.unknown_section("prod"));
    let mut stage = Stage::build(prod, relay, &section, |command| {
        let config = command.get_args().nth(1).unwrap();
        let state = Path::new(config).with_file_name("state");
        let state = state.display();
        let mounts = format!("mkdir -p '{state}' && mount -t tmpfs -o size=64k none '{state}'");
        mount_before(command, &mounts);
    });
    let unreadable: &[Why] = &[Why("host_key", "unreadable")];
    for row in [
        row(Disk::Full, Carrying),
        row(Disk::Full, Dialling),
        Row { newcomer: Refused, then: unreadable, ..row(Disk::FullAndEmptied, Dialling) },
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

/// The wall clock is set so far off, in days.
#[derive(Debug)]
struct Clock(i64);

const DAY: Duration = Duration::from_secs(24 * 3600);

fn clock(stage: &Stage) -> SystemTime {
    humantime::parse_rfc3339(stage.daemon.status()["at"].as_str().unwrap()).unwrap()
}

impl Trouble for Clock {
    fn begin(&self, stage: &mut Stage) {
        fs::write(stage.prod.path("clock"), format!("{:+}d", self.0)).unwrap();
        eventually("the daemon's clock is off", || {
            let (now, clock) = (SystemTime::now(), clock(stage));
            let off = if self.0 > 0 { clock.duration_since(now) } else { now.duration_since(clock) };
            (off.unwrap_or_default() > DAY).then_some(())
        });
        // How long something has been so is no matter of the clock.
        let uptime = stage.daemon.bastion("prod")["uptime_seconds"].as_f64().unwrap();
        assert!((0.0..DAY.as_secs_f64()).contains(&uptime), "up for {uptime} s");
    }

    fn end(&self, stage: &mut Stage) {
        fs::write(stage.prod.path("clock"), "+0d").unwrap();
    }
}

/// The library that lies about the time, of the package faketime.
fn library() -> PathBuf {
    let places = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let mut libraries = places.map(|place| place.path().join("faketime/libfaketimeMT.so.1"));
    libraries.find(|path| path.exists()).expect("install what the tests need: sudo apt-get install faketime")
}

#[test]
fn a_daemon_whose_clock_jumps() {
    let prod = Bastion::start();
    let (relay, section, clock) =
        (Relay::before(prod.port), prod.section("prod", prod.port), prod.path("clock"));
    fs::write(&clock, "+0d").unwrap();
    let mut stage = Stage::build(prod, relay, &section, |command| {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    });
    for row in [
        row(Clock(400), Carrying),
        row(Clock(400), Dialling),
        row(Clock(-400), Carrying),
        row(Clock(-400), Dialling),
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}
