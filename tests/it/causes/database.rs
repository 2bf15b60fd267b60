//! TLS with a database, the login, and the query.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{LATE, SOON, at_port, at_postgres, database_fails, saying, says, server};
use crate::support::postgres::{DATABASE, TRUSTED};
use crate::support::{Bastion, Postgres, eventually};

/// What becomes of a probe that this server answers.
fn answered_by(port: u16, patience: &str, detail: &str, hint: &str) -> Value {
    says(database_fails(&Bastion::start(), &at_port(port, patience)), detail, hint)
}

/// What becomes of a probe that asks this of the real database.
fn asking(query: &str, patience: &str) -> Value {
    let keys = format!("{}database = {DATABASE:?}\nprobe.query = {query:?}\n", at_postgres(patience));
    database_fails(&Bastion::start(), &keys)
}

/// Begins a session that stays, so that the server waits for it when it is told to stop.
fn stay(postgres: &Postgres) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", postgres.port)).unwrap();
    let parameters = format!("user\0{TRUSTED}\0database\0{DATABASE}\0\0");
    let len = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes();
    socket.write_all(&[&len[..], &[0, 3, 0, 0], parameters.as_bytes()].concat()).unwrap();
    socket.read_exact(&mut [0; 9]).unwrap();
    socket
}

/// Tells the server to stop once its sessions have ended.
fn stop(postgres: &Postgres) {
    let data = postgres.sql("postgres", "SHOW data_directory");
    let pid = fs::read_to_string(format!("{data}/postmaster.pid")).unwrap();
    kill(Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()), Signal::SIGTERM).unwrap();
}

super::cases! {
    a_database_that_turns_logins_away:
        [DbLoginOther, DbLoginTooManyConnections, DbTlsRefused, DbLoginStarting] =>
    {
        let (bastion, postgres) = (Bastion::start(), Postgres::start(|_| {}));
        let keys = format!("host = \"127.0.0.1\"\nport = {}\nuser = {TRUSTED:?}\n{LATE}", postgres.port);
        postgres.sql("postgres", "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC");
        let barred = database_fails(&bastion, &format!("{keys}database = \"postgres\"\n"));
        let keys = format!("{keys}database = {DATABASE:?}\n");
        postgres.sql("postgres", &format!("ALTER ROLE {TRUSTED} CONNECTION LIMIT 0"));
        let full = database_fails(&bastion, &keys);
        postgres.sql("postgres", &format!("ALTER ROLE {TRUSTED} CONNECTION LIMIT -1"));
        postgres.sql("postgres", "ALTER SYSTEM SET ssl = off");
        postgres.sql("postgres", "SELECT pg_reload_conf()");
        eventually("TLS is off", || (postgres.sql("postgres", "SHOW ssl") == "off").then_some(()));
        let plain = database_fails(&bastion, &format!("{keys}tls.mode = \"require\"\n"));
        let _guest = stay(&postgres);
        stop(&postgres);
        let leaving = database_fails(&bastion, &keys);
        [
            says(barred, "permission denied for database", "GRANT CONNECT ON DATABASE"),
            says(full, "too many connections for role", "max_connections"),
            says(plain, "refuses TLS", "tls.mode"),
            says(leaving, "is shutting down", "wait for it"),
        ]
    }

    tls_that_does_not_come_about: [DbTlsTimeout, DbTlsFailed] => {
        let closing = server(|mut socket| drop(socket.read(&mut [0; 8])));
        [
            answered_by(saying(b""), SOON, "did not agree on TLS in time", "`port`"),
            answered_by(closing, LATE, "closed the connection when it was asked for TLS", "tls.mode"),
        ]
    }

    what_is_no_postgresql: [DbLoginNotPostgres, DbLoginNotPostgres] => {
        let sshd = Bastion::start();
        let web = saying(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        [
            answered_by(sshd.port, LATE, "something else than TLS", "`port`"),
            answered_by(web, LATE, "with \"HTTP/1.1 400 Bad Request", "not PostgreSQL"),
        ]
    }

    logins_that_come_to_no_end: [DbLoginTimeout, DbLoginClosed] => {
        let closing = server(|mut socket| {
            let _ = socket.read(&mut [0; 8]);
            let _ = socket.write_all(b"N");
            let _ = socket.read(&mut [0; 1024]);
        });
        [
            answered_by(saying(b"N"), SOON, "did not finish the login in time", "load"),
            answered_by(closing, LATE, "closed the connection during the login", "log"),
        ]
    }

    queries_that_come_to_nothing: [DbQueryTimeout, DbQueryError, DbQueryClosed] => {
        let its_own_end = "SELECT pg_terminate_backend(pg_backend_pid())";
        [
            says(asking("SELECT pg_sleep(60)", SOON), "did not answer the query in time", "locks"),
            says(asking("SELECT 1 / 0", LATE), "division by zero", "`probe.query`"),
            says(asking(its_own_end, LATE), "terminating connection", "log"),
        ]
    }
}
