//! Every failure is named at every surface: log, metrics, status, health, page and the client's own error; and a
//! bastion is not hammered.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::bastion::{make_key, public_line};
use crate::support::client::{Job, job, run_psql};
use crate::support::postgres::{CLEAR, MD5, PASSWORD, SCRAM, TRUSTED};
use crate::support::{Bastion, Daemon, Fault, Postgres, Relay, eventually, free_port, runtime};

/// A bastion's failure as all surfaces show it. Clients are not held here, so that they say at once what they know.
fn bastion_says(daemon: &Daemon, phase: &str, reason: &str, detail: &str) {
    let series = format!("session_failures_total{{bastion=\"prod\",phase=\"{phase}\",reason=\"{reason}\"}}");
    eventually(&format!("{series} counts"), || (daemon.metric(&series) >= 1.0).then_some(()));
    let event = daemon.wait_event("bastion not reached");
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (text("bastion"), text("phase"), text("reason")),
        ("prod".into(), phase.into(), reason.into()),
        "{event}"
    );
    assert!(text("detail").contains(detail), "{detail:?} is not in {event}");
    assert!(!text("hint").is_empty() && event["retry_in_s"].is_number(), "{event}");
    let failure = daemon.bastion("prod")["last_failure"].clone();
    assert_eq!((&failure["phase"], &failure["reason"]), (&phase.into(), &reason.into()));
    let sentence = format!("{phase} {reason}: ");
    let (code, body) = daemon.get("/readyz/analytics");
    assert!(
        code == 503 && body.contains("bastion prod is down") && body.contains(&sentence),
        "{code} {body}"
    );
    assert!(daemon.get("/").1.contains(&sentence), "the page does not say {sentence}");
    client_says(daemon, &["\"prod\" is down since 20", &sentence]);
}

/// What psql prints when it is not let through.
fn client_says(daemon: &Daemon, parts: &[&str]) {
    let said = run_psql(daemon.address("analytics"), &format!("user={TRUSTED}"), "SELECT 1").unwrap_err();
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(said.contains("database \"analytics\" cannot be reached"), "{said}");
}

/// A probe's failure as all surfaces show it.
fn probe_says(daemon: &Daemon, phase: &str, reason: &str, detail: &str) {
    eventually("the verdict is down", || {
        (daemon.database("analytics")["probe"]["verdict"] == "down").then_some(())
    });
    let metrics = daemon.metrics();
    assert!(
        metrics[&format!("probes_total{{database=\"analytics\",phase=\"{phase}\",reason=\"{reason}\"}}")]
            >= 1.0
    );
    assert_eq!(metrics["probe_up{database=\"analytics\"}"], 0.0);
    let event = daemon.wait_event("database down");
    assert_eq!((&event["phase"], &event["reason"]), (&phase.into(), &reason.into()), "{event}");
    assert!(event["detail"].as_str().unwrap().contains(detail), "{detail:?} is not in {event}");
    let failure = daemon.database("analytics")["probe"]["last_failure"].clone();
    assert_eq!((&failure["phase"], &failure["reason"]), (&phase.into(), &reason.into()));
    let sentence = format!("{phase} {reason}: ");
    let (code, body) = daemon.get("/readyz/analytics");
    assert!(code == 503 && body.contains(&sentence), "{code} {body}");
    assert!(daemon.get("/").1.contains(&sentence));
}

/// A database that answers its clients at once.
fn at_once() -> String {
    format!("{}hold = {{ timeout = \"0s\" }}\n", Postgres::shared().unprobed_section("analytics", "prod"))
}

/// A database with this login for its probe.
fn probed(login: &str) -> String {
    let section = Postgres::shared().unprobed_section("analytics", "prod");
    let section = section.replace("probe = { level = \"off\" }\n", "");
    format!("{section}{login}\nprobe = {{ interval = \"100ms\" }}\n")
}

