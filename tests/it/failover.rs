//! A database behind several bastions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::support::client::{Job, job};
use crate::support::{Bastion, Daemon, Fault, Postgres, Relay, eventually, runtime};

/// The bastion whose session carries the last client.
fn carried_by(daemon: &Daemon) -> Option<String> {
    let clients = daemon.database("analytics")["clients"].clone();
    clients.as_array().unwrap().last().and_then(|client| Some(client["bastion"].as_str()?.to_owned()))
}

fn where_a_client_goes(daemon: &Daemon, runtime: &tokio::runtime::Runtime) -> String {
    let address = daemon.address("analytics");
    let client = runtime.block_on(crate::support::client::connect(address)).unwrap();
    let bastion = eventually("the client is carried", || carried_by(daemon));
    drop(client);
    eventually("it has left", || carried_by(daemon).is_none().then_some(()));
    bastion
}

/// The configuration of "analytics", whose bastions are "first" and "second".
fn database_behind_both() -> String {
    let database = Postgres::shared().section("analytics", "first");
    database.replace("bastion = \"first\"", "bastion = [\"first\", \"second\"]")
}

#[test]
fn new_clients_go_to_the_next_bastion_and_return() {
    let (first, second) = (Bastion::start(), Bastion::start());
    let relay = Relay::before(first.port);
    let database = database_behind_both();
    let quick = "probe = { level = \"query\", interval = \"1s\", timeout = \"2s\" }\n";
    let daemon = Daemon::start(&format!(
        "{}open_timeout = \"3s\"\n{}{database}{quick}",
        first.section("first", relay.port),
        second.section("second", second.port)
    ));
    daemon.wait_up("first");
    daemon.wait_up("second");
    let runtime = runtime();
    assert_eq!(where_a_client_goes(&daemon, &runtime), "first");

    // Jobs come all the time; none may fail.
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let jobs = {
        let (stop, done, address) = (Arc::clone(&stop), Arc::clone(&done), daemon.address("analytics"));
        runtime.spawn(async move {
            let mut caught = 0;
            while !stop.load(Ordering::SeqCst) {
                match timeout(Duration::from_secs(20), job(address)).await {
                    Ok(ended) => assert!(!matches!(ended, Job::Unanswered(_)), "{ended:?}"),
                    // Connected when the silence began, it waits until the session is given up, as it should.
                    Err(_) => caught += 1,
                }
                assert!(caught <= 1);
                done.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    relay.set(Fault::Silence);
    eventually("the first bastion is found silent", || {
        (!daemon.bastion("first")["up"].as_bool().unwrap()).then_some(())
    });
    let before = done.load(Ordering::SeqCst);
    eventually("jobs go on", || (done.load(Ordering::SeqCst) > before + 20).then_some(()));
    assert!(daemon.database("analytics")["up"].as_bool().unwrap());
    relay.set(Fault::Reset);
    eventually("it refuses", || {
        (daemon.bastion("first")["last_failure"]["reason"] != "keepalive_timeout").then_some(())
    });
    let before = done.load(Ordering::SeqCst);
    eventually("jobs go on", || (done.load(Ordering::SeqCst) > before + 20).then_some(()));

    relay.set(Fault::None);
    daemon.wait_up("first");
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(jobs).unwrap();
    eventually("the last job has left", || carried_by(&daemon).is_none().then_some(()));
    assert_eq!(where_a_client_goes(&daemon, &runtime), "second", "the first has yet to prove well");
    eventually("clients return", || (where_a_client_goes(&daemon, &runtime) == "first").then_some(()));

    let metrics = daemon.metrics();
    assert_eq!(metrics["database_up{database=\"analytics\"}"], 1.0);
    assert!(
        metrics["database_uptime_seconds_total{database=\"analytics\"}"]
            > metrics["tunnel_uptime_seconds_total{bastion=\"first\"}"]
    );
    for (bastion, preference) in [("first", 0), ("second", 1)] {
        let labels = format!("bastion=\"{bastion}\",database=\"analytics\",preference=\"{preference}\"");
        assert_eq!(metrics[&format!("database_bastion_info{{{labels}}}")], 1.0);
    }
    for outcome in ["hold_timeout", "refused", "open_failed"] {
        let series = format!("client_connections_total{{database=\"analytics\",outcome=\"{outcome}\"}}");
        assert_eq!(metrics[&series], 0.0, "{outcome}");
    }
}

#[test]
fn a_bastion_that_forbids_the_forward_is_passed_by() {
    let (first, second) = (Bastion::with("AllowTcpForwarding no"), Bastion::start());
    let database = database_behind_both();
    let daemon = Daemon::start(&format!(
        "{}{}{database}",
        first.section("first", first.port),
        second.section("second", second.port)
    ));
    daemon.wait_up("first");
    daemon.wait_up("second");
    let runtime = runtime();
    assert_eq!(runtime.block_on(job(daemon.address("analytics"))), Job::Done);
    assert_eq!(where_a_client_goes(&daemon, &runtime), "second");
    eventually("the probe goes the same way", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    let prohibited = |bastion: &str| {
        let labels = format!("bastion=\"{bastion}\",database=\"analytics\",reason=\"prohibited\"");
        daemon.metric(&format!("channel_failures_total{{{labels}}}"))
    };
    assert!(prohibited("first") >= 1.0);
    assert_eq!(prohibited("second"), 0.0);
}
