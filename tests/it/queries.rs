//! What clients without encryption ask is seen: how long it takes, what goes wrong, and what each of them is about; of
//! those with encryption only how long they wait.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, pin_mut};
use serde_json::Value;

use crate::support::client::{connect, connect_as, run_psql, said};
use crate::support::daemon::command;
use crate::support::postgres::{DATABASE, PASSWORD, SCRAM, TRUSTED};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime, tunnel};

fn usual() -> (Bastion, Daemon) {
    tunnel("", &Postgres::shared().section("analytics", "prod"))
}

const PLAIN: &str = "user=trusted sslmode=disable";

fn queries(daemon: &Daemon) -> f64 {
    daemon.metric("query_duration_seconds_count{database=\"analytics\"}")
}

fn errors(daemon: &Daemon, class: &str) -> f64 {
    daemon.metric(&format!("query_errors_total{{database=\"analytics\",sqlstate_class=\"{class}\"}}"))
}

/// Waits until all that was asked has been answered, and nothing more.
fn answered(daemon: &Daemon, expected: f64) {
    eventually("all is answered", || (queries(daemon) >= expected).then_some(()));
    assert_eq!(queries(daemon), expected);
}

/// The only client, once it is about this, and one before it has left: its connection may outlive its process a little.
fn client_once(daemon: &Daemon, activity: &str) -> Value {
    eventually(activity, || {
        let database = daemon.database("analytics");
        let clients = database["clients"].as_array().unwrap();
        let [client] = clients.as_slice() else { return None };
        (client["activity"] == activity).then(|| client.clone())
    })
}

#[test]
fn queries_of_psql_are_timed_and_their_errors_counted_by_class() {
    let (_bastion, daemon) = usual();
    let address = daemon.address("analytics");
    let before = daemon.metrics();
    let series = |metrics: &std::collections::BTreeMap<String, f64>, name: &str| {
        metrics.keys().filter(|key| key.starts_with(name)).count()
    };
    assert_eq!((series(&before, "query_errors_total"), queries(&daemon)), (42, 0.0));
    assert_eq!(run_psql(address, PLAIN, "SELECT 6 * 7").unwrap(), "42");
    assert_eq!(queries(&daemon), 1.0);
    run_psql(address, PLAIN, "SELECT pg_sleep(0.3)").unwrap();
    assert_eq!(queries(&daemon), 2.0);
    let slow = daemon.metric("query_duration_seconds_bucket{database=\"analytics\",le=\"0.25\"}");
    assert_eq!(slow, 1.0, "a query that takes 0.3 s was not seen to");
    assert!(daemon.metric("query_duration_seconds_sum{database=\"analytics\"}") >= 0.3);
    for (sql, class) in
        [("SELECT * FROM nothing_of_this_name", "42"), ("SELECT 1 / 0", "22"), ("SELEKT", "42")]
    {
        let before = errors(&daemon, class);
        run_psql(address, PLAIN, sql).unwrap_err();
        assert_eq!(errors(&daemon, class), before + 1.0, "{sql}");
    }
    assert_eq!(queries(&daemon), 5.0);
    // Who is not let in has asked nothing.
    run_psql(address, "user=nobody_of_this_name sslmode=disable", "SELECT 1").unwrap_err();
    let after = daemon.metrics();
    let all: f64 =
        after.iter().filter(|(key, _)| key.starts_with("query_errors_total")).map(|(_, n)| n).sum();
    assert_eq!((all, queries(&daemon)), (3.0, 5.0));
    assert_eq!(series(&after, "query"), series(&before, "query"), "a series appeared by counting");
    // The probe's queries are none of a client.
    assert_eq!(daemon.metric("turnaround_seconds_count{database=\"analytics\"}"), 0.0);
}

#[test]
fn a_pipeline_and_its_errors_stay_in_step() {
    let (_bastion, daemon) = usual();
    let runtime = runtime();
    let client = runtime.block_on(connect(daemon.address("analytics"))).unwrap();
    let before = queries(&daemon);
    // Each is prepared, run and closed, with a Sync each, and many are under way at a time.
    runtime.block_on(async {
        let asked = (0..200_i32).map(|n| {
            let client = &client;
            async move { client.query_one(&format!("SELECT {n} / ({n} % 10)"), &[]).await }
        });
        let answers = futures_util::future::join_all(asked).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 20);
    });
    answered(&daemon, before + 600.0);
    assert_eq!(errors(&daemon, "22"), 20.0);
    // Whoever is in step sees the client wait for nothing.
    client_once(&daemon, "idle");
    runtime.block_on(client.simple_query("SELECT 1; SELECT 2")).unwrap();
    answered(&daemon, before + 601.0);
}

