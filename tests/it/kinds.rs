//! Databases in the cloud: each kind is stood in for by a real PostgreSQL that a bastion knows by the kind's real name.

use crate::support::postgres::{CLOUD, DATABASE, TRUSTED};
use crate::support::{Bastion, Daemon, Postgres, SniRouter, eventually};

const ENDPOINT: &str = "ep-cool-darkness-123456.database.us-east-1.cloud.databricks.com";

/// `[databases.cloud]` with the certificates of `ca`.
fn section(host: &str, port: u16, ca: &std::path::Path, more: &str) -> String {
    format!(
        "[databases.cloud]\nbastion = \"prod\"\nhost = \"{host}\"\nport = {port}\nlisten = \"127.0.0.1:0\"\n\
         user = \"{TRUSTED}\"\ndatabase = \"{DATABASE}\"\ntls = {{ mode = \"verify-full\", ca = {ca:?} }}\n{more}\n"
    )
}

fn daemon(bastion: &Bastion, database: &str) -> Daemon {
    Daemon::start(&format!("{}{database}", bastion.section("prod", bastion.port)))
}

#[test]
fn the_probe_gives_the_real_name_to_whoever_routes_by_it() {
    let router = SniRouter::start(ENDPOINT, Postgres::shared().port);
    let bastion = Bastion::that_knows(&[ENDPOINT]);
    let daemon = daemon(&bastion, &section(ENDPOINT, router.port, &router.ca(), "kind = \"postgres\""));
    eventually("the probe is answered", || {
        (daemon.database("cloud")["probe"]["verdict"] == "up").then_some(())
    });
    assert_eq!(router.seen(), [Some(ENDPOINT.to_owned())]);
}

#[test]
fn the_real_name_is_verified() {
    let postgres = Postgres::shared();
    let bastion = Bastion::that_knows(&CLOUD);
    let daemon = daemon(&bastion, &section(CLOUD[0], postgres.port, &postgres.ca(), ""));
    eventually("the probe is answered", || {
        (daemon.database("cloud")["probe"]["verdict"] == "up").then_some(())
    });
}
