//! Ways to a bastion other than straight.

use std::fs;

use crate::support::client::{Job, job};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime};

/// The keys of a bastion that is reached through `gateway` with OpenSSH's own client.
pub fn through(gateway: &Bastion) -> String {
    let identity = gateway.path("identity").display().to_string();
    let (port, user) = (gateway.port.to_string(), format!("{}@127.0.0.1", gateway.account.name));
    let known_hosts = gateway.path("known_hosts.of.ssh");
    fs::write(&known_hosts, gateway.known_hosts_line(gateway.port)).unwrap();
    let known_hosts = format!("UserKnownHostsFile={}", known_hosts.display());
    let words = [
        "ssh",
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        &known_hosts,
        "-i",
        &identity,
    ];
    let words = [&words[..], &["-p", &port, "-W", "%h:%p", &user]].concat();
    format!("proxy_command = {words:?}\n")
}

/// The processes that have this in their command line.
fn processes(part: &str) -> usize {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(part))
        .count()
}

#[test]
fn a_bastion_behind_a_command() {
    let mut gateway = Bastion::start();
    let bastion = Bastion::start();
    let keys = through(&gateway);
    let config = format!(
        "{}{keys}sessions = {{ max = 1 }}\n{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let (address, runtime) = (daemon.address("analytics"), runtime());
    assert_eq!(runtime.block_on(job(address)), Job::Done);
    let its_own = gateway.path("known_hosts.of.ssh").display().to_string();
    assert_eq!(processes(&its_own), 1);

    gateway.kill();
    daemon.wait_down("prod");
    let failure = eventually("the command has failed", || {
        let failure = daemon.bastion("prod")["last_failure"].clone();
        (failure["reason"] == "proxy_command_failed").then_some(failure)
    });
    assert_eq!(failure["phase"], "tcp");
    let detail = failure["detail"].as_str().unwrap();
    assert!(detail.contains("the proxy_command ssh ended (exit status: 255): \""), "{detail}");
    assert!(detail.contains("Connection refused"), "{detail}");
    let held = runtime.spawn(job(address));
    gateway.start_again();
    daemon.wait_up("prod");
    assert_eq!(runtime.block_on(held).unwrap(), Job::Done);

    drop(daemon);
    eventually("no command is left", || (processes(&its_own) == 0).then_some(()));
}

#[test]
fn a_command_that_does_not_exist_and_one_that_is_silent() {
    let bastion = Bastion::start();
    for (command, phase, reason) in [
        ("[\"/nonexistent/proxy\", \"%h\"]", "tcp", "proxy_command_failed"),
        ("[\"sh\", \"-c\", \"cat > /dev/null\"]", "banner", "timeout"),
    ] {
        let daemon = Daemon::start(&format!(
            "{}connect_timeout = \"1s\"\nproxy_command = {command}\n{}",
            bastion.section("prod", bastion.port),
            Postgres::shared().unprobed_section("analytics", "prod")
        ));
        let event = daemon.wait_event("bastion not reached");
        assert_eq!((&event["phase"], &event["reason"]), (&phase.into(), &reason.into()), "{event}");
    }
}