#[test]
fn copies_by_both_protocols_stay_in_step() {
    let (_bastion, daemon) = usual();
    let address = daemon.address("analytics");
    let runtime = runtime();
    let setup = "CREATE TABLE IF NOT EXISTS watched_copies (n int); TRUNCATE watched_copies";
    run_psql(address, PLAIN, setup).unwrap();
    let before = queries(&daemon);
    // psql copies by simple queries.
    run_psql(address, PLAIN, "\\copy watched_copies FROM PROGRAM 'seq 1000'").unwrap();
    let out = run_psql(address, PLAIN, "\\copy watched_copies TO STDOUT").unwrap();
    assert_eq!((out.lines().count(), queries(&daemon)), (1000, before + 2.0));
    run_psql(address, PLAIN, "\\copy watched_copies FROM PROGRAM 'echo x'").unwrap_err();
    assert_eq!((errors(&daemon, "22"), queries(&daemon)), (1.0, before + 3.0));
    // tokio-postgres sends a Sync behind its Execute, which the server ignores while it takes the rows.
    let client = runtime.block_on(connect(address)).unwrap();
    let before = queries(&daemon);
    runtime.block_on(async {
        let sink = client.copy_in::<_, Bytes>("COPY watched_copies FROM STDIN").await.unwrap();
        pin_mut!(sink);
        sink.send(Bytes::from_static(b"1\n2\n")).await.unwrap();
        tokio::task::block_in_place(|| client_once(&daemon, "copying"));
        assert_eq!(sink.finish().await.unwrap(), 2);
        let rows = client.copy_out("COPY watched_copies TO STDOUT").await.unwrap();
        pin_mut!(rows);
        let mut received = 0;
        while let Some(row) = rows.next().await {
            received += row.unwrap().iter().filter(|byte| **byte == b'\n').count();
        }
        assert_eq!(received, 1002);
        // One that is given up, and one whose row is refused.
        drop(client.copy_in::<_, Bytes>("COPY watched_copies FROM STDIN").await.unwrap());
        let sink = client.copy_in::<_, Bytes>("COPY watched_copies FROM STDIN").await.unwrap();
        pin_mut!(sink);
        sink.send(Bytes::from_static(b"no number\n")).await.unwrap();
        sink.finish().await.unwrap_err();
        client.simple_query("SELECT 1").await.unwrap();
    });
    // Four copies, each prepared, run and closed; and a query.
    answered(&daemon, before + 13.0);
    client_once(&daemon, "idle");
    Postgres::shared().sql(DATABASE, "DROP TABLE watched_copies");
}

#[test]
fn the_status_says_who_a_client_is_and_what_it_is_about() {
    let (_bastion, daemon) = usual();
    let runtime = runtime();
    // What it calls itself is for others to read, and cannot do anything to them.
    let client =
        runtime.block_on(connect_as(daemon.address("analytics"), "nightly \u{1b}[2J<b>job</b>")).unwrap();
    let state = client_once(&daemon, "idle");
    assert_eq!((&state["user"], &state["database"]), (&TRUSTED.into(), &DATABASE.into()), "{state}");
    assert!(state["application_name"].as_str().unwrap().starts_with("nightly "), "{state}");
    assert!(!state.to_string().contains("\\u001b"), "{state}");
    for (sql, activity) in [
        ("BEGIN", "idle in transaction"),
        ("SELECT 1", "idle in transaction"),
        ("SELECT no_such_column", "idle in failed transaction"),
        ("ROLLBACK", "idle"),
    ] {
        let _ = runtime.block_on(client.simple_query(sql));
        let since = client_once(&daemon, activity)["activity_since"].as_str().unwrap().to_owned();
        assert!(since.as_str() >= state["since"].as_str().unwrap(), "{since} in {state}");
    }
    let asked = runtime.spawn(async move { client.simple_query("SELECT pg_sleep(3600)").await.map(drop) });
    client_once(&daemon, "in a query");
    let page = daemon.get("/").1;
    assert!(page.contains("in a query") && page.contains("&lt;b&gt;job&lt;/b&gt;"), "{page}");
    let url = daemon.url();
    let shown = said(&mut command(&daemon.config(), &["status", "analytics", "--url", &url])).unwrap();
    assert!(shown.contains("in a query") && shown.contains("nightly "), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
    asked.abort();
}

#[test]
fn of_an_encrypted_client_only_its_waiting_is_seen() {
    let (_bastion, daemon) = usual();
    let tls = format!("user={SCRAM} password='{PASSWORD}' sslmode=require");
    run_psql(daemon.address("analytics"), &tls, "SELECT pg_sleep(0.3)").unwrap();
    let metrics = daemon.metrics();
    // The handshake, the login and the query.
    assert!(metrics["turnaround_seconds_count{database=\"analytics\"}"] >= 4.0);
    assert!(metrics["turnaround_seconds_sum{database=\"analytics\"}"] >= 0.3);
    assert_eq!(metrics["query_duration_seconds_count{database=\"analytics\"}"], 0.0);
    assert!(metrics.iter().all(|(key, value)| !key.starts_with("query_errors_total") || *value == 0.0));
}

#[test]
fn a_client_that_is_cut_is_logged_with_what_it_was_about() {
    let (bastion, daemon) = usual();
    let runtime = runtime();
    let secret = "of_no_concern_to_a_log";
    let client = runtime.block_on(connect_as(daemon.address("analytics"), "nightly job")).unwrap();
    runtime.block_on(client.simple_query(&format!("BEGIN; SELECT '{secret}'"))).unwrap();
    client_once(&daemon, "idle in transaction");
    bastion.kill_sessions();
    let event = daemon.wait_event("client cut");
    assert_eq!(event["activity"], "idle in transaction", "{event}");
    assert!(event["activity_s"].is_u64(), "{event}");
    assert_eq!(
        (&event["database_user"], &event["application_name"]),
        (&TRUSTED.into(), &"nightly job".into())
    );
    assert!(!daemon.printed().contains(secret));
    assert!(!daemon.status().to_string().contains(secret) && !daemon.get("/metrics").1.contains(secret));
}
