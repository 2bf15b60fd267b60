//! A link that goes silent is suspected, passed by, and given up; its clients are cut and nobody joins them.

use std::time::Duration;

use serde_json::Value;

use crate::support::client::{Job, connect, job};
use crate::support::{Bastion, Daemon, Fault, PATIENCE, Postgres, Relay, eventually, runtime};

fn session(daemon: &Daemon, id: u64) -> Option<Value> {
    let sessions = daemon.bastion("prod")["sessions"].clone();
    sessions.as_array().unwrap().iter().find(|session| session["id"] == id).cloned()
}

#[test]
fn suspect_then_lost_and_passed_by_meanwhile() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    let config = format!(
        "{}keepalive_interval = \"1s\"\nkeepalive_timeout = \"16s\"\nsessions = {{ max = 1 }}\n{}",
        bastion.section("prod", relay.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let runtime = runtime();
    let client = runtime.block_on(connect(address)).unwrap();
    runtime.block_on(client.batch_execute("SELECT 1")).unwrap();
    assert_eq!(session(&daemon, 1).unwrap()["clients"], 1);

    relay.set(Fault::SilenceOld);
    let suspect = eventually("the session is suspect", || {
        session(&daemon, 1).filter(|session| session["state"] == "suspect")
    });
    assert!(suspect["keepalives_unanswered"].as_u64().unwrap() >= 1, "{suspect}");
    assert!(daemon.metric("keepalive_unanswered{bastion=\"prod\"}") >= 1.0);
    assert_eq!(suspect["clients"], 1, "its client stays");
    // A replacement is dialled though the pool is at its maximum, and takes whoever comes.
    daemon.wait_up("prod");
    for _ in 0..5 {
        assert_eq!(runtime.block_on(job(address)), Job::Done);
        if let Some(suspect) = session(&daemon, 1) {
            assert_eq!(suspect["clients"], 1, "somebody was placed on a suspect session");
        }
    }
    let waiting = runtime.spawn(async move { client.batch_execute("SELECT 1").await });
    eventually("the session is lost", || {
        (daemon.metric("session_losses_total{bastion=\"prod\",reason=\"keepalive_timeout\"}") == 1.0)
            .then_some(())
    });
    let result = runtime.block_on(async { tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap() });
    assert!(result.is_err(), "the client of a lost session was answered");
    assert_eq!(daemon.metric("clients_cut_total{database=\"analytics\",reason=\"keepalive_timeout\"}"), 1.0);
    let lost = daemon.wait_event("session lost");
    assert_eq!(lost["reason"], "keepalive_timeout");
    assert!(lost["detail"].as_str().unwrap().contains("for 16s"), "{lost}");
    assert_eq!(runtime.block_on(job(address)), Job::Done);
}

#[test]
fn a_failed_probe_asks_the_sessions_at_once() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    // No ping is due for an hour, so only the probe can notice.
    let config = format!(
        "{}keepalive_interval = \"1h\"\nkeepalive_timeout = \"2h\"\n{}probe = {{ interval = \"1s\", timeout = \"1s\" }}\n",
        bastion.section("prod", relay.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    eventually("the probe is answered", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    relay.set(Fault::SilenceOld);
    eventually("the session is suspect", || {
        session(&daemon, 1).filter(|session| session["state"] == "suspect")
    });
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
    eventually("the probe is answered again", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
}

#[test]
fn a_bastion_that_falls_silent_while_it_is_dialled_is_given_up() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    relay.set(Fault::Silence);
    let config = format!(
        "{}connect_timeout = \"500ms\"\n{}hold = {{ timeout = \"0s\" }}\n",
        bastion.section("prod", relay.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    eventually("several attempts have failed", || {
        (daemon.metric("session_failures_total{bastion=\"prod\",phase=\"banner\",reason=\"timeout\"}") >= 3.0)
            .then_some(())
    });
    relay.set(Fault::None);
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
}

#[test]
fn a_slow_path_is_no_silent_one() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    relay.set(Fault::Delay(Duration::from_millis(150)));
    let config = format!(
        "{}keepalive_interval = \"1s\"\nkeepalive_timeout = \"3s\"\n{}",
        bastion.section("prod", relay.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
    eventually("a ping was timed", || {
        let pings = daemon.metric("keepalive_rtt_seconds_count{bastion=\"prod\"}");
        (pings >= 3.0).then_some(())
    });
    let session = session(&daemon, 1).unwrap();
    assert!(session["round_trip_seconds"].as_f64().unwrap() >= 0.3, "{session}");
    for (series, value) in daemon.metrics() {
        assert!(!series.starts_with("session_losses_total") || value == 0.0, "{series} {value}");
    }
}
