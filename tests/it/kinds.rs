//! Databases in the cloud: each kind is stood in for by a real PostgreSQL that a bastion knows by the kind's real name.

use std::path::Path;

use rcgen::date_time_ymd;
use serde_json::Value;

use crate::support::postgres::{CLOUD, DATABASE, IAM, PASSWORD};
use crate::support::sni::UNSPECIFIED;
use crate::support::{Bastion, Daemon, Postgres, SniRouter, eventually};

const ENDPOINT: &str = "ep-cool-darkness-123456.database.us-east-1.cloud.databricks.com";

/// Fails unless the database itself says that it is asked by that user, and inside TLS.
const PROOF: &str = "SELECT 1 / count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl AND \
                     current_user = 'IAM:probe'";

/// `[databases.cloud]`, whose probe logs in as a temporary user does.
fn section(host: &str, port: u16, more: &str) -> String {
    format!(
        "[databases.cloud]\nbastion = \"prod\"\nhost = \"{host}\"\nport = {port}\nlisten = \"127.0.0.1:0\"\n\
         user = \"{IAM}\"\npassword = \"{PASSWORD}\"\ndatabase = \"{DATABASE}\"\nprobe.query = \"{PROOF}\"\n\
         probe.interval = \"1s\"\n{more}\n"
    )
}

/// A daemon on a machine that trusts `roots` only.
fn daemon(bastion: &Bastion, roots: &Path, database: &str) -> Daemon {
    Daemon::with(&format!("{}{database}", bastion.section("prod", bastion.port)), |command| {
        command.env("SSL_CERT_FILE", roots);
    })
}

fn probe(daemon: &Daemon) -> Value {
    daemon.database("cloud")["probe"].clone()
}

fn is_up(daemon: &Daemon) -> Value {
    eventually("the probe is answered", || {
        let probe = probe(daemon);
        (probe["verdict"] == "up").then_some(probe)
    })
}

/// Waits until the probe says why it fails; returns what, and what to do.
fn failure(daemon: &Daemon, reason: [&str; 2]) -> [String; 2] {
    eventually(&format!("the probe says {reason:?}"), || {
        let failure = &probe(daemon)["last_failure"];
        let found = ["phase", "reason"].map(|key| failure[key].as_str().unwrap_or_default());
        assert!(failure.is_null() || found == reason, "{failure}");
        (!failure.is_null()).then(|| ["detail", "hint"].map(|key| failure[key].as_str().unwrap().to_owned()))
    })
}

#[test]
fn each_kind_is_known_by_its_name_and_verified_by_it() {
    let postgres = Postgres::shared();
    let bastion = Bastion::that_knows(&CLOUD);
    let own = format!("tls.ca = {:?}", postgres.ca());
    let nobody = bastion.path("authorized_keys");
    for (host, kind, level, more) in [
        (CLOUD[0], "rds", "query", own.as_str()),
        (CLOUD[1], "redshift", "query", ""),
        (CLOUD[2], "redshift-serverless", "tls", ""),
        (CLOUD[2], "redshift-serverless", "query", "probe.level = \"query\"\nprobe.when = \"always\""),
        (CLOUD[3], "lakebase", "query", ""),
        (CLOUD[0], "alloydb", "query", &format!("kind = \"alloydb\"\n{own}")),
    ] {
        // The others are verified by the roots that every machine has.
        let roots = if more.contains("tls.ca") { nobody.clone() } else { postgres.ca() };
        let daemon = daemon(&bastion, &roots, &section(host, postgres.port, more));
        let probe = is_up(&daemon);
        assert_eq!((&daemon.database("cloud")["kind"], &probe["level"]), (&kind.into(), &level.into()));
        // What rcgen gives by default.
        assert_eq!(probe["certificate_expires"], "4096-01-01T00:00:00.000Z");
    }
}

