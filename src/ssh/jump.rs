//! A bastion reached through another one: a channel of the outer session is the socket of the inner one.
//!
//! What arrives is always taken off the channel, also while the inner session's gate is shut: russh would let the outer
//! bastion send more than anybody reads. It counts at the outer session's gate until the inner session takes it.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard, PollSender};

use super::channel::{Connection, Inbound, Outbound};
use super::transport::Socket;
use crate::dial::{Arrival, Inbound as _, Outbound as _};
use crate::failure::Failure;

/// The largest piece that is sent at once, in bytes: what fits into one SSH packet.
const PIECE: usize = 32 << 10;

/// Pieces under way to the channel.
const PIECES: usize = 8;

/// The connection. Dropping it closes the channel, not the outer session.
pub(super) struct Jump {
    outer: Connection,
    arrived: Arc<Mutex<Arrived>>,
    outgoing: PollSender<Bytes>,
    _life: DropGuard,
}

/// What the channel has brought and the inner session has not taken.
struct Arrived {
    inbound: Inbound,
    pieces: VecDeque<Bytes>,
    /// Nothing more comes; why, if not in good order.
    end: Option<Option<Failure>>,
    reader: Option<Waker>,
}

fn lock(arrived: &Mutex<Arrived>) -> MutexGuard<'_, Arrived> {
    arrived.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jump {
    /// Makes a socket of a channel of `outer`. Must be called on its lane.
    pub(super) fn new(outer: Connection, inbound: Inbound, outbound: Outbound) -> Self {
        let arrived = Arrived { inbound, pieces: VecDeque::new(), end: None, reader: None };
        let arrived = Arc::new(Mutex::new(arrived));
        let (outgoing, pieces) = mpsc::channel(PIECES);
        let life = CancellationToken::new();
        let (taken, over) = (Arc::clone(&arrived), life.clone());
        tokio::spawn(async move {
            // What may still come is taken after the last word was said. But nothing is said to one that is gone: a
            // writer that waits for window is not woken when its session ends, nor is the inner session that waits
            // for it.
            let say = async {
                send(pieces, outbound).await;
                pending::<()>().await;
            };
            tokio::select! {
                () = over.cancelled() => {}
                () = take(&taken) => {}
                () = say => {}
            }
        });
        Self { outer, arrived, outgoing: PollSender::new(outgoing), _life: life.drop_guard() }
    }
}

/// Takes what arrives, until nothing more does.
async fn take(arrived: &Mutex<Arrived>) {
    poll_fn(|context| {
        let mut arrived = lock(arrived);
        loop {
            match ready!(arrived.inbound.poll_arrival(context)) {
                Arrival::Data(piece) => arrived.pieces.push_back(piece),
                Arrival::End | Arrival::Closed => arrived.end = Some(None),
                Arrival::Lost(failure) => arrived.end = Some(Some(failure)),
            }
            if let Some(reader) = arrived.reader.take() {
                reader.wake();
            }
            if arrived.end.is_some() {
                return Poll::Ready(());
            }
        }
    })
    .await;
}

async fn send(mut pieces: mpsc::Receiver<Bytes>, mut outbound: Outbound) {
    while let Some(piece) = pieces.recv().await {
        if outbound.send(piece).await.is_err() {
            return;
        }
    }
    // What is left to say is said by closing.
    let _ = outbound.end().await;
}

impl AsyncRead for Jump {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut arrived = lock(&self.arrived);
        let Some(piece) = arrived.pieces.front_mut() else {
            return match &arrived.end {
                Some(None) => Poll::Ready(Ok(())),
                Some(Some(failure)) => Poll::Ready(Err(io::Error::other(failure.clone()))),
                None => {
                    arrived.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        let taken = piece.len().min(buffer.remaining());
        buffer.put_slice(piece.get(..taken).unwrap_or_default());
        piece.advance(taken);
        if piece.is_empty() {
            arrived.pieces.pop_front();
        }
        arrived.inbound.passed_on(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Jump {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outgoing.poll_reserve(context)).map_err(gone)?;
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        self.outgoing.send_item(Bytes::copy_from_slice(piece)).map_err(gone)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

impl Socket for Jump {
    /// The outer session may be held back as well, and then has to be looked at in the same way.
    fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.outer.gate().look_in();
        Ok(self.outer.end().map(io::Error::other))
    }
}
