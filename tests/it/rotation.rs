//! A bastion's key is changed for the next one, and nobody notices.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::support::bastion::public_line;
use crate::support::client::{Job, connect, job};
use crate::support::daemon::{command, configured, run};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime};

fn key(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.dir.path().join("state/keys").join(name)
}

/// What `keygen --next` tells to write into authorized_keys.
fn make_next(config: &Path, bastion: &str) -> String {
    let output = run(config, &["keygen", bastion, "--next"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("leave the line of the present key there"), "{text}");
    text.lines().find(|line| line.starts_with("  restrict,")).unwrap().trim().to_owned()
}

/// The public line of a private key without its comment, as ssh-keygen sees it.
fn public_of(key: &Path) -> String {
    let output = Command::new("ssh-keygen").arg("-yf").arg(key).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Starts a daemon where commands have run before.
fn start(dir: TempDir, config: &Path) -> Daemon {
    let mut command = command(config, &["run"]);
    command.env("RUST_LOG", "tunnelkeeper=debug").stdout(Stdio::piped()).stderr(Stdio::piped());
    Daemon::spawn(dir, command)
}

fn next_key(daemon: &Daemon, bastion: &str) -> Option<Value> {
    Some(daemon.bastion(bastion)["next_key"].clone()).filter(|next| !next.is_null())
}

fn wait_asked(daemon: &Daemon, bastion: &str) -> Value {
    eventually("the bastion was asked about the next key", || {
        next_key(daemon, bastion).filter(|next| !next["last_asked"].is_null())
    })
}

/// Clients that come all the time, until they are counted.
struct Stream {
    stop: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    asked: tokio::task::JoinHandle<Vec<Job>>,
}

impl Stream {
    fn start(address: SocketAddr) -> Self {
        let (stop, runtime) = (Arc::<AtomicBool>::default(), runtime());
        let stopped = Arc::clone(&stop);
        let asked = runtime.spawn(async move {
            let mut jobs = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                jobs.push(job(address).await);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            jobs
        });
        Self { stop, runtime, asked }
    }

    fn all_done(self) {
        self.stop.store(true, Ordering::SeqCst);
        let jobs = self.runtime.block_on(self.asked).unwrap();
        assert!(jobs.len() > 20 && jobs.iter().all(|job| *job == Job::Done), "{jobs:?}");
    }
}

/// The SHA-256 fingerprints of the keys that sshd let in, in their order.
fn let_in(bastion: &Bastion) -> Vec<String> {
    let log = bastion.log();
    let lines = log.lines().filter(|line| line.starts_with("Accepted publickey"));
    lines.map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn a_key_is_rotated_while_clients_come_and_stay_and_none_is_cut_or_refused() {
    // A single key that is refused ends the connection.
    let bastion = Bastion::with("MaxAuthTries 1");
    let (dir, path) = configured(&format!(
        "{}sessions = {{ max = 8 }}\n{}",
        bastion.keyless_section("prod", bastion.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    ));
    assert!(run(&path, &["keygen", "prod"]).status.success());
    let first = public_line(&dir.path().join("state/keys/prod"));
    bastion.authorize(&first);
    let daemon = start(dir, &path);
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let failures = || {
        let metrics = daemon.metrics();
        let of = |(series, value): (&String, &f64)| {
            let counts = ["session_failures_total", "session_losses_total", "clients_cut_total"];
            (counts.iter().any(|name| series.starts_with(name)) && *value > 0.0)
                .then(|| (series.clone(), *value))
        };
        metrics.iter().filter_map(of).collect::<Vec<_>>()
    };
    let stream = Stream::start(address);
    let runtime = runtime();
    let lasting: Client = runtime.block_on(connect(address)).unwrap();

    let line = make_next(&daemon.config(), "prod");
    let next = wait_asked(&daemon, "prod");
    let public = next["public_key"].as_str().unwrap().to_owned();
    assert!(line.ends_with(&public) && first != public, "{line}");
    assert!(daemon.get("/").1.contains(&public), "the page does not show the next key");
    let status = run(&daemon.config(), &["status", "--url", &daemon.url()]);
    assert!(String::from_utf8(status.stdout).unwrap().contains(&public));
    assert_eq!(public_line(&key(&daemon, "prod")), first);

    let doctor = || String::from_utf8(run(&daemon.config(), &["doctor", "prod"]).stdout).unwrap();
    let said = doctor();
    assert!(said.contains("not accepted yet"), "{said}");

    bastion.authorize(&format!("{first}\n{line}"));
    daemon.signal(Signal::SIGHUP);
    let event = daemon.wait_event("the bastion accepts the next key: it is used from now on");
    assert_eq!((&event["public_key"], &event["retired"]), (&public.clone().into(), &first.clone().into()));
    eventually("no key waits any more", || next_key(&daemon, "prod").is_none().then_some(()));
    assert_eq!(public_line(&key(&daemon, "prod")), public);
    assert_eq!(public_line(&key(&daemon, "prod.old")), first);
    for name in ["prod", "prod.old"] {
        assert_eq!(fs::metadata(key(&daemon, name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert!(!key(&daemon, "prod.next").exists());

    bastion.authorize(&line);
    let logins = let_in(&bastion);
    // Clients that stay have the pool grow by sessions that log in with the new key.
    let _others: Vec<Client> = (0..3).map(|_| runtime.block_on(connect(address)).unwrap()).collect();
    eventually("a new session is let in", || (let_in(&bastion).len() > logins.len()).then_some(()));
    let row = runtime.block_on(lasting.query_one("SELECT 4711", &[])).unwrap();
    assert_eq!(row.get::<_, i32>(0), 4711);
    stream.all_done();
    assert_eq!(failures(), []);
    assert_ne!(let_in(&bastion).first(), let_in(&bastion).last());
}

#[test]
fn a_daemon_that_was_killed_in_between_logs_in_with_what_is_there_and_goes_on() {
    let bastion = Bastion::start();
    let mut config = String::new();
    let names = ["missing", "kept", "twice"];
    for name in names {
        config.push_str(&bastion.keyless_section(name, bastion.port));
        config.push_str(&Postgres::shared().unprobed_section(&format!("{name}-db"), name));
    }
    let (dir, path) = configured(&config);
    let keys = dir.path().join("state/keys");
    let mut lines = Vec::new();
    for name in names {
        assert!(run(&path, &["keygen", name]).status.success());
        lines.push(public_line(&keys.join(name)));
        make_next(&path, name);
        lines.push(public_line(&keys.join(format!("{name}.next"))));
    }
    // Somebody has moved the key away.
    fs::rename(keys.join("missing"), keys.join("missing.old")).unwrap();
    // Killed once the old key was kept; and before the next one was removed.
    fs::copy(keys.join("kept"), keys.join("kept.old")).unwrap();
    fs::copy(keys.join("twice"), keys.join("twice.old")).unwrap();
    fs::copy(keys.join("twice.next"), keys.join("twice")).unwrap();
    bastion.authorize(&format!("{}\n{}", lines[0], lines[2]));
    let daemon = start(dir, &path);
    // By the old key, and no other was made.
    daemon.wait_up("missing");
    daemon.wait_up("kept");
    assert!(!key(&daemon, "missing").exists());
    for name in ["missing", "kept"] {
        wait_asked(&daemon, name);
    }
    bastion.authorize(&lines.join("\n"));
    daemon.signal(Signal::SIGHUP);
    for (index, name) in names.iter().enumerate() {
        eventually("the next key has taken its place", || {
            (next_key(&daemon, name).is_none() && !key(&daemon, &format!("{name}.next")).exists())
                .then_some(())
        });
        assert_eq!(public_line(&key(&daemon, name)), lines[2 * index + 1], "{name}");
        daemon.wait_up(name);
    }
    // What was kept is the key before, not the next one once more.
    assert_eq!(public_of(&key(&daemon, "twice.old")), lines[4]);
}

#[test]
fn the_keys_of_a_jump_and_of_the_bastion_behind_it_are_rotated() {
    let (edge, prod) = (Bastion::start(), Bastion::start());
    let (dir, path) = configured(&format!(
        "{}{}jump = \"edge\"\n{}",
        edge.keyless_section("edge", edge.port),
        prod.keyless_section("prod", prod.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    ));
    let bastions = [("edge", &edge), ("prod", &prod)];
    let mut lines = Vec::new();
    for (name, bastion) in bastions {
        assert!(run(&path, &["keygen", name]).status.success());
        let first = public_line(&dir.path().join("state/keys").join(name));
        bastion.authorize(&first);
        lines.push((first, make_next(&path, name)));
    }
    let daemon = start(dir, &path);
    daemon.wait_up("edge");
    for ((name, bastion), (first, next)) in bastions.iter().zip(&lines) {
        wait_asked(&daemon, name);
        bastion.authorize(&format!("{first}\n{next}"));
    }
    daemon.signal(Signal::SIGHUP);
    for ((name, bastion), (_, next)) in bastions.iter().zip(&lines) {
        eventually("the next key is in use", || next_key(&daemon, name).is_none().then_some(()));
        bastion.authorize(next);
    }
    edge.kill_sessions();
    daemon.wait_event("session lost");
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
}

#[test]
fn a_key_that_is_rejected_meanwhile_gives_way_to_the_next_one() {
    let bastion = Bastion::start();
    let config = format!(
        "{}{}",
        bastion.keyless_section("prod", bastion.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    make_next(&daemon.config(), "prod");
    wait_asked(&daemon, "prod");
    // Whoever tells the bastion of the next key alone has left out a step; it costs seconds.
    bastion.authorize(&public_line(&key(&daemon, "prod.next")));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_up("prod");
}

#[test]
fn keygen_makes_the_next_key_of_its_own_keys_only_and_keeps_it() {
    let bastion = Bastion::start();
    let (own, named) =
        (bastion.keyless_section("prod", bastion.port), bastion.section("named", bastion.port));
    let databases =
        ["prod", "named"].map(|name| Postgres::shared().unprobed_section(&format!("{name}-db"), name));
    let (dir, config) = configured(&format!("{own}{named}{}", databases.concat()));
    let next = |name: &str, force: &[&str]| {
        let output = run(&config, &[&["keygen", name, "--next"], force].concat());
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = next("named", &[]);
    assert!(code == Some(1) && text.contains("remove bastions.named.identity"), "{text}");
    let (code, text) = next("prod", &[]);
    assert!(code == Some(1) && text.contains("no key yet to be replaced"), "{text}");
    assert!(run(&config, &["keygen", "prod"]).status.success());
    let (key, first) = (dir.path().join("state/keys/prod.next"), next("prod", &[]));
    assert_eq!(first.0, Some(0), "{}", first.1);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let public = public_line(&key);
    assert!(first.1.contains("(made: ") && first.1.contains(&public), "{}", first.1);
    let (code, text) = next("prod", &[]);
    assert!(code == Some(0) && text.contains("--force makes a new one") && text.contains(&public), "{text}");
    let (code, text) = next("prod", &["--force"]);
    assert!(code == Some(0) && !text.contains(&public), "{text}");
}
