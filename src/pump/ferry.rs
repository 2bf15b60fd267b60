//! A link as an ordinary stream, for a user that needs one and not the last microsecond: the probe.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::abandon;
use crate::dial::{Arrival, Inbound, Outbound, Seat};

/// Bytes under way in each direction.
const BUFFER: usize = 64 << 10;

/// What may wait for the reader, in bytes, before the link is given up: a probe reads everything at once.
const MAX_WAITING: usize = 1 << 20;

/// What a link has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The database sends no more.
    Data,
    /// Both directions are closed.
    Link,
}

/// Ferries bytes between a link and the returned stream until either ends. A link that is lost is a broken stream
/// to the reader: the end comes without the closing that every protocol above has of its own.
pub fn ferry<S: Seat>(seat: Arc<S>, mut inbound: S::Inbound, mut outbound: S::Outbound) -> DuplexStream {
    let (near, far) = duplex(BUFFER);
    let lane = seat.lane().clone();
    lane.spawn(async move {
        let (mut read, mut write) = tokio::io::split(near);
        let up = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(BUFFER / 2);
                match read.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {
                        if outbound.send(buffer.split().freeze()).await.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let down = async {
            let mut waiting = BytesMut::new();
            let mut ended = None;
            // What arrives is always taken: the bastion is let to send more than the reader takes, and what nobody asks
            // for would pile up out of sight.
            while ended.is_none() || !waiting.is_empty() {
                tokio::select! {
                    biased;
                    written = write.write_buf(&mut waiting), if !waiting.is_empty() => match written {
                        Ok(written) => inbound.passed_on(written),
                        Err(_) => return ended == Some(Over::Link),
                    },
                    arrival = poll_fn(|context| inbound.poll_arrival(context)), if ended != Some(Over::Link) => {
                        match arrival {
                            Arrival::Data(bytes) => waiting.extend_from_slice(&bytes),
                            Arrival::End => ended = Some(Over::Data),
                            Arrival::Closed | Arrival::Lost(_) => ended = Some(Over::Link),
                        }
                        if waiting.len() > MAX_WAITING {
                            return false;
                        }
                    }
                }
            }
            if ended == Some(Over::Data) {
                let _ = write.shutdown().await;
                while !matches!(poll_fn(|context| inbound.poll_arrival(context)).await, Arrival::Closed | Arrival::Lost(_)) {}
            }
            true
        };
        let over = tokio::select! {
            () = up => false,
            over = down => over,
        };
        if !over {
            abandon(inbound, outbound).await;
        }
        drop(seat);
    });
    far
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::fake::{FakeDial, Sent, link};

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_and_the_seat_is_given_back() {
        let (dial, (inbound, outbound, mut far)) = (FakeDial::new(true), link());
        let mut stream = ferry(Arc::new(dial.seat_now()), inbound, outbound);
        stream.write_all(b"ping").await.unwrap();
        assert_eq!(far.hear(4).await, b"ping");
        far.say(b"pong");
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"pong");
        drop(stream);
        assert_eq!(far.sent.recv().await, Some(Sent::End));
        assert_eq!(dial.seats_taken(), 1);
        far.arrive(Arrival::Closed);
        assert_eq!(far.sent.recv().await, None);
        assert_eq!(dial.seats_taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_link_is_the_end_of_the_stream() {
        let (dial, (inbound, outbound, far)) = (FakeDial::new(true), link());
        let mut stream = ferry(Arc::new(dial.seat_now()), inbound, outbound);
        far.say(b"last words");
        far.arrive(Arrival::Closed);
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_that_nobody_reads_ends_the_link() {
        let (dial, (inbound, outbound, mut far)) = (FakeDial::new(true), link());
        let _unread = ferry(Arc::new(dial.seat_now()), inbound, outbound);
        for _ in 0..=(MAX_WAITING + BUFFER) / 1024 {
            far.say(&[0; 1024]);
        }
        assert_eq!(far.sent.recv().await, Some(Sent::End));
        far.arrive(Arrival::Closed);
        assert_eq!(far.sent.recv().await, None);
    }
}
