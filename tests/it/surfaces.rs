//! HTTP as scrapers, load balancers, browsers and attackers use it.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::daemon::{request, run};
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, eventually, tunnel};

fn usual() -> (Bastion, Daemon) {
    let (bastion, daemon) = tunnel("", &Postgres::shared().section("analytics", "prod"));
    (bastion, daemon)
}

fn address(daemon: &Daemon) -> std::net::SocketAddr {
    daemon.url().trim_start_matches("http://").parse().unwrap()
}

#[test]
fn health_metrics_and_status_of_one_moment() {
    let (_bastion, daemon) = usual();
    eventually("the probe is answered", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    assert_eq!(daemon.get("/readyz/analytics"), (200, "ready\n".to_owned()));
    assert_eq!(daemon.get("/livez"), (200, "ok\n".to_owned()));
    assert_eq!(daemon.get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(daemon.get("/readyz/unknown").0, 404);
    let page = daemon.get("/").1;
    for part in ["<!DOCTYPE html>", "analytics", "prod", "/api/v1/status"] {
        assert!(page.contains(part), "{part} is not on the page");
    }
    let status = daemon.status();
    assert_eq!(status["daemon"]["ready"], true);
    assert_eq!(status["daemon"]["pid"], daemon.pid());
    assert_eq!(status["bastions"][0]["sessions"][0]["state"], "established");
    assert_eq!(status["databases"][0]["probe"]["verdict"], "up");
    let metrics = daemon.metrics();
    assert_eq!(metrics["build_info{revision=\"unknown\",version=\"0.1.0\"}"], 1.0);
    assert_eq!(metrics["config_last_reload_successful"], 1.0);
    assert!(metrics["tunnel_uptime_seconds_total{bastion=\"prod\"}"] > 0.0);
    assert!(metrics["database_uptime_seconds_total{database=\"analytics\"}"] > 0.0);
    assert!(metrics["session_establish_seconds_count{bastion=\"prod\"}"] >= 1.0);
    assert!(metrics["probe_last_success_timestamp_seconds{database=\"analytics\"}"] > 1.7e9);
}

#[test]
fn what_is_no_plain_question_is_not_answered() {
    let (_bastion, daemon) = usual();
    let address = address(&daemon);
    let ask = |text: &str| request(address, text).0;
    assert_eq!(
        ask("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        405
    );
    assert_eq!(ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"), 421);
    assert_eq!(ask("GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 404);
    assert_eq!(ask("GET /livez HTTP/1.0\r\n\r\n"), 200);
    assert_eq!(ask("GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n"), 421);
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = socket.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    let (code, head) = {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().to_owned(), answer)
    };
    assert_eq!(code, "200");
    assert!(head.ends_with("\r\n\r\n"), "HEAD was answered with a body");
    for header in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    assert!(!head.contains("access-control-allow-origin"));
}

#[test]
fn connections_that_say_nothing_do_not_keep_others_out() {
    let (_bastion, daemon) = usual();
    let address = address(&daemon);
    let _silent: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
    for _ in 0..20 {
        assert_eq!(daemon.get("/metrics").0, 200);
    }
}

#[test]
fn from_other_machines_only_what_monitoring_needs() {
    let bastion = Bastion::start();
    let database = Postgres::shared().unprobed_section("analytics", "prod");
    let prod = bastion.section("prod", bastion.port);
    for (allow, page) in [("", 403), ("allow_remote_status = true\n", 200)] {
        // The wildcard address includes loopback, from where the test asks.
        let daemon = Daemon::start(&format!("[http]\nlisten = \"0.0.0.0:0\"\n{allow}{prod}{database}"));
        let port: u16 = daemon.url().rsplit(':').next().unwrap().parse().unwrap();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let ask_for = |host: &str, path: &str| {
            let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            request(address, &text).0
        };
        let ask = |path: &str| ask_for("tunnels.internal", path);
        // Who is on this machine and says so, such as `status` and `wait` in a container, is told everything.
        assert_eq!(ask_for("localhost", "/api/v1/status"), 200);
        let status = run(&daemon.config(), &["status", "--url", &format!("http://127.0.0.1:{port}")]);
        assert!(status.status.success(), "{status:?}");
        for (path, code) in [
            ("/metrics", 200),
            ("/livez", 200),
            ("/readyz", 200),
            ("/", page),
            ("/page.css", page),
            ("/page.js", page),
            ("/page.svg", page),
            ("/api/v1/status", page),
        ] {
            assert_eq!(ask(path), code, "{path} with {allow:?}");
        }
    }
}
