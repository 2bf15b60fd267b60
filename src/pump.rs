//! Carries one client: both directions at once, each at its own pace, until one of them ends it all.
//!
//! An end of data passes through in each direction by itself. A link that is lost is told apart from one that is
//! closed, so that a client never takes half a result for a whole one. The pump changes and delays nothing; it
//! shows the bytes to the [`Meter`]. What becomes of the client afterwards, [`crate::forward`] decides.

mod downlink;
mod ferry;
mod meter;

use std::future::{pending, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dial::{Arrival, Gone, Inbound, Outbound, Seat};
use crate::failure::{Cause, Failure};

use crate::socket::{self, Socket};
use crate::state::Doing;
use downlink::{Downlink, DownlinkEnd};
pub use ferry::ferry;
pub use meter::{FirstBytes, MAX_FIRST_BYTES, Meter};

/// Bytes read from a client at a time: what fits into one SSH packet.
const READ_BLOCK: usize = 32 << 10;

/// How long the bastion may take to close a channel of which both directions have ended.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What a database may go on sending to a client that has left, in bytes, before the channel is closed by us.
const ABANDONED_BYTES: usize = 4 << 20;

/// A client's socket.
pub trait Local: Send + Sync + 'static {
    /// Its receiving half.
    type Read<'a>: LocalRead;
    /// Its sending half.
    type Write<'a>: AsyncWrite + Unpin + Send;

    /// Both halves at once.
    fn halves(&mut self) -> (Self::Read<'_>, Self::Write<'_>);
}

/// The receiving half of a client's socket.
pub trait LocalRead: AsyncRead + Unpin + Send + Sync {
    /// Waits until reading is worth a buffer.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()>;
}

impl Local for Socket {
    type Read<'a> = socket::ReadHalf<'a>;
    type Write<'a> = socket::WriteHalf<'a>;

    fn halves(&mut self) -> (socket::ReadHalf<'_>, socket::WriteHalf<'_>) {
        self.split()
    }
}

impl LocalRead for socket::ReadHalf<'_> {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_readable(context)
    }
}

/// How long a client may do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Without traffic for so long.
    pub idle: Option<Duration>,
    /// Not reading for so long while it blocks others.
    pub stall: Duration,
}

/// How a client may be ended before it is done.
pub struct Bounds {
    /// They may change meanwhile.
    pub limits: watch::Receiver<Limits>,
    /// When cancelled, every client is.
    pub stop: CancellationToken,
}

/// How carrying a client ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both directions came to their end. The link may not be closed yet.
    Done,
    /// The client went away; what the database still sends is for nobody.
    ClientLeft,
    /// The session was lost before the database said anything: the client can begin again.
    Again(FirstBytes, Failure),
    /// The client must be ended.
    Cut {
        /// Why.
        failure: Failure,
        /// Everything that arrived was passed on, and a message of ours may follow it.
        at_boundary: bool,
        /// What it was about.
        doing: Doing,
    },
}

/// How the client's direction ended.
enum UplinkEnd {
    /// The client sends no more, and the database was told.
    Ended,
    /// Reading failed.
    Left,
}