#[test]
fn a_wrong_key_shows_the_right_one_and_is_offered_three_times() {
    let bastion = Bastion::start();
    let section = bastion.keyless_section("prod", bastion.port);
    let daemon = Daemon::start(&format!("{section}{}", at_once()));
    bastion_says(&daemon, "auth", "rejected", "rejected the ssh-ed25519 key SHA256:");
    let made = fs::read_to_string(daemon.dir.path().join("state/keys/prod.pub")).unwrap().trim().to_owned();
    assert_eq!(daemon.wait_event("made a key for this bastion")["public_key"], made.as_str());
    let state = eventually("the bastion refuses us", || {
        let state = daemon.bastion("prod");
        (state["refusing"] == true).then_some(state)
    });
    assert_eq!(state["public_key"], made.as_str());
    assert!(daemon.get("/").1.contains(made.split(' ').nth(1).unwrap()));
    daemon.wait_event_where("bastion not reached", |event| {
        event["public_key"] == made.as_str() && event["retry_in_s"].as_f64().is_some_and(|wait| wait > 240.0)
    });
    // Three tries, and then none for minutes.
    let rejected = "session_failures_total{bastion=\"prod\",phase=\"auth\",reason=\"rejected\"}";
    assert_eq!(daemon.metric(rejected), 3.0);
    let next = humantime::parse_rfc3339(state["next_attempt"].as_str().unwrap()).unwrap();
    let wait = next.duration_since(std::time::SystemTime::now()).unwrap();
    assert!((240..=330).contains(&wait.as_secs()), "{wait:?}");
    // Held clients are not kept waiting for what needs a person.
    client_says(&daemon, &["auth rejected: "]);
    assert!(daemon.metric("client_connections_total{database=\"analytics\",outcome=\"refused\"}") >= 1.0);
    // A change of the key's file is worth another try at once. Here it brings the right key.
    bastion.authorize(&made);
    let key = daemon.dir.path().join("state/keys/prod");
    fs::File::options().append(true).open(&key).unwrap().write_all(b"\n").unwrap();
    daemon.wait_up("prod");
    assert_eq!(daemon.bastion("prod")["public_key"], serde_json::Value::Null);
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
}

#[test]
fn host_keys_that_are_unknown_changed_or_revoked() {
    let bastion = Bastion::start();
    let other = make_key(bastion.path("x").parent().unwrap(), "other", &["-t", "ed25519", "-N", ""]);
    let other = public_line(&other).rsplit_once(' ').unwrap().0.to_owned();
    let right = bastion.known_hosts_line(bastion.port);
    let revoked = format!("@revoked * {}\n{right}", right.split_once(' ').unwrap().1);
    let changed = format!("[127.0.0.1]:{} {other}", bastion.port);
    for (known_hosts, reason, detail) in [
        (format!("elsewhere {other}"), "unknown", "has no line for [127.0.0.1]:"),
        (changed, "changed", "known_hosts.prod"),
        (revoked, "revoked", "revokes"),
    ] {
        let section = bastion.section("prod", bastion.port);
        let path = bastion.path(&format!("known_hosts.prod.{}", bastion.port));
        fs::write(&path, known_hosts).unwrap();
        let daemon = Daemon::start(&format!("{section}{}", at_once()));
        bastion_says(&daemon, "host_key", reason, detail);
        let shown = daemon.bastion("prod")["last_failure"]["detail"].as_str().unwrap().to_owned();
        assert!(shown.contains("SHA256:"), "{shown}");
        // Mending the file is noticed.
        eventually("the bastion refuses us", || (daemon.bastion("prod")["refusing"] == true).then_some(()));
        fs::write(&path, &right).unwrap();
        daemon.wait_up("prod");
    }
}

