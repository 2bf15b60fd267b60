//! What libpq makes of `service-file`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::{Job, out, psql_arguments};
use crate::support::account::account;
use crate::support::postgres::{DATABASE, TRUSTED};
use crate::support::{Postgres, tunnel};

#[test]
fn a_service_is_found_behind_one_that_libpq_cannot_be_led_to() {
    let dir = TempDir::with_prefix("ä").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let sockets: Vec<String> =
        (0..40).map(|n| format!("\"unix:{}/socket-{n}\"", dir.path().display())).collect();
    let postgres = Postgres::shared();
    let unnamed = postgres.unprobed_section("a-crowd", "prod");
    let unnamed = unnamed.replace("\"127.0.0.1:0\"", &format!("[{}]", sockets.join(", ")));
    let (_bastion, daemon) = tunnel("", &format!("{unnamed}{}", postgres.section("analytics", "prod")));
    let job = Job::of(&daemon);
    let file = job.run(&["service-file"]);
    let text = out(&file);
    assert!(text.find("# There is no [a-crowd]: ").unwrap() < text.find("[analytics]").unwrap(), "{text}");
    let services = job.dir.path().join("pg_service.conf");
    fs::write(&services, &file.stdout).unwrap();
    let [psql, arguments @ ..] = psql_arguments();
    let output = account()
        .command(Path::new(&psql))
        .env_clear()
        .env("PGSERVICEFILE", &services)
        .args(&arguments)
        .arg(format!("service=analytics user={TRUSTED}"))
        .output()
        .unwrap();
    assert_eq!(out(&output).trim(), format!("t|{DATABASE}"), "{output:?}\n{text}");
}