/// Carries a client until one side has ended it. `first` is what it has sent already, of which `meter` knows.
pub async fn pump<L: Local, S: Seat>(
    local: &mut L,
    seat: &S,
    inbound: &mut S::Inbound,
    outbound: &mut S::Outbound,
    first: FirstBytes,
    meter: &Meter<'_>,
    mut bounds: Bounds,
) -> Ending {
    let mut limits = *bounds.limits.borrow_and_update();
    let (mut read, write) = local.halves();
    let mut uplink = std::pin::pin!(uplink(&mut read, outbound, first, meter));
    let mut downlink = Downlink::new(write, inbound, meter, limits.stall, || seat.blocked_since());
    let mut uplink_ended = false;
    let end = loop {
        if uplink_ended && downlink.has_ended() {
            break DownlinkEnd::Closed;
        }
        tokio::select! {
            biased;
            () = bounds.stop.cancelled() => break DownlinkEnd::Cut(drained()),
            // Without an end only the database's direction is over, and the link is still open.
            end = downlink.run() => if let Some(end) = end { break end },
            end = &mut uplink, if !uplink_ended => match end {
                UplinkEnd::Ended => uplink_ended = true,
                UplinkEnd::Left => break DownlinkEnd::Left,
            },
            () = sleep_until(meter.idle_at(limits.idle)) => {
                if meter.idle_at(limits.idle).is_some_and(|at| at <= Instant::now()) {
                    break DownlinkEnd::Cut(idle());
                }
            }
            Ok(()) = bounds.limits.changed() => {
                limits = *bounds.limits.borrow_and_update();
                downlink.set_stall(limits.stall);
            }
        }
    };
    let flushed = downlink.is_flushed();
    // What was not written is for nobody, and must not keep the gate shut.
    inbound.forget();
    let cut = |failure| {
        let (at_boundary, doing) = meter.boundary();
        Ending::Cut { failure, at_boundary: flushed && at_boundary, doing }
    };
    match end {
        DownlinkEnd::Closed => Ending::Done,
        DownlinkEnd::Left => Ending::ClientLeft,
        DownlinkEnd::Cut(failure) => cut(failure),
        DownlinkEnd::Lost(failure) => match meter.replayable() {
            Some(first) => Ending::Again(first, failure),
            None => cut(failure),
        },
    }
}

fn drained() -> Failure {
    Failure::new(
        Cause::ClientDrained,
        "the daemon is stopping, or the database was removed from its configuration",
    )
}

fn idle() -> Failure {
    Failure::new(Cause::ClientIdle, "nothing was sent or received for longer than `idle_timeout`")
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

async fn uplink<R: LocalRead, O: Outbound>(
    read: &mut R,
    outbound: &mut O,
    first: FirstBytes,
    meter: &Meter<'_>,
) -> UplinkEnd {
    if !first.bytes.is_empty() {
        // The meter knows of them.
        pass_on(outbound, first.bytes.into(), meter).await;
    }
    let mut ended = first.ended;
    while !ended {
        poll_fn(|context| read.poll_readable(context)).await;
        // An idle client costs no buffer.
        let mut buffer = BytesMut::with_capacity(READ_BLOCK);
        match read.read_buf(&mut buffer).await {
            Ok(0) => ended = true,
            Ok(_) => {
                meter.sending(&buffer);
                pass_on(outbound, buffer.freeze(), meter).await;
            }
            Err(_) => return UplinkEnd::Left,
        }
    }
    meter.client_ended();
    match outbound.end().await {
        Ok(()) => UplinkEnd::Ended,
        Err(Gone) => pending().await,
    }
}

/// Waits for ever where the link is gone: why, the receiving half says.
async fn pass_on<O: Outbound>(outbound: &mut O, bytes: Bytes, meter: &Meter<'_>) {
    let len = bytes.len();
    if outbound.send(bytes).await.is_err() {
        pending::<()>().await;
    }
    meter.sent(len);
}

/// Ends a link whose client has left: tells the database, and waits for it to close, since a channel that we
/// close first leaves a remnant in the session. Gives up on a database that goes on sending.
pub async fn abandon<I: Inbound, O: Outbound>(mut inbound: I, mut outbound: O) {
    let farewell = async {
        if outbound.end().await.is_err() {
            return;
        }
        let mut received = 0;
        while received < ABANDONED_BYTES {
            match poll_fn(|context| inbound.poll_arrival(context)).await {
                Arrival::Data(bytes) => {
                    received += bytes.len();
                    inbound.passed_on(bytes.len());
                }
                Arrival::End => {}
                Arrival::Closed | Arrival::Lost(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(CLOSE_PATIENCE, farewell).await;
}

#[cfg(test)]
mod tests;
