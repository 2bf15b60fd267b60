//! The command line, as a user meets it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::support::account::find;
use crate::support::bastion::{make_key, public_line};
use crate::support::daemon::{command, configured, run};
use crate::support::{Bastion, Daemon, Postgres, free_port, tunnel};

const SMALL: &str = "[bastions.prod]\nhost = \"bastion.example.com\"\nuser = \"tunnelkeeper\"\n\
                     [databases.analytics]\nbastion = \"prod\"\nhost = \"analytics.internal\"\nlisten = \"127.0.0.1:15432\"\n\
                     [databases.other]\nbastion = \"prod\"\nhost = \"::1\"\nport = 6432\nlisten = \"127.0.0.1:15433\"\n";

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_is_enough_to_begin_with() {
    let help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tunnelkeeper")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        out(&output)
    };
    let whole = help(&["--help"]);
    for word in ["run", "config", "keygen", "status", "--config", "TUNNELKEEPER_CONFIG", "config check"] {
        assert!(whole.contains(word), "{word} is not in\n{whole}");
    }
    assert!(help(&["run", "--help"]).contains("SIGTERM"));
    assert!(help(&["keygen", "--help"]).contains("--force"));
    assert!(help(&["status", "--help"]).contains("TUNNELKEEPER_URL"));
    assert!(help(&["config", "show", "--help"]).contains("secrets masked"));
    assert!(help(&["--version"]).starts_with("tunnelkeeper "));
    assert_eq!(help(&["help", "keygen"]), help(&["keygen", "--help"]));
}

