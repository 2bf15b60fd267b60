//! The clients: what they do, and how it ended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, NoTls};

use super::forwards::{Behind, Forward};
use super::ledger::Ledger;
use super::streams::{self, Talk};
use crate::support::postgres::{DATABASE, TRUSTED};

/// Nothing that a client does may take longer, whatever happens: hold, silence and all its pauses are far shorter.
const LONGEST: Duration = Duration::from_secs(150);

#[derive(Debug)]
pub enum Outcome {
    /// Everything was as it should be, and so many bytes were compared.
    Done(u64),
    /// It was ended in the middle, and could tell.
    Cut(String),
    /// It was ended before the database had said a word.
    Refused(String),
    /// What must never be.
    Wrong(String),
}

/// Comes and goes until it is told to stop.
pub async fn keep_working(
    forwards: Vec<Forward>,
    mut rng: StdRng,
    ledger: Arc<Ledger>,
    stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let forward = &forwards[rng.random_range(0..forwards.len())];
        let began = Instant::now();
        // Now and then one stays for long.
        let most = if rng.random_ratio(1, 12) { 30 } else { 8 };
        let turns = rng.random_range(1..=most);
        ledger.judge(forward, began, visit(forward, &mut rng, turns).await);
        sleep(Duration::from_millis(rng.random_range(0..400))).await;
    }
}

/// One short visit, judged.
pub async fn work(forward: &Forward, mut rng: StdRng, ledger: &Ledger) {
    let began = Instant::now();
    ledger.judge(forward, began, visit(forward, &mut rng, 2).await);
}

/// Comes once and asks so often.
pub async fn visit(forward: &Forward, rng: &mut StdRng, turns: u64) -> Outcome {
    let visit = async {
        match forward.behind {
            Behind::Bytes => {
                let most = turns * (64 << 10);
                let talk = Talk {
                    place: rng.next_u64() >> 1,
                    up: rng.random_range(0..most),
                    down: rng.random_range(0..most),
                };
                streams::talk(forward.address, talk, async {}).await
            }
            Behind::Postgres | Behind::ShakyPostgres => ask(forward.address, rng, turns).await,
        }
    };
    timeout(LONGEST, visit).await.unwrap_or_else(|_| Outcome::Wrong(format!("it hung for {LONGEST:?}")))
}

/// Asks PostgreSQL for numbers that are known here.
async fn ask(address: SocketAddr, rng: &mut StdRng, turns: u64) -> Outcome {
    let socket = match TcpStream::connect(address).await {
        Ok(socket) => socket,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let heard = Heard::default();
    let client = match log_in(Listening { socket, heard: heard.clone() }).await {
        Ok(client) => client,
        Err(error) => {
            let before_a_word = heard.bytes() == 0 || heard.is_error();
            let why = format!("{error}: {:?}", error.as_db_error().map(ToString::to_string));
            return if before_a_word { Outcome::Refused(why) } else { Outcome::Cut(why) };
        }
    };
    for _ in 0..turns {
        let (factor, rows) = (rng.random_range(1..1_000_000_i64), rng.random_range(1..3000_i64));
        let sql = format!("SELECT i * {factor} % 1000003 FROM generate_series(1, {rows}::bigint) AS i");
        let answer = match client.query(&sql, &[]).await {
            Ok(answer) => answer,
            Err(error) => {
                return Outcome::Cut(format!("{error}: {:?}", error.as_db_error().map(ToString::to_string)));
            }
        };
        let numbers = answer.iter().map(|row| row.get::<_, i64>(0));
        if !numbers.eq((1..=rows).map(|i| i * factor % 1_000_003)) {
            return Outcome::Wrong(format!("{} wrong rows for {sql}", answer.len()));
        }
        sleep(Duration::from_millis(rng.random_range(0..200))).await;
    }
    Outcome::Done(heard.bytes())
}

async fn log_in(socket: Listening) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config.user(TRUSTED).dbname(DATABASE);
    let (client, connection) = config.connect_raw(socket, NoTls).await?;
    tokio::spawn(async move {
        // How it ends, the next query says.
        let _ = connection.await;
    });
    Ok(client)
}

/// What a client has heard from its database: how much, and with which byte it began.
#[derive(Clone, Default)]
struct Heard(Arc<(AtomicU64, AtomicU64)>);

impl Heard {
    fn hear(&self, bytes: &[u8]) {
        if let (0, Some(first)) = (self.bytes(), bytes.first()) {
            self.0.1.store(u64::from(*first), Ordering::Relaxed);
        }
        self.0.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    fn is_error(&self) -> bool {
        self.0.1.load(Ordering::Relaxed) == u64::from(b'E')
    }
}

struct Listening {
    socket: TcpStream,
    heard: Heard,
}

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.heard.hear(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Asks for more than fits on the way and does not read for a while; then it takes and compares all of it, or is gone.
pub async fn do_not_read(
    forward: Forward,
    pause: Duration,
    then_reads: bool,
    place: u64,
    ledger: Arc<Ledger>,
) {
    let began = Instant::now();
    let talk = Talk { place, up: 1000, down: 24 << 20 };
    if then_reads {
        let outcome = timeout(LONGEST, streams::talk(forward.address, talk, sleep(pause))).await;
        ledger.judge(&forward, began, outcome.unwrap_or_else(|_| Outcome::Wrong("it hung".to_owned())));
    } else {
        let _ = timeout(pause, streams::talk(forward.address, talk, std::future::pending())).await;
    }
}

/// Is gone as a process that was killed is, in the middle of what it has asked for.
pub async fn leave_with_reset(forward: Forward, words: Vec<u8>) {
    let Ok(mut socket) = TcpStream::connect(forward.address).await else { return };
    let _ = socket.write_all(&words).await;
    // Some leave before the answer, some after it has begun.
    let _ = timeout(Duration::from_millis(20), socket.read(&mut [0; 100])).await;
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Says what no client would.
pub async fn speak_nonsense(forward: Forward, words: Vec<u8>) {
    let Ok(mut socket) = TcpStream::connect(forward.address).await else { return };
    let _ = socket.write_all(&words).await;
    let _ = socket.shutdown().await;
    let _ = timeout(Duration::from_secs(5), socket.read_to_end(&mut Vec::new())).await;
}
