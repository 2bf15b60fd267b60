//! A link as an ordinary stream, for a user that needs one and not the last microsecond: the probe.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::abandon;
use crate::dial::{Arrival, Inbound, Outbound, Seat};

/// Bytes under way in each direction.
const BUFFER: usize = 64 << 10;

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
            loop {
                match poll_fn(|context| inbound.poll_arrival(context)).await {
                    Arrival::Data(bytes) => {
                        let written = write.write_all(&bytes).await;
                        inbound.passed_on(bytes.len());
                        if written.is_err() {
                            return false;
                        }
                    }
                    Arrival::End => drop(write.shutdown().await),
                    Arrival::Closed | Arrival::Lost(_) => return true,
                }
            }
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
}
