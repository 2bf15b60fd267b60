//! `tunnelkeeper doctor`.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::agents::unused_database;
use crate::host_keys::{ED25519, fingerprint, key_of, other_key, own_file};
use crate::support::daemon::{command, configured, run};
use crate::support::postgres::{DATABASE, PASSWORD, SCRAM, TRUSTED};
use crate::support::{Bastion, Daemon, Postgres, eventually};
use crate::ways::through;

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it finds, as programs see it; it has to end with this exit code.
fn report(config: &Path, names: &[&str], code: i32) -> Value {
    let output = run(config, &[&["doctor", "--format", "json"], names].concat());
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["passed"], code == 0, "{report:#}");
    report
}

/// The check of a bastion, or of a database through one.
fn check<'a>(report: &'a Value, name: &str, through: Option<&str>) -> &'a Value {
    let is_it = |check: &&Value| match through {
        None => check["bastion"] == name,
        Some(bastion) => check["database"] == name && check["through"] == bastion,
    };
    let found = report["checks"].as_array().unwrap().iter().find(is_it);
    found.unwrap_or_else(|| panic!("there is no {name} in {report:#}"))
}

/// `stage outcome` of each stage, with the reason where it failed.
fn stages(check: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let stages = check["stages"].as_array().unwrap().iter();
    stages
        .map(|stage| {
            let reason =
                stage["failure"]["reason"].as_str().map_or(String::new(), |reason| format!(" {reason}"));
            format!("{} {}{reason}", word(&stage["stage"]), word(&stage["outcome"]))
        })
        .collect()
}

fn detail(check: &Value, stage: &str) -> String {
    let stages = check["stages"].as_array().unwrap();
    let stage = stages.iter().find(|found| found["stage"] == stage).unwrap();
    stage["detail"].as_str().unwrap_or_default().to_owned()
}

const LOGGED_IN: [&str; 7] = [
    "identity passed",
    "tcp passed",
    "banner passed",
    "kex passed",
    "host_key passed",
    "auth passed",
    "ping passed",
];

const ANSWERED: [&str; 6] = [
    "credentials passed",
    "forwarding passed",
    "reach passed",
    "db_tls passed",
    "db_login passed",
    "db_query passed",
];

