//! Streams of which every byte is known in advance, in both directions, so that one that is lost, out of order or invented
//! is found, and an end that comes too soon.
//!
//! A client says its number and sends its blocks; the server answers each with one of its own. A client that has sent
//! all it wants to ends its direction, and the server ends its own with how many blocks came. Nothing else is a whole
//! stream.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{PATIENCE, eventually, runtime};

const BLOCK: usize = 4 << 10;
/// How far a client is ahead of the answers, in blocks.
const AHEAD: usize = 16;

/// The block that has this number in the direction of which `seed` is: SplitMix64, whose words do not repeat.
fn block(seed: u64, number: u64) -> Vec<u8> {
    let words = (BLOCK / 8) as u64;
    let word = |index: u64| {
        let mut z =
            seed.wrapping_mul(0x1000_0000_01b3).wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (number * words..(number + 1) * words).flat_map(|index| word(index).to_le_bytes()).collect()
}

/// What the server says to the stream of this number.
fn answer(seed: u64) -> u64 {
    !seed
}

/// What a client says that means no stream. Nobody minds what follows.
pub const FOREIGN: u64 = u64::MAX;

/// The number of streams that a test says by itself.
const BY_HAND: u64 = 1 << 32;

/// All that a client says that has so many blocks to say.
pub fn opening(blocks: u64) -> Vec<u8> {
    let said = (0..blocks).flat_map(|number| block(BY_HAND, number));
    BY_HAND.to_le_bytes().into_iter().chain(said).collect()
}

/// And all that it is answered.
pub fn answers(blocks: u64) -> Vec<u8> {
    let said = (0..blocks).flat_map(|number| block(answer(BY_HAND), number));
    said.chain((blocks * BLOCK as u64).to_le_bytes()).collect()
}

/// Reads one block, or what comes before the end of the direction.
async fn read_block(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(BLOCK);
    while read.len() < BLOCK {
        let mut room = (&mut *from).take((BLOCK - read.len()) as u64);
        if room.read_buf(&mut read).await? == 0 {
            break;
        }
    }
    Ok(read)
}

/// A server that knows what each client has to say.
pub struct Echo {
    pub address: SocketAddr,
    wrong: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
    /// Ends all connections when it is dropped.
    _runtime: Runtime,
}

impl Echo {
    pub fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    pub fn at(address: SocketAddr) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let (wrong, open) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (found, count) = (Arc::clone(&wrong), Arc::clone(&open));
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (found, count) = (Arc::clone(&found), Arc::clone(&count));
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Err(complaint) = serve(socket).await {
                        found.lock().unwrap().push(complaint);
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, wrong, open, _runtime: runtime }
    }

    /// `[databases.NAME]` that is this server.
    pub fn section(&self, name: &str, bastion: &str) -> String {
        self.section_at(name, bastion, &self.address.ip().to_string())
    }

    /// The same under a name that the bastion knows.
    pub fn section_at(&self, name: &str, bastion: &str, host: &str) -> String {
        format!(
            "[databases.{name}]\nbastion = \"{bastion}\"\nhost = \"{host}\"\nport = {}\nlisten = \"127.0.0.1:0\"\n\
             probe = {{ level = \"off\" }}\n",
            self.address.port()
        )
    }

    /// Connections that have not ended.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Whatever it was told was what it had to be told.
    pub fn assert_heard_well(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

/// An error is a byte that was not sent. A connection that breaks is none: of that only the client can complain.
async fn serve(socket: TcpStream) -> Result<(), String> {
    let (mut read, mut write) = socket.into_split();
    let Ok(seed) = read.read_u64_le().await else { return Ok(()) };
    if seed == FOREIGN {
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
        return Ok(());
    }
    let mut count = 0;
    loop {
        let Ok(heard) = read_block(&mut read).await else { return Ok(()) };
        let expected = block(seed, count);
        if !expected.starts_with(&heard) {
            return Err(format!("block {count} of stream {seed} is not what was sent"));
        }
        if heard.len() < BLOCK {
            // What broke on the way looks like an end to sshd too; the count says whether it is one.
            let _ = write.write_all(&u64::to_le_bytes(count * BLOCK as u64 + heard.len() as u64)).await;
            return Ok(());
        }
        if write.write_all(&block(answer(seed), count)).await.is_err() {
            return Ok(());
        }
        count += 1;
    }
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was meant to, with so many blocks in each direction.
    Whole(u64),
    /// By an error, as one that is cut has to.
    Broken(io::ErrorKind),
    /// By a clean end that was none.
    Short(u64),
}

/// A client that says and checks a stream of its own.
pub struct Stream {
    seed: u64,
    task: JoinHandle<Ended>,
    answered: Arc<AtomicU64>,
    finish: watch::Sender<bool>,
}

impl Stream {
    /// One block every so often.
    pub fn start(runtime: &Runtime, address: SocketAddr, pace: Duration) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let seed = NEXT.fetch_add(1, Ordering::SeqCst);
        let (answered, finish) = (Arc::<AtomicU64>::default(), watch::Sender::new(false));
        let task = runtime.spawn(converse(address, seed, pace, finish.subscribe(), Arc::clone(&answered)));
        Self { seed, task, answered, finish }
    }

    /// Blocks that were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until so many blocks more are answered.
    pub fn wait_for_more(&self, blocks: u64) {
        let until = self.answered() + blocks;
        eventually(&format!("stream {} goes on", self.seed), || {
            assert!(!self.has_ended(), "stream {} has ended", self.seed);
            (self.answered() >= until).then_some(())
        });
    }

    /// It has said what it wanted to.
    pub fn finish(&self) {
        self.finish.send_replace(true);
    }

    /// How it ends by itself.
    pub fn ended(self, runtime: &Runtime) -> Ended {
        let ended = runtime.block_on(async { timeout(PATIENCE, self.task).await });
        ended.unwrap_or_else(|_| panic!("stream {} never ends", self.seed)).unwrap()
    }

    /// Finishes it; it must be whole.
    pub fn must_be_whole(self, runtime: &Runtime) {
        self.finish();
        let seed = self.seed;
        let ended = self.ended(runtime);
        assert!(matches!(ended, Ended::Whole(_)), "stream {seed} ended {ended:?}");
    }
}

async fn converse(
    address: SocketAddr,
    seed: u64,
    pace: Duration,
    finish: watch::Receiver<bool>,
    answered: Arc<AtomicU64>,
) -> Ended {
    let socket = match TcpStream::connect(address).await {
        Ok(socket) => socket,
        Err(error) => return Ended::Broken(error.kind()),
    };
    let (mut read, write) = socket.into_split();
    let room = Arc::new(Semaphore::new(AHEAD));
    let saying = tokio::spawn(say(write, seed, pace, finish, Arc::clone(&room)));
    let mut count = 0;
    let rest = loop {
        match read_block(&mut read).await {
            Ok(heard) if heard.len() == BLOCK => {
                assert!(
                    heard == block(answer(seed), count),
                    "answer {count} to stream {seed} is not what was sent"
                );
                count += 1;
                answered.store(count, Ordering::SeqCst);
                room.add_permits(1);
            }
            Ok(rest) => break rest,
            Err(error) => {
                saying.abort();
                return Ended::Broken(error.kind());
            }
        }
    };
    // It says no more. A reset is told once, and it may have been told of it.
    room.close();
    match timeout(PATIENCE, saying).await.unwrap().unwrap() {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Ended::Broken(error.kind()),
        Ok(said) if said == count && rest == u64::to_le_bytes(said * BLOCK as u64) => Ended::Whole(count),
        _ => Ended::Short(count),
    }
}

/// Returns how many blocks it has sent. The socket's direction is ended after them.
async fn say(
    mut write: OwnedWriteHalf,
    seed: u64,
    pace: Duration,
    mut finish: watch::Receiver<bool>,
    room: Arc<Semaphore>,
) -> io::Result<u64> {
    write.write_all(&seed.to_le_bytes()).await?;
    let mut count = 0;
    // One block at least.
    while count == 0 || !*finish.borrow() {
        room.acquire().await.map_err(|_| io::ErrorKind::Interrupted)?.forget();
        write.write_all(&block(seed, count)).await?;
        count += 1;
        let _ = timeout(pace, finish.wait_for(|finish| *finish)).await;
    }
    write.shutdown().await?;
    // Dropped, the half would only say again what it has said: the other one is still read from.
    Ok(count)
}
