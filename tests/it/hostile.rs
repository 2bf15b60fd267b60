//! A hostile bastion and hostile clients cost bounded memory and never a panic.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, Session};
use russh::{MethodKind, MethodSet};

use crate::support::client::{Job, job};
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, eventually, runtime};

fn is_well(daemon: &Daemon) {
    assert_eq!(daemon.get("/livez").0, 200);
    let printed = daemon.printed();
    assert!(!printed.contains("panicked") && !printed.contains("broke;"), "{printed}");
    let memory = daemon.memory_kb("VmHWM");
    assert!(memory < 120 << 10, "{memory} kB at the peak");
}

/// A server that says this for ever.
fn chatterbox(first: &'static [u8], then: &'static [u8]) -> u16 {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut socket in server.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = socket.write_all(first);
                let block: Vec<u8> = then.iter().copied().cycle().take(64 << 10).collect();
                while !then.is_empty() && socket.write_all(&block).is_ok() {}
                let _ = socket.read_to_end(&mut Vec::new());
            });
        }
    });
    port
}

#[test]
fn bastions_that_speak_nonsense() {
    let bastion = Bastion::start();
    for (first, then, phase, reason) in [
        (&b""[..], &b"welcome\r\n"[..], "banner", "not_ssh"),
        (b"", b"no end of line in sight ", "banner", "not_ssh"),
        (b"SSH-1.5-old\r\n", b"", "banner", "not_ssh"),
        (b"SSH-2.0-liar\r\n", b"\xff\xff\xff\xff\xff\xff\xff\xff", "kex", "protocol"),
        (b"SSH-2.0-liar\r\n", b"\0\0\0\x0c\x0a\x14garbage!!", "kex", "protocol"),
        (b"SSH-2.0-liar\r\n", b"\0", "kex", "protocol"),
        (b"SSH-2.0-silent\r\n", b"", "kex", "timeout"),
    ] {
        let config = format!(
            "{}connect_timeout = \"1s\"\nreconnect = {{ max = \"200ms\" }}\n{}",
            bastion.section("prod", chatterbox(first, then)),
            Postgres::shared().unprobed_section("analytics", "prod")
        );
        let daemon = Daemon::start(&config);
        let event = daemon.wait_event("bastion not reached");
        assert_eq!(event["phase"], phase, "{event}");
        assert_eq!(event["reason"], reason, "{event}");
        eventually("it is tried again", || (failures(&daemon) >= 3.0).then_some(()));
        let descriptors = descriptors(&daemon);
        eventually("it is tried a few times more", || (failures(&daemon) >= 7.0).then_some(()));
        eventually("the connections are closed", || {
            (self::descriptors(&daemon) <= descriptors).then_some(())
        });
        is_well(&daemon);
    }
}

#[test]
fn databases_that_flood_the_probe() {
    let bastion = Bastion::start();
    const LOGGED_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0";
    for (first, then, phase) in [
        // It agrees to go on without TLS, and does not wait to be asked for more.
        (&b"N"[..], &b"N\0\0\0\x05\0"[..], "db_login"),
        (b"N", b"no end in sight ", "db_login"),
        (b"", LOGGED_IN, "db_login"),
        (b"S", b"\x16\x03\x03\x40\0 no TLS at all ", "db_login"),
        (b"E", b"\0\0\xff\xff an endless excuse ", "db_login"),
        (&[b"N", LOGGED_IN].concat(), b"S\0\0\0\x08ab\0\0", "db_login"),
        (&[b"N", LOGGED_IN, b"Z\0\0\0\x05I"].concat(), b"D\0\0\0\x06\0\0", "db_query"),
    ] {
        let port = chatterbox(first.to_vec().leak(), then);
        let section = Postgres::shared().unprobed_section("analytics", "prod");
        let section = section
            .replace(&format!("port = {}", Postgres::shared().port), &format!("port = {port}"))
            .replace("level = \"off\"", "interval = \"100ms\"");
        let slow =
            "user = \"probe\"\npassword = { command = [\"sh\", \"-c\", \"sleep 0.5; echo secret\"] }\n";
        let daemon = Daemon::start(&format!("{}{section}{slow}", bastion.section("prod", bastion.port)));
        let state = eventually("the database is found down", || {
            let state = daemon.database("analytics");
            (state["probe"]["verdict"] == "down").then_some(state)
        });
        assert_eq!(state["probe"]["last_failure"]["phase"], phase, "{state}");
        is_well(&daemon);
        assert!(!daemon.printed().contains("secret"));
    }
}