/// The whole contents of a directory.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            all.push((path.display().to_string(), Vec::new()));
            all.extend(contents(&path));
        } else {
            all.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

/// `[databases.analytics]` whose probe gives a password.
fn with_a_password(bastions: &str) -> String {
    let section = Postgres::shared().section("analytics", "prod");
    let section = section.replace("bastion = \"prod\"", &format!("bastion = {bastions}"));
    format!("{}password = {PASSWORD:?}\n", section.replace(TRUSTED, SCRAM))
}

#[test]
fn a_healthy_set_up_passes_hop_by_hop_also_beside_a_daemon() {
    let [edge, prod, spare] = [(); 3].map(|()| Bastion::start());
    let config = format!(
        "{}{}jump = \"edge\"\n{}{}",
        edge.section("edge", edge.port),
        prod.section("prod", prod.port),
        spare.section("spare", spare.port),
        with_a_password("[\"prod\", \"spare\"]")
    );
    let (dir, path) = configured(&config);
    let before = contents(dir.path());
    let found = report(&path, &[], 0);
    for bastion in ["edge", "prod", "spare"] {
        assert_eq!(stages(check(&found, bastion, None)), LOGGED_IN, "{found:#}");
    }
    for bastion in ["prod", "spare"] {
        assert_eq!(stages(check(&found, "analytics", Some(bastion))), ANSWERED, "{found:#}");
    }
    let (at_edge, at_prod) = (check(&found, "edge", None), check(&found, "prod", None));
    assert_eq!(detail(at_edge, "tcp"), format!("127.0.0.1:{} from 127.0.0.1", edge.port));
    assert_eq!(at_edge["source_address"], "127.0.0.1");
    assert_eq!(detail(at_prod, "tcp"), format!("127.0.0.1:{} through edge", prod.port));
    assert!(at_prod["source_address"].is_null());
    assert!(detail(at_edge, "banner").starts_with("SSH-2.0-OpenSSH_"), "{at_edge:#}");
    assert!(detail(at_edge, "kex").contains(", ssh-ed25519, "), "{at_edge:#}");
    assert!(detail(at_edge, "host_key").starts_with("known by "), "{at_edge:#}");
    assert!(detail(at_edge, "host_key").ends_with(&format!(":1: {}", fingerprint(&edge.path("host.pub")))));
    let key = edge.path("identity").display().to_string();
    assert_eq!(detail(at_edge, "auth"), format!("by {key}"));
    assert!(detail(at_edge, "identity").contains(&key));
    assert_eq!(edge.log().matches("Accepted publickey").count(), 1, "each hop is logged in to once");
    assert_eq!(contents(dir.path()), before, "something was written");

    let daemon = Daemon::start(&config);
    for bastion in ["edge", "prod", "spare"] {
        daemon.wait_up(bastion);
    }
    let sessions = |bastion: &str| daemon.bastion(bastion)["sessions"].clone();
    let before = ["edge", "prod", "spare"].map(|bastion| sessions(bastion)[0]["id"].clone());
    let text = run(&daemon.config(), &["doctor"]);
    assert_eq!(text.status.code(), Some(0), "{text:?}");
    for line in
        ["bastion prod (", ") through edge", "  ping         ok", "through spare", "  query        ok"]
    {
        assert!(out(&text).contains(line), "{line} is not in {}", out(&text));
    }
    assert!(out(&text).ends_with("All is well: 3 bastions and 1 database.\n"), "{}", out(&text));
    assert_eq!(before, ["edge", "prod", "spare"].map(|bastion| sessions(bastion)[0]["id"].clone()));
    let metrics = daemon.metrics();
    let lost = metrics.iter().filter(|(series, _)| series.starts_with("session_losses_total"));
    assert_eq!(lost.map(|(_, count)| count).sum::<f64>(), 0.0);
    for shown in [found.to_string(), out(&text), String::from_utf8_lossy(&text.stderr).into_owned()] {
        assert!(!shown.contains(PASSWORD) && !shown.contains('\x1b'), "{shown}");
    }
}

#[test]
fn a_prohibited_forward_is_the_bastions_affair() {
    let (prod, spare) = (Bastion::with("PermitOpen 127.0.0.1:1"), Bastion::start());
    let (_dir, path) = configured(&format!(
        "{}{}{}",
        prod.section("prod", prod.port),
        spare.section("spare", spare.port),
        with_a_password("[\"prod\", \"spare\"]")
    ));
    let found = report(&path, &["analytics"], 1);
    assert_eq!(
        stages(check(&found, "analytics", Some("prod"))),
        [
            "credentials passed",
            "forwarding failed prohibited",
            "reach not_reached",
            "db_tls not_reached",
            "db_login not_reached",
            "db_query not_reached"
        ]
    );
    assert_eq!(stages(check(&found, "analytics", Some("spare"))), ANSWERED);
    let finding = &found["findings"][0];
    assert_eq!(finding["subjects"][0], "database analytics through prod");
    assert_eq!((&finding["side"], &finding["place"]), (&"bastion".into(), &"bastion prod".into()));
    assert_eq!(finding["failure"]["phase"], "channel");
    let text = out(&run(&path, &["doctor"]));
    for line in [
        "  forwarding   FAILED",
        "  not reached: reach, TLS, login, query\n",
        "analytics can be used through spare, and not through prod.\n",
        "\ndatabase analytics through prod: channel prohibited\n",
        "  where  bastion prod\n",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn a_changed_host_key_ends_the_walk_before_the_login() {
    let bastion = Bastion::start();
    let section = bastion.section("prod", bastion.port);
    let other = key_of(&other_key(&bastion, "other", &ED25519));
    let known_hosts = bastion.path(&format!("known_hosts.prod.{}", bastion.port));
    fs::write(&known_hosts, format!("[127.0.0.1]:{} {other}\n", bastion.port)).unwrap();
    let (_dir, path) = configured(&format!("{section}{}", with_a_password("\"prod\"")));
    let found = report(&path, &[], 1);
    assert_eq!(
        stages(check(&found, "prod", None))[1..],
        [
            "tcp passed",
            "banner passed",
            "kex passed",
            "host_key failed changed",
            "auth not_reached",
            "ping not_reached"
        ]
    );
    let database = check(&found, "analytics", Some("prod"));
    assert_eq!(stages(database)[0], "credentials passed", "it does not need the bastion");
    assert!(stages(database)[1..].iter().all(|stage| stage.ends_with(" not_reached")), "{database:#}");
    assert_eq!(found["findings"].as_array().unwrap().len(), 1, "{found:#}");
    let text = out(&run(&path, &["doctor"]));
    assert!(
        text.contains("(see bastion\n               prod)") || text.contains("(see bastion prod)"),
        "{text}"
    );
    assert!(!bastion.log().contains("Accepted publickey"), "it logged in");
}

#[test]
fn a_key_that_is_not_there_is_not_made_and_does_not_keep_the_rest_from_being_tried() {
    let bastion = Bastion::start();
    let own = bastion.keyless_section("own", bastion.port);
    let named = bastion.section("named", bastion.port);
    let identity = bastion.path("identity").display().to_string();
    let named = named.replace(&identity, "/nonexistent/key");
    let database = Postgres::shared().section("analytics", "own");
    let (dir, path) = configured(&format!("{own}{named}{database}"));
    let before = contents(dir.path());
    let found = report(&path, &[], 1);
    let rest = [
        "tcp passed",
        "banner passed",
        "kex passed",
        "host_key passed",
        "auth not_reached",
        "ping not_reached",
    ];
    for (bastion, reason, hint) in [
        ("own", "no_identity", "`tunnelkeeper keygen own` makes it now"),
        ("named", "identity_unreadable", "correct `identity`"),
    ] {
        let check = check(&found, bastion, None);
        assert_eq!(stages(check)[0], format!("identity failed {reason}"));
        assert_eq!(stages(check)[1..7], rest);
        let hints = check["stages"][0]["failure"]["hint"].as_str().unwrap();
        assert!(hints.contains(hint), "{hints}");
    }
    assert_eq!(stages(check(&found, "named", None))[7], "forwarding not_asked");
    assert_eq!(contents(dir.path()), before, "something was written");
}

#[test]
fn a_key_of_the_daemons_own_that_the_bastion_rejects_is_shown() {
    let bastion = Bastion::start();
    let database = Postgres::shared().section("analytics", "own");
    let (_dir, path) = configured(&format!("{}{database}", bastion.keyless_section("own", bastion.port)));
    assert!(run(&path, &["keygen", "own"]).status.success());
    let public = fs::read_to_string(path.with_file_name("state").join("keys/own.pub")).unwrap();
    let found = report(&path, &[], 1);
    assert_eq!(stages(check(&found, "own", None))[5], "auth failed rejected");
    assert_eq!(found["findings"][0]["public_key"], public.trim());
    let text = out(&run(&path, &["doctor"]));
    let key = public.split(' ').nth(1).unwrap();
    assert!(text.contains(key) && text.contains("`tunnelkeeper keygen`"), "{text}");
    bastion.authorize(&public);
    report(&path, &[], 0);
}

#[test]
fn a_first_host_key_is_believed_where_the_daemon_would_and_not_stored() {
    let bastion = Bastion::start();
    let section = bastion.unknown_section("prod");
    let database = Postgres::shared().section("analytics", "prod");
    let (_dir, path) = configured(&format!("{section}host_key_policy = \"accept-new\"\n{database}"));
    let found = report(&path, &["prod"], 0);
    let text = detail(check(&found, "prod", None), "host_key");
    assert!(text.ends_with("which the daemon would store (host_key_policy = \"accept-new\")"), "{text}");
    assert!(!own_file(&path).exists());
    let (_dir, path) = configured(&format!("{section}{database}"));
    let found = report(&path, &["prod"], 1);
    assert_eq!(stages(check(&found, "prod", None))[4], "host_key failed unknown");
    let hint = found["findings"][0]["failure"]["hint"].as_str().unwrap();
    assert!(hint.ends_with("then run `tunnelkeeper trust prod`"), "{hint}");
}

#[test]
fn what_costs_is_not_asked_and_each_refusal_is_told_in_sshds_words() {
    let bastion = Bastion::start();
    // Whoever logged in to it would find no such database.
    let costly = Postgres::shared().section("costly", "prod").replace(DATABASE, "nobody_asks_for_it");
    let costly = format!("{costly}kind = \"redshift-serverless\"\ntls = {{ mode = \"require\" }}\n");
    let (_kept, closed) = closed_port();
    let closed = |name: &str| {
        let port = Postgres::shared().port;
        let section = Postgres::shared().section(name, "prod");
        section.replace(&format!("port = {port}"), &format!("port = {closed}"))
    };
    let unresolved = closed("unresolved").replace("host = \"127.0.0.1\"", "host = \"no-such-host.invalid\"");
    let (_dir, path) = configured(&format!(
        "{}{costly}{}{unresolved}",
        bastion.section("prod", bastion.port),
        closed("refused")
    ));
    let found = report(&path, &["costly"], 0);
    let costly = check(&found, "costly", Some("prod"));
    assert_eq!(
        stages(costly),
        ["forwarding passed", "reach passed", "db_tls passed", "db_login not_asked", "db_query not_asked"]
    );
    assert_eq!(detail(costly, "db_query"), "probe.level is \"tls\", since a query bills at least 60 s");
    let found = report(&path, &["refused", "unresolved"], 1);
    for (name, words) in
        [("refused", "\"Connection refused\""), ("unresolved", "\"Name or service not known\"")]
    {
        let check = check(&found, name, Some("prod"));
        assert_eq!(stages(check)[1..3], ["forwarding passed", "reach failed connect_failed"]);
        let said = check["stages"][2]["failure"]["detail"].as_str().unwrap();
        assert!(said.ends_with(words), "{said}");
    }
}

#[test]
fn what_the_configuration_does_not_have_is_said() {
    let bastion = Bastion::start();
    let section = bastion.section("prod", bastion.port);
    let (_dir, path) = configured(&format!("{section}{}", with_a_password("\"prod\"")));
    let unknown = run(&path, &["doctor", "prod", "nix"]);
    assert_eq!(unknown.status.code(), Some(1));
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(text, "tunnelkeeper: there is no bastion or database \"nix\": known are prod, analytics\n");
    let (_dir, path) = configured(&format!("{section}colour = 1\n"));
    let wrong = run(&path, &["doctor", "--format", "json"]);
    assert_eq!(wrong.status.code(), Some(78));
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(text.contains("bastions.prod.colour: unknown key"), "{text}");
    let report: Value = serde_json::from_slice(&wrong.stdout).unwrap();
    assert_eq!(report["passed"], false);
    let problems = report["configuration"]["problems"].as_array().unwrap();
    assert!(problems.iter().any(|problem| problem.as_str().unwrap().contains("colour")), "{report}");
}

/// A port that nobody listens on, and that nobody else gets while this is kept.
fn closed_port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

#[test]
fn a_bastion_that_is_not_reached_is_told_by_the_stage_and_keeps_none_from_being_tried() {
    let bastion = Bastion::start();
    let (_kept, closed) = closed_port();
    let named = bastion.section("named", 22).replace("\"127.0.0.1\"", "\"no-such-host.invalid\"");
    let (broken, command) =
        (bastion.section("broken", bastion.port), bastion.section("command", bastion.port));
    let broken = format!("{broken}proxy_command = [\"sh\", \"-c\", \"exit 3\", \"hunter2\"]\n");
    let command = format!("{command}{}", through(&bastion));
    let (_dir, path) = configured(&format!(
        "{}{}{named}{broken}{command}{}",
        bastion.section("good", bastion.port),
        bastion.section("closed", closed),
        with_a_password("[\"closed\", \"named\", \"broken\", \"good\"]"),
    ));
    let found = report(&path, &[], 1);
    for (name, stage, rest) in [
        ("closed", "tcp failed refused", "banner not_reached"),
        ("named", "dns failed not_found", "tcp not_reached"),
        ("broken", "tcp failed proxy_command_failed", "banner not_reached"),
    ] {
        let (check, way) = (check(&found, name, None), check(&found, "analytics", Some(name)));
        assert_eq!(stages(check)[..3], ["identity passed", stage, rest]);
        assert_eq!(stages(way)[..2], ["credentials passed", "forwarding not_reached"]);
    }
    assert_eq!(stages(check(&found, "analytics", Some("good"))), ANSWERED);
    assert_eq!(stages(check(&found, "command", None))[..7], LOGGED_IN);
    assert_eq!(detail(check(&found, "command", None), "tcp"), "by the proxy_command ssh");
    let text = out(&run(&path, &["doctor"]));
    assert!(text.contains("\n3 of 5 bastions cannot be used: broken, closed, named.\n"), "{text}");
    assert!(
        text.contains("analytics can be used through good, and not through closed or named or broken."),
        "{text}"
    );
    assert!(!text.contains("hunter2") && !found.to_string().contains("hunter2"));
}

/// What a terminal is sent.
fn on_a_terminal(config: &Path, variables: &[(&str, &str)]) -> String {
    let words = command(config, &["doctor"]);
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap());
    let line: Vec<String> =
        std::iter::once(words.get_program()).chain(words.get_args()).map(quoted).collect();
    let output = Command::new("script")
        .args(["-q", "-e", "-c", &line.join(" "), "/dev/null"])
        .env("SHELL", "/bin/sh")
        .env_remove("NO_COLOR")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    out(&output)
}

#[test]
fn a_terminal_sees_what_is_under_way_and_colours_unless_it_wants_none() {
    let bastion = Bastion::start();
    let (_dir, path) =
        configured(&format!("{}{}", bastion.section("prod", bastion.port), with_a_password("\"prod\"")));
    let screen = on_a_terminal(&path, &[]);
    assert!(screen.contains("... bastion prod: identity and 1 more (0 s)\x1b[?7h\r\x1b[K"), "{screen:?}");
    assert!(screen.contains("\x1b[32mok\x1b[0m    "), "{screen:?}");
    let plain = on_a_terminal(&path, &[("NO_COLOR", "1")]);
    assert!(!plain.contains("\x1b[32m") && plain.contains("  ping         ok"), "{plain:?}");
    // What is left of it is what a file would have, and fits.
    let lasting: Vec<&str> = plain.lines().map(|line| line.rsplit("\x1b[K").next().unwrap()).collect();
    assert!(lasting.iter().all(|line| !line.contains('\x1b')), "{lasting:#?}");
    let paths_apart = lasting.iter().filter(|line| !line.contains('/'));
    assert!(paths_apart.clone().all(|line| line.chars().count() <= 80), "{lasting:#?}");
    assert!(paths_apart.count() > 10, "{lasting:#?}");
}

#[test]
fn the_commands_that_are_under_way_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    // What it starts is ended too, and would live for longer than anybody waits for it.
    let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", started.display());
    let config = format!(
        "[bastions.prod]\nhost = \"bastion.invalid\"\nuser = \"me\"\nproxy_command = [\"sh\", \"-c\", {script:?}]\n"
    );
    let (_dir, path) = configured(&unused_database(&config));
    let mut doctor = command(&path, &["doctor"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let below = eventually("the command is under way", || fs::read_to_string(&started).ok());
    kill(Pid::from_raw(i32::try_from(doctor.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(doctor.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
    let process = format!("/proc/{}/stat", below.trim());
    eventually("what it has started ends", || {
        let stat = fs::read_to_string(&process).unwrap_or_else(|_| ") Z".to_owned());
        stat.contains(") Z").then_some(())
    });
}

#[test]
fn what_the_daemon_would_not_ask_now_is_asked_and_that_is_said() {
    let bastion = Bastion::start();
    let database = Postgres::shared().section("analytics", "prod");
    let active =
        format!("{}{database}probe = {{ when = \"active\" }}\n", bastion.section("prod", bastion.port));
    let (_dir, path) = configured(&active);
    let found = report(&path, &[], 0);
    assert!(stages(check(&found, "analytics", Some("prod"))).contains(&"db_query passed".to_owned()));
    let notes = found["configuration"]["notes"].to_string();
    assert!(
        notes.contains("databases.analytics.probe.when") && notes.contains("wakes one that rests"),
        "{notes}"
    );
}
