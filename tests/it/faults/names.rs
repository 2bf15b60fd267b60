//! What happens to the bastion's name.

use std::fs;

use super::Moment::{Carrying, Dialling};
use super::Newcomer::Served;
use super::Streams::Survive;
use super::stage::Stage;
use super::{Row, Trouble, Why, run};
use crate::support::hosts::mount_before;
use crate::support::{Bastion, Relay, eventually};

const NAME: &str = "bastion.test";

/// Where the name leads.
#[derive(Debug)]
enum Name {
    Nowhere,
    /// To an address that the bastion has too.
    Moved,
    /// To an address where nobody is.
    Astray,
}

impl Trouble for Name {
    fn begin(&self, stage: &mut Stage) {
        let to = match self {
            Self::Nowhere => "127.0.0.1 localhost".to_owned(),
            Self::Moved => format!("127.0.0.2 {NAME}"),
            Self::Astray => format!("127.0.0.3 {NAME}"),
        };
        fs::write(stage.hosts.as_ref().unwrap(), to).unwrap();
    }

    fn end(&self, stage: &mut Stage) {
        if matches!(self, Self::Moved) {
            let there = format!("127.0.0.2:{}", stage.prod.port);
            eventually("the session is at the new address", || {
                (stage.daemon.bastion("prod")["sessions"][0]["address"] == there).then_some(())
            });
        }
        fs::write(stage.hosts.as_ref().unwrap(), format!("127.0.0.1 {NAME}")).unwrap();
    }
}

const fn row(fault: Name, then: &'static [Why]) -> Row<Name> {
    Row { fault, when: Dialling, streams: Survive, lost: &[], then, newcomer: Served }
}

#[test]
fn a_name_that_changes() {
    let prod = Bastion::with("ListenAddress 127.0.0.2");
    let relay = Relay::before(prod.port);
    let (hosts, rules) = (prod.path("daemon.hosts"), prod.path("nsswitch.conf"));
    fs::write(&hosts, format!("127.0.0.1 {NAME}")).unwrap();
    // Nobody else is asked.
    fs::write(&rules, "hosts: files").unwrap();
    let section = prod.named_section("prod", NAME);
    let mounts = format!(
        "mount --bind '{}' /etc/hosts && mount --bind '{}' /etc/nsswitch.conf",
        hosts.display(),
        rules.display()
    );
    let mut stage = Stage::build(prod, relay, &section, |command| mount_before(command, &mounts));
    stage.hosts = Some(hosts);
    for row in [
        Row { when: Carrying, ..row(Name::Nowhere, &[]) },
        row(Name::Nowhere, &[Why("dns", "not_found")]),
        row(Name::Astray, &[Why("tcp", "refused")]),
        row(Name::Moved, &[]),
    ] {
        run(&mut stage, &row);
    }
    stage.end();
}
