//! OpenSSH user certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::agents::{daemon, failure};
use crate::support::bastion::make_key;
use crate::support::{Agent, Bastion, Daemon, eventually};

/// A bastion that trusts an authority, and no key by itself.
pub struct Certified {
    pub bastion: Bastion,
    authority: PathBuf,
    _dir: tempfile::TempDir,
}

impl Certified {
    pub fn start() -> Self {
        let dir = tempfile::TempDir::with_prefix("authority-").unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let authority = make_key(dir.path(), "authority", &["-t", "ed25519", "-N", ""]);
        let bastion = Bastion::with(&format!("TrustedUserCAKeys {}.pub", authority.display()));
        bastion.authorize("");
        Self { bastion, authority, _dir: dir }
    }

    pub fn key(&self, name: &str, kind: &[&str]) -> PathBuf {
        make_key(&self.bastion.path(""), name, &[kind, &["-N", ""]].concat())
    }

    /// Certifies a key for a principal and a time, in a file beside it.
    pub fn sign(&self, key: &Path, principal: &str, time: &str) -> PathBuf {
        let status = Command::new("ssh-keygen")
            .args(["-q", "-I", "the id", "-n", principal, "-V", time, "-s"])
            .arg(&self.authority)
            .arg(format!("{}.pub", key.display()))
            .status();
        assert!(status.unwrap().success());
        PathBuf::from(format!("{}-cert.pub", key.display()))
    }

    pub fn user(&self) -> &str {
        &self.bastion.account.name
    }

    pub fn section(&self, more: &str) -> String {
        format!("{}{more}", self.bastion.keyless_section("prod", self.bastion.port))
    }
}

const EXPIRY: &str = "ssh_certificate_expiry_timestamp_seconds{bastion=\"prod\"}";

fn identity(key: &Path) -> String {
    format!("identity = {:?}\n", key.display().to_string())
}

