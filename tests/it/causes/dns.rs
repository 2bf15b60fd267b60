//! The name of a bastion: the daemon runs on a machine with another resolver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, mkfifo};
use serde_json::Value;

use super::{At, doctor_finds, says, status_shows};
use crate::agents::unused_database;
use crate::support::account::Account;
use crate::support::daemon::{command, configured};
use crate::support::instead::{hosts_by, seeing};
use crate::support::{Bastion, Daemon};

/// What the daemon says of a bastion whose name it cannot resolve, on a machine that looks for hosts in these places and
/// has these files.
fn fails_on_a_machine_with(places: &str, files: &[(&str, Option<&str>)]) -> Value {
    let bastion = Bastion::start();
    let section = bastion.section("prod", bastion.port);
    let section = section.replace("host = \"127.0.0.1\"", "host = \"bastion.invalid\"");
    let (dir, config) = configured(&unused_database(&format!("{section}connect_timeout = \"1s\"\n")));
    let hosts_by = hosts_by(places);
    let instead: Vec<(PathBuf, &str)> = files
        .iter()
        .chain([&("/etc/nsswitch.conf", Some(&*hosts_by))])
        .enumerate()
        .map(|(index, (place, text))| {
            let ours = dir.path().join(format!("instead{index}"));
            match text {
                Some(text) => fs::write(&ours, text).unwrap(),
                // Whoever reads it waits for somebody to write it.
                None => mkfifo(&ours, Mode::S_IRUSR).unwrap(),
            }
            (ours, *place)
        })
        .collect();
    let daemon = Daemon::spawn(dir, there(&instead, &config, &["run"]));
    let (at, failure) = (At::Bastion("prod"), status_shows(&daemon, &At::Bastion("prod")));
    let found = there(&instead, &config, &["doctor", "--format", "json"]).output().unwrap();
    doctor_finds(&found, &at, &failure);
    failure
}

/// A command line of the product on that machine.
fn there(instead: &[(PathBuf, &str)], config: &Path, arguments: &[&str]) -> Command {
    let me = Account { name: String::new(), uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let here = command(config, arguments);
    let mut there = seeing(instead, &me, here.get_program().as_ref());
    there.args(here.get_args()).env_clear();
    there.envs(here.get_envs().filter_map(|(name, value)| Some((name, value?))));
    there.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    there
}

super::cases! {
    a_name_that_does_not_exist: [DnsNotFound] => {
        let failure = fails_on_a_machine_with("files", &[]);
        [says(failure, "\"bastion.invalid\" cannot be resolved", "check the bastion's `host`")]
    }

    a_name_server_that_cannot_be_asked: [DnsFailed] => {
        // Nobody may send there.
        let nowhere = "nameserver 255.255.255.255\noptions timeout:1 attempts:1\n";
        let failure = fails_on_a_machine_with("dns", &[("/etc/resolv.conf", Some(nowhere))]);
        [says(failure, "\"bastion.invalid\" cannot be resolved", "/etc/resolv.conf")]
    }

    a_look_up_that_never_ends: [DnsTimeout] => {
        let failure = fails_on_a_machine_with("files", &[("/etc/hosts", None)]);
        [says(failure, "no answer to the look-up of \"bastion.invalid\"", "name server")]
    }
}
