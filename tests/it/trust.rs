//! `tunnelkeeper trust`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::host_keys::{RSA, fingerprint, key_of, other_key, own_file, with_a_database};
use crate::support::daemon::{command, configured, run};
use crate::support::{Bastion, Daemon, eventually};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn trust_shows_every_key_and_stores_what_is_named() {
    let mut bastion = Bastion::start();
    let rsa = other_key(&bastion, "rsa", &RSA);
    let ecdsa = other_key(&bastion, "ecdsa", &["-t", "ecdsa", "-N", ""]);
    bastion
        .reconfigure(|config| format!("{config}\nHostKey {}\nHostKey {}\n", rsa.display(), ecdsa.display()));
    let (dir, config) = configured(&with_a_database(&bastion.unknown_section("prod")));
    let own = own_file(&config);
    let (host, name) = (bastion.path("host"), format!("[127.0.0.1]:{}", bastion.port));

    let refused = run(&config, &["trust", "prod"]);
    assert_eq!(refused.status.code(), Some(1));
    for key in [&host, &ecdsa, &rsa] {
        let public = format!("{}.pub", key.display());
        assert!(text(&refused).contains(&format!("{}  not known\n", fingerprint(Path::new(&public)))));
        assert!(text(&refused).contains(&format!("  {name} {}\n", key_of(key))), "{}", text(&refused));
    }
    assert!(text(&refused).contains("tunnelkeeper trust prod --fingerprint SHA256:"), "{}", text(&refused));
    assert!(!own.exists());

    let wrong = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    let refused = run(&config, &["trust", "prod", "--fingerprint", wrong]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains(&format!("has the fingerprint {wrong}")) && !own.exists());
    assert_eq!(run(&config, &["trust", "prod", "--fingerprint", "MD5:00"]).status.code(), Some(2));

    let right = fingerprint(&bastion.path("host.pub"));
    let stored = run(&config, &["trust", "prod", "--fingerprint", &right]);
    assert!(stored.status.success(), "{}", text(&stored));
    assert_eq!(fs::read_to_string(&own).unwrap(), format!("{name} {}\n", key_of(&host)));
    let again = run(&config, &["trust", "prod", "--fingerprint", &right]);
    assert!(again.status.success() && text(&again).contains("There is nothing to store"), "{}", text(&again));
    assert!(text(&again).contains(&format!("known: {}:1", own.display())));

    // One that has changed is nothing to be confirmed.
    fs::write(&own, format!("{name} {}\n", key_of(&bastion.path("identity")))).unwrap();
    for arguments in [&["trust", "prod"][..], &["trust", "prod", "--fingerprint", &right]] {
        let refused = run(&config, arguments);
        assert_eq!(refused.status.code(), Some(1));
        let advice = format!("if the bastion was rebuilt, remove {}:1 and run this again", own.display());
        assert!(text(&refused).contains(&advice), "{}", text(&refused));
    }
    assert!(!bastion.log().contains("Accepted publickey"), "it logged in");
    drop(dir);
}

/// Runs `trust` on a terminal, and types.
fn on_a_terminal(config: &Path, typed: &str) -> Output {
    on_a_terminal_as(config, typed, "")
}

