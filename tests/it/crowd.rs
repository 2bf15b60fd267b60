//! Many clients at once.

use crate::support::client::{Job, job};
use crate::support::{Postgres, eventually, runtime, tunnel};

#[test]
fn five_hundred_clients_at_once() {
    let (_bastion, daemon) =
        tunnel("sessions = { max = 4 }\n", &Postgres::shared().section("analytics", "prod"));
    let address = daemon.address("analytics");
    let runtime = runtime();
    let jobs: Vec<_> = (0..500).map(|_| runtime.spawn(job(address))).collect();
    let results: Vec<Job> = jobs.into_iter().map(|job| runtime.block_on(job).unwrap()).collect();
    let failed: Vec<&Job> = results.iter().filter(|job| **job != Job::Done).collect();
    assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed[0]);
    let metrics = daemon.metrics();
    assert_eq!(metrics["client_connections_total{database=\"analytics\",outcome=\"carried\"}"], 500.0);
    assert!(metrics["tunnel_sessions{bastion=\"prod\"}"] <= 4.0);
    eventually("all clients have left", || {
        let database = daemon.database("analytics");
        (database["clients_active"] == 0 && database["clients_held"] == 0).then_some(())
    });
    eventually("all seats are given back", || {
        let sessions = daemon.bastion("prod")["sessions"].clone();
        sessions.as_array().unwrap().iter().all(|session| session["clients"] == 0).then_some(())
    });
}
