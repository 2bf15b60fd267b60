//! What happens on the way to the bastion.

use std::time::Duration;

use super::Moment::{Carrying, Dialling, Opening};
use super::Newcomer::Served;
use super::Streams::{Break, Pause, Survive};
use super::stage::Stage;
use super::{Moment, Row, Streams, Trouble, Why, run};
use crate::support::handshake::Stage::{Banner, KeyExchange, Login};
use crate::support::handshake::{Point, Stage as Handshake};
use crate::support::{Bastion, Fault, eventually};

#[derive(Debug)]
enum Path {
    Lasting(Fault),
    /// Over as soon as a connection has ended by it.
    Once(Fault),
}

use Path::{Lasting, Once};

impl Trouble for Path {
    fn begin(&self, stage: &mut Stage) {
        let before = stage.relay.accepted();
        match *self {
            Lasting(fault) => stage.relay.set(fault),
            Once(fault) => {
                stage.relay.set(fault);
                eventually("the connection is cut", || (stage.relay.accepted() > before).then_some(()));
                stage.relay.set(Fault::None);
            }
        }
    }

    fn end(&self, stage: &mut Stage) {
        stage.relay.set(Fault::None);
    }
}

const fn at(stage: Handshake, bytes: usize) -> Point {
    Point { stage, bytes }
}

/// While a session is dialled: what was there has been ended by the test.
const fn dialling(fault: Fault, then: &'static [Why]) -> Row<Path> {
    let fault = Lasting(fault);
    Row { fault, when: Dialling, streams: Survive, lost: &[], then, newcomer: Served }
}

/// While clients are carried.
const fn carrying(fault: Path, lost: &'static [&'static str], then: &'static [Why]) -> Row<Path> {
    Row { fault, when: Carrying, streams: Break, lost, then, newcomer: Served }
}

#[test]
fn a_path_that_stalls_while_a_session_is_dialled() {
    let mut stage = Stage::alert(Bastion::start());
    for row in [
        dialling(Fault::StallAt(at(Banner, 0)), &[Why("banner", "timeout")]),
        dialling(Fault::StallAt(at(Banner, 5)), &[Why("banner", "timeout")]),
        dialling(Fault::StallAt(at(KeyExchange, 0)), &[Why("kex", "timeout")]),
        dialling(Fault::StallAt(at(KeyExchange, 100)), &[Why("kex", "timeout")]),
        dialling(Fault::StallAt(at(Login, 0)), &[Why("auth", "timeout")]),
        dialling(Fault::StallAt(at(Login, 30)), &[Why("auth", "timeout")]),
        dialling(Fault::Trickle, &[Why("banner", "timeout")]),
        dialling(Fault::SilenceUp, &[Why("kex", "timeout")]),
        dialling(Fault::SilenceDown, &[Why("banner", "timeout")]),
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

#[test]
fn a_path_that_is_cut_while_a_session_is_dialled() {
    let mut stage = Stage::alert(Bastion::start());
    for row in [
        dialling(Fault::CutAt(at(Banner, 0)), &[Why("banner", "closed_before_banner")]),
        dialling(Fault::CutAt(at(Banner, 5)), &[Why("banner", "closed_before_banner")]),
        dialling(Fault::CutAt(at(KeyExchange, 0)), &[Why("kex", "closed")]),
        dialling(Fault::CutAt(at(KeyExchange, 1)), &[Why("kex", "closed")]),
        dialling(Fault::CutAt(at(KeyExchange, 100)), &[Why("kex", "closed")]),
        dialling(Fault::CutAt(at(Login, 0)), &[Why("auth", "closed")]),
        dialling(Fault::CutAt(at(Login, 30)), &[Why("auth", "closed")]),
        dialling(Fault::Reset, &[Why("banner", "closed_before_banner")]),
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

#[test]
fn a_path_that_fails_under_clients() {
    let mut stage = Stage::alert(Bastion::start());
    for row in [
        carrying(Lasting(Fault::SilenceUp), &["keepalive_timeout"], &[Why("kex", "timeout")]),
        carrying(Lasting(Fault::SilenceDown), &["keepalive_timeout"], &[Why("banner", "timeout")]),
        carrying(
            Lasting(Fault::Reset),
            &["reset", "closed_by_bastion"],
            &[Why("banner", "closed_before_banner")],
        ),
        carrying(Once(Fault::CutIn(70_001)), &["reset", "closed_by_bastion"], &[]),
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

#[test]
fn a_path_that_fails_when_the_first_client_comes() {
    let mut stage = Stage::alert(Bastion::start());
    for row in [
        Row { when: Opening, ..carrying(Lasting(Fault::SilenceOld), &["keepalive_timeout"], &[]) },
        Row {
            when: Opening,
            ..carrying(Lasting(Fault::SilenceUp), &["keepalive_timeout"], &[Why("kex", "timeout")])
        },
        Row {
            when: Opening,
            ..carrying(Lasting(Fault::SilenceDown), &["keepalive_timeout"], &[Why("channel", "timeout")])
        },
        Row { when: Opening, ..carrying(Once(Fault::CutIn(10)), &["reset", "closed_by_bastion"], &[]) },
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}

/// While clients are carried, and it is no fault of the bastion's.
const fn endured(fault: Fault, when: Moment, streams: Streams, then: &'static [Why]) -> Row<Path> {
    Row { fault: Lasting(fault), when, streams, lost: &[], then, newcomer: Served }
}

#[test]
fn a_path_that_is_slow_or_stands_still_for_a_while() {
    let mut stage = Stage::patient(Bastion::start());
    let slow: &[Why] = &[Why("channel", "timeout")];
    for row in [
        endured(Fault::Delay(Duration::from_millis(100)), Carrying, Survive, &[]),
        endured(Fault::Pause, Carrying, Pause, slow),
        endured(Fault::Pause, Opening, Pause, slow),
        endured(Fault::Trickle, Carrying, Pause, slow),
        endured(Fault::Trickle, Opening, Pause, slow),
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}
