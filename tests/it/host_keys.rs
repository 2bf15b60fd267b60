//! Whose host keys are trusted, and how they become known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::bastion::{make_key, public_line};
use crate::support::{Bastion, Daemon, Postgres, eventually};

pub const ED25519: [&str; 4] = ["-t", "ed25519", "-N", ""];
pub const RSA: [&str; 6] = ["-t", "rsa", "-b", "2048", "-N", ""];

pub fn with_a_database(bastion: &str) -> String {
    format!("{bastion}{}", Postgres::shared().unprobed_section("analytics", "prod"))
}

/// A key's type and base64.
pub fn key_of(path: &Path) -> String {
    public_line(path).rsplit_once(' ').unwrap().0.to_owned()
}

pub fn fingerprint(key: &Path) -> String {
    let output = Command::new("ssh-keygen").arg("-lf").arg(key).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// The file in which a daemon or a command with this configuration stores keys.
pub fn own_file(config: &Path) -> PathBuf {
    config.with_file_name("state").join("known_hosts")
}

/// Makes another key for a bastion, beside its own.
pub fn other_key(bastion: &Bastion, name: &str, arguments: &[&str]) -> PathBuf {
    let key = make_key(bastion.path(name).parent().unwrap(), name, arguments);
    bastion.account.give(&key);
    key
}

/// Has an authority sign a host's key.
fn sign(authority: &Path, key: &Path, arguments: &[&str]) -> PathBuf {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-I", "test", "-s"]).arg(authority).args(arguments);
    let output = command.arg(key.with_extension("pub")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut certificate = key.as_os_str().to_owned();
    certificate.push("-cert.pub");
    certificate.into()
}

/// Whether OpenSSH's own client trusts the bastion.
fn ssh_trusts(bastion: &Bastion, known_hosts: &Path) -> bool {
    let output = Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"])
        .args(["-o", "GlobalKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o"])
        .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
        .arg("-i")
        .arg(bastion.path("identity"))
        .args(["-p", &bastion.port.to_string(), &format!("{}@127.0.0.1", bastion.account.name), "true"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!complaint.contains("onnection"), "{complaint}");
    !complaint.contains("Host key verification failed")
}

/// A host's key, its authority, how that signs, the known_hosts file, and the verdict or its reason and detail.
type Case<'a> = (&'a Path, &'a Path, &'a [&'a str], String, Result<(), (&'a str, &'a str)>);

#[test]
fn certificates_are_judged_as_ssh_judges_them() {
    let mut bastion = Bastion::start();
    let port = bastion.port;
    let (host, rsa_host) = (bastion.path("host"), other_key(&bastion, "rsa_host", &RSA));
    let (authority, rsa_authority) =
        (other_key(&bastion, "authority", &ED25519), other_key(&bastion, "rsa_authority", &RSA));
    let vouching = |authority: &Path| format!("@cert-authority 127.0.0.* {}\n", key_of(authority));
    let (vouches, rsa_vouches) = (vouching(&authority), vouching(&rsa_authority));
    let revokes = |key: &Path| format!("@revoked * {}\n", key_of(key));
    let plain = format!("[127.0.0.1]:{port} {}\n", key_of(&host));
    let changed = format!("[127.0.0.1]:{port} {}\n", key_of(&authority));
    let good: &[&str] = &["-h", "-n", "127.0.0.1"];
    let expired: &[&str] = &["-h", "-n", "127.0.0.1", "-V", "20200101:20200102"];
    let option: &[&str] = &["-h", "-n", "127.0.0.1", "-O", "critical:frobnicate"];
    let cases: [Case<'_>; 18] = [
        (&host, &authority, good, vouches.clone(), Ok(())),
        (&rsa_host, &authority, good, vouches.clone(), Ok(())),
        (&host, &rsa_authority, good, rsa_vouches.clone(), Ok(())),
        (&rsa_host, &rsa_authority, good, rsa_vouches, Ok(())),
        (&host, &authority, &["-h", "-n", "a,127.0.0.1"], vouches.clone(), Ok(())),
        (&host, &authority, good, format!("[127.0.0.1]:{port} ssh-rsa AAAA\n{vouches}"), Ok(())),
        (&host, &authority, good, format!("{vouches}{changed}"), Ok(())),
        // Without the authority's word, the key inside may be known by itself.
        (&host, &authority, expired, format!("{vouches}{plain}"), Ok(())),
        (&host, &rsa_authority, good, format!("{vouches}{plain}"), Ok(())),
        (&host, &authority, expired, format!("{vouches}{changed}"), Err(("changed", "known_hosts"))),
        (&host, &authority, expired, vouches.clone(), Err(("certificate_invalid", "expired at 2020-01-02T"))),
        (
            &host,
            &authority,
            &["-h", "-n", "127.0.0.1", "-V", "20980101:20990101"],
            vouches.clone(),
            Err(("certificate_invalid", "is not valid before 2098-01-01T")),
        ),
        (
            &host,
            &authority,
            &["-h", "-n", &format!("[127.0.0.1]:{port}")],
            vouches.clone(),
            Err(("certificate_invalid", "not for 127.0.0.1")),
        ),
        (
            &host,
            &authority,
            &["-h", "-n", "bastion,127.0.0.2"],
            vouches.clone(),
            Err(("certificate_invalid", "is for bastion and 127.0.0.2, not for 127.0.0.1")),
        ),
        (&host, &authority, option, vouches.clone(), Err(("certificate_invalid", "option \"frobnicate\""))),
        (
            &host,
            &rsa_authority,
            good,
            vouches.clone(),
            Err(("certificate_invalid", "has another authority for it")),
        ),
        (&host, &authority, good, vouches.clone() + &revokes(&authority), Err(("revoked", "revokes"))),
        (&host, &authority, good, vouches + &revokes(&host) + &plain, Err(("revoked", "revokes"))),
    ];
    let config = fs::read_to_string(bastion.path("sshd_config")).unwrap();
    for (key, authority, arguments, lines, expected) in cases {
        let certificate = sign(authority, key, arguments);
        let keys = format!("HostKey {}\nHostCertificate {}\n", key.display(), certificate.display());
        bastion.reconfigure(|_| format!("{keys}{config}"));
        let section = bastion.section("prod", port);
        let known_hosts = bastion.path(&format!("known_hosts.prod.{port}"));
        fs::write(&known_hosts, &lines).unwrap();
        assert_eq!(ssh_trusts(&bastion, &known_hosts), expected.is_ok(), "ssh, {arguments:?}, {lines}");
        let daemon = Daemon::start(&with_a_database(&section));
        match expected {
            Ok(()) => daemon.wait_up("prod"),
            Err((reason, detail)) => {
                let event = daemon.wait_event("bastion not reached");
                assert_eq!(
                    (&event["phase"], &event["reason"]),
                    (&"host_key".into(), &reason.into()),
                    "{event}"
                );
                let said = event["detail"].as_str().unwrap();
                assert!(said.contains(detail) && said.contains("SHA256:"), "{event}");
            }
        }
    }
}

#[test]
fn a_pin_is_for_the_key_whatever_certificate_it_has() {
    let mut bastion = Bastion::start();
    let authority = other_key(&bastion, "authority", &ED25519);
    let certificate = sign(&authority, &bastion.path("host"), &["-h", "-n", "elsewhere"]);
    bastion.reconfigure(|config| format!("HostCertificate {}\n{config}", certificate.display()));
    let pin = fingerprint(&bastion.path("host.pub"));
    let section = format!("{}host_key = {pin:?}\n", bastion.unknown_section("prod"));
    Daemon::start(&with_a_database(&section)).wait_up("prod");
}

#[test]
fn a_pin_is_found_whichever_of_its_keys_the_bastion_shows_first() {
    let mut bastion = Bastion::start();
    let (rsa, ecdsa) =
        (other_key(&bastion, "rsa", &RSA), other_key(&bastion, "ecdsa", &["-t", "ecdsa", "-N", ""]));
    bastion
        .reconfigure(|config| format!("{config}\nHostKey {}\nHostKey {}\n", rsa.display(), ecdsa.display()));
    let keys = [&bastion.path("host"), &ecdsa, &rsa].map(|key| fingerprint(&key.with_extension("pub")));
    let start = |pin: &str| {
        let section = format!("{}host_key = {pin:?}\n", bastion.unknown_section("prod"));
        Daemon::start(&with_a_database(&section))
    };
    for pin in &keys {
        start(pin).wait_up("prod");
    }
    let event = start("SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU").wait_event("bastion not reached");
    assert_eq!((&event["phase"], &event["reason"]), (&"host_key".into(), &"changed".into()), "{event}");
    let detail = event["detail"].as_str().unwrap();
    assert!(keys.iter().all(|key| detail.contains(key)), "{event}");
}

#[test]
fn a_first_key_is_learnt_and_no_second_one() {
    let mut bastion = Bastion::start();
    let section = format!("{}host_key_policy = \"accept-new\"\n", bastion.unknown_section("prod"));
    let daemon = Daemon::start(&with_a_database(&section));
    daemon.wait_up("prod");
    let message = "stored the first host key of this bastion (host_key_policy = \"accept-new\")";
    let learnt = daemon.wait_event(message);
    assert_eq!(learnt["host_key"], fingerprint(&bastion.path("host.pub")).as_str());
    let own = own_file(&daemon.config());
    let line = format!("{}\n", bastion.known_hosts_line(bastion.port));
    assert_eq!(fs::read_to_string(&own).unwrap(), line);

    bastion.kill();
    let right = fs::read(bastion.path("host")).unwrap();
    fs::remove_file(bastion.path("host")).unwrap();
    other_key(&bastion, "host", &ED25519);
    bastion.start_again();
    let changed = daemon.wait_event_where("bastion not reached", |event| event["reason"] == "changed");
    assert!(changed["detail"].as_str().unwrap().contains(&format!("{}:1 has ", own.display())), "{changed}");
    assert_eq!(fs::read_to_string(&own).unwrap(), line);
    bastion.kill();
    fs::write(bastion.path("host"), right).unwrap();
    bastion.start_again();
    fs::write(&own, format!("{line}\n")).unwrap();
    daemon.wait_up("prod");
    assert_eq!(daemon.events(message).len(), 1);
}

#[test]
fn nothing_is_learnt_where_it_cannot_be_kept() {
    let bastion = Bastion::start();
    let state_dir = bastion.path("state");
    fs::create_dir_all(state_dir.join("known_hosts.d")).unwrap();
    std::os::unix::fs::symlink("known_hosts.d/elsewhere", state_dir.join("known_hosts")).unwrap();
    let daemon = Daemon::start(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nstate_dir = {state_dir:?}\n{}host_key_policy = \"accept-new\"\n{}",
        bastion.unknown_section("prod"),
        Postgres::shared().unprobed_section("analytics", "prod")
    ));
    let event = daemon.wait_event("bastion not reached");
    assert_eq!((&event["phase"], &event["reason"]), (&"host_key".into(), &"unreadable".into()), "{event}");
    assert!(event["detail"].as_str().unwrap().ends_with("cannot be changed: it is a link"), "{event}");
    assert!(!bastion.log().contains("Accepted publickey"), "it logged in before the key was kept");
}

#[test]
fn announced_keys_are_learnt_and_a_rotation_needs_nobody() {
    let mut bastion = Bastion::start();
    let (next, rsa) = (other_key(&bastion, "next", &ED25519), other_key(&bastion, "rsa", &RSA));
    bastion
        .reconfigure(|config| format!("{config}\nHostKey {}\nHostKey {}\n", next.display(), rsa.display()));
    let section = format!("{}host_key_policy = \"accept-new\"\n", bastion.unknown_section("prod"));
    let daemon = Daemon::start(&with_a_database(&section));
    daemon.wait_up("prod");
    let own = own_file(&daemon.config());
    let line = |key: &Path| format!("[127.0.0.1]:{} {}\n", bastion.port, key_of(key));
    let (old, new) = (line(&bastion.path("host")), line(&next) + &line(&rsa));
    // Lines without their comments, which say what was announced together.
    let stored = || {
        let text = fs::read_to_string(&own).unwrap();
        let lines = text.lines().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ") + "\n");
        lines.collect::<String>()
    };
    daemon.wait_event("stored the host keys that the bastion announced and proved");
    assert_eq!(stored(), format!("{old}{new}"));

    let host = bastion.path("host");
    let gone = fingerprint(&bastion.path("host.pub"));
    bastion.reconfigure(|config| config.replace(&format!("HostKey {}\n", host.display()), ""));
    eventually("the old key is forgotten", || (stored() == new).then_some(()));
    let event = daemon.wait_event("removed host keys that the bastion does not announce any more");
    assert_eq!(event["gone"], format!("ssh-ed25519 key {gone}").as_str());
    daemon.wait_up("prod");
    assert!(daemon.events("bastion not reached").iter().all(|event| event["phase"] != "host_key"));
}

#[test]
fn several_bastions_behind_one_name_keep_their_keys() {
    let mut bastion = Bastion::start();
    let (other, rsa) = (other_key(&bastion, "other", &ED25519), other_key(&bastion, "rsa", &RSA));
    bastion.reconfigure(|config| format!("{config}\nHostKey {}\n", rsa.display()));
    let state_dir = bastion.path("state");
    let own = state_dir.join("known_hosts");
    let line = |key: &Path| format!("[127.0.0.1]:{} {}\n", bastion.port, key_of(key));
    let (host, rsa_line) = (bastion.path("host"), line(&rsa));
    let both = line(&host) + &line(&other);
    fs::create_dir(&state_dir).unwrap();
    fs::write(&own, &both).unwrap();
    let config = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nstate_dir = {state_dir:?}\n{}",
        with_a_database(&bastion.unknown_section("prod"))
    );
    let first = Daemon::start(&config);
    first.wait_event("stored the host keys that the bastion announced and proved");
    let text = fs::read_to_string(&own).unwrap();
    assert!(text.starts_with(&both) && text.contains(rsa_line.trim_end()), "{text}");
    drop(first);
    bastion.reconfigure(|config| config.replace(&host.display().to_string(), &other.display().to_string()));
    let second = Daemon::start(&config);
    second.wait_up("prod");
    assert!(fs::read_to_string(&own).unwrap().starts_with(&both));
}

#[test]
fn what_somebody_else_says_of_a_bastion_is_not_updated() {
    let mut bastion = Bastion::start();
    let next = other_key(&bastion, "next", &ED25519);
    bastion.reconfigure(|config| format!("{config}\nHostKey {}\n", next.display()));
    let line = format!("{}\n", bastion.known_hosts_line(bastion.port));
    let start = |name: &str, theirs: &str, update: bool| {
        let (state_dir, file) = (bastion.path(name), bastion.path(&format!("theirs.{name}")));
        let own = state_dir.join("known_hosts");
        fs::create_dir(&state_dir).unwrap();
        fs::write(&own, &line).unwrap();
        fs::write(&file, theirs).unwrap();
        let daemon = Daemon::start(&format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nstate_dir = {state_dir:?}\n{}\
             known_hosts = [{file:?}, {own:?}]\nupdate_host_keys = {update}\n{}",
            bastion.unknown_section("prod"),
            Postgres::shared().unprobed_section("analytics", "prod")
        ));
        daemon.wait_up("prod");
        (daemon, own)
    };
    let (known_elsewhere, theirs) = start("elsewhere", &line, true);
    let (_told_not_to, left_alone) = start("not", "", false);
    let (learnt_by_us, ours) = start("ours", "", true);
    known_elsewhere.wait_event("the bastion announced its host keys, and nothing follows from it");
    learnt_by_us.wait_event("stored the host keys that the bastion announced and proved");
    assert_eq!(fs::read_to_string(&ours).unwrap().lines().count(), 2);
    for own in [theirs, left_alone] {
        assert_eq!(fs::read_to_string(&own).unwrap(), line);
    }
}
