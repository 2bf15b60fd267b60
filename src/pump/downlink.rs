//! The database's direction: takes everything that arrives at once, so that russh never waits for a client, and
//! writes it as fast as the client reads.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant as Clock};

use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep};

use super::Meter;
use crate::dial::{Arrival, Inbound, Queue};
use crate::failure::{Cause, Failure};

/// How often a client that does not read is looked at.
const STALL_CHECK: Duration = Duration::from_secs(1);

pub(super) enum DownlinkEnd {
    /// The link was closed in good order, and everything was written.
    Closed,
    /// The client takes no more.
    Left,
    /// The link was lost.
    Lost(Failure),
    /// The client has to go.
    Cut(Failure),
}

/// What the receiving half has come to.
enum Source {
    Open,
    /// The database sends no more.
    Ended,
    Closed,
    Lost(Failure),
}

/// The client has not taken all that is there, since when, and when to look again.
struct Stuck {
    since: Instant,
    check: Pin<Box<Sleep>>,
}

pub(super) struct Downlink<'a, 'm, W, I, B> {
    write: W,
    inbound: &'a mut I,
    meter: &'a Meter<'m>,
    stall: Duration,
    blocked_since: B,
    queue: Queue,
    source: Source,
    /// The client was told that the database sends no more.
    shut: bool,
    reported: bool,
    stuck: Option<Stuck>,
}

impl<'a, 'm, W, I, B> Downlink<'a, 'm, W, I, B>
where
    W: AsyncWrite + Unpin,
    I: Inbound,
    B: Fn() -> Option<Clock>,
{
    pub(super) fn new(
        write: W,
        inbound: &'a mut I,
        meter: &'a Meter<'m>,
        stall: Duration,
        blocked_since: B,
    ) -> Self {
        Self {
            write,
            inbound,
            meter,
            stall,
            blocked_since,
            queue: Queue::default(),
            source: Source::Open,
            shut: false,
            reported: false,
            stuck: None,
        }
    }

    /// From now on a client may not read for so long.
    pub(super) fn set_stall(&mut self, stall: Duration) {
        self.stall = stall;
    }

    /// The database's end of data has been passed on.
    pub(super) fn has_ended(&self) -> bool {
        self.shut
    }

    /// Everything that arrived has been written.
    pub(super) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// Runs until the link ends. Returns none once, when the database's direction has ended and the link has not.
    /// The future may be dropped at any time.
    pub(super) async fn run(&mut self) -> Option<DownlinkEnd> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<DownlinkEnd>> {
        loop {
            self.take_arrivals(context);
            if self.queue.is_empty() {
                return self.poll_source_end(context);
            }
            match self.poll_write(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(())) => return Poll::Ready(Some(DownlinkEnd::Left)),
                Poll::Pending => {
                    if let Source::Lost(failure) = &self.source {
                        return Poll::Ready(Some(DownlinkEnd::Lost(failure.clone())));
                    }
                    return self.poll_stall(context).map(Some);
                }
            }
        }
    }

    fn take_arrivals(&mut self, context: &mut Context<'_>) {
        while matches!(self.source, Source::Open | Source::Ended) {
            match self.inbound.poll_arrival(context) {
                Poll::Pending => return,
                Poll::Ready(Arrival::Data(bytes)) => {
                    self.meter.arrived(&bytes);
                    if !bytes.is_empty() {
                        self.queue.push(bytes);
                    }
                }
                Poll::Ready(Arrival::End) => self.source = Source::Ended,
                Poll::Ready(Arrival::Closed) => self.source = Source::Closed,
                Poll::Ready(Arrival::Lost(failure)) => self.source = Source::Lost(failure),
            }
        }
    }

    fn poll_source_end(&mut self, context: &mut Context<'_>) -> Poll<Option<DownlinkEnd>> {
        match &self.source {
            Source::Open => Poll::Pending,
            Source::Lost(failure) => Poll::Ready(Some(DownlinkEnd::Lost(failure.clone()))),
            Source::Ended | Source::Closed => {
                if !self.shut {
                    // A client that is gone shows that when it is read from.
                    let _ = ready!(Pin::new(&mut self.write).poll_shutdown(context));
                    self.shut = true;
                }
                match self.source {
                    Source::Closed => Poll::Ready(Some(DownlinkEnd::Closed)),
                    _ if self.reported => Poll::Pending,
                    _ => {
                        self.reported = true;
                        Poll::Ready(None)
                    }
                }
            }
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let Self { queue, write, .. } = self;
        match queue.with_slices(|slices| Pin::new(write).poll_write_vectored(context, slices)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_) | Ok(0)) => Poll::Ready(Err(())),
            Poll::Ready(Ok(written)) => {
                self.queue.advance(written);
                self.inbound.passed_on(written);
                self.meter.delivered(written);
                if self.queue.is_empty() {
                    self.stuck = None;
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Waits until the client has not read for too long while it blocks others.
    fn poll_stall(&mut self, context: &mut Context<'_>) -> Poll<DownlinkEnd> {
        let stuck = self
            .stuck
            .get_or_insert_with(|| Stuck { since: Instant::now(), check: Box::pin(sleep(STALL_CHECK)) });
        loop {
            ready!(stuck.check.as_mut().poll(context));
            stuck.check.as_mut().reset(Instant::now() + STALL_CHECK);
            let blocking = (self.blocked_since)().map(|since| Instant::from_std(since).max(stuck.since));
            if blocking.is_some_and(|since| since.elapsed() >= self.stall) {
                let text =
                    "it did not read its results for longer than `stall_timeout` while others waited for it";
                return Poll::Ready(DownlinkEnd::Cut(Failure::new(Cause::ClientStalled, text)));
            }
        }
    }
}
