//! What `exec` makes of TLS that a job asks for itself: it is never weakened, and never for another database.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::{Job, err, psql_arguments, verified};
use crate::support::postgres::TRUSTED;
use crate::support::{Postgres, tunnel};

#[test]
fn a_job_that_is_stricter_than_the_probe_stays_so() {
    let (_bastion, daemon) = tunnel("", &verified("verify-ca"));
    let job = Job::of(&daemon);
    assert_eq!(job.environment(&[])["PGSSLMODE"], "verify-ca");
    let arguments = psql_arguments();
    let exec: Vec<&str> =
        ["exec", "analytics", "--"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let strict =
        job.command(&exec).envs([("PGUSER", TRUSTED), ("PGSSLMODE", "verify-full")]).output().unwrap();
    assert_eq!(strict.status.code(), Some(2), "{strict:?}");
    assert!(err(&strict).contains("does not match host name \"127.0.0.1\""), "{strict:?}");
}

#[test]
fn roots_that_a_job_cannot_read_are_named_before_libpq_stumbles_over_them() {
    let dir = TempDir::with_prefix("roots-").unwrap();
    let ca = dir.path().join("ca.pem");
    fs::copy(Postgres::shared().ca(), &ca).unwrap();
    let section = verified("verify-full");
    let section = section.replace(&Postgres::shared().ca().display().to_string(), &ca.display().to_string());
    let (_bastion, daemon) = tunnel("", &section);
    let job = Job::of(&daemon);
    assert_eq!(job.run(&["wait"]).status.code(), Some(0));
    // Nobody can read it then, whoever runs the tests.
    fs::remove_file(&ca).unwrap();
    let output = job.run(&["exec", "analytics", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = err(&output);
    assert!(text.contains(&format!("{}, which verifies it, cannot be read", ca.display())), "{text}");
    let own = Postgres::shared().ca();
    let mut brought = job.command(&["exec", "analytics", "--", "true"]);
    assert_eq!(brought.env("PGSSLROOTCERT", own).status().unwrap().code(), Some(0));
}

#[test]
fn a_job_that_verifies_is_not_led_to_a_socket_without_tls() {
    let dir = TempDir::with_prefix("sockets-").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let listen = format!("\"unix:{}/.s.PGSQL.6543\"\nsocket_mode = \"0666\"", dir.path().display());
    let section = Postgres::shared().section("analytics", "prod").replace("\"127.0.0.1:0\"", &listen);
    let (_bastion, daemon) = tunnel("", &section);
    let job = Job::of(&daemon);
    assert_eq!(job.environment(&[("PGSSLMODE", "prefer")])["PGSSLMODE"], "prefer");
    for mode in ["require", "verify-full"] {
        let output =
            job.command(&["exec", "analytics", "--", "true"]).env("PGSSLMODE", mode).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{mode}: {output:?}");
        let words = format!("libpq never encrypts on Unix sockets, and sslmode is \"{mode}\"");
        assert!(err(&output).contains(&words), "{output:?}");
    }
}

#[test]
fn a_job_that_verifies_a_host_is_led_to_no_other() {
    let (_bastion, daemon) = tunnel("", &verified("verify-full"));
    let job = Job::of(&daemon);
    let led = |host: &str| {
        let own = [("PGHOST", host), ("PGSSLMODE", "verify-full")];
        job.command(&["exec", "analytics", "--", "true"]).envs(own).output().unwrap()
    };
    assert_eq!(led("localhost").status.code(), Some(0));
    let output = led("payroll.internal");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = err(&output);
    assert!(text.contains("\"payroll.internal\"") && text.contains("\"localhost\""), "{text}");
}
