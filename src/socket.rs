//! A local connection, TCP or Unix: one type for all who accept, answer and carry it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::runtime::{self, Handle};

/// A connection.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    /// The runtime that hears of it.
    home: runtime::Id,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<TcpStream> for Socket {
    /// Must be called on the runtime on which the stream was made.
    fn from(stream: TcpStream) -> Self {
        Self { stream: Stream::Tcp(stream), home: Handle::current().id() }
    }
}

impl From<UnixStream> for Socket {
    /// Must be called on the runtime on which the stream was made.
    fn from(stream: UnixStream) -> Self {
        Self { stream: Stream::Unix(stream), home: Handle::current().id() }
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub enum ReadHalf<'a> {
    /// Over TCP.
    Tcp(tcp::ReadHalf<'a>),
    /// Over a Unix socket.
    Unix(unix::ReadHalf<'a>),
}

/// The sending half of a connection.
#[derive(Debug)]
pub enum WriteHalf<'a> {
    /// Over TCP.
    Tcp(tcp::WriteHalf<'a>),
    /// Over a Unix socket.
    Unix(unix::WriteHalf<'a>),
}

impl Socket {
    /// Both halves at once.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        match &mut self.stream {
            Stream::Tcp(socket) => {
                let (read, write) = socket.split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Stream::Unix(socket) => {
                let (read, write) = socket.split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
        }
    }

    /// From here on the runtime of the caller hears of it, and no other thread has to wake it.
    ///
    /// # Errors
    /// What the system says.
    pub fn move_here(self) -> io::Result<Self> {
        if self.home == Handle::current().id() {
            return Ok(self);
        }
        match self.stream {
            Stream::Tcp(socket) => socket.into_std().and_then(TcpStream::from_std).map(Self::from),
            Stream::Unix(socket) => socket.into_std().and_then(UnixStream::from_std).map(Self::from),
        }
    }

    /// Our own address, over TCP.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.stream {
            Stream::Tcp(socket) => socket.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// Whether dropping it shows the other side an error instead of an end of data. Only TCP has a reset.
    pub fn reset_on_drop(&self, reset: bool) {
        if let Stream::Tcp(socket) = &self.stream {
            // Without the option the kernel may send an ordinary end of data; nothing better is to be had then.
            let _ = SockRef::from(socket).set_linger(reset.then_some(Duration::ZERO));
        }
    }
}

impl ReadHalf<'_> {
    /// Waits until there is something to read, or an error that reading shows.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(half) => half.as_ref().poll_read_ready(context).map(drop),
            Self::Unix(half) => half.as_ref().poll_read_ready(context).map(drop),
        }
    }
}

/// Passes a call on to whichever it is.
macro_rules! either {
    ($place:expr, $kind:ident, $inner:ident => $call:expr) => {
        match &mut $place {
            $kind::Tcp($inner) => $call,
            $kind::Unix($inner) => $call,
        }
    };
}

macro_rules! reads {
    ($($type:ty: $kind:ident $(in $field:ident)?),*) => {$(
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                either!(self.get_mut()$(.$field)?, $kind, inner => Pin::new(inner).poll_read(context, buffer))
            }
        }
    )*};
}

macro_rules! writes {
    ($($type:ty: $kind:ident $(in $field:ident)?),*) => {$(
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                either!(self.get_mut()$(.$field)?, $kind, inner => Pin::new(inner).poll_write(context, bytes))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                either!(self.get_mut()$(.$field)?, $kind, inner => Pin::new(inner).poll_write_vectored(context, slices))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(self.get_mut()$(.$field)?, $kind, inner => Pin::new(inner).poll_flush(context))
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(self.get_mut()$(.$field)?, $kind, inner => Pin::new(inner).poll_shutdown(context))
            }
        }
    )*};
}

reads!(Socket: Stream in stream, ReadHalf<'_>: ReadHalf);
writes!(Socket: Stream in stream, WriteHalf<'_>: WriteHalf);