#[test]
fn http_clients_that_hold_every_connection_and_read_nothing() {
    let bastion = Bastion::start();
    let daemon = Daemon::start(&format!(
        "{}{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    ));
    let address = daemon.url().trim_start_matches("http://").to_owned();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    let greedy = |index: u32| {
        let mut socket = TcpStream::connect(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        // Every other one asks for far more than it reads.
        let _ = socket.write(if index.is_multiple_of(2) { request.as_bytes() } else { b"" });
        socket
    };
    let _held: Vec<TcpStream> = (0..200).map(greedy).collect();
    for _ in 0..20 {
        is_well(&daemon);
    }
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn failures(daemon: &Daemon) -> f64 {
    let metrics = daemon.metrics();
    metrics
        .iter()
        .filter(|(series, _)| series.starts_with("session_failures_total"))
        .map(|(_, value)| value)
        .sum()
}

/// A bastion that lets us in and then opens every channel it can think of.
struct Intruder {
    opened: Arc<Mutex<Vec<String>>>,
}

impl server::Handler for Intruder {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        let (handle, opened) = (session.handle(), Arc::clone(&self.opened));
        tokio::spawn(async move {
            for _ in 0..200 {
                let results = [
                    ("session", handle.channel_open_session().await.map(drop)),
                    ("x11", handle.channel_open_x11("127.0.0.1", 6000).await.map(drop)),
                    ("agent", handle.channel_open_agent().await.map(drop)),
                    (
                        "direct",
                        handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.map(drop),
                    ),
                    (
                        "streamlocal",
                        handle.channel_open_direct_streamlocal("/var/run/docker.sock").await.map(drop),
                    ),
                    (
                        "forwarded",
                        handle.channel_open_forwarded_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.map(drop),
                    ),
                    (
                        "forwarded streamlocal",
                        handle.channel_open_forwarded_streamlocal("/x").await.map(drop),
                    ),
                ];
                let mut opened = opened.lock().unwrap();
                for (kind, result) in results {
                    let word = if result.is_ok() { "accepted" } else { "refused" };
                    opened.push(format!("{kind} {word}"));
                }
            }
        });
        Ok(())
    }
}

#[test]
fn channels_that_the_bastion_opens_are_refused() {
    let opened: Arc<Mutex<Vec<String>>> = Arc::default();
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let public = key.public_key().to_openssh().unwrap();
    let config = Arc::new(server::Config {
        keys: vec![key],
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        inactivity_timeout: None,
        ..server::Config::default()
    });
    let runtime = runtime();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::clone(&opened);
    runtime.spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let handler = Intruder { opened: Arc::clone(&seen) };
            let session = server::run_stream(Arc::clone(&config), socket, handler).await;
            tokio::spawn(async move { drop(session.unwrap().await) });
        }
    });
    let bastion = Bastion::start();
    let section = bastion.section("prod", port);
    let known_hosts = bastion.path(&format!("known_hosts.prod.{port}"));
    std::fs::write(known_hosts, format!("[127.0.0.1]:{port} {public}\n")).unwrap();
    let config = format!("{section}{}", Postgres::shared().unprobed_section("analytics", "prod"));
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    eventually("it has tried everything", || (opened.lock().unwrap().len() >= 1400).then_some(()));
    let accepted: Vec<String> =
        opened.lock().unwrap().iter().filter(|word| word.ends_with("accepted")).cloned().collect();
    assert!(accepted.is_empty(), "{accepted:?}");
    let sessions = &daemon.bastion("prod")["sessions"];
    assert_eq!((&sessions[0]["id"], &sessions[0]["state"]), (&1.into(), &"established".into()), "{sessions}");
    is_well(&daemon);
}

