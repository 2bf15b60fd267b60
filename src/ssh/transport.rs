//! The stream that russh reads and writes: a socket behind a [`Gate`].
//!
//! It reads in large blocks (russh by itself would ask the kernel twice for each packet), reads nothing while the
//! gate is shut, goes on writing meanwhile, and fails on demand. What the kernel does not take at once is kept and
//! written while russh reads: russh's one task waits for its writes, and would otherwise stop reading, pinging and
//! counting time whenever the socket is full.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::gate::Gate;
use super::greeting::Greeting;

/// Bytes read from the kernel at a time; measured best between 128 and 256 KiB.
const READ_BLOCK: usize = 256 << 10;

/// Bytes kept for a kernel that takes no more, beyond which russh has to wait.
const WRITE_BUFFER: usize = 1 << 20;

/// What a bastion is reached over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// What has befallen the connection without anybody reading.
    fn take_error(&self) -> io::Result<Option<io::Error>>;

    /// Tells the other side now what has arrived, where it is a kernel that would put that off.
    fn acknowledge(&self) {}
}

impl Socket for TcpStream {
    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Self::take_error(self)
    }

    fn acknowledge(&self) {
        // The kernel takes it as advice for a while (tcp(7), TCP_QUICKACK), so it is given again after each read.
        let _ = SockRef::from(self).set_tcp_quickack(true);
    }
}

/// See the module.
pub(super) struct Transport<S> {
    socket: S,
    gate: Arc<Gate>,
    greeting: Arc<Mutex<Greeting>>,
    greeted: bool,
    received: BytesMut,
    unsent: BytesMut,
}

pub(super) fn lock(greeting: &Mutex<Greeting>) -> MutexGuard<'_, Greeting> {
    greeting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Socket> Transport<S> {
    pub(super) fn new(socket: S, gate: Arc<Gate>, greeting: Arc<Mutex<Greeting>>) -> Self {
        Self { socket, gate, greeting, greeted: false, received: BytesMut::new(), unsent: BytesMut::new() }
    }

    fn check(&self) -> io::Result<()> {
        if self.gate.is_condemned() { Err(io::Error::other("the session was given up")) } else { Ok(()) }
    }

    /// Writes what is kept. Pending means that some is left; the task is woken when the kernel takes more.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(context, &self.unsent));
            let sent = self.noting_end(sent)?;
            self.gate.note_sent();
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.received.reserve(READ_BLOCK);
        let read = ready!(poll_read_buf(Pin::new(&mut self.socket), context, &mut self.received));
        let read = self.noting_end(read)?;
        if read == 0 {
            self.gate.note_end();
        } else {
            self.gate.note_received();
            self.watch_greeting();
        }
        if read < READ_BLOCK {
            self.socket.acknowledge();
        }
        Poll::Ready(Ok(()))
    }

    fn noting_end<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|_| self.gate.note_end())
    }

    fn watch_greeting(&mut self) {
        if !self.greeted {
            let mut greeting = lock(&self.greeting);
            greeting.feed(&self.received);
            self.greeted = greeting.is_complete();
        }
    }
}