/// With the shell's redirections.
fn on_a_terminal_as(config: &Path, typed: &str, redirections: &str) -> Output {
    let words = command(config, &["trust", "prod"]);
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap());
    let line: Vec<String> =
        std::iter::once(words.get_program()).chain(words.get_args()).map(quoted).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &(line.join(" ") + redirections), "/dev/null"]).env("SHELL", "/bin/sh");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn trust_asks_on_a_terminal() {
    let mut bastion = Bastion::start();
    let rsa = other_key(&bastion, "rsa", &RSA);
    bastion.reconfigure(|config| format!("{config}\nHostKey {}\n", rsa.display()));
    let (_dir, config) = configured(&with_a_database(&bastion.unknown_section("prod")));
    let own = own_file(&config);
    let refused = on_a_terminal(&config, "no\n");
    assert!(!refused.status.success() && text(&refused).contains("nothing is stored"), "{}", text(&refused));
    assert!(!own.exists());
    let unread = on_a_terminal_as(&config, "yes\n", " >/dev/null");
    assert!(text(&unread).contains("Is this the bastion (yes/no/[fingerprint])?"), "{}", text(&unread));
    fs::remove_file(&own).unwrap();
    let unasked = on_a_terminal_as(&config, "yes\n", " 2>/dev/null");
    assert!(!unasked.status.success() && !own.exists(), "{}", text(&unasked));
    let pin = fingerprint(&bastion.path("rsa.pub"));
    let stored = on_a_terminal(&config, &format!("y\nSHA256:nonsense\n{pin}\n"));
    assert!(stored.status.success(), "{}", text(&stored));
    assert!(text(&stored).contains("Please type yes, no or the fingerprint"), "{}", text(&stored));
    let rsa_line = format!("[127.0.0.1]:{} {}\n", bastion.port, key_of(&rsa));
    assert_eq!(fs::read_to_string(&own).unwrap(), rsa_line, "only what was compared is stored");
    assert!(on_a_terminal(&config, "yes\n").status.success());
    assert_eq!(
        fs::read_to_string(&own).unwrap(),
        format!("{rsa_line}{}\n", bastion.known_hosts_line(bastion.port))
    );
}

#[test]
fn where_a_known_key_is_not_shown_only_a_fingerprint_counts() {
    let bastion = Bastion::start();
    let rsa = other_key(&bastion, "rsa", &RSA);
    let (_dir, config) = configured(&with_a_database(&bastion.unknown_section("prod")));
    let own = own_file(&config);
    let known = format!("[127.0.0.1]:{} {}\n", bastion.port, key_of(&rsa));
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, &known).unwrap();
    let refused = on_a_terminal(&config, "yes\nno\n");
    assert!(!refused.status.success(), "{}", text(&refused));
    let missed = format!("ssh-rsa  {}  {}:1", fingerprint(&bastion.path("rsa.pub")), own.display());
    for expected in ["WARNING", &missed, "Please type no or the fingerprint of one of them"] {
        assert!(text(&refused).contains(expected), "{expected}: {}", text(&refused));
    }
    assert_eq!(fs::read_to_string(&own).unwrap(), known);
    let daemon = Daemon::start(&with_a_database(&format!(
        "{}known_hosts = {own:?}\n",
        bastion.unknown_section("prod")
    )));
    let event = daemon.wait_event("bastion not reached");
    let hint = event["hint"].as_str().unwrap();
    assert!(hint.starts_with("a bastion that has lost the ssh-rsa key that is known of it"), "{event}");
    assert!(hint.contains("/etc/ssh/ssh_host_ed25519_key.pub"), "{event}");
    let pin = fingerprint(&bastion.path("host.pub"));
    assert!(on_a_terminal(&config, &format!("{pin}\n")).status.success());
    assert_eq!(
        fs::read_to_string(&own).unwrap(),
        format!("{known}{}\n", bastion.known_hosts_line(bastion.port))
    );
}

#[test]
fn trust_looks_into_the_daemons_files_not_into_those_of_who_runs_it() {
    let bastion = Bastion::start();
    let (_dir, config) = configured(&with_a_database(&bastion.unknown_section("prod")));
    let own = own_file(&config);
    let (state_dir, home) = (own.parent().unwrap(), bastion.path("home"));
    fs::create_dir_all(state_dir).unwrap();
    fs::create_dir_all(home.join(".ssh")).unwrap();
    let line = format!("{}\n", bastion.known_hosts_line(bastion.port));
    fs::write(home.join(".ssh/known_hosts"), &line).unwrap();
    let trust = || {
        let pin = fingerprint(&bastion.path("host.pub"));
        let mut command = command(&config, &["trust", "prod", "--fingerprint", &pin]);
        command.env("HOME", &home).output().unwrap()
    };
    let output = trust();
    assert!(text(&output).contains("There is nothing to store"), "{}", text(&output));
    std::os::unix::fs::chown(state_dir, Some(12345), None).unwrap();
    let output = trust();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(fs::read_to_string(&own).unwrap(), line);
}

