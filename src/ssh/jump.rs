//! A bastion reached through another one: a channel of the outer session is the socket of the inner one.
//!
//! What arrives is always taken off the channel, also while the inner session's gate is shut: russh would let the outer
//! bastion send more than anybody reads. It counts at the outer session's gate until the inner session takes it.
//!
//! Whoever waits to write is woken by the end of what arrives: russh does not wake a writer that waits for window when
//! its session ends, and the inner session does not read while it waits to write.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard, PollSender};

use super::channel::{Inbound, Outbound};
use super::gate::Gate;
use super::transport::Socket;
use crate::dial::{Arrival, Inbound as _, Outbound as _, Queue};
use crate::failure::Failure;

/// The largest piece that is sent at once, in bytes: what fits into one SSH packet.
const PIECE: usize = 32 << 10;

/// Pieces under way to the channel.
const PIECES: usize = 8;

/// The connection. Dropping it closes the channel, not the outer session.
pub(super) struct Jump {
    outer: Arc<Gate>,
    arrived: Arc<Mutex<Arrived>>,
    outgoing: PollSender<Bytes>,
    /// Tells that all that was to be sent was.
    sent: oneshot::Receiver<()>,
    _life: DropGuard,
}

/// What the channel has brought and the inner session has not taken.
struct Arrived {
    inbound: Inbound,
    queue: Queue,
    /// Nothing more comes; why, if not in good order.
    end: Option<Option<Failure>>,
    reader: Option<Waker>,
}

fn lock(arrived: &Mutex<Arrived>) -> MutexGuard<'_, Arrived> {
    arrived.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arrived {
    /// Why the link was lost, if it was.
    fn lost(&self) -> Option<io::Error> {
        self.end.clone().flatten().map(io::Error::other)
    }

    fn wake_with(&mut self, context: &Context<'_>) {
        self.reader = Some(context.waker().clone());
    }
}

impl Jump {
    /// Makes a socket of a channel of the session whose gate is `outer`. Must be called on its lane.
    pub(super) fn new(outer: Arc<Gate>, inbound: Inbound, outbound: Outbound) -> Self {
        let arrived = Arrived { inbound, queue: Queue::default(), end: None, reader: None };
        let arrived = Arc::new(Mutex::new(arrived));
        let (outgoing, pieces) = mpsc::channel(PIECES);
        let (tell_sent, sent) = oneshot::channel();
        let life = CancellationToken::new();
        let (taken, over) = (Arc::clone(&arrived), life.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = over.cancelled() => {}
                () = carry(&taken, pieces, outbound, tell_sent) => {}
            }
        });
        Self { outer, arrived, outgoing: PollSender::new(outgoing), sent, _life: life.drop_guard() }
    }
}

/// Takes and sends, until nothing more can arrive; what is not sent by then never will be.
async fn carry(
    arrived: &Mutex<Arrived>,
    pieces: mpsc::Receiver<Bytes>,
    outbound: Outbound,
    tell_sent: oneshot::Sender<()>,
) {
    let (mut take, send) = (pin!(take(arrived)), pin!(send(pieces, outbound)));
    tokio::select! {
        () = &mut take => return,
        () = send => {}
    }
    // One that is not there any more does not have to be told.
    let _ = tell_sent.send(());
    take.await;
}

/// Takes what arrives, until the channel is closed or lost. Its orderly end alone is not yet that: its sender may still
/// read, and the session may still be lost.
async fn take(arrived: &Mutex<Arrived>) {
    poll_fn(|context| {
        let mut arrived = lock(arrived);
        loop {
            let arrival = ready!(arrived.inbound.poll_arrival(context));
            let over = matches!(arrival, Arrival::Closed | Arrival::Lost(_));
            match arrival {
                Arrival::Data(piece) => arrived.queue.push(piece),
                Arrival::End | Arrival::Closed => arrived.end = Some(None),
                Arrival::Lost(failure) => arrived.end = Some(Some(failure)),
            }
            if let Some(reader) = arrived.reader.take() {
                reader.wake();
            }
            if over {
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
        if arrived.queue.is_empty() {
            return match (&arrived.end, arrived.lost()) {
                (_, Some(error)) => Poll::Ready(Err(error)),
                (Some(_), None) => Poll::Ready(Ok(())),
                (None, None) => {
                    arrived.wake_with(context);
                    Poll::Pending
                }
            };
        }
        let before = buffer.filled().len();
        arrived.queue.with_slices(|slices| {
            for slice in slices {
                let taken = slice.len().min(buffer.remaining());
                buffer.put_slice(slice.get(..taken).unwrap_or_default());
            }
        });
        let taken = buffer.filled().len() - before;
        arrived.queue.advance(taken);
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
        let this = &mut *self;
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        let reserved = ready!(this.outgoing.poll_reserve(context));
        let sent = reserved.and_then(|()| this.outgoing.send_item(Bytes::copy_from_slice(piece)));
        let gone = |_| lock(&this.arrived).lost().unwrap_or(io::ErrorKind::BrokenPipe.into());
        Poll::Ready(sent.map(|()| piece.len()).map_err(gone))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Waits until all is sent, the last words too, unless nobody is there who would hear them.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.outgoing.close();
        let mut arrived = lock(&this.arrived);
        if arrived.end.is_none() && !this.sent.is_terminated() {
            arrived.wake_with(context);
            let _ = ready!(Pin::new(&mut this.sent).poll(context));
        }
        Poll::Ready(Ok(()))
    }
}

impl Socket for Jump {
    /// The outer session may be held back as well, and then has to be looked at in the same way.
    fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.outer.look_in();
        let arrived = lock(&self.arrived);
        // What had arrived before the end is there to be read.
        Ok(arrived.lost().filter(|_| arrived.queue.is_empty()))
    }
}