#[test]
fn several_host_keys_behind_one_name_and_pins() {
    let bastion = Bastion::start();
    let other = make_key(bastion.path("x").parent().unwrap(), "other", &["-t", "ed25519", "-N", ""]);
    let other = public_line(&other).rsplit_once(' ').unwrap().0.to_owned();
    let section = bastion.section("prod", bastion.port);
    let lines = format!("[127.0.0.1]:{} {other}\n{}", bastion.port, bastion.known_hosts_line(bastion.port));
    fs::write(bastion.path(&format!("known_hosts.prod.{}", bastion.port)), lines).unwrap();
    let daemon = Daemon::start(&format!("{section}{}", at_once()));
    daemon.wait_up("prod");
    drop(daemon);

    let output =
        std::process::Command::new("ssh-keygen").arg("-lf").arg(bastion.path("host.pub")).output().unwrap();
    let fingerprint = String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned();
    let pinned: String =
        section.lines().filter(|line| !line.starts_with("known_hosts")).map(|l| format!("{l}\n")).collect();
    let daemon = Daemon::start(&format!("{pinned}host_key = \"{fingerprint}\"\n{}", at_once()));
    daemon.wait_up("prod");
    drop(daemon);
    let wrong = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    let daemon = Daemon::start(&format!("{pinned}host_key = \"{wrong}\"\n{}", at_once()));
    bastion_says(&daemon, "host_key", "changed", &format!("`host_key` pins {wrong}"));
}

#[test]
fn nothing_listens_there_and_no_key_is_here() {
    let bastion = Bastion::start();
    let daemon = Daemon::start(&format!("{}{}", bastion.section("prod", free_port()), at_once()));
    bastion_says(&daemon, "tcp", "refused", "Connection refused");
    drop(daemon);
    fs::remove_file(bastion.path("identity")).unwrap();
    let daemon = Daemon::start(&format!("{}{}", bastion.section("prod", bastion.port), at_once()));
    bastion_says(&daemon, "auth", "identity_unreadable", "cannot be read: No such file");
}

#[test]
fn a_name_that_nobody_knows() {
    let bastion = Bastion::start();
    let section =
        bastion.section("prod", bastion.port).replace("host = \"127.0.0.1\"", "host = \"bastion.invalid\"");
    let daemon = Daemon::start(&format!("{section}{}", at_once()));
    let dns = eventually("the look-up has failed", || {
        let failure = daemon.bastion("prod")["last_failure"].clone();
        failure.is_object().then_some(failure)
    });
    assert_eq!(dns["phase"], "dns");
    bastion_says(&daemon, "dns", dns["reason"].as_str().unwrap(), "\"bastion.invalid\" cannot be resolved");
}

#[test]
fn what_answers_is_not_ssh_or_hangs_up() {
    for (greeting, reason, detail) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not_ssh", "HTTP/1.1 400 Bad Request"),
        (b"", "closed_before_banner", "without a word"),
        (b"Not allowed at this time\r\n", "bastion_busy", "Not allowed at this time"),
    ] {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut socket in server.incoming().map_while(Result::ok) {
                let _ = socket.write_all(greeting);
            }
        });
        let bastion = Bastion::start();
        let daemon = Daemon::start(&format!("{}{}", bastion.section("prod", port), at_once()));
        bastion_says(&daemon, "banner", reason, detail);
    }
}

#[test]
fn a_busy_bastion_is_left_alone_for_ten_seconds() {
    let bastion = Bastion::with("MaxStartups 1");
    // Somebody else occupies the only place for those who have not logged in.
    let _occupant = eventually("the place is taken", || {
        let mut occupant = TcpStream::connect(("127.0.0.1", bastion.port)).unwrap();
        let mut greeting = [0; 4];
        occupant.read_exact(&mut greeting).ok().filter(|()| &greeting == b"SSH-").map(|()| occupant)
    });
    let daemon = Daemon::start(&format!("{}{}", bastion.section("prod", bastion.port), at_once()));
    let began = Instant::now();
    bastion_says(&daemon, "banner", "bastion_busy", "Exceeded MaxStartups");
    let next = humantime::parse_rfc3339(daemon.bastion("prod")["next_attempt"].as_str().unwrap()).unwrap();
    let wait = next.duration_since(std::time::SystemTime::now()).unwrap() + began.elapsed();
    assert!(wait >= Duration::from_secs(9), "{wait:?}");
    assert_eq!(
        daemon.metric("session_failures_total{bastion=\"prod\",phase=\"banner\",reason=\"bastion_busy\"}"),
        1.0
    );
}

