//! Keys in every format that ssh-keygen writes, with and without a passphrase, and an sshd of long ago.

use std::path::{Path, PathBuf};

use crate::agents::daemon;
use crate::support::account::account;
use crate::support::bastion::{make_key, public_line};
use crate::support::{Bastion, Daemon, eventually};

const PASSPHRASE: &str = "open sesame";

/// One in 256 ecdsa keys cannot be read in OpenSSH's format, which a unit test shows to be explained.
fn readable_key(dir: &Path, name: &str, arguments: &[&str], passphrase: &str) -> PathBuf {
    let mut made = (0..10).map(|number| make_key(dir, &format!("{name}-{number}"), arguments));
    let passphrase = Some(passphrase).filter(|passphrase| !passphrase.is_empty());
    made.find(|key| russh::keys::load_secret_key(key, passphrase).is_ok()).unwrap()
}

#[test]
fn every_kind_of_key_in_every_format() {
    let bastion = Bastion::start();
    let dir = bastion.path("x").parent().unwrap().to_owned();
    let mut sections = String::new();
    let mut names = Vec::new();
    let mut authorized = Vec::new();
    for (kind, size) in
        [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048")]
    {
        for format in ["RFC4716", "PKCS8", "PEM"] {
            for passphrase in ["", PASSPHRASE] {
                // OpenSSH encrypts this one in a way of the last century, which is refused with a hint (below).
                if (kind, format, passphrase.is_empty()) == ("ecdsa", "PEM", false) {
                    continue;
                }
                let name = format!(
                    "{kind}{size}-{}-{}",
                    format.to_lowercase(),
                    if passphrase.is_empty() { "plain" } else { "closed" }
                );
                let arguments = ["-t", kind, "-b", size, "-m", format, "-N", passphrase];
                let key = readable_key(&dir, &name, &arguments, passphrase);
                authorized.push(public_line(&key));
                let section = bastion.keyless_section(&name, bastion.port);
                let passphrase = if passphrase.is_empty() {
                    String::new()
                } else {
                    format!("identity_passphrase = {passphrase:?}\n")
                };
                sections
                    .push_str(&format!("{section}identity = {:?}\n{passphrase}", key.display().to_string()));
                names.push(name);
            }
        }
    }
    bastion.authorize(&authorized.join("\n"));
    let daemon = Daemon::start(&with_a_database(&sections, &names[0]));
    assert!(names.len() > 25);
    for name in &names {
        eventually(&format!("{name} is up"), || {
            let state = daemon.bastion(name);
            let failure = &state["last_failure"];
            assert!(failure.is_null() || failure["phase"] != "auth", "{name}: {failure}");
            (state["up"] == true).then_some(())
        });
    }
}

/// A configuration needs a database; this one is never asked for.
fn with_a_database(sections: &str, bastion: &str) -> String {
    format!(
        "{sections}[databases.unused]\nbastion = \"{bastion}\"\nhost = \"h\"\nlisten = \"127.0.0.1:0\"\n\
         probe = {{ level = \"off\" }}\n"
    )
}

#[test]
fn passphrases_that_are_missing_wrong_or_of_no_use() {
    let bastion = Bastion::start();
    let dir = bastion.path("x").parent().unwrap().to_owned();
    let key = |name: &str, more: &[&str]| {
        let path = make_key(&dir, name, &[&["-N", PASSPHRASE], more].concat());
        path.display().to_string()
    };
    let modern = key("modern", &["-t", "ed25519"]);
    let legacy = key("legacy", &["-t", "ecdsa", "-m", "PEM"]);
    for (name, identity, passphrase, reason, detail) in [
        ("missing", &modern, String::new(), "passphrase", "no `identity_passphrase` is set"),
        ("wrong", &modern, "identity_passphrase = \"wrong\"\n".to_owned(), "passphrase", "does not open"),
        (
            "unset",
            &modern,
            "identity_passphrase = { env = \"UNSET\" }\n".to_owned(),
            "secret",
            "UNSET is not set",
        ),
        (
            "legacy",
            &legacy,
            format!("identity_passphrase = {PASSPHRASE:?}\n"),
            "identity_unreadable",
            "old format",
        ),
    ] {
        let section = bastion.keyless_section(name, bastion.port);
        let daemon =
            Daemon::start(&with_a_database(&format!("{section}identity = {identity:?}\n{passphrase}"), name));
        let event = daemon.wait_event("bastion not reached");
        assert_eq!((&event["phase"], &event["reason"]), (&"auth".into(), &reason.into()), "{event}");
        assert!(event["detail"].as_str().unwrap().contains(detail), "{event}");
        assert!(!daemon.printed().contains(PASSPHRASE));
    }
}

#[test]
fn an_sshd_of_long_ago() {
    let dir = tempfile::TempDir::with_prefix("host-").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let host = make_key(dir.path(), "host", &["-t", "rsa", "-b", "2048", "-N", ""]);
    account().give(&host);
    let public = public_line(&host);
    for (lines, what) in [
        ("HostKeyAlgorithms ssh-rsa", "host key"),
        ("KexAlgorithms diffie-hellman-group14-sha1", "key exchange"),
        ("MACs hmac-sha1\nCiphers aes128-ctr", "MAC"),
    ] {
        let lines = format!("{lines}\nPubkeyAcceptedAlgorithms ssh-rsa");
        let bastion = Bastion::with(&format!("HostKey {}\n{lines}", host.display()));
        let key = make_key(&bastion.path(""), "rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
        bastion.authorize(&public_line(&key));
        let section = bastion.keyless_section("prod", bastion.port);
        let known_hosts = bastion.path(&format!("known_hosts.prod.{}", bastion.port));
        std::fs::write(known_hosts, format!("[127.0.0.1]:{} {public}\n", bastion.port)).unwrap();
        let section = format!("{section}identity = {:?}\n", key.display().to_string());
        let refused = daemon(&section).wait_event("bastion not reached");
        assert_eq!((&refused["phase"], &refused["reason"]), (&"kex".into(), &"no_common_algorithm".into()));
        assert!(
            refused["detail"].as_str().unwrap().contains(&format!("no common {what} algorithm")),
            "{refused}"
        );
        assert!(refused["hint"].as_str().unwrap().contains("`legacy_algorithms = true`"), "{refused}");
        daemon(&format!("{section}legacy_algorithms = true\n")).wait_up("prod");
    }
}