impl<S: Socket> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check()?;
        if let Poll::Ready(Err(error)) = this.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        if this.gate.poll_open(context).is_pending() {
            // Nothing is read, so the end of the connection has no other way to show itself. The session looks in
            // now and then (`Gate::look_in`).
            return match this.socket.take_error()? {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            };
        }
        if this.received.is_empty() && this.poll_receive(context)?.is_pending() {
            this.gate.wake_when_condemned(context);
            // It may have been condemned before it was known whom to wake.
            this.check()?;
            return Poll::Pending;
        }
        let taken = this.received.len().min(buffer.remaining());
        buffer.put_slice(this.received.get(..taken).unwrap_or_default());
        this.received.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncWrite for Transport<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check()?;
        if this.poll_send(context)?.is_ready() {
            if let Poll::Ready(sent) = Pin::new(&mut this.socket).poll_write(context, bytes) {
                let sent = this.noting_end(sent)?;
                this.gate.note_sent();
                return Poll::Ready(Ok(sent));
            }
        } else if this.unsent.len() >= WRITE_BUFFER {
            // russh reads nothing now, and has to hear of it when the session is given up.
            this.gate.wake_when_condemned(context);
            this.check()?;
            return Poll::Pending;
        }
        let kept = bytes.len().min(WRITE_BUFFER - this.unsent.len());
        this.unsent.extend_from_slice(bytes.get(..kept).unwrap_or(bytes));
        Poll::Ready(Ok(kept))
    }

    /// Does not wait for what is kept, since reading sends it.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        match self.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// It never fails: russh would keep the reason to itself why the session ended.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.gate.wake_when_condemned(context);
        if this.gate.is_condemned() {
            return Poll::Ready(Ok(()));
        }
        if ready!(this.poll_send(context)).is_ok() {
            let _ = ready!(Pin::new(&mut this.socket).poll_shutdown(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::super::gate::{BufferMemory, SINGLE_LIMIT};
    use super::*;

    impl Socket for DuplexStream {
        fn take_error(&self) -> io::Result<Option<io::Error>> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_reset_while_the_gate_is_shut_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let gate = Gate::new(&BufferMemory::new(256 << 20), Arc::default());
        let mut transport = Transport::new(near, Arc::clone(&gate), Arc::default());
        gate.hold(SINGLE_LIMIT);
        let read = tokio::spawn(async move { transport.read_u8().await.map_err(|error| error.kind()) });
        while gate.load().gate_open() {
            tokio::task::yield_now().await;
        }
        SockRef::from(&far).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(far);
        while !read.is_finished() {
            gate.look_in();
            tokio::task::yield_now().await;
        }
        assert_eq!(read.await.unwrap(), Err(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn what_arrives_is_acknowledged_at_once_also_in_a_conversation() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let gate = Gate::new(&BufferMemory::new(256 << 20), Arc::default());
        let mut transport = Transport::new(near, gate, Arc::default());
        let prompt = |transport: &Transport<TcpStream>| SockRef::from(&transport.socket).tcp_quickack();
        // As the kernel comes to do by itself once we have answered often enough.
        SockRef::from(&transport.socket).set_tcp_quickack(false).unwrap();
        assert!(!prompt(&transport).unwrap());
        far.write_u8(1).await.unwrap();
        transport.read_u8().await.unwrap();
        assert!(prompt(&transport).unwrap());
    }

    fn transport(capacity: usize) -> (Transport<DuplexStream>, DuplexStream, Arc<Gate>) {
        let gate = Gate::new(&BufferMemory::new(256 << 20), Arc::default());
        let (near, far) = duplex(capacity);
        (Transport::new(near, Arc::clone(&gate), Arc::default()), far, gate)
    }

    #[tokio::test]
    async fn bytes_pass_in_order_both_ways() {
        let (transport, far, _gate) = transport(1000);
        let (mut near_read, mut near_write) = tokio::io::split(transport);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let (mut down, mut up) = (Vec::new(), vec![0; sent.len()]);
        let near = async { tokio::try_join!(near_read.read_to_end(&mut down), near_write.write_all(&sent)) };
        let far = async {
            tokio::try_join!(far_read.read_exact(&mut up), far_write.write_all(&sent))?;
            far_write.shutdown().await
        };
        tokio::try_join!(near, far).unwrap();
        assert!(down == sent && up == sent);
    }

    #[tokio::test]
    async fn a_full_socket_does_not_stop_reading() {
        let (mut transport, mut far, _gate) = transport(100);
        transport.write_all(&[1; 10_000]).await.unwrap();
        transport.flush().await.unwrap();
        far.write_all(b"hello").await.unwrap();
        let mut word = [0; 5];
        transport.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"hello");
        // What was kept is sent while reading.
        let reader = tokio::spawn(async move { transport.read_u8().await });
        let mut sent = vec![0; 10_000];
        far.read_exact(&mut sent).await.unwrap();
        assert!(sent.iter().all(|byte| *byte == 1));
        far.write_u8(7).await.unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn a_socket_that_takes_nothing_costs_bounded_memory() {
        let (mut transport, _far, _gate) = transport(100);
        let block = vec![0; 64 << 10];
        let mut taken = 0;
        while let Ok(result) =
            tokio::time::timeout(std::time::Duration::from_millis(50), transport.write(&block)).await
        {
            taken += result.unwrap();
            assert!(taken <= WRITE_BUFFER + 100, "{taken} bytes were taken");
        }
        assert_eq!(taken, WRITE_BUFFER + 100);
    }

    #[tokio::test]
    async fn a_shut_gate_stops_reading_but_not_writing() {
        let (mut transport, mut far, gate) = transport(1000);
        gate.seat();
        gate.hold(SINGLE_LIMIT);
        far.write_all(b"later").await.unwrap();
        let mut word = [0; 5];
        let early =
            tokio::time::timeout(std::time::Duration::from_millis(20), transport.read_exact(&mut word));
        assert!(early.await.is_err());
        transport.write_all(b"ping").await.unwrap();
        let mut ping = [0; 4];
        far.read_exact(&mut ping).await.unwrap();
        let reading = tokio::spawn(async move { transport.read_exact(&mut word).await.map(|_| word) });
        gate.release(SINGLE_LIMIT);
        assert_eq!(&reading.await.unwrap().unwrap(), b"later");
    }

    #[tokio::test]
    async fn condemned_it_fails_at_once() {
        let (transport, _far, gate) = transport(1000);
        let (mut reader, mut writer) = tokio::io::split(transport);
        gate.seat();
        gate.hold(SINGLE_LIMIT);
        let reading = tokio::spawn(async move { reader.read_u8().await });
        tokio::task::yield_now().await;
        gate.condemn();
        assert!(reading.await.unwrap().is_err());
        assert!(writer.write_u8(1).await.is_err());
        writer.shutdown().await.unwrap();
    }
}
