//! A client that does not read freezes nobody, loses nothing and costs bounded memory.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::client::{Job, job};
use crate::support::postgres::{DATABASE, TRUSTED};
use crate::support::{Bastion, Daemon, PATIENCE, Postgres, eventually, runtime};

/// Bytes of the large result, without the protocol's own.
pub const ROWS: usize = 60_000;
pub const ROW: usize = 1000;

/// A client that has asked for a large result and reads only when it is told to.
pub struct Reader(TcpStream);

impl Reader {
    pub fn ask(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let parameters = format!("user\0{TRUSTED}\0database\0{DATABASE}\0\0");
        let mut bytes = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes().to_vec();
        bytes.extend([0, 3, 0, 0]);
        bytes.extend(parameters.as_bytes());
        let query =
            format!("COPY (SELECT repeat('x', {}) FROM generate_series(1, {ROWS})) TO STDOUT\0", ROW - 1);
        bytes.push(b'Q');
        bytes.extend(u32::try_from(query.len() + 4).unwrap().to_be_bytes());
        bytes.extend(query.as_bytes());
        socket.write_all(&bytes).unwrap();
        // The beginning of an answer, so that the client is past its first byte.
        socket.read_exact(&mut [0; 9]).unwrap();
        Self(socket)
    }

    /// Reads to the end of the result; how many bytes of rows came, or how it was cut.
    pub fn read(mut self) -> Result<usize, std::io::Error> {
        self.0.write_all(b"X\0\0\0\x04")?;
        let mut all = Vec::new();
        self.0.read_to_end(&mut all)?;
        let (mut rest, mut bytes) = (all.as_slice(), 0);
        while let [kind, l0, l1, l2, l3, ..] = *rest {
            let (message, after) = rest.split_at(1 + u32::from_be_bytes([l0, l1, l2, l3]) as usize);
            // CopyData: a row and its end of line.
            if kind == b'd' {
                assert!(message[5..message.len() - 1].iter().all(|byte| *byte == b'x'));
                bytes += message.len() - 6;
            }
            rest = after;
        }
        Ok(bytes)
    }
}

fn no_session_was_lost(daemon: &Daemon) {
    for (series, value) in daemon.metrics() {
        assert!(!series.starts_with("session_losses_total") || value == 0.0, "{series} {value}");
    }
}

fn backlog(daemon: &Daemon) -> u64 {
    let sessions = daemon.bastion("prod")["sessions"].clone();
    sessions.as_array().unwrap().iter().map(|session| session["backlog_bytes"].as_u64().unwrap()).sum()
}

#[test]
fn one_that_stalls_for_half_a_minute_alone_is_left_alone() {
    let bastion = Bastion::start();
    let config = format!(
        "{}keepalive_interval = \"1s\"\nkeepalive_timeout = \"15s\"\n{}stall_timeout = \"3s\"\n\
         probe = {{ interval = \"1s\" }}\n",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let reader = Reader::ask(address);
    eventually("the gate is shut", || {
        let sessions = daemon.bastion("prod")["sessions"].clone();
        sessions.as_array().unwrap().iter().any(|session| session["gate_open"] == false).then_some(())
    });
    let until = std::time::Instant::now() + Duration::from_secs(30);
    let runtime = runtime();
    while std::time::Instant::now() < until {
        assert_eq!(runtime.block_on(job(address)), Job::Done);
        let backlog = backlog(&daemon);
        assert!(backlog <= 24 << 20, "{backlog} bytes wait for one client");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(daemon.metric("session_stalled_seconds_total{bastion=\"prod\"}") > 25.0);
    assert_eq!(reader.read().unwrap(), ROWS * (ROW - 1));
    assert_eq!(daemon.metric("clients_cut_total{database=\"analytics\",reason=\"stalled\"}"), 0.0);
}

#[test]
fn five_that_stall_on_four_sessions() {
    let bastion = Bastion::start();
    let config = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nbuffer_memory = \"48MiB\"\n{}sessions = {{ max = 4 }}\n\
         keepalive_interval = \"1s\"\nkeepalive_timeout = \"20s\"\n{}stall_timeout = \"4s\"\nprobe = {{ interval = \"1s\" }}\n",
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let address = daemon.address("analytics");
    let readers: Vec<Reader> = (2..7)
        .map(|next| {
            let reader = Reader::ask(address);
            // The pool grows ahead of its clients, so that each finds an empty session while there is one to be had.
            eventually("the pool has grown", || {
                (daemon.metric("tunnel_sessions{bastion=\"prod\"}") >= f64::from(next.min(4))).then_some(())
            });
            reader
        })
        .collect();
    // All of them stall; whoever comes meanwhile is served, and so is the probe.
    let runtime = runtime();
    let cut = eventually("those who block each other are cut", || {
        assert_eq!(runtime.block_on(job(address)), Job::Done);
        let backlog = backlog(&daemon);
        assert!(backlog <= 80 << 20, "{backlog} bytes wait though 48 MiB may");
        let cut = daemon.metric("clients_cut_total{database=\"analytics\",reason=\"stalled\"}");
        (cut >= 1.0).then_some(cut)
    });
    assert!(cut <= 2.0, "{cut} were cut, though only two shared a session");
    for _ in 0..20 {
        assert_eq!(runtime.block_on(job(address)), Job::Done);
    }
    eventually("the probe is answered", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    no_session_was_lost(&daemon);
    let event = daemon.wait_event("client cut");
    assert_eq!((&event["phase"], &event["reason"]), (&"client".into(), &"stalled".into()), "{event}");
    let memory = daemon.memory_kb("VmHWM");
    assert!(memory < 250 << 10, "{memory} kB at the peak");

    let results: Vec<Result<usize, std::io::Error>> = readers.into_iter().map(Reader::read).collect();
    let cut = daemon.metric("clients_cut_total{database=\"analytics\",reason=\"stalled\"}");
    let whole =
        results.iter().filter(|result| matches!(result, Ok(bytes) if *bytes == ROWS * (ROW - 1))).count();
    let broken = results.iter().filter(|result| result.is_err()).count();
    assert_eq!((whole + broken, broken as f64), (5, cut), "{results:?}");
    eventually("nothing waits any more", || (backlog(&daemon) == 0).then_some(()));
}
