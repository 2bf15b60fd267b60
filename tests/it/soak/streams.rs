//! Bytes that both sides know before they come: whatever is lost, invented or out of order shows.
//!
//! A client says which bytes it will send and which it wants, the server greets it, both sides send at once, the client ends
//! its half, and the server answers with how much it received.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::clients::Outcome;
use super::ledger::Ledger;

/// A prime, so that no two pieces of a stream are alike that are a power of two apart.
const PATTERN: usize = 1_000_003;
/// As much as the daemon sends anew when the first session dies before the server has answered (SPEC: hold).
const SENT_ANEW: u64 = 16 << 10;
const GREETING: u8 = b'!';

/// The bytes of a stream, from one place on, at most so many.
fn pattern(place: u64, most: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut bytes = vec![0; PATTERN];
        StdRng::seed_from_u64(0).fill_bytes(&mut bytes);
        bytes
    });
    let at = usize::try_from(place % PATTERN as u64).unwrap();
    &bytes[at..PATTERN.min(at + most)]
}

#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// Where in the pattern the streams begin.
    pub place: u64,
    pub up: u64,
    pub down: u64,
}

impl Talk {
    /// Rude clients do not begin with it.
    const MAGIC: u64 = 0x536f_616b_2074_6573;
    const LEN: usize = 32;

    fn header(&self) -> [u8; Self::LEN] {
        let mut header = [0; Self::LEN];
        for (field, value) in header.chunks_mut(8).zip([Self::MAGIC, self.place, self.up, self.down]) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        header
    }

    fn from(header: [u8; Self::LEN]) -> Option<Self> {
        let field = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        (field(0) == Self::MAGIC).then(|| Self { place: field(8), up: field(16), down: field(24) })
    }
}

/// Sends bytes of the pattern; how many of them were taken, whether or not that was all.
async fn send(to: &mut (impl AsyncWrite + Unpin), place: u64, len: u64) -> u64 {
    let mut sent = 0;
    while sent < len {
        let most = usize::try_from(len - sent).unwrap().min(32 << 10);
        match to.write(pattern(place + sent, most)).await {
            Ok(taken) => sent += taken as u64,
            Err(_) => break,
        }
    }
    sent
}

/// How receiving came to its end, after how many bytes if there were any at all.
enum Received {
    All,
    Wrong(String),
    Ended(Option<u64>),
    Broken(Option<u64>, std::io::Error),
}

/// Receives bytes of the pattern and compares each.
async fn receive(from: &mut (impl AsyncRead + Unpin), place: u64, len: u64) -> Received {
    let (mut block, mut received) = (vec![0; 64 << 10], 0);
    while received < len {
        let most = block.len().min(usize::try_from(len - received).unwrap());
        let read = match from.read(&mut block[..most]).await {
            Ok(0) => return Received::Ended(Some(received)),
            Ok(read) => read,
            Err(error) => return Received::Broken(Some(received), error),
        };
        let mut rest = &block[..read];
        while !rest.is_empty() {
            let expected = pattern(place + received, rest.len());
            let (piece, after) = rest.split_at(expected.len());
            if piece != expected {
                return Received::Wrong(format!("a byte is wrong within {} of {received}", piece.len()));
            }
            received += piece.len() as u64;
            rest = after;
        }
    }
    Received::All
}

/// A server of bytes; what it sees wrong it tells the ledger.
pub fn serve(runtime: &Runtime, ledger: &Arc<Ledger>) -> u16 {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let ledger = Arc::clone(ledger);
    runtime.spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move {
                if let Err(wrong) = answer(socket).await {
                    ledger.breach(format!("a server of bytes: {wrong}"));
                }
            });
        }
    });
    port
}

/// Whoever leaves in the middle has nothing to be told.
async fn answer(socket: TcpStream) -> Result<(), String> {
    let (mut from, mut to) = socket.into_split();
    let mut header = [0; Talk::LEN];
    if from.read_exact(&mut header).await.is_err() {
        return Ok(());
    }
    let Some(talk) = Talk::from(header) else { return Ok(()) };
    if to.write_u8(GREETING).await.is_err() {
        return Ok(());
    }
    let (received, sent) =
        tokio::join!(receive(&mut from, talk.place, talk.up), send(&mut to, talk.place, talk.down));
    match received {
        Received::Wrong(what) => return Err(what),
        Received::All if sent == talk.down => {}
        _ => return Ok(()),
    }
    match from.read_u8().await {
        Ok(_) => return Err(format!("more came than the {} bytes that were sent", talk.up)),
        // The end of the client's half.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        Err(_) => return Ok(()),
    }
    let _ = to.write_u64(talk.up).await;
    let _ = to.shutdown().await;
    Ok(())
}

/// Talks through a forward. Only after `before_reading` does it read.
pub async fn talk(address: SocketAddr, talk: Talk, before_reading: impl Future<Output = ()>) -> Outcome {
    let socket = match TcpStream::connect(address).await {
        Ok(socket) => socket,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let (mut from, mut to) = socket.into_split();
    let (heard, greeted) = oneshot::channel();
    let up = async {
        if to.write_all(&talk.header()).await.is_err() {
            return 0;
        }
        let sent = send(&mut to, talk.place, talk.up).await;
        // Who ends its half while it is held has left, as far as anybody can tell.
        let _ = greeted.await;
        // A server that has answered in full may have closed by then, and whatever is wrong shows in what is read.
        let _ = to.shutdown().await;
        sent
    };
    let down = async {
        before_reading.await;
        if let Err(error) = from.read_u8().await {
            return of(error, None);
        }
        let _ = heard.send(());
        match receive(&mut from, talk.place, talk.down).await {
            Received::All => {}
            other => return other,
        }
        match from.read_u64().await {
            Ok(count) if count == talk.up => {}
            Ok(count) => return Received::Wrong(format!("{count} of {} bytes arrived", talk.up)),
            Err(error) => return of(error, Some(talk.down)),
        }
        match from.read_u8().await {
            Ok(_) => Received::Wrong("more came than was sent".to_owned()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Received::All,
            Err(error) => Received::Broken(Some(talk.down), error),
        }
    };
    let (sent, received) = tokio::join!(up, down);
    match received {
        Received::All => Outcome::Done(talk.up + talk.down),
        Received::Wrong(what) => Outcome::Wrong(what),
        Received::Ended(bytes) => Outcome::Wrong(format!(
            "a stream that broke looks complete: its end came after {bytes:?} of {} bytes, {sent} of {} sent",
            talk.down, talk.up
        )),
        Received::Broken(None, error) if sent + Talk::LEN as u64 <= SENT_ANEW => {
            Outcome::Refused(error.to_string())
        }
        Received::Broken(bytes, error) => {
            Outcome::Cut(format!("after {bytes:?} of {} bytes, {sent} sent: {error}", talk.down))
        }
    }
}

/// How it ended with an error after so many bytes.
fn of(error: std::io::Error, bytes: Option<u64>) -> Received {
    if error.kind() == ErrorKind::UnexpectedEof {
        Received::Ended(bytes)
    } else {
        Received::Broken(bytes, error)
    }
}