#[test]
fn a_bastion_is_asked_for_forwards_and_nothing_else() {
    let bastion = Bastion::with("LogLevel DEBUG1");
    let config = format!(
        "{}keepalive_interval = \"1s\"\n{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
    // What sshd is asked for on a connection: channels, and what is about none.
    let asked = |kind: &str| -> Vec<String> {
        let log = bastion.log();
        let words = log.lines().filter_map(|line| line.split_once(kind));
        words.map(|(_, rest)| rest.split_ascii_whitespace().next().unwrap().to_owned()).collect()
    };
    let (channel, other) = ("server_input_channel_open: ctype ", "server_input_global_request: rtype ");
    eventually("sshd is asked for channels, and pinged", || {
        (!asked(channel).is_empty() && !asked(other).is_empty()).then_some(())
    });
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("sshd hears the goodbye", || bastion.log().contains("Received disconnect").then_some(()));
    assert!(asked(channel).iter().all(|kind| kind == "direct-tcpip"), "{:?}", asked(channel));
    let requests = ["keepalive@openssh.com", "no-more-sessions@openssh.com"];
    assert!(asked(other).iter().all(|kind| requests.contains(&kind.as_str())), "{:?}", asked(other));
    assert!(!bastion.log().contains("server_input_channel_req"), "{}", bastion.log());
}

#[test]
fn clients_that_speak_nonsense() {
    let bastion = Bastion::start();
    let down = "[bastions.gone]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"u\"\n[databases.lost]\nbastion = \"gone\"\n\
                host = \"h\"\nlisten = \"127.0.0.1:0\"\nhold = { timeout = \"2s\" }\n";
    let config = format!(
        "{down}{}{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let endless_startup: Vec<u8> = [&[0, 0, 0x27, 0x10, 0, 3, 0, 0][..], &[b'x'; 100_000]].concat();
    for address in [daemon.address("lost"), daemon.address("analytics")] {
        for words in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            &[0xff; 1000],
            &[0; 1000],
            &endless_startup,
            b"\x16\x03\x01\x02\0",
        ] {
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.set_write_timeout(Some(PATIENCE)).unwrap();
            // The other end may have had enough before we are through.
            let _ = client.write_all(words);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let _ = client.read_to_end(&mut Vec::new());
        }
    }
    // One that never stops talking, while it is held.
    let mut client = TcpStream::connect(daemon.address("lost")).unwrap();
    client.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut written = 0;
    while let Ok(len) = client.write(&[b'x'; 64 << 10]) {
        written += len;
        assert!(written < 64 << 20, "{written} bytes of a held client were taken");
    }
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
    is_well(&daemon);
}

#[test]
fn thousands_of_clients_that_want_nothing() {
    let config = "[bastions.gone]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"u\"\n[databases.lost]\nbastion = \"gone\"\nhost = \"h\"\n\
                  listen = \"127.0.0.1:0\"\nhold = { max = 100 }\nmax_clients = 300\n";
    let daemon = Daemon::start(config);
    let address = daemon.address("lost");
    let clients: Vec<TcpStream> = (0..3000).filter_map(|_| TcpStream::connect(address).ok()).collect();
    assert!(clients.len() > 2900);
    eventually("the limits are kept", || {
        let metrics = daemon.metrics();
        let limited = metrics["client_connections_total{database=\"lost\",outcome=\"limit\"}"];
        assert!(metrics["clients_held{database=\"lost\"}"] <= 100.0);
        assert!(metrics["clients_active{database=\"lost\"}"] <= 300.0);
        (limited >= 2500.0).then_some(())
    });
    is_well(&daemon);
    drop(clients);
    eventually("all have left", || {
        let metrics = daemon.metrics();
        (metrics["clients_held{database=\"lost\"}"] + metrics["clients_active{database=\"lost\"}"] == 0.0)
            .then_some(())
    });
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    assert!(descriptors < 60, "{descriptors} descriptors are still open");
}
