//! Many clients at once.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::client::{Job, job};
use crate::support::{Postgres, eventually, runtime, tunnel};

#[test]
fn five_hundred_clients_at_once() {
    let (_bastion, daemon) =
        tunnel("sessions = { max = 4 }\n", &Postgres::shared().section("analytics", "prod"));
    let address = daemon.address("analytics");
    let runtime = runtime();
    let jobs: Vec<_> = (0..500).map(|_| runtime.spawn(job(address))).collect();
    let results: Vec<Job> = jobs.into_iter().map(|job| runtime.block_on(job).unwrap()).collect();
    let failed: Vec<&Job> = results.iter().filter(|job| **job != Job::Done).collect();
    assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed[0]);
    let metrics = daemon.metrics();
    assert_eq!(metrics["client_connections_total{database=\"analytics\",outcome=\"carried\"}"], 500.0);
    assert!(metrics["tunnel_sessions{bastion=\"prod\"}"] <= 4.0);
    eventually("all clients have left", || {
        let database = daemon.database("analytics");
        (database["clients_active"] == 0 && database["clients_held"] == 0).then_some(())
    });
    eventually("all seats are given back", || {
        let sessions = daemon.bastion("prod")["sessions"].clone();
        sessions.as_array().unwrap().iter().all(|session| session["clients"] == 0).then_some(())
    });
}

/// Answers each connection, and closes it when told to or when its client has.
async fn answer_all(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut word = [0; 1];
            socket.read_exact(&mut word).await.unwrap();
            socket.write_all(b"pong").await.unwrap();
            if word == *b"C" {
                assert_eq!(socket.read(&mut word).await.unwrap_or(0), 0);
            }
        });
    }
}

/// `word`: who closes first, the `C`lient or the `S`erver.
async fn visit(address: SocketAddr, word: &'static [u8; 1]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(word).await.unwrap();
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"pong");
    if word == b"S" {
        assert_eq!(socket.read(&mut answer).await.unwrap(), 0, "the end came in good order");
    }
}

/// Connections to a port of this machine that somebody still has open.
fn open_connections(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (to, gone) = (format!(":{port:04X}"), ["06", "0A", "07"]);
    let columns = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    columns.filter(|line| line.len() > 3 && line[2].ends_with(&to) && !gone.contains(&line[3])).count()
}

#[test]
fn ten_thousand_that_come_and_go_leave_everything_as_it_was() {
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(answer_all(listener));
    let target = format!(
        "[databases.target]\nbastion = \"prod\"\nhost = \"127.0.0.1\"\nport = {port}\nlisten = \"127.0.0.1:0\"\n\
         probe = {{ level = \"off\" }}\n"
    );
    let (_bastion, daemon) = tunnel("sessions = { max = 1 }\n", &target);
    let address = daemon.address("target");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let wave = |visits: usize, word: &'static [u8; 1]| {
        runtime.block_on(async {
            for _ in 0..visits / 50 {
                let visits: Vec<_> = (0..50).map(|_| tokio::spawn(visit(address, word))).collect();
                for visit in visits {
                    visit.await.unwrap();
                }
            }
        });
        eventually("all have left", || {
            let left = daemon.database("target")["clients_active"] == 0
                && daemon.bastion("prod")["sessions"][0]["clients"] == 0
                && open_connections(port) == 0;
            left.then_some(())
        });
    };
    // Buffers, tables and the allocator's arenas have grown to what they need by then.
    wave(1000, b"C");
    wave(1000, b"S");
    let base = (daemon.memory_kb("VmRSS"), descriptors());
    for _ in 0..5 {
        wave(1000, b"C");
        wave(1000, b"S");
    }
    let grown = daemon.memory_kb("VmRSS").saturating_sub(base.0);
    // What a channel that we had to close first leaves in the library would be 3.3 kB each.
    assert!(grown < 6 << 10, "10,000 clients left {grown} kB behind");
    eventually("descriptors are given back", || (descriptors() <= base.1).then_some(()));
    let carried = "client_connections_total{database=\"target\",outcome=\"carried\"}";
    assert_eq!(daemon.metric(carried), 12_000.0);
}