#[test]
fn every_kind_of_key_with_a_certificate() {
    let certified = Certified::start();
    for (name, kind) in [
        ("ed25519", &["-t", "ed25519"][..]),
        ("ecdsa256", &["-t", "ecdsa", "-b", "256"]),
        ("ecdsa521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
    ] {
        let key = certified.key(name, kind);
        certified.sign(&key, certified.user(), "-1h:+365d");
        let daemon = daemon(&certified.section(&identity(&key)));
        daemon.wait_up("prod");
        let expires = eventually("its end is known", || daemon.metrics().get(EXPIRY).copied());
        let days = (expires - std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()) / 86400.0;
        assert!((364.0..366.0).contains(&days), "{days}");
        let state = &daemon.bastion("prod")["certificate"];
        assert_eq!(state["ending"], false, "{state}");
        assert_eq!(state["file"], format!("{}-cert.pub", key.display()), "{state}");
        assert!(daemon.events("certificate expires soon, or has expired").is_empty());
    }
}

#[test]
fn a_certificate_in_an_agent_and_one_for_a_key_in_an_agent() {
    let certified = Certified::start();
    let agent = Agent::start();
    let key = certified.key("held", &["-t", "rsa", "-b", "2048"]);
    // One that has come into the agent without the other.
    agent.add(&key, &[]);
    let certificate = certified.sign(&key, certified.user(), "always:forever");
    let elsewhere = certified.bastion.path("elsewhere.pub");
    fs::rename(&certificate, &elsewhere).unwrap();
    let named = format!("certificate = {:?}\n{}", elsewhere.display().to_string(), agent.line());
    let by_file = daemon(&certified.section(&named));
    by_file.wait_up("prod");
    assert!(!by_file.metrics().contains_key(EXPIRY), "it never ends");
    drop(by_file);

    fs::rename(&elsewhere, &certificate).unwrap();
    agent.add(&key, &[]);
    fs::remove_file(&certificate).unwrap();
    daemon(&certified.section(&agent.line())).wait_up("prod");
    // Also where the key is named.
    let public = PathBuf::from(format!("{}.pub", key.display()));
    daemon(&certified.section(&format!("{}{}", identity(&public), agent.line()))).wait_up("prod");
}

#[test]
fn a_certificate_whose_time_is_over_or_not_come_is_not_shown() {
    let certified = Certified::start();
    let key = certified.key("key", &["-t", "ed25519"]);
    for (time, found) in [
        ("20200101000000Z:20200102000000Z", "expired at 2020-01-02T00:00:00Z"),
        ("20990101000000Z:20990201000000Z", "is not valid before 2099-01-01T00:00:00Z"),
    ] {
        let certificate = certified.sign(&key, certified.user(), time);
        let (daemon, reason, detail, _) = failure(&certified.section(&identity(&key)));
        assert_eq!(reason, "certificate_expired", "{detail}");
        assert!(detail.contains(found) && detail.contains(&certificate.display().to_string()), "{detail}");
        let failed = "session_failures_total{bastion=\"prod\",phase=\"auth\",reason=\"certificate_expired\"}";
        eventually("it is counted", || (daemon.metrics()[failed] >= 1.0).then_some(()));
        assert!(daemon.metrics().contains_key(EXPIRY));
        let shown = status(&daemon);
        assert_eq!(shown.contains("has expired: 2020-01-02"), found.contains("expired"), "{shown}");
    }
    assert!(!certified.bastion.log().contains("Certificate invalid"), "the bastion was asked");
    // Renewed, it is taken at once, however rarely the bastion is asked by now.
    let (daemon, ..) = failure(&certified.section(&identity(&key)));
    eventually("it is asked rarely", || (daemon.bastion("prod")["refusing"] == true).then_some(()));
    certified.sign(&key, certified.user(), "-1h:+1h");
    daemon.wait_up("prod");
}

fn status(daemon: &Daemon) -> String {
    let output = crate::support::daemon::run(&daemon.config(), &["status", "--url", &daemon.url()]);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_that_ends_soon_is_warned_of() {
    let certified = Certified::start();
    let key = certified.key("key", &["-t", "ed25519"]);
    let certificate = certified.sign(&key, certified.user(), "-30d:+6d");
    let daemon = daemon(&certified.section(&identity(&key)));
    let event = daemon.wait_event("certificate expires soon, or has expired");
    assert_eq!(event["certificate"], certificate.display().to_string(), "{event}");
    daemon.wait_up("prod");
    let shown = status(&daemon);
    assert!(shown.contains(&format!("the certificate {} expires at", certificate.display())), "{shown}");
    assert!(daemon.get("/").1.contains("expires at"));
    assert_eq!(daemon.events("certificate expires soon, or has expired").len(), 1);
}

#[test]
fn a_key_that_is_accepted_alone_needs_no_certificate() {
    let certified = Certified::start();
    let key = certified.key("key", &["-t", "ed25519"]);
    certified.bastion.authorize(&crate::support::bastion::public_line(&key));
    for (principal, time) in [("somebody-else", "-1h:+365d"), ("somebody-else", "20200101:20200102")] {
        certified.sign(&key, principal, time);
        let daemon = daemon(&certified.section(&identity(&key)));
        daemon.wait_up("prod");
        assert!(!daemon.metrics().contains_key(EXPIRY), "it was not used");
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_named() {
    let certified = Certified::start();
    let (key, other) = (certified.key("key", &[]), certified.key("other", &[]));
    certified.sign(&key, "somebody-else", "-1h:+365d");
    let (_daemon, reason, detail, hint) = failure(&certified.section(&identity(&key)));
    assert_eq!(reason, "rejected", "{detail}");
    assert!(hint.contains("AuthorizedPrincipalsFile"), "{hint}");
    assert!(detail.contains("the certificate \"the id\" for somebody-else"), "{detail}");

    fs::remove_file(format!("{}-cert.pub", key.display())).unwrap();
    let of_other = certified.sign(&other, certified.user(), "-1h:+365d").display().to_string();
    let named = |file: &str| certified.section(&format!("{}certificate = {file:?}\n", identity(&key)));
    let (_daemon, _, detail, _) = failure(&named(&of_other));
    assert!(detail.contains(&format!("the certificate {of_other} is for the key SHA256:")), "{detail}");

    let missing = certified.bastion.path("missing").display().to_string();
    let (_daemon, _, detail, _) = failure(&named(&missing));
    assert!(detail.contains(&format!("there is no certificate {missing}")), "{detail}");
    let public = format!("{}.pub", key.display());
    let (_daemon, _, detail, _) = failure(&named(&public));
    assert!(detail.contains(&format!("the certificate {public} is not an OpenSSH certificate")), "{detail}");
}

#[test]
fn one_for_a_jump() {
    let certified = Certified::start();
    let key = certified.key("key", &["-t", "ed25519"]);
    certified.sign(&key, certified.user(), "-30d:+6d");
    let inner = Bastion::start();
    let edge = certified.bastion.keyless_section("edge", certified.bastion.port);
    let section = format!("{edge}{}{}jump = \"edge\"\n", identity(&key), inner.section("prod", inner.port));
    let daemon = daemon(&section);
    daemon.wait_up("prod");
    let event = daemon.wait_event("certificate expires soon, or has expired");
    assert_eq!(event["bastion"], "edge", "{event}");
    let of_edge = EXPIRY.replace("prod", "edge");
    eventually("its end is known", || daemon.metrics().get(&of_edge).copied());
    assert!(!daemon.metrics().contains_key(EXPIRY));
}
