//! What happens to the bastion's sshd.

use super::Moment::{Carrying, Dialling, Opening};
use super::Newcomer::{Refused, Served};
use super::Streams::{Break, Survive};
use super::stage::Stage;
use super::stream::Stream;
use super::{Row, Trouble, Why, run};
use crate::support::account::find;
use crate::support::bastion::make_key;
use crate::support::processes::children;
use crate::support::{Bastion, eventually};

#[derive(Clone, Copy, Debug)]
enum Sshd {
    /// The machine loses power, and gets it again.
    Killed,
    /// The service is restarted: connections that exist have processes of their own, and go on.
    ListenerKilled,
    /// Another sshd is there, with another host key.
    Replaced,
    /// It can start no process.
    OutOfProcesses,
    /// It can accept no connection.
    OutOfDescriptors,
    /// Its sessions can connect to nothing.
    SessionsOutOfDescriptors,
}

/// Bounds what one of sshd's processes may have, or gives it back what it may have had: see prlimit(1).
fn limit(bastion: &Bastion, pid: u32, limit: &str) {
    let mut command = bastion.account.command(&find("prlimit"));
    let status = command.args(["--pid", &pid.to_string(), limit]).status().unwrap();
    assert!(status.success());
}

/// The processes that serve connections: each has a monitor, and one below it that does the work.
fn sessions(bastion: &Bastion) -> impl Iterator<Item = u32> {
    let monitors = children(bastion.pid()).into_iter();
    monitors.flat_map(|monitor| children(monitor).into_iter().chain([monitor]))
}

/// The descriptor that a process gets next.
fn first_free(process: u32) -> u32 {
    (0..).find(|number| !std::path::Path::new(&format!("/proc/{process}/fd/{number}")).is_symlink()).unwrap()
}

/// Puts the host key away that it has, and another in its place; or back again.
fn exchange_host_key(bastion: &Bastion) {
    let (key, other) = (bastion.path("host"), bastion.path("other_host"));
    if !other.exists() {
        make_key(bastion.path("").as_path(), "other_host", &["-t", "ed25519", "-N", ""]);
        bastion.account.give(&other);
    }
    let aside = bastion.path("aside");
    for (from, to) in [(&key, &aside), (&other, &key), (&aside, &other)] {
        std::fs::rename(from, to).unwrap();
    }
}

impl Trouble for Sshd {
    fn begin(&self, stage: &mut Stage) {
        let prod = &mut stage.prod;
        match self {
            Self::Killed => prod.kill(),
            Self::ListenerKilled => prod.kill_listener(),
            Self::Replaced => {
                prod.kill();
                exchange_host_key(prod);
                prod.start_again();
            }
            Self::OutOfProcesses => limit(prod, prod.pid(), "--nproc=1:"),
            Self::OutOfDescriptors => limit(prod, prod.pid(), "--nofile=4:"),
            Self::SessionsOutOfDescriptors => {
                for process in sessions(prod) {
                    limit(prod, process, &format!("--nofile={}:", first_free(process)));
                }
            }
        }
    }

    fn end(&self, stage: &mut Stage) {
        let prod = &mut stage.prod;
        match self {
            Self::Killed | Self::ListenerKilled => prod.start_again(),
            Self::Replaced => {
                prod.kill();
                exchange_host_key(prod);
                prod.start_again();
                stage.daemon.signal(nix::sys::signal::Signal::SIGHUP);
            }
            Self::OutOfProcesses => limit(prod, prod.pid(), "--nproc=4096:"),
            Self::OutOfDescriptors => limit(prod, prod.pid(), "--nofile=1024:"),
            Self::SessionsOutOfDescriptors => {
                sessions(prod).for_each(|process| limit(prod, process, "--nofile=1024:"));
            }
        }
    }
}

const fn row(fault: Sshd, lost: &'static [&'static str], then: &'static [Why]) -> Row<Sshd> {
    Row { fault, when: Carrying, streams: Survive, lost, then, newcomer: Served }
}

const REFUSED: &[Why] = &[Why("tcp", "refused")];
const CLOSED: &[Why] = &[Why("banner", "closed_before_banner")];
const ENDED: &[&str] = &["closed_by_bastion", "reset"];

#[test]
fn an_sshd_that_is_killed_restarted_or_replaced() {
    let mut stage = Stage::direct(Bastion::start());
    let changed: &[Why] = &[Why("host_key", "changed")];
    for row in [
        Row { streams: Break, ..row(Sshd::Killed, ENDED, REFUSED) },
        Row { when: Opening, ..row(Sshd::Killed, ENDED, REFUSED) },
        row(Sshd::ListenerKilled, &[], &[]),
        Row { when: Dialling, ..row(Sshd::ListenerKilled, &[], REFUSED) },
        Row { streams: Break, newcomer: Refused, ..row(Sshd::Replaced, ENDED, changed) },
        Row { when: Opening, newcomer: Refused, ..row(Sshd::Replaced, ENDED, changed) },
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

#[test]
fn an_sshd_that_runs_out_of_something() {
    let mut stage = Stage::direct(Bastion::start());
    let unconnected: &[Why] = &[Why("channel", "connect_failed")];
    for row in [
        row(Sshd::OutOfProcesses, &[], &[]),
        Row { when: Dialling, ..row(Sshd::OutOfProcesses, &[], CLOSED) },
        row(Sshd::OutOfDescriptors, &[], &[]),
        Row { when: Dialling, ..row(Sshd::OutOfDescriptors, &[], &[Why("banner", "timeout")]) },
        row(Sshd::SessionsOutOfDescriptors, &[], unconnected),
        Row { when: Opening, ..row(Sshd::SessionsOutOfDescriptors, &[], unconnected) },
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

/// How often keys have changed in both directions together.
fn rekeyed(bastion: &Bastion) -> usize {
    bastion.log().matches("set_newkeys").count()
}

#[test]
fn an_sshd_that_changes_keys_all_the_time() {
    let stage = Stage::patient(Bastion::with("RekeyLimit 256K\nLogLevel DEBUG1"));
    let before = rekeyed(&stage.prod);
    let streams: Vec<Stream> = (0..8).map(|_| stage.fast_stream()).collect();
    eventually("keys have changed many times under load", || {
        assert!(streams.iter().all(|stream| !stream.has_ended()));
        (rekeyed(&stage.prod) >= before + 40).then_some(())
    });
    streams.into_iter().for_each(|stream| stream.must_be_whole(&stage.runtime));
    stage.assert_bystander_untouched();
    assert_eq!(stage.daemon.bastion("prod")["sessions"][0]["id"], 1, "the session that was there first");
    stage.assert_nothing_left_behind();
    stage.end();
}