#[test]
fn a_certificate_that_does_not_do_says_why() {
    let postgres = Postgres::shared();
    let other = "other.c1abcdefghij.eu-west-1.rds.amazonaws.com";
    let bastion = Bastion::that_knows(&[other, CLOUD[0], CLOUD[1]]);
    let ca = format!("tls.ca = {:?}", postgres.ca());
    let nowhere = Path::new("/nonexistent");

    let names = daemon(&bastion, nowhere, &section(other, postgres.port, &ca));
    let [detail, _] = failure(&names, ["db_tls", "name_mismatch"]);
    let known = CLOUD[..3].join(", ");
    let expected = format!("shows a certificate for localhost, {known} and 2 more, not for {other}");
    assert!(detail.ends_with(&expected), "{detail}");

    let stranger = Postgres::start(|params| params.not_after = date_time_ymd(2001, 2, 3));
    let issuer = daemon(&bastion, &stranger.ca(), &section(CLOUD[1], postgres.port, ""));
    let [detail, hint] = failure(&issuer, ["db_tls", "unknown_issuer"]);
    assert!(detail.ends_with("which this machine does not know"), "{detail}");
    assert!(
        detail.contains("of \"CN=authority of the tests\"") && hint.contains("tls.ca"),
        "{detail}: {hint}"
    );

    let ca = format!("tls.ca = {:?}", stranger.ca());
    let expired = daemon(&bastion, nowhere, &section(CLOUD[0], stranger.port, &ca));
    let [detail, hint] = failure(&expired, ["db_tls", "expired"]);
    assert!(detail.ends_with("shows a certificate that expired at 2001-02-03T00:00:00Z"), "{detail}");
    assert!(hint.contains("renew"), "{hint}");
}

#[test]
fn the_end_of_a_certificate_is_a_series_while_the_database_is_there() {
    const SERIES: &str =
        "\ntunnelkeeper_certificate_expiry_timestamp_seconds{database=\"cloud\"} 67090118400\n";
    let postgres = Postgres::shared();
    let bastion = Bastion::that_knows(&[CLOUD[1]]);
    let prod = bastion.section("prod", bastion.port);
    let daemon = daemon(&bastion, &postgres.ca(), &section(CLOUD[1], postgres.port, ""));
    is_up(&daemon);
    assert!(daemon.get("/metrics").1.contains(SERIES));
    assert!(daemon.reload(&format!("{prod}{}", postgres.unprobed_section("other", "prod"))).is_empty());
    eventually("the series is gone", || {
        (!daemon.get("/metrics").1.contains("certificate_expiry_timestamp_seconds{database")).then_some(())
    });
}

#[test]
fn the_probe_gives_the_real_name_to_whoever_routes_by_it() {
    let router = SniRouter::start(ENDPOINT, Postgres::shared().port);
    let with_dot = format!("{ENDPOINT}.");
    let bastion = Bastion::that_knows(&[ENDPOINT, &with_dot]);
    // What the router passes on is not encrypted any more, and that user is let in with TLS only.
    let keys = "probe.level = \"query\"\nprobe.when = \"always\"";
    let section = |host: &str, more: &str| {
        section(host, router.port, more).replace(PROOF, "SELECT 1").replace(IAM, "clear_user")
    };
    for host in [ENDPOINT, &with_dot] {
        let before = router.seen().len();
        is_up(&daemon(&bastion, &router.ca(), &section(host, keys)));
        assert_eq!(router.seen()[before..], [Some(ENDPOINT.to_owned())]);
    }
    // By default a database that sleeps is not woken: the handshake is all that the router sees.
    let sleeper = daemon(&bastion, &router.ca(), &section(ENDPOINT, ""));
    assert_eq!(is_up(&sleeper)["level"], "tls");

    let keys =
        format!("kind = \"lakebase\"\ntls = {{ mode = \"require\", allow_unverified = true }}\n{keys}");
    let nameless = daemon(&bastion, &router.ca(), &section("127.0.0.1", &keys));
    let [detail, hint] = failure(&nameless, ["db_login", "other"]);
    assert!(
        detail.contains(UNSPECIFIED) && hint.contains("write its own name as `host`"),
        "{detail}: {hint}"
    );
    assert_eq!(router.seen().last(), Some(&None));
}
