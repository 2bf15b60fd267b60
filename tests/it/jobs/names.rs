//! Clients reach a database by its real name: those without `hostaddr` by a loopback address of its own, and those with it
//! also where the server refuses whoever does not give the name.

use std::process::Command;

use super::recipes::{Stage, recipe};
use super::{WHERE_AM_I, err, out};
use crate::support::sni::UNSPECIFIED;
use crate::support::{Postgres, SniRouter};

const ENDPOINT: &str = "ep-cool-darkness-123456.database.us-east-1.cloud.databricks.com";

/// psql with nothing but the real name and the real port.
fn asked(mut psql: Command, stage: &Stage, host: &str) -> Result<String, String> {
    let ca = stage.file("ca.pem").display().to_string();
    let port = stage.port;
    let address = format!("host={host} port={port} dbname=analytics sslmode=verify-full sslrootcert={ca}");
    let output = psql.args(["-X", "-q", "-A", "-t", "-c", WHERE_AM_I, &address]).output().unwrap();
    if output.status.success() { Ok(out(&output).trim().to_owned()) } else { Err(err(&output)) }
}

#[test]
fn a_loopback_address_of_its_own_keeps_the_name_for_clients_without_hostaddr() {
    let stage = Stage::set("127.0.0.21");
    let line = recipe("A loopback address of its own", "127.0.0.2 ");
    assert_eq!(line.trim(), "127.0.0.2 analytics.internal");
    let name = "analytics.internal";
    assert_eq!(asked(stage.client_with_hosts("psql"), &stage, name), Ok("t|analytics".to_owned()));
    let carried = stage.daemon.metric("client_connections_total{database=\"analytics\",outcome=\"carried\"}");
    assert_eq!(carried, 1.0);
    // Without the line nobody finds it, and by the address alone nobody can verify it.
    let unknown = asked(stage.client("psql"), &stage, name).unwrap_err();
    assert!(unknown.contains("could not translate host name"), "{unknown}");
    let address = asked(stage.client("psql"), &stage, stage.own).unwrap_err();
    assert!(address.contains("does not match host name \"127.0.0.21\""), "{address}");
    let script = stage.write("pg8000_query.py", &recipe("pg8000", "# pg8000_query.py"));
    let output = stage.client_with_hosts("python3").arg(script).output().unwrap();
    assert_eq!(out(&output).trim(), "analytics", "{output:?}");
}

#[test]
fn exec_and_service_file_give_the_name_to_a_server_that_routes_by_it() {
    let router = SniRouter::start(ENDPOINT, Postgres::shared().port);
    let stage = Stage::before("127.0.0.22", ENDPOINT, router.port, &router.ca());
    let question = ["-X", "-q", "-A", "-t", "-c", "SELECT current_database()"];
    let exec = stage
        .client("tunnelkeeper")
        .args(["exec", "analytics", "--", "psql"])
        .args(question)
        .output()
        .unwrap();
    assert_eq!(out(&exec).trim(), "analytics", "{exec:?}");
    let script = recipe("With a service file", "service-file")
        .replace("-c 'SELECT 1'", "-XAtqc 'SELECT current_database()'");
    let service = stage.client("sh").args(["-euc", &script]).output().unwrap();
    assert_eq!(out(&service).trim(), "analytics", "{service:?}");
    let named = asked(stage.client_with_hosts("psql"), &stage, ENDPOINT);
    assert!(named.is_ok(), "{named:?}");
    let seen = router.seen();
    assert!(seen.len() >= 4 && seen.iter().all(|name| name.as_deref() == Some(ENDPOINT)), "{seen:?}");
    // The server is as strict as it should be: who comes by an address alone gives no name, and is refused.
    let local = stage.daemon.address("analytics");
    let nameless = format!("host=127.0.0.1 port={} dbname=analytics sslmode=require", local.port());
    let output = stage.client("psql").args(question).arg(nameless).output().unwrap();
    assert!(err(&output).contains(UNSPECIFIED), "{output:?}");
    assert_eq!(router.seen().last(), Some(&None));
}
