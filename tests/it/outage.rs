//! An outage of the bastion refuses no job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Job, connect, job};
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, eventually, runtime};

#[test]
fn sshd_killed_and_started_again_under_a_stream_of_clients() {
    let mut bastion = Bastion::start();
    let config = format!(
        "{}sessions = {{ max = 1 }}\n{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let runtime = runtime();

    // One client runs a query that would take for ever.
    let running = runtime.block_on(connect(address)).unwrap();
    let (told, cut) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let result = running.batch_execute("SELECT pg_sleep(3600)").await;
        told.send((Instant::now(), result.map_err(|error| format!("{error:?}")))).unwrap();
    });
    eventually("the query runs", || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)'";
        (Postgres::shared().sql("postgres", running) == "1").then_some(())
    });

    // A client every 50 ms, each with a question.
    let stop = Arc::new(AtomicBool::new(false));
    let clients = runtime.spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut asked = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                asked.push(tokio::spawn(job(address)));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            asked
        }
    });
    let before = daemon.metric("client_connections_total{database=\"analytics\",outcome=\"carried\"}");
    eventually("the stream flows", || {
        let carried = daemon.metric("client_connections_total{database=\"analytics\",outcome=\"carried\"}");
        (carried > before + 10.0).then_some(())
    });

    bastion.kill();
    let killed = Instant::now();
    let (cut_at, result) = cut.recv_timeout(PATIENCE).unwrap();
    assert!(result.is_err(), "the query that was cut ended as if complete");
    assert!(cut_at - killed < Duration::from_secs(1), "it was cut after {:?}", cut_at - killed);
    daemon.wait_down("prod");
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 0.0);
    eventually("clients are held", || {
        (daemon.metric("clients_held{database=\"analytics\"}") > 5.0).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3).saturating_sub(killed.elapsed()));
    bastion.start_again();
    daemon.wait_up("prod");
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 1.0);
    eventually("nobody is held", || {
        (daemon.metric("clients_held{database=\"analytics\"}") == 0.0).then_some(())
    });
    stop.store(true, Ordering::SeqCst);

    let asked = runtime.block_on(clients).unwrap();
    let count = asked.len();
    let jobs: Vec<Job> = asked.into_iter().map(|job| runtime.block_on(job).unwrap()).collect();
    let unanswered: Vec<&Job> = jobs.iter().filter(|job| matches!(job, Job::Unanswered(_))).collect();
    assert!(unanswered.is_empty(), "of {count}: {unanswered:?}");
    // Those that were in the middle of their conversation when the bastion died.
    let cut = jobs.iter().filter(|job| matches!(job, Job::CutAfterAnswer(_))).count();
    assert!(count > 60 && cut <= 3, "{cut} of {count} were cut");

    let metrics = daemon.metrics();
    let losses: Vec<(&String, &f64)> = metrics
        .iter()
        .filter(|(series, value)| series.starts_with("session_losses_total") && **value > 0.0)
        .collect();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!(*losses[0].1, 1.0, "{losses:?}");
    let reasons = ["closed_by_bastion", "reset"];
    assert!(reasons.iter().any(|reason| losses[0].0.contains(reason)), "{losses:?}");
    for outcome in ["hold_timeout", "refused", "limit", "gone", "open_failed"] {
        assert_eq!(
            metrics[&format!("client_connections_total{{database=\"analytics\",outcome=\"{outcome}\"}}")],
            0.0
        );
    }
    let event = daemon.wait_event("client cut");
    assert_eq!((&event["database"], &event["level"]), (&"analytics".into(), &"WARN".into()), "{event}");
    assert_eq!(event["user"], whoami(), "{event}");
}

/// Who runs this test, and so its clients.
fn whoami() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}
