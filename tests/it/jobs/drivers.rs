//! Drivers as docs/job-runners.md has people use them, with TLS to the real PostgreSQL.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use super::recipes::{Stage, recipe};
use super::{err, out};

#[test]
fn psycopg2_connects_as_documented() {
    let stage = Stage::set("127.0.0.31");
    let script = stage.write("psycopg2_query.py", &recipe("psycopg2", "# psycopg2_query.py"));
    let output = stage.client("python3").arg(script).output().unwrap();
    assert_eq!(out(&output).trim(), "analytics", "{output:?}");
}

/// Another query of the same program, when it is told to.
const AGAIN: &str = "\
import sys
sys.stdin.readline()
with engine.connect() as connection:
    print(connection.execute(text(\"SELECT 'again'\")).scalar())
";

#[test]
fn sqlalchemy_asks_whether_a_connection_of_its_pool_still_lives() {
    let mut stage = Stage::set("127.0.0.32");
    let documented = format!("{}{AGAIN}", recipe("SQLAlchemy", "# query.py"));
    let careless = documented.replace("pool_pre_ping=True, ", "");
    assert_ne!(careless, documented);
    for (script, code, said) in [(documented, Some(0), "again"), (careless, Some(1), "")] {
        let script = stage.write("query.py", &script);
        let mut python = stage.client("tunnelkeeper");
        python.args(["exec", "analytics", "--", "python3", "-u"]).arg(script);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut python = python.spawn().unwrap();
        let mut printed = BufReader::new(python.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(printed.next().as_deref(), Some("analytics"));
        stage.bastion.kill();
        stage.daemon.wait_down("prod");
        stage.bastion.start_again();
        writeln!(python.stdin.take().unwrap()).unwrap();
        assert_eq!(printed.next().unwrap_or_default(), said);
        let output = python.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code, "{output:?}");
        assert_eq!(err(&output).contains("OperationalError"), code != Some(0), "{output:?}");
    }
}
