//! The hazards of the SSH library that guides call D1 to D14, where a test against a real sshd can show that they
//! are dealt with.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, pin_mut};
use socket2::{Domain, Socket, Type};

use crate::support::client::{Job, connect, job};
use crate::support::{Bastion, Daemon, Fault, PATIENCE, Postgres, Relay, eventually, runtime, tunnel};

/// A daemon with a forward to any port, through one session.
fn forward_to(bastion: &Bastion, port: u16, more: &str) -> Daemon {
    let config = format!(
        "{}sessions = {{ max = 1 }}\n{more}[databases.target]\nbastion = \"prod\"\nhost = \"127.0.0.1\"\nport = {port}\n\
         listen = \"127.0.0.1:0\"\nprobe = {{ level = \"off\" }}\n",
        bastion.section("prod", bastion.port)
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    daemon
}

fn all_have_left(daemon: &Daemon, database: &str) {
    let active = format!("clients_active{{database=\"{database}\"}}");
    eventually("all clients have left", || (daemon.metric(&active) == 0.0).then_some(()));
    eventually("all seats are given back", || {
        let sessions = daemon.bastion("prod")["sessions"].clone();
        sessions.as_array().unwrap().iter().all(|session| session["clients"] == 0).then_some(())
    });
}

/// D2, D4: the library does not wake a writer that waits for window when the other side closes.
#[test]
fn an_upload_that_nobody_reads_ends_when_the_database_closes() {
    let bastion = Bastion::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = forward_to(&bastion, server.local_addr().unwrap().port(), "");
    let mut client = TcpStream::connect(daemon.address("target")).unwrap();
    let (stuck, is_stuck) = mpsc::channel();
    let uploading = std::thread::spawn(move || {
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let block = vec![0; 1 << 20];
        for sent in 0..1000 {
            // The window is used up long before: whoever counts knows that it is stuck.
            if sent == 4 {
                stuck.send(()).unwrap();
            }
            if let Err(error) = client.write_all(&block) {
                return error.kind();
            }
        }
        panic!("a gigabyte was taken by nobody");
    });
    let (far, _) = server.accept().unwrap();
    is_stuck.recv_timeout(PATIENCE).unwrap();
    let mut before = 0.0;
    eventually("nothing more is taken", || {
        let taken = daemon.metric("client_bytes_total{database=\"target\",direction=\"to_database\"}");
        let stuck = taken == std::mem::replace(&mut before, taken);
        stuck.then_some(())
    });
    drop(far);
    let kind = uploading.join().unwrap();
    assert!(matches!(kind, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{kind:?}");
    all_have_left(&daemon, "target");
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 1.0);
}

/// D3: the library shows the end of a session as an orderly end of data.
#[test]
fn a_download_cut_in_the_middle_is_never_an_end() {
    let bastion = Bastion::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = forward_to(&bastion, server.local_addr().unwrap().port(), "");
    let mut client = TcpStream::connect(daemon.address("target")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut far, _) = server.accept().unwrap();
    std::thread::spawn(move || {
        let block = vec![7; 64 << 10];
        while far.write_all(&block).is_ok() {}
    });
    let mut block = vec![0; 64 << 10];
    let mut received = 0;
    while received < 16 << 20 {
        received += client.read(&mut block).unwrap();
    }
    bastion.kill_sessions();
    let error = loop {
        match client.read(&mut block) {
            Ok(0) => panic!("the half result ended as if it were whole"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    daemon.wait_event("client cut");
}

/// D5: the library may break a session with several busy channels over a change of keys.
#[test]
fn keys_change_under_eight_downloads() {
    let bastion = Bastion::with("RekeyLimit 8M");
    let config = format!(
        "{}sessions = {{ max = 1 }}\n{}",
        bastion.section("prod", bastion.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let runtime = runtime();
    let downloads: Vec<_> = (0..8)
        .map(|_| {
            runtime.spawn(async move {
                let client = connect(address).await.unwrap();
                let sql = "COPY (SELECT repeat('x', 999) FROM generate_series(1, 20000)) TO STDOUT";
                let out = client.copy_out(sql).await.unwrap();
                pin_mut!(out);
                let mut len = 0;
                while let Some(block) = out.next().await {
                    len += Bytes::len(&block.unwrap());
                }
                len
            })
        })
        .collect();
    for download in downloads {
        assert_eq!(runtime.block_on(download).unwrap(), 20_000_000);
    }
    let lost = daemon.metrics().into_iter().filter(|(series, _)| series.starts_with("session_losses_total"));
    assert_eq!(lost.map(|(_, value)| value).sum::<f64>(), 0.0);
}

/// D6: a channel that we close first leaves a remnant in the library.
#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let (_bastion, daemon) =
        tunnel("sessions = { max = 1 }\n", &Postgres::shared().unprobed_section("analytics", "prod"));
    let address = daemon.address("analytics");
    let runtime = runtime();
    let wave = |clients: usize| {
        runtime.block_on(async {
            for _ in 0..clients / 50 {
                let jobs: Vec<_> = (0..50).map(|_| tokio::spawn(job(address))).collect();
                for job in jobs {
                    assert_eq!(job.await.unwrap(), Job::Done);
                }
            }
        });
        all_have_left(&daemon, "analytics");
        daemon.memory_kb("VmRSS")
    };
    let warm = wave(500);
    let after = wave(1500);
    assert!(after < warm + 4096, "1500 clients left {} kB behind", after - warm);
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '' AND datname = 'warehouse' AND \
                    usename = 'trusted' AND query = 'SELECT 4711'";
    eventually("the database has let go of them", || {
        (Postgres::shared().sql("postgres", backends) == "0").then_some(())
    });
}

/// D7: an open that is given up stays open on both sides.
#[test]
fn an_open_that_is_given_up_is_closed_when_it_comes_late() {
    let bastion = Bastion::start();
    // A server whose queue is full, so that connections to it hang until it accepts.
    let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    server.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    server.listen(0).unwrap();
    let address = server.local_addr().unwrap().as_socket().unwrap();
    let fillers: Vec<TcpStream> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok())
            .take(10)
            .collect();
    assert!(fillers.len() < 10, "the queue never fills up");
    let daemon = forward_to(&bastion, address.port(), "open_timeout = \"300ms\"\n");
    let clients: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(daemon.address("target")).unwrap()).collect();
    let timeouts = "channel_failures_total{bastion=\"prod\",database=\"target\",reason=\"timeout\"}";
    eventually("opens were given up", || (daemon.metric(timeouts) >= 3.0).then_some(()));
    drop(clients);
    all_have_left(&daemon, "target");
    // Now the late connections come through: each has to be closed again, without a byte.
    let server: TcpListener = server.into();
    drop(fillers);
    server.set_nonblocking(true).unwrap();
    let mut late = 0;
    eventually("the late connections have come", || {
        while let Ok((mut socket, _)) = server.accept() {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
            late += 1;
        }
        (late >= 4).then_some(())
    });
}

/// D10: a login on a dying connection looks like a rejection.
#[test]
fn a_connection_that_dies_at_any_point_is_no_rejected_key() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    let config = format!(
        "{}reconnect = {{ min = \"1ms\", max = \"5ms\" }}\n{}",
        bastion.section("prod", relay.port),
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    relay.set(Fault::CutAfter(1));
    let daemon = Daemon::start(&config);
    let mut phases = std::collections::BTreeSet::new();
    for bytes in (1..6000).step_by(250) {
        relay.set(Fault::CutAfter(bytes));
        let seen = relay.accepted();
        let state = eventually("two more attempts have failed", || {
            let state = daemon.bastion("prod");
            (state["up"] == true || relay.accepted() >= seen + 2).then_some(state)
        });
        // Sooner or later all that a login needs fits through.
        if state["up"] == true {
            break;
        }
        let failure = &state["last_failure"];
        assert_ne!(failure["reason"], "rejected", "cut after {bytes} bytes: {failure}");
        assert_eq!(state["refusing"], false, "cut after {bytes} bytes: {failure}");
        phases.insert(failure["phase"].as_str().unwrap().to_owned());
    }
    assert!(phases.contains("kex") && phases.contains("auth"), "{phases:?}");
    relay.set(Fault::None);
    daemon.wait_up("prod");
}
