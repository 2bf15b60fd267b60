//! What comes to the HTTP port, whatever it is: the answer is bounded and never an error of ours, and who is not at home, or
//! came by a name that another site has pointed at us, is told nothing.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::timeout;
use tunnelkeeper::board::{Board, Stage};
use tunnelkeeper::failure::{Cause, Failure};
use tunnelkeeper::http::{Routes, converse};
use tunnelkeeper::metrics::Metrics;
use tunnelkeeper::settings::{Surroundings, load};
use tunnelkeeper::state::{Incident, Moment, TunnelState};

/// A detail that only this machine may read.
const DETAIL: &str = "bastion.private.internal";
/// More than any one answer has, in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// The shortest request that is answered, with the empty line after it.
const SHORTEST: usize = "GET / HTTP/1.0\n\n".len();

struct Server {
    runtime: Runtime,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

/// A daemon that is ready, with a bastion that is down for a reason that is not everybody's.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let board = Board::default();
        board.set_stage(Stage::Ready);
        let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/postgres.toml");
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/config/postgres.toml");
        let file = [reference, here].map(std::path::PathBuf::from).into_iter().find(|path| path.exists());
        let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(file.as_ref().unwrap()).unwrap());
        let surroundings = Surroundings { config_option: file, uid, ..Surroundings::default() };
        let settings = load(&surroundings).expect("the example is right");
        let failure = Failure::new(Cause::TcpRefused, format!("{DETAIL}:22 refuses connections"));
        let mut tunnel = TunnelState::default();
        let now = Moment { instant: Instant::now(), wall: SystemTime::now() };
        Incident::record(&mut tunnel.last_failure, failure, now);
        for bastion in settings.plan.bastions {
            board.put_tunnel(bastion, watch::channel(Arc::new(tunnel.clone())).1, watch::channel(None).1);
        }
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime is made");
        Server {
            runtime,
            board: Arc::new(board),
            metrics: Arc::new(Metrics::new().expect("metrics are made")),
        }
    })
}

/// What is answered to these bytes, up to the end of the connection.
fn ask(bytes: &[u8], loopback: bool, at_home: bool) -> Vec<u8> {
    let server = server();
    let (board, metrics) = (Arc::clone(&server.board), Arc::clone(&server.metrics));
    let routes = Routes { metrics, board, loopback, allow_remote_status: Arc::new(AtomicBool::new(false)) };
    let (mut client, ours) = duplex(16 << 10);
    let talk = async {
        let (mut from, mut to) = tokio::io::split(&mut client);
        let say = async {
            // It may have had enough before we are through.
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
        };
        let most = (bytes.len() / SHORTEST + 1) * MAX_ANSWER;
        let mut answer = Vec::new();
        let hear = async {
            let read = (&mut from).take(most as u64 + 1).read_to_end(&mut answer).await;
            assert!(read.is_ok_and(|read| read <= most), "more than {most} bytes are answered");
        };
        let (_, _, _ended) = tokio::join!(say, hear, converse(ours, at_home, Arc::new(routes)));
        answer
    };
    let bounded = server.runtime.block_on(async { timeout(Duration::from_secs(20), talk).await });
    bounded.expect("the conversation comes to an end")
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

/// The codes of all answers. No body that we send begins a line like an answer.
fn codes(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let lines = text.split('\n').filter_map(|line| line.strip_prefix("HTTP/1.")).map(|rest| rest.get(2..5));
    lines.map(|code| code.and_then(|code| code.parse().ok()).expect("an answer has a code")).collect()
}

/// Once as it stands, and once as the path and the Host of a request that is well formed.
pub fn check(input: &[u8]) {
    for (loopback, at_home) in [(true, true), (false, true), (false, false)] {
        let answer = ask(input, loopback, at_home);
        let codes = codes(&answer);
        assert!(!codes.iter().any(|code| *code >= 500), "{codes:?}");
        // All names that mean this machine; and HTTP/1.0 may go without.
        let names_us = ["localhost", "127.", "[", "HTTP/1.0"].iter().any(|word| contains(input, word));
        if loopback && !names_us {
            assert!(!codes.contains(&200), "it was answered without being named: {codes:?}");
        }
        if !at_home || !names_us {
            assert!(!contains(&answer, DETAIL), "a detail is told to another machine");
        }
    }
    let printable: String =
        input.iter().take(2000).map(|byte| char::from(*byte)).filter(char::is_ascii_graphic).collect();
    let (path, name) = printable.split_at(printable.len() / 2);
    for host in
        [format!("{name}.evil.example"), format!("{name}.evil.example:9822"), format!("evil.example/{name}")]
    {
        for path in [format!("/{path}"), "/".to_owned(), "http://localhost/api/v1/status".to_owned()] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = ask(request.as_bytes(), true, true);
            let codes = codes(&answer);
            assert!(codes.iter().all(|code| (400..500).contains(code)), "{host} is answered: {codes:?}");
            assert!(!contains(&answer, DETAIL), "a detail is told to {host}");
        }
    }
    let request = format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let codes = codes(&ask(request.as_bytes(), true, true));
    assert!(codes.iter().all(|code| matches!(code, 200 | 400 | 404 | 414 | 431)), "{path}: {codes:?}");
}
