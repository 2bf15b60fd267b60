//! Keys in an ssh-agent.

use std::os::unix::net::UnixListener;

use crate::support::bastion::{make_key, public_line};
use crate::support::{Agent, Bastion, Daemon, eventually};

/// A daemon whose bastion is described by its own keys, and whose database is never asked for.
pub fn daemon(section: &str) -> Daemon {
    Daemon::start(&unused_database(section))
}

pub fn unused_database(section: &str) -> String {
    format!(
        "{section}[databases.unused]\nbastion = \"prod\"\nhost = \"h\"\nlisten = \"127.0.0.1:0\"\n\
         probe = {{ level = \"off\" }}\n"
    )
}

/// The failure that a daemon meets first.
pub fn failure(section: &str) -> (Daemon, String, String, String) {
    let daemon = daemon(section);
    let event = daemon.wait_event("bastion not reached");
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(text("phase"), "auth", "{event}");
    (daemon, text("reason"), text("detail"), text("hint"))
}

#[test]
fn every_kind_of_key_in_an_agent() {
    for kind in [&["-t", "ed25519"][..], &["-t", "ecdsa"], &["-t", "rsa", "-b", "2048"]] {
        let bastion = Bastion::start();
        let key = make_key(&bastion.path(""), "held", &[kind, &["-N", ""]].concat());
        bastion.authorize(&public_line(&key));
        let agent = Agent::start();
        agent.add(&key, &[]);
        let section = bastion.keyless_section("prod", bastion.port);
        let daemon = daemon(&format!("{section}{}", agent.line()));
        daemon.wait_up("prod");
        assert!(!daemon.dir.path().join("state/keys").exists(), "a key was made that nobody asked for");
    }
}

#[test]
fn the_agent_of_the_environment() {
    let bastion = Bastion::start();
    let agent = Agent::start();
    agent.add(&bastion.path("identity"), &[]);
    let section = format!("{}agent = true\n", bastion.keyless_section("prod", bastion.port));
    let config = unused_database(&section);
    let daemon = Daemon::with(&config, |command| {
        command.env("SSH_AUTH_SOCK", &agent.socket);
    });
    daemon.wait_up("prod");
    let (_daemon, reason, detail, hint) = failure(&section);
    assert_eq!(reason, "agent");
    assert!(detail.contains("$SSH_AUTH_SOCK is not set") && hint.contains("path"), "{detail} {hint}");
}

#[test]
fn an_agent_signs_for_the_keys_that_are_named_and_shows_no_others() {
    let bastion = Bastion::with("MaxAuthTries 2");
    let agent = Agent::start();
    for other in 0..4 {
        agent.add(&make_key(&bastion.path(""), &format!("other{other}"), &["-N", ""]), &[]);
    }
    let closed = make_key(&bastion.path(""), "closed", &["-t", "ed25519", "-N", ""]);
    agent.add(&closed, &[]);
    let status = std::process::Command::new("ssh-keygen")
        .args(["-q", "-p", "-N", "open sesame", "-f"])
        .arg(&closed)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    bastion.authorize(&public_line(&closed));
    let section = bastion.keyless_section("prod", bastion.port);
    // By its public file, and by its private one, which nothing opens here.
    for identity in [format!("{}.pub", closed.display()), closed.display().to_string()] {
        let daemon = daemon(&format!("{section}identity = {identity:?}\n{}", agent.line()));
        daemon.wait_up("prod");
    }
    // One that the agent does not have.
    let public = format!("{}.pub", bastion.path("identity").display());
    let (_daemon, reason, detail, hint) =
        failure(&format!("{section}identity = {public:?}\n{}", agent.line()));
    assert_eq!((reason.as_str(), hint.as_str()), ("agent", "add it: ssh-add"), "{detail}");
    assert!(detail.contains(&public), "{detail}");
    // All of them are too many for this bastion.
    let (_daemon, reason, detail, hint) = failure(&format!("{section}{}", agent.line()));
    assert_eq!(reason, "too_many_failures", "{detail}");
    assert!(hint.contains("`identity`"), "{hint}");
}

#[test]
fn what_is_wrong_with_an_agent_is_named() {
    let bastion = Bastion::start();
    let section = bastion.keyless_section("prod", bastion.port);
    let absent = bastion.path("no-socket").display().to_string();
    let (_daemon, reason, detail, _) = failure(&format!("{section}agent = {absent:?}\n"));
    assert_eq!(reason, "agent");
    assert!(detail.contains(&absent) && detail.contains("No such file"), "{detail}");

    let agent = Agent::start();
    let (_daemon, reason, detail, hint) = failure(&format!("{section}{}", agent.line()));
    assert_eq!((reason.as_str(), hint.as_str()), ("agent", "add one: ssh-add"));
    assert!(detail.contains("has no keys"), "{detail}");

    // It would ask a person, and there is none.
    agent.add(&bastion.path("identity"), &["-c"]);
    let (_daemon, reason, detail, _) = failure(&format!("{section}{}", agent.line()));
    assert_eq!(reason, "agent");
    assert!(detail.contains("refuses to sign"), "{detail}");

    let listener = UnixListener::bind(bastion.path("silent")).unwrap();
    let silent = bastion.path("silent").display().to_string();
    let (_daemon, reason, detail, _) = failure(&format!("{section}agent = {silent:?}\n"));
    assert_eq!(reason, "agent");
    assert!(detail.contains("did not answer within"), "{detail}");
    drop(listener);
}

#[test]
fn an_agent_that_fails_leaves_the_rest_to_try() {
    let bastion = Bastion::start();
    let agent = Agent::start();
    let other = make_key(&bastion.path(""), "confirmed", &["-N", ""]);
    agent.add(&other, &["-c"]);
    bastion.authorize(&format!("{}\n{}", public_line(&other), public_line(&bastion.path("identity"))));
    let section = bastion.keyless_section("prod", bastion.port);
    let identities = [format!("{}.pub", other.display()), bastion.path("identity").display().to_string()];
    let daemon = daemon(&format!("{section}identity = {identities:?}\n{}", agent.line()));
    daemon.wait_up("prod");
}

#[test]
fn an_agent_that_comes_late_is_noticed() {
    let bastion = Bastion::start();
    let agent = Agent::start();
    agent.add(&bastion.path("identity"), &[]);
    let late = bastion.path("late");
    let section = bastion.keyless_section("prod", bastion.port);
    let (daemon, ..) = failure(&format!("{section}agent = {:?}\n", late.display().to_string()));
    eventually("it is asked rarely", || (daemon.bastion("prod")["refusing"] == true).then_some(()));
    std::os::unix::fs::symlink(&agent.socket, &late).unwrap();
    daemon.wait_up("prod");
}

#[test]
fn a_key_that_an_agent_holds_for_one_host_only() {
    let (bastion, other) = (Bastion::start(), Bastion::start());
    let agent = Agent::start();
    other.authorize(&public_line(&bastion.path("identity")));
    let section = bastion.keyless_section("prod", bastion.port);
    let elsewhere = other.keyless_section("prod", other.port);
    let known_hosts = bastion.path(&format!("known_hosts.prod.{}", bastion.port)).display().to_string();
    let host = format!("[127.0.0.1]:{}", bastion.port);
    agent.add(&bastion.path("identity"), &["-H", &known_hosts, "-h", &host]);
    daemon(&format!("{section}{}", agent.line())).wait_up("prod");
    let (_daemon, reason, detail, _) = failure(&format!("{elsewhere}{}", agent.line()));
    assert_eq!(reason, "agent");
    assert!(detail.contains("refuses to sign"), "{detail}");
}