#[test]
fn no_common_algorithm() {
    let bastion = Bastion::with("Ciphers aes256-cbc");
    let daemon = Daemon::start(&format!("{}{}", bastion.section("prod", bastion.port), at_once()));
    bastion_says(&daemon, "kex", "no_common_algorithm", "no common cipher algorithm");
    assert!(
        daemon.wait_event("bastion not reached")["hint"].as_str().unwrap().contains("aes128-gcm@openssh.com")
    );
}

#[test]
fn a_connection_cut_within_the_handshake() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    relay.set(Fault::CutAfter(200));
    let daemon = Daemon::start(&format!("{}{}", bastion.section("prod", relay.port), at_once()));
    bastion_says(&daemon, "kex", "closed", "closed the connection during the key exchange");
    relay.set(Fault::Reset);
    eventually("it is reset before the greeting", || {
        (daemon.bastion("prod")["last_failure"]["phase"] == "banner").then_some(())
    });
    relay.set(Fault::None);
    daemon.wait_up("prod");
}

#[test]
fn too_many_keys() {
    let bastion = Bastion::with("MaxAuthTries 2");
    let dir = bastion.path("x").parent().unwrap().to_owned();
    let keys: Vec<String> = (0..4)
        .map(|n| make_key(&dir, &format!("wrong{n}"), &["-t", "ed25519", "-N", ""]).display().to_string())
        .collect();
    let section = bastion.keyless_section("prod", bastion.port);
    let daemon = Daemon::start(&format!("{section}identity = {keys:?}\n{}", at_once()));
    bastion_says(&daemon, "auth", "too_many_failures", "Too many authentication failures");
}

#[test]
fn a_forward_that_is_prohibited() {
    let bastion = Bastion::with("AllowTcpForwarding no");
    let config = format!("{}{}", bastion.section("prod", bastion.port), at_once());
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    channel_says(&daemon, "prohibited", "does not allow a forward to 127.0.0.1:");
    assert!(daemon.metric("client_connections_total{database=\"analytics\",outcome=\"refused\"}") >= 1.0);

    let postgres = Postgres::shared();
    let config =
        format!("{}{}", bastion.section("prod", bastion.port), postgres.section("analytics", "prod"));
    let daemon = Daemon::start(&format!("{config}probe = {{ interval = \"100ms\" }}\n"));
    probe_says(&daemon, "channel", "prohibited", "does not allow a forward");
}

#[test]
fn a_database_port_that_is_closed() {
    let bastion = Bastion::start();
    let closed = Postgres::shared().port.to_string();
    let config = format!("{}{}", bastion.section("prod", bastion.port), at_once());
    let daemon =
        Daemon::start(&config.replace(&format!("port = {closed}\n"), &format!("port = {}\n", free_port())));
    daemon.wait_up("prod");
    channel_says(&daemon, "connect_failed", "\"Connection refused\"");
    let failed = daemon.metric("client_connections_total{database=\"analytics\",outcome=\"open_failed\"}");
    assert!(failed >= 1.0);
    // A name that only the bastion could know.
    let config =
        config.replace(&format!("host = \"127.0.0.1\"\nport = {closed}"), "host = \"database.invalid\"");
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    channel_says(&daemon, "connect_failed", "database.invalid:5432");
}

/// A channel's failure as all surfaces show it to clients.
fn channel_says(daemon: &Daemon, reason: &str, detail: &str) {
    client_says(daemon, &[&format!("through bastion \"prod\": channel {reason}: "), detail]);
    let series =
        format!("channel_failures_total{{bastion=\"prod\",database=\"analytics\",reason=\"{reason}\"}}");
    assert!(daemon.metric(&series) >= 1.0);
    let failure = daemon.database("analytics")["last_failure"].clone();
    assert_eq!((&failure["phase"], &failure["reason"]), (&"channel".into(), &reason.into()));
    let event = daemon.wait_event("clients cannot be connected to the database through this bastion");
    assert_eq!((&event["reason"], &event["bastion"]), (&reason.into(), &"prod".into()), "{event}");
}

