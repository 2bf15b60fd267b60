//! dbt and a bastion that restarts: what a run survives, and what puts right what it does not survive.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use super::out;
use super::recipes::{Stage, recipe};
use crate::support::client::psql_on;
use crate::support::postgres::TRUSTED;
use crate::support::{Postgres, eventually};

/// A project of two models, the second of which depends on the first.
fn project(stage: &Stage, schema: &str, orders: &str) {
    let profile =
        recipe("dbt-postgres", "# profiles.yml").replace("schema: reports", &format!("schema: {schema}"));
    stage.write("profiles.yml", &profile);
    let settings = "name: shop\nprofile: analytics\nmodels:\n  +materialized: table\n";
    stage.write("dbt_project.yml", settings);
    stage.write("models/orders.sql", orders);
    stage.write("models/totals.sql", "SELECT count(*) AS n FROM {{ ref('orders') }}");
}

fn total(schema: &str) -> String {
    Postgres::shared().sql("analytics", &format!("SELECT n FROM {schema}.totals"))
}

#[test]
fn dbt_goes_on_when_the_bastion_restarts_between_two_models() {
    let mut stage = Stage::set("127.0.0.11");
    project(&stage, "between", "SELECT 1 AS id UNION ALL SELECT 2");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/jobs/pausing_dbt.py");
    let mut run = stage.client("tunnelkeeper");
    run.args(["exec", "analytics", "--", "python3"]).arg(script).args(["--no-use-colors", "run"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut go_on = run.stdin.take().unwrap();
    let mut said = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first: Vec<String> = said.by_ref().take_while(|line| line != "finished orders").collect();
    assert!(
        first.iter().any(|line| line.contains("OK created sql table model between.orders")),
        "{first:#?}"
    );
    stage.bastion.kill();
    stage.daemon.wait_down("prod");
    writeln!(go_on).unwrap();
    eventually("the second model is held", || {
        (stage.daemon.database("analytics")["clients_held"] == 1).then_some(())
    });
    stage.bastion.start_again();
    let second: Vec<String> = said.by_ref().take_while(|line| line != "finished totals").collect();
    writeln!(go_on).unwrap();
    let rest: Vec<String> = said.collect();
    assert_eq!(run.wait().unwrap().code(), Some(0), "{first:#?} {second:#?} {rest:#?}");
    assert!(rest.iter().any(|line| line.contains("PASS=2 WARN=0 ERROR=0 SKIP=0")), "{rest:#?}");
    assert_eq!(total("between"), "2");
    // Nobody was cut: dbt has no connection between two models.
    let lost = stage.daemon.events("session lost");
    assert!(!lost.is_empty() && lost.iter().all(|event| event["clients"] == 0), "{lost:?}");
    assert!(stage.daemon.events("client cut").is_empty());
}

#[test]
fn dbt_retry_mends_a_run_whose_bastion_restarted_in_a_model() {
    const LOCK: i32 = 4711;
    let mut stage = Stage::set("127.0.0.12");
    // The lock is the test's until the model has been cut.
    let query = format!("SELECT 1 AS id FROM (SELECT pg_advisory_xact_lock({LOCK})) AS waited");
    project(&stage, "amid", &query);
    let locked = format!("FROM pg_locks WHERE locktype = 'advisory' AND objid = {LOCK} AND granted");
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%advisory_xact_lock({LOCK})%'"
    );
    let wait_for = |sql: &str, found: &str| {
        eventually(sql, || (Postgres::shared().sql("analytics", sql) == found).then_some(()));
    };
    let lock = format!("SELECT pg_advisory_lock({LOCK}), pg_sleep(600)");
    let login = format!("user={TRUSTED} dbname=analytics");
    let mut holder = psql_on("127.0.0.1", Postgres::shared().port, &login, &lock);
    let mut holder = holder.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&format!("SELECT count(*) {locked}"), "1");
    let script = stage
        .write("run.sh", &recipe("dbt-postgres", "# run.sh").replace("-- dbt", "-- dbt --no-use-colors"));
    let run = stage.client("sh").arg(script).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&waiting, "1");
    stage.bastion.kill();
    stage.daemon.wait_down("prod");
    stage.bastion.start_again();
    // The database has not noticed the end of the first try, for which the second waits.
    wait_for(&waiting, "2");
    Postgres::shared().sql("analytics", &format!("SELECT pg_terminate_backend(pid) {locked}"));
    holder.wait().unwrap();
    let output = run.wait_with_output().unwrap();
    let text = out(&output);
    let (cut, retried) = text.split_once("PASS=0 WARN=0 ERROR=1 SKIP=1").expect(&text);
    let words = ["server closed the connection unexpectedly", "SSL SYSCALL error: EOF detected"];
    assert!(words.iter().any(|words| cut.contains(words)), "{text}");
    assert!(retried.contains("PASS=2 WARN=0 ERROR=0 SKIP=0"), "{text}");
    assert_eq!((output.status.code(), total("amid").as_str()), (Some(0), "1"));
    let log = fs::read_to_string(stage.file("logs/dbt.log")).unwrap();
    assert!(
        log.contains("Running with dbt=") && !log.contains("Sending event"),
        "dbt tells its makers what it does"
    );
}