#[test]
fn trust_of_one_learns_nothing_of_its_jump() {
    let (edge, bastion) = (Bastion::start(), Bastion::start());
    let sections = format!(
        "{}host_key_policy = \"accept-new\"\n{}jump = \"edge\"\n",
        edge.unknown_section("edge"),
        bastion.unknown_section("prod")
    );
    let (_dir, config) = configured(&with_a_database(&sections));
    let pin = fingerprint(&bastion.path("host.pub"));
    let refused = run(&config, &["trust", "prod", "--fingerprint", &pin]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("then run `tunnelkeeper trust edge`"), "{}", text(&refused));
    assert!(!own_file(&config).exists());
}

#[test]
fn trust_says_what_else_there_is() {
    let bastion = Bastion::start();
    let pin = fingerprint(&bastion.path("host.pub"));
    let wrong = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    let theirs = bastion.path("theirs");
    fs::write(&theirs, "").unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; cat <&3 & cat >&3", bastion.port);
    let command = format!("proxy_command = [\"bash\", \"-c\", {script:?}]\n");
    let nowhere = "proxy_command = [\"sh\", \"-c\", \"exit 7\"]\n".to_owned();
    for (keys, code, expected) in [
        (format!("host_key = {pin:?}\n"), 0, "so none is stored".to_owned()),
        (format!("host_key = {wrong:?}\n"), 1, "none of these is pinned".to_owned()),
        (format!("known_hosts = {theirs:?}\n"), 1, format!("append to {}", theirs.display())),
        (command, 0, format!("known_hosts: the ssh-ed25519 key {pin}")),
        (nowhere, 1, "tcp proxy_command_failed: ".to_owned()),
    ] {
        let (_dir, config) =
            configured(&with_a_database(&format!("{}{keys}", bastion.unknown_section("prod"))));
        let output = run(&config, &["trust", "prod", "--fingerprint", &pin]);
        assert_eq!(output.status.code(), Some(code), "{keys}: {}", text(&output));
        assert!(text(&output).contains(&expected), "{keys}: {}", text(&output));
    }
    let (_dir, config) = configured(&with_a_database(&bastion.unknown_section("prod")));
    let output = run(&config, &["trust", "pord"]);
    assert!(text(&output).contains("there is no bastion \"pord\": known are prod"), "{}", text(&output));
}

#[test]
fn whoever_meets_an_unknown_key_is_told_of_trust_and_it_helps() {
    let bastion = Bastion::start();
    let daemon = Daemon::start(&with_a_database(&bastion.unknown_section("prod")));
    let event = daemon.wait_event("bastion not reached");
    assert_eq!((&event["phase"], &event["reason"]), (&"host_key".into(), &"unknown".into()), "{event}");
    assert!(event["hint"].as_str().unwrap().ends_with("then run `tunnelkeeper trust prod`"), "{event}");
    eventually("the bastion is refused", || (daemon.bastion("prod")["refusing"] == true).then_some(()));
    let pin = fingerprint(&bastion.path("host.pub"));
    let output = run(&daemon.config(), &["trust", "prod", "--fingerprint", &pin]);
    assert!(output.status.success(), "{}", text(&output));
    daemon.wait_up("prod");
}

#[test]
fn trust_goes_through_jumps_and_names_the_one_that_fails() {
    let (mut edge, bastion) = (Bastion::start(), Bastion::start());
    let pin = fingerprint(&bastion.path("host.pub"));
    let sections =
        format!("{}{}jump = \"edge\"\n", edge.section("edge", edge.port), bastion.unknown_section("prod"));
    let (_dir, config) = configured(&with_a_database(&sections));
    let stored = run(&config, &["trust", "prod", "--fingerprint", &pin]);
    assert!(stored.status.success(), "{}", text(&stored));
    let line = format!("{}\n", bastion.known_hosts_line(bastion.port));
    assert_eq!(fs::read_to_string(own_file(&config)).unwrap(), line);
    assert!(edge.log().contains("Accepted publickey") && !bastion.log().contains("Accepted publickey"));
    edge.kill();
    let failed = run(&config, &["trust", "prod", "--fingerprint", &pin]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed).contains("tcp refused: at the jump \"edge\": "), "{}", text(&failed));
}
