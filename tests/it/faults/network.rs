//! What happens on a real network: the bastion is in one of its own, behind a cable, and the kernel drops and rejects.

use std::fs;

use super::Moment::{Carrying, Dialling, Opening};
use super::Newcomer::Served;
use super::Streams::{Break, Pause, Survive};
use super::stage::{ALERT, Stage};
use super::stream::Echo;
use super::{Row, Trouble, Why, run};
use crate::support::hosts::mount_before;
use crate::support::room::{Room, in_a_room, system};
use crate::support::{Bastion, Relay};

const NAME: &str = "bastion.test";
const DAEMON: &str = "10.93.0.1";
const BASTION: &str = "10.93.0.2";
/// In another network: in the same one it would go with the old address.
const NEW: &str = "10.94.0.2";

/// What the bastion's kernel does to packets of SSH, `up` from the daemon and `down` to it.
#[derive(Debug)]
enum Net {
    Drop,
    DropUp,
    DropDown,
    Reset,
    Prohibited,
    /// The bastion has another address, and the name leads there. It stays so.
    Moved,
}

impl Net {
    /// The verdicts on what goes up and what comes down.
    fn verdicts(&self) -> (&'static str, &'static str) {
        match self {
            Self::Drop => ("drop", "drop"),
            Self::DropUp => ("drop", "accept"),
            Self::DropDown => ("accept", "drop"),
            Self::Reset => ("reject with tcp reset", "accept"),
            Self::Prohibited => ("reject with icmp type admin-prohibited", "accept"),
            Self::Moved => ("accept", "accept"),
        }
    }
}

impl Trouble for Net {
    fn begin(&self, stage: &mut Stage) {
        let (up, down) = self.verdicts();
        let port = stage.prod.port;
        let rules = format!(
            "add table inet fault; \
             add chain inet fault up {{ type filter hook input priority 0; }}; \
             add chain inet fault down {{ type filter hook output priority 0; }}; \
             add rule inet fault up tcp dport {port} {up}; add rule inet fault down tcp sport {port} {down}"
        );
        let room = stage.room.as_ref().unwrap();
        room.run(move || system("nft", &rules));
        if matches!(self, Self::Moved) {
            room.run(|| system("ip", &format!("addr del {BASTION}/24 dev here")));
            fs::write(stage.hosts.as_ref().unwrap(), format!("{NEW} {NAME}")).unwrap();
        }
    }

    fn end(&self, stage: &mut Stage) {
        stage.room.as_ref().unwrap().run(|| system("nft", "delete table inet fault"));
        if matches!(self, Self::Moved) {
            let address = format!("{NEW}:{}", stage.prod.port);
            stage.daemon.wait_up("prod");
            assert_eq!(stage.daemon.bastion("prod")["sessions"][0]["address"], address);
        }
    }
}

/// The bastion and the database behind it are in one room, the daemon and the test in another.
fn stage(keys: &str, sshd: &'static str) -> Stage {
    let room = Room::beside(&format!("{DAEMON}/24"), &format!("{BASTION}/24"));
    system("ip", "addr add 10.94.0.1/24 dev there");
    let (prod, echo) = room.run(move || {
        system("ip", &format!("addr add {NEW}/24 dev here"));
        let lines = format!("ListenAddress {BASTION}\nListenAddress {NEW}\n{sshd}");
        (Bastion::with(&lines), Echo::start())
    });
    let hosts = prod.path("daemon.hosts");
    fs::write(&hosts, format!("{BASTION} {NAME}")).unwrap();
    let section = format!("{}{keys}", prod.named_section("prod", NAME));
    let mounts = format!("mount --bind '{}' /etc/hosts", hosts.display());
    let relay = Relay::before(prod.port);
    let mut stage =
        Stage::build_with(prod, relay, echo, &section, "", |command| mount_before(command, &mounts));
    (stage.hosts, stage.room) = (Some(hosts), Some(room));
    stage
}

const fn row(fault: Net, lost: &'static [&'static str], then: &'static [Why]) -> Row<Net> {
    Row { fault, when: Carrying, streams: Break, lost, then, newcomer: Served }
}

/// Whoever is cut off without a word is forgotten by sshd too: no packet of ours can tell it.
const MINDFUL: &str = "ClientAliveInterval 1\nClientAliveCountMax 3";

const SILENT: &[&str] = &["keepalive_timeout"];
const UNANSWERED: &[Why] = &[Why("tcp", "timeout")];

#[test]
fn a_network_that_fails() {
    in_a_room(|| {
        let mut stage = stage(ALERT, MINDFUL);
        for row in [
            row(Net::Drop, SILENT, UNANSWERED),
            row(Net::DropUp, SILENT, UNANSWERED),
            row(Net::DropDown, SILENT, UNANSWERED),
            row(Net::Reset, &["reset"], &[Why("tcp", "refused")]),
            row(Net::Prohibited, &["keepalive_timeout", "reset"], &[Why("tcp", "unreachable")]),
            row(Net::Moved, SILENT, &[]),
        ] {
            run(&mut stage, &row);
        }
        stage.end();
    });
}

#[test]
fn a_network_that_fails_while_a_session_is_dialled_or_idle() {
    in_a_room(|| {
        let mut stage = stage(ALERT, MINDFUL);
        let dialling = |fault, then| Row { when: Dialling, streams: Survive, ..row(fault, &[], then) };
        for row in [
            dialling(Net::Drop, UNANSWERED),
            dialling(Net::DropUp, UNANSWERED),
            dialling(Net::DropDown, UNANSWERED),
            dialling(Net::Reset, &[Why("tcp", "refused")]),
            dialling(Net::Prohibited, &[Why("tcp", "unreachable")]),
            Row { when: Opening, ..row(Net::Drop, SILENT, UNANSWERED) },
            Row { when: Opening, ..row(Net::Reset, &["reset"], &[Why("tcp", "refused")]) },
        ] {
            run(&mut stage, &row);
        }
        stage.end();
    });
}

#[test]
fn a_network_that_fails_for_a_moment() {
    in_a_room(|| {
        let mut stage = stage("", "");
        for row in [
            Row { streams: Pause, ..row(Net::Drop, &[], &[]) },
            Row { streams: Pause, ..row(Net::DropUp, &[], &[]) },
            Row { streams: Pause, ..row(Net::DropDown, &[], &[]) },
        ] {
            run(&mut stage, &row);
        }
        stage.end();
    });
}