#[test]
fn wrong_usage_is_two_and_a_wrong_configuration_is_seventy_eight() {
    let output = Command::new(env!("CARGO_BIN_EXE_tunnelkeeper")).args(["frobnicate"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let (_dir, config) = configured("[bastions.prod]\nhots = \"b\"\n");
    for arguments in [&["run"][..], &["config", "check"], &["config", "show"], &["keygen", "prod"]] {
        let output = run(&config, arguments);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let text = err(&output);
        for line in
            ["bastions.prod.host: is missing", "bastions.prod.hots: unknown key: did you mean \"host\"?"]
        {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(text.lines().all(|line| line.starts_with("tunnelkeeper: /")), "{text}");
    }
    let (_dir, config) = configured(&format!("{SMALL}[log]\nlevel = \"tunnelkeeper=loud\"\n"));
    let output = run(&config, &["config", "check"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(err(&output).contains("log.level: \"tunnelkeeper=loud\" is not a log level"), "{output:?}");
    let (_dir, config) = configured(SMALL);
    let output = command(&config, &["run"]).env("RUST_LOG", "warning").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(err(&output).starts_with("tunnelkeeper: the environment: RUST_LOG: \"warning\""), "{output:?}");
    let output = run(Path::new("/nonexistent/tunnelkeeper.toml"), &["run"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        err(&output).contains("/nonexistent/tunnelkeeper.toml: there is no such file: write it"),
        "{output:?}"
    );
}

#[test]
fn check_and_show() {
    let password =
        "user = \"u\"\npassword = { command = [\"op\", \"read\", \"hunter2\"] }\n[databases.other]";
    let (_dir, config) = configured(&SMALL.replace("[databases.other]", password));
    let output = run(&config, &["config", "check"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).starts_with("the configuration is good: 1 bastion, 2 databases ("), "{output:?}");
    let shown =
        command(&config, &["config", "show"]).env("TUNNELKEEPER__LOG__LEVEL", "warn").output().unwrap();
    let text = out(&shown);
    let lines: Vec<&str> = text.lines().collect();
    let line = |start: &str| {
        *lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} not in {text}"))
    };
    assert!(line("level = \"warn\"").ends_with("# the environment"));
    assert!(line("host = \"bastion.example.com\"").ends_with("tunnelkeeper.toml"));
    assert!(line("keepalive_interval = \"30s\"").ends_with("# default"));
    let tables: Vec<&&str> = lines.iter().filter(|line| line.starts_with('[')).collect();
    assert_eq!(tables[..4], [&"[http]", &"[log]", &"[daemon]", &"[bastions.prod]"]);
    // What is shown is itself a configuration, with nothing left to default.
    let (_dir, again) = configured("");
    fs::write(&again, &text).unwrap();
    let reshown = run(&again, &["config", "show"]);
    let values = |text: &str| {
        text.lines().map(|line| line.split(" # ").next().unwrap().trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&out(&reshown)), values(&text), "{}", err(&reshown));
    assert!(!out(&reshown).contains("# default"), "{}", out(&reshown));
    let json = run(&config, &["config", "show", "--format", "json"]);
    let keys: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    for (key, value) in [
        ("databases.analytics.port", json!(5432)),
        ("databases.analytics.listen", json!(["127.0.0.1:15432"])),
        ("databases.analytics.allow_remote_clients", json!(false)),
        ("databases.analytics.stall_timeout", json!("1m")),
        ("databases.analytics.password", json!({ "command": ["op", "..."] })),
    ] {
        let found = keys.iter().find(|found| found["key"] == key).unwrap();
        assert_eq!(found["value"], value, "{key}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (_dir, config) = configured(SMALL);
    for arguments in [&["config", "show"][..], &["config", "check"], &["keygen", "prod"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(&config, arguments).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&config, &["config", "show"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "tunnelkeeper: the output cannot be written: No space left on device\n");
}

#[test]
fn check_notes_files_that_are_not_there() {
    let (dir, config) = configured(&format!(
        "{SMALL}user = \"u\"\npassword = {{ file = \"password\" }}\ntls = {{ mode = \"verify-full\", ca = \"ca.pem\" }}\n\
         [bastions.second]\nhost = \"b\"\nuser = \"u\"\nidentity = [\"key\", \"here\"]\nknown_hosts = \"known\"\n\
         identity_passphrase = {{ file = \"loop\" }}\ncertificate = \"cert\"\nagent = \"socket\"\n\
         password = {{ file = \"secret\" }}\n"
    ));
    fs::write(dir.path().join("here"), "").unwrap();
    std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
    let output = run(&config, &["config", "check"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = out(&output).replace(&format!("{}/", dir.path().display()), "");
    for note in [
        "bastions.second.identity: there is no such file yet: key",
        "bastions.second.known_hosts: there is no such file yet: known",
        "bastions.second.identity_passphrase: loop cannot be read by the user running this: Too many",
        "bastions.second.certificate: there is no such file yet: cert",
        "bastions.second.agent: there is no such file yet: socket",
        "bastions.second.password: there is no such file yet: secret",
        "databases.other.password: there is no such file yet: password",
        "databases.other.tls.ca: there is no such file yet: ca.pem",
    ] {
        assert!(text.contains(&format!("note: {note}")), "{note} is not in {text}");
    }
    assert_eq!(text.matches("note: ").count(), 9, "{text}");
}

#[test]
fn keygen_makes_a_key_and_says_what_the_bastion_needs() {
    let (dir, config) = configured(SMALL);
    let output = run(&config, &["keygen", "prod"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let key = dir.path().join("state/keys/prod");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let public = fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned();
    let line = format!(
        "restrict,port-forwarding,command=\"/bin/false\",permitopen=\"[::1]:6432\",\
         permitopen=\"analytics.internal:5432\" {public}"
    );
    assert!(out(&output).contains(&line), "{line} is not in {}", out(&output));
    fs::remove_file(key.with_extension("pub")).unwrap();
    let again = run(&config, &["keygen", "prod"]);
    assert_eq!(again.status.code(), Some(0));
    let heading = format!("(already there: {}; --force makes a new one):", key.display());
    assert!(out(&again).contains(&public) && out(&again).contains(&heading), "{}", out(&again));
    assert!(key.with_extension("pub").exists(), "the public half was not restored");
    let forced = run(&config, &["keygen", "prod", "--force"]);
    assert_eq!(forced.status.code(), Some(0));
    assert!(!out(&forced).contains(&public), "--force kept the old key");
    let unknown = run(&config, &["keygen", "dev"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("there is no bastion \"dev\": known are prod"), "{unknown:?}");
}

#[test]
fn keygen_for_a_bastion_without_databases_allows_nothing() {
    let (_dir, config) = configured(&format!("{SMALL}[bastions.idle]\nhost = \"b\"\nuser = \"u\"\n"));
    let text = out(&run(&config, &["keygen", "idle"]));
    assert!(text.contains("  restrict,command=\"/bin/false\" ssh-ed25519 "), "{text}");
    assert!(
        !text.contains("port-forwarding") && text.contains("run `tunnelkeeper keygen idle` again"),
        "{text}"
    );
}

#[test]
fn keygen_opens_an_encrypted_key_and_says_what_to_do_if_it_cannot() {
    let passphrase = "identity_passphrase = { env = \"PASSPHRASE\" }\n[databases.analytics]";
    let (dir, config) = configured(&SMALL.replace("[databases.analytics]", passphrase));
    let keys = dir.path().join("state/keys");
    fs::create_dir_all(&keys).unwrap();
    let key = make_key(&keys, "prod", &["-t", "ed25519", "-N", "open sesame"]);
    let opened = command(&config, &["keygen", "prod"]).env("PASSPHRASE", "open sesame").output().unwrap();
    assert!(out(&opened).contains(&public_line(&key)), "{opened:?}");
    let closed = run(&config, &["keygen", "prod"]);
    assert_eq!(closed.status.code(), Some(1));
    assert!(
        err(&closed).contains("`identity_passphrase` of bastion \"prod\": environment variable PASSPHRASE"),
        "{closed:?}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let shared = run(&config, &["keygen", "prod"]);
    assert!(err(&shared).trim_end().ends_with(&format!("chmod 600 {}", key.display())), "{shared:?}");
}

/// What sshd has to say about the lines that `keygen` prints for its configuration.
fn sshd_says_of(bastion: &Bastion, text: &str) -> String {
    let lines = &text[text.find("  Match User ").unwrap()..];
    let config = bastion.path("sshd_config.of.keygen");
    fs::write(&config, format!("HostKey {}\n{lines}", bastion.path("host").display())).unwrap();
    err(&Command::new(find("sshd")).arg("-t").arg("-f").arg(config).output().unwrap())
}

#[test]
fn the_line_of_keygen_is_what_sshd_enforces() {
    let bastion = Bastion::start();
    let postgres = Postgres::shared();
    let section = bastion.keyless_section("prod", bastion.port);
    let mut daemon = Daemon::start(&format!("{section}{}", postgres.section("analytics", "prod")));
    let output = run(&daemon.config(), &["keygen", "prod"]);
    let text = out(&output);
    let line = text.lines().find(|line| line.contains("restrict,")).unwrap();
    assert_eq!(sshd_says_of(&bastion, &text), "", "sshd does not understand the lines for it");
    bastion.authorize(line.trim());
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    let config = fs::read_to_string(daemon.config()).unwrap();
    // The second database is on a port that the line does not name.
    let other = postgres.unprobed_section("other", "prod").replace(
        &format!("port = {}\n", postgres.port),
        &format!("port = {}\nhold = {{ timeout = \"0s\" }}\n", free_port()),
    );
    let again = Daemon::start(&format!("{config}{other}"));
    again.wait_up("prod");
    assert!(crate::support::client::run_psql(again.address("analytics"), "user=trusted", "SELECT 1").is_ok());
    let refused =
        crate::support::client::run_psql(again.address("other"), "user=trusted", "SELECT 1").unwrap_err();
    assert!(refused.contains("channel prohibited"), "{refused}");
    // No command is run, and there is no shell.
    let key = daemon.dir.path().join("state/keys/prod");
    let ssh = Command::new("ssh")
        .args([
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ])
        .args([
            "-F",
            "none",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
            &key.display().to_string(),
            "-p",
            &bastion.port.to_string(),
        ])
        .args([&format!("{}@127.0.0.1", bastion.account.name), "echo broken in"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!ssh.status.success() && !out(&ssh).contains("broken in"), "{ssh:?}");
}

#[test]
fn status_can_be_watched_through_an_end_of_the_daemon() {
    let (bastion, daemon) = tunnel("", &Postgres::shared().unprobed_section("analytics", "prod"));
    let mut watch = command(&daemon.config(), &["status", "--watch", "--url", &daemon.url()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = |start: &str| lines.find(|line| line.starts_with(start)).unwrap();
    for _ in 0..2 {
        assert!(next("tunnelkeeper ").ends_with(": ready"));
        assert!(next("prod ").contains(" up "));
    }
    drop((daemon, bastion));
    next("no daemon answers at");
    // Nobody reads any more.
    drop(lines);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn status_shows_what_is_up_and_what_is_not() {
    let bastion = Bastion::start();
    let config = format!(
        "[bastions.gone]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"u\"\n[databases.lost]\nbastion = \"gone\"\nhost = \"h\"\n\
         listen = \"127.0.0.1:0\"\n{}{}[databases.shut]\nbastion = \"prod\"\nhost = \"127.0.0.1\"\nport = {}\n\
         listen = \"127.0.0.1:0\"\nhold = {{ timeout = \"0s\" }}\nprobe = {{ level = \"off\" }}\n",
        free_port(),
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod"),
        free_port()
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    daemon.wait_event("bastion not reached");
    crate::support::eventually("the probe is answered", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    crate::support::client::run_psql(daemon.address("shut"), "user=trusted", "SELECT 1").unwrap_err();
    let url = daemon.url();
    // While a dial is under way there is no next attempt.
    let text = crate::support::eventually("the bastion waits for its next attempt", || {
        let output = run(&daemon.config(), &["status", "--url", &url]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        Some(out(&output)).filter(|text| text.contains("next attempt in"))
    });
    for part in [
        "BASTION",
        "DATABASE",
        "prod ",
        "gone ",
        " up ",
        " down ",
        "tcp refused: cannot connect to",
        "clients: channel connect_failed: ",
        "hint: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let one =
        command(Path::new("/none"), &["status", "analytics"]).env("TUNNELKEEPER_URL", &url).output().unwrap();
    assert!(out(&one).contains("analytics") && !out(&one).contains("gone"), "{one:?}");
    let lost = run(&daemon.config(), &["status", "lost", "--url", &url]);
    assert!(out(&lost).contains("tcp refused") && !out(&lost).contains("analytics"), "{lost:?}");
    assert_eq!(daemon.database("shut")["last_failure"]["current"], true);
    let json = run(&daemon.config(), &["status", "--format", "json", "--url", &url]);
    let snapshot: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(snapshot["bastions"].as_array().unwrap().len(), 2);
    let unknown = run(&daemon.config(), &["status", "nobody", "--url", &url]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("no bastion or database \"nobody\""));
    let nobody = run(&daemon.config(), &["status", "--url", &format!("http://127.0.0.1:{}", free_port())]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(err(&nobody).contains("no daemon answers at") && err(&nobody).contains("--url"), "{nobody:?}");
    let unset = command(Path::new("/none"), &["status"]).env("TUNNELKEEPER_URL", "").output().unwrap();
    assert!(!err(&unset).contains("is not the address of a daemon"), "{unset:?}");
    let sshd = format!("http://127.0.0.1:{}", bastion.port);
    let foreign = run(&daemon.config(), &["status", "--url", &sshd]);
    assert!(
        err(&foreign).contains(&format!("what answers at {sshd} is not tunnelkeeper: name")),
        "{foreign:?}"
    );
    let nonsense = run(&daemon.config(), &["status", "--url", "ftp://x"]);
    assert!(err(&nonsense).contains("is not the address of a daemon"), "{nonsense:?}");
}
