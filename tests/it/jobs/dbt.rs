//! dbt and a bastion that restarts: what a run survives, and what puts right what it does not survive.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use super::recipes::{Stage, recipe};
use super::{err, out};
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

/// How a run ended. dbt says all that it says on standard output.
fn ended(stage: &Stage, arguments: &[&str]) -> Output {
    stage.client("tunnelkeeper").args(["exec", "analytics", "--"]).args(arguments).output().unwrap()
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
    let locks = |granted: bool| {
        format!("FROM pg_locks WHERE locktype = 'advisory' AND objid = {LOCK} AND granted = {granted}")
    };
    let count =
        |granted: bool| Postgres::shared().sql("analytics", &format!("SELECT count(*) {}", locks(granted)));
    let lock = format!("SELECT pg_advisory_lock({LOCK}), pg_sleep(600)");
    let login = format!("user={TRUSTED} dbname=analytics");
    let mut holder = psql_on("127.0.0.1", Postgres::shared().port, &login, &lock);
    let mut holder = holder.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the lock is ours", || (count(true) == "1").then_some(()));
    let run = stage
        .client("tunnelkeeper")
        .args(["exec", "analytics", "--", "dbt", "--no-use-colors", "run"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the first model waits", || (count(false) == "1").then_some(()));
    stage.bastion.kill();
    stage.daemon.wait_down("prod");
    stage.bastion.start_again();
    let output = run.wait_with_output().unwrap();
    let text = out(&output);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("PASS=0 WARN=0 ERROR=1 SKIP=1"), "{text}");
    let words = ["server closed the connection unexpectedly", "SSL SYSCALL error: EOF detected"];
    assert!(words.iter().any(|words| text.contains(words)), "{text}");
    // The database has not noticed: it still waits, and would go on.
    assert_eq!(count(false), "1");
    Postgres::shared().sql("analytics", &format!("SELECT pg_terminate_backend(pid) {}", locks(true)));
    holder.wait().unwrap();
    let retry = ended(&stage, &["dbt", "--no-use-colors", "retry"]);
    assert!(out(&retry).contains("PASS=2 WARN=0 ERROR=0 SKIP=0"), "{} {}", out(&retry), err(&retry));
    assert_eq!((retry.status.code(), total("amid").as_str()), (Some(0), "1"));
    let again = fs::read_to_string(stage.file("logs/dbt.log")).unwrap();
    assert!(!again.contains("Anonymous usage events"), "dbt sends usage events");
}
