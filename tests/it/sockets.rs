//! Unix sockets at both ends, and listeners that systemd hands over.

use std::fs;

use crate::support::client::run_psql;
use crate::support::daemon::run;
use crate::support::{Bastion, Daemon, Postgres, eventually, tunnel};

const ASK: &str = "SELECT coalesce(host(inet_client_addr()), 'a Unix socket')";

#[test]
fn a_database_behind_a_unix_socket_of_the_bastion() {
    let postgres = Postgres::shared();
    let (_bastion, daemon) = tunnel("", &postgres.socket_section("analytics", "prod"));
    let answer = run_psql(daemon.address("analytics"), "user=trusted", ASK);
    assert_eq!(answer.as_deref(), Ok("a Unix socket"));
    eventually("the probe is answered", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    let database = daemon.database("analytics");
    assert_eq!(database["host"], postgres.socket().display().to_string());
    assert_eq!(database["port"], 0);
    // Whoever asks for TLS hears what the database says of it.
    let error = run_psql(daemon.address("analytics"), "user=trusted sslmode=require", ASK).unwrap_err();
    assert!(error.contains("server does not support SSL"), "{error}");
}

#[test]
fn what_is_wrong_with_a_socket_of_the_bastion_is_named() {
    let socket = Postgres::shared().socket();
    for (lines, path) in [
        ("", "/nonexistent/.s.PGSQL.5432".to_owned()),
        ("AllowStreamLocalForwarding no", socket.display().to_string()),
        ("PermitOpen none", socket.display().to_string()),
    ] {
        let bastion = Bastion::with(lines);
        let daemon = Daemon::start(&format!(
            "{}[databases.analytics]\nbastion = \"prod\"\nhost = {path:?}\nlisten = \"127.0.0.1:0\"\n\
             probe = {{ level = \"off\" }}\nhold = {{ timeout = \"0s\" }}\n",
            bastion.section("prod", bastion.port),
        ));
        daemon.wait_up("prod");
        let error = run_psql(daemon.address("analytics"), "user=trusted", ASK).unwrap_err();
        let port = bastion.port;
        // sshd does not tell one from the other.
        let told =
            format!("channel connect_failed: 127.0.0.1:{port} cannot connect to {path}: \"open failed\"");
        assert!(error.contains(&told), "{error}");
        assert!(error.contains("AllowStreamLocalForwarding"), "{error}");
    }
}

#[test]
fn the_line_of_keygen_opens_one_socket_and_no_other() {
    let postgres = Postgres::shared();
    let bastion = Bastion::start();
    let section = bastion.keyless_section("prod", bastion.port);
    let mut daemon = Daemon::start(&format!("{section}{}", postgres.socket_section("analytics", "prod")));
    let output = run(&daemon.config(), &["keygen", "prod"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("restrict,")).unwrap().trim();
    let socket = postgres.socket().display().to_string();
    assert!(line.contains(&format!("port-forwarding,command=\"/bin/false\",permitopen=\"[{socket}]:*\"")));
    bastion.authorize(line);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.contains("Match User")).skip(1).collect();
    assert!(lines.iter().any(|line| line.trim() == "AllowStreamLocalForwarding local"), "{lines:?}");

    // What it prints for sshd holds every account to the same here.
    let strict = Bastion::with(&lines.join("\n"));
    strict.authorize(line);
    let config = fs::read_to_string(daemon.config()).unwrap();
    let config = config.replace(&section, "");
    let other = strict.path("other.sock");
    let _other = std::os::unix::net::UnixListener::bind(&other).unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let key = daemon.dir.path().join("state/keys/prod").display().to_string();
    for bastion in [&bastion, &strict] {
        let again = Daemon::start(&format!(
            "{config}[databases.other]\nbastion = \"prod\"\nhost = {:?}\nlisten = \"127.0.0.1:0\"\n\
             probe = {{ level = \"off\" }}\nhold = {{ timeout = \"0s\" }}\n{}identity = {key:?}\n",
            other.display().to_string(),
            bastion.keyless_section("prod", bastion.port),
        ));
        again.wait_up("prod");
        assert_eq!(run_psql(again.address("analytics"), "user=trusted", ASK).as_deref(), Ok("a Unix socket"));
        let refused = run_psql(again.address("other"), "user=trusted", "SELECT 1").unwrap_err();
        assert!(refused.contains("channel connect_failed"), "{refused}");
        let denied = format!("Received request to connect to path {}", other.display());
        eventually("sshd has said why", || bastion.log().contains(&denied).then_some(()));
    }
}
