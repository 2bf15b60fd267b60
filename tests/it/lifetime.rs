//! How the daemon starts and ends.

use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;

use crate::support::client::{Job, connect, job};
use crate::support::daemon::{configured, run};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime};

fn with_drain_timeout(drain_timeout: &str) -> (Bastion, Daemon) {
    let bastion = Bastion::start();
    let config = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\ndrain_timeout = \"{drain_timeout}\"\n{}{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    (bastion, daemon)
}

/// A client in the middle of a query of this length; the join handle gives the query's result.
fn running(
    runtime: &tokio::runtime::Runtime,
    daemon: &Daemon,
    seconds: &str,
) -> tokio::task::JoinHandle<Result<(), tokio_postgres::Error>> {
    let client = runtime.block_on(connect(daemon.address("analytics"))).unwrap();
    let sql = format!("SELECT pg_sleep({seconds}), 'of daemon {}'", daemon.pid());
    let seen = format!("SELECT count(*) FROM pg_stat_activity WHERE query = $${sql}$$");
    let query = runtime.spawn(async move { client.batch_execute(&sql).await });
    eventually("the query runs", || (Postgres::shared().sql("postgres", &seen) == "1").then_some(()));
    query
}

#[test]
fn a_query_that_runs_finishes() {
    let (_bastion, mut daemon) = with_drain_timeout("50s");
    let runtime = runtime();
    let query = running(&runtime, &daemon, "2");
    let address = daemon.address("analytics");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_event("waiting for clients to finish");
    assert_eq!(daemon.get("/readyz").0, 503);
    assert!(daemon.get("/readyz").1.contains("draining"));
    assert_eq!(daemon.get("/livez").0, 200);
    eventually("no new client is accepted", || TcpStream::connect(address).is_err().then_some(()));
    runtime.block_on(query).unwrap().expect("the query was cut");
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.events("client cut").is_empty());
    daemon.wait_event("stopped");
}

#[test]
fn past_the_drain_timeout_it_is_cut_and_said() {
    let (_bastion, mut daemon) = with_drain_timeout("1s");
    let runtime = runtime();
    let query = running(&runtime, &daemon, "3600");
    daemon.signal(Signal::SIGINT);
    let error = runtime.block_on(query).unwrap().expect_err("the query ended as if complete");
    assert_eq!(error.code().map(|code| code.code()), Some("57P01"), "{error:?}");
    assert_eq!(daemon.wait().code(), Some(0));
    let said = daemon.wait_event("clients are cut");
    assert_eq!((&said["clients"], &said["because"]), (&1.into(), &"the time to finish is over".into()));
    assert_eq!(daemon.wait_event("client cut")["reason"], "drained");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_bastion, mut daemon) = with_drain_timeout("1h");
    let runtime = runtime();
    let query = running(&runtime, &daemon, "3600");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_event("waiting for clients to finish");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(runtime.block_on(query).unwrap().is_err());
    assert_eq!(daemon.wait_event("clients are cut")["because"], "a second signal came");
}

#[test]
fn a_signal_has_a_bastion_that_was_mended_tried_at_once() {
    let bastion = Bastion::start();
    let authorized = std::fs::read_to_string(bastion.path("authorized_keys")).unwrap();
    bastion.authorize("");
    let config = format!(
        "{}{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    eventually("the bastion refuses us", || (daemon.bastion("prod")["refusing"] == true).then_some(()));
    // Nothing changes on this side.
    bastion.authorize(authorized.trim());
    daemon.signal(Signal::SIGHUP);
    daemon.wait_up("prod");
}

#[test]
fn the_bastion_is_told_goodbye() {
    let (bastion, mut daemon) = with_drain_timeout("1s");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let words = "tunnelkeeper has no more use for this session";
    eventually("sshd has heard it", || bastion.log().contains(words).then_some(()));
}

#[test]
fn a_port_in_use_stops_the_start_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let section =
        "[bastions.b]\nhost = \"127.0.0.1\"\nuser = \"u\"\n[databases.d]\nbastion = \"b\"\nhost = \"h\"\n";
    let (_dir, config) = configured(&format!("{section}listen = \"127.0.0.1:{port}\"\n"));
    let output = run(&config, &["run"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("databases.d.listen: 127.0.0.1:{port} is in use by another program");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&expected), "{output:?}");
}

#[test]
fn a_bastion_that_is_down_stops_neither_the_daemon_nor_another_bastion() {
    let bastion = Bastion::start();
    let config = format!(
        "[bastions.gone]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"u\"\n[databases.lost]\nbastion = \"gone\"\n\
         host = \"h\"\nlisten = \"127.0.0.1:0\"\n{}{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    assert_eq!(daemon.get("/readyz").0, 200, "tunnels do not count for readiness");
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
    assert!(!daemon.bastion("gone")["up"].as_bool().unwrap());
    eventually("the probe is answered", || (daemon.get("/readyz/analytics").0 == 200).then_some(()));
    assert_eq!(daemon.get("/readyz/lost").0, 503);
}