#[test]
fn a_probe_with_a_wrong_password_or_database() {
    let bastion = Bastion::start();
    let prod = bastion.section("prod", bastion.port);
    for (login, phase, reason, detail) in [
        (
            format!("user = \"{SCRAM}\"\npassword = \"wrong\"\ndatabase = \"warehouse\""),
            "db_login",
            "rejected",
            "password authentication failed",
        ),
        (
            format!("user = \"{TRUSTED}\"\ndatabase = \"nowhere\""),
            "db_login",
            "unknown_database",
            "\"nowhere\" does not exist",
        ),
        ("user = \"stranger\"\npassword = \"x\"".to_owned(), "db_login", "no_hba_entry", "pg_hba.conf"),
        (
            format!("user = \"{SCRAM}\"\ndatabase = \"warehouse\""),
            "credentials",
            "missing",
            "wants a password",
        ),
        (
            format!("user = \"{CLEAR}\"\npassword = \"{PASSWORD}\"\ndatabase = \"warehouse\""),
            "db_login",
            "unsupported_method",
            "clear text",
        ),
        (
            format!(
                "user = \"{TRUSTED}\"\ndatabase = \"warehouse\"\ntls = {{ mode = \"verify-full\", ca = {:?} }}",
                Postgres::shared().ca()
            ),
            "db_tls",
            "name_mismatch",
            "localhost",
        ),
        (
            format!(
                "user = \"{TRUSTED}\"\ndatabase = \"warehouse\"\ntls = {{ mode = \"verify-ca\", allow_unverified = true }}"
            ),
            "db_tls",
            "unknown_issuer",
            "which this machine does not know",
        ),
    ] {
        let daemon = Daemon::start(&format!("{prod}{}", probed(&login)));
        probe_says(&daemon, phase, reason, detail);
    }
}

#[test]
fn a_probe_with_each_login_and_each_tls_mode() {
    let bastion = Bastion::start();
    let prod = bastion.section("prod", bastion.port);
    let ca = Postgres::shared().ca();
    for (host, login) in [
        (
            "127.0.0.1",
            format!("user = \"{SCRAM}\"\npassword = \"{PASSWORD}\"\ntls = {{ mode = \"require\" }}"),
        ),
        (
            "127.0.0.1",
            format!("user = \"{SCRAM}\"\npassword = \"{PASSWORD}\"\ntls = {{ mode = \"disable\" }}"),
        ),
        ("127.0.0.1", format!("user = \"{MD5}\"\npassword = \"{PASSWORD}\"")),
        (
            "127.0.0.1",
            format!(
                "user = \"{SCRAM}\"\npassword = \"{PASSWORD}\"\ntls = {{ mode = \"verify-ca\", ca = {ca:?} }}"
            ),
        ),
        (
            "localhost",
            format!(
                "user = \"{SCRAM}\"\npassword = \"{PASSWORD}\"\ntls = {{ mode = \"verify-full\", ca = {ca:?} }}"
            ),
        ),
        (
            "127.0.0.1",
            format!(
                "user = \"{CLEAR}\"\npassword = \"{PASSWORD}\"\ntls = {{ mode = \"verify-ca\", ca = {ca:?} }}"
            ),
        ),
        (
            "127.0.0.1",
            format!(
                "user = \"{CLEAR}\"\npassword = \"{PASSWORD}\"\ntls = {{ mode = \"require\", allow_unverified = true }}"
            ),
        ),
    ] {
        // Fails unless the database itself says that the connection is as the mode wants it.
        let encrypted = !login.contains("disable");
        let proof = format!(
            "query = \"SELECT 1 / count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl = {encrypted}\", "
        );
        let database = probed(&format!("{login}\ndatabase = \"warehouse\""))
            .replace("probe = { ", &format!("probe = {{ {proof}"))
            .replace("host = \"127.0.0.1\"", &format!("host = \"{host}\""));
        let daemon = Daemon::start(&format!("{prod}{database}"));
        eventually(&format!("the probe is answered: {login}"), || {
            (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
        });
        let metrics = daemon.metrics();
        for phase in ["channel", "db_tls", "db_login", "db_query"] {
            let series = format!("probe_phase_seconds_count{{database=\"analytics\",phase=\"{phase}\"}}");
            assert_eq!(metrics[&series] >= 1.0, phase != "db_tls" || encrypted, "{series}");
        }
    }
}
