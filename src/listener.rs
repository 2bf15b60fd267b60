//! Local listeners: bound before anything else starts, accepting through the system's passing shortages. TCP
//! addresses and Unix sockets of our own, and sockets that systemd hands over.
//!
//! An address that is ours is a [`Claim`]; whoever holds it may accept from it. So an address can go from one forward to
//! another, and no client is refused in between.

mod claims;
mod inherited;
mod tcp;
mod unix;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use crate::clock::OnceAMinute;
use crate::failure::plain;
use crate::local::{LocalAddress, Peer};
use crate::settings::plan::ListenAt;
use crate::socket::Socket;
pub use claims::{Claim, Claims};
pub use inherited::Inherited;

/// Connections that the kernel may keep for us; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long to wait when the system has no descriptors left, which only time can give back.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// A listener cannot be bound.
#[derive(Debug)]
pub struct BindError {
    /// Where, as the configuration says it.
    pub at: ListenAt,
    /// Why not, and what to do.
    pub why: String,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.at, self.why)
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        Poll::Ready(match self {
            Self::Tcp(listener) => {
                ready!(listener.poll_accept(context)).map(|(socket, peer)| (socket.into(), Peer::Tcp(peer)))
            }
            Self::Unix(listener) => ready!(listener.poll_accept(context)).map(|(socket, _)| {
                let peer = unix::peer(&socket);
                (socket.into(), peer)
            }),
        })
    }
}

/// Accepts from claims, on the runtime on which it was made.
#[derive(Debug)]
pub struct Bound {
    /// They go first: once nobody holds a claim, its address is to be had.
    listeners: Vec<Listener>,
    claims: Vec<Arc<Claim>>,
    shortage: OnceAMinute,
}

impl Bound {
    /// Begins to accept from the claims. Must be called within a runtime.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn new(claims: Vec<Arc<Claim>>) -> io::Result<Self> {
        let listeners = claims.iter().map(|claim| claim.listener()).collect::<io::Result<_>>()?;
        Ok(Self { claims, listeners, shortage: OnceAMinute::default() })
    }

    /// Binds one TCP address. Must be called within a runtime.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn tcp(address: SocketAddr) -> Result<Self, BindError> {
        let at = ListenAt::Address(LocalAddress::Tcp(address));
        let claim = tcp::bind(address);
        let claim = claim.map_err(|error| BindError { at: at.clone(), why: tcp::explain(&error) })?;
        Self::new(vec![Arc::new(claim)]).map_err(|error| BindError { at, why: plain(&error) })
    }

    /// Where it listens.
    pub fn addresses(&self) -> impl Iterator<Item = &LocalAddress> {
        self.claims.iter().map(|claim| claim.address())
    }

    /// Waits for the next client. The future may be dropped at any time.
    pub async fn accept(&mut self) -> (Socket, Peer) {
        loop {
            match poll_fn(|context| self.poll_accept(context)).await {
                Ok(accepted) => return accepted,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if self.shortage.is_due() {
                        warn!(
                            listen = %self.addresses().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                            error = plain(&error),
                            hint = "raise the daemon's limits, LimitNOFILE (ulimit -n) above all",
                            "clients have to wait: the system lets no more in"
                        );
                    }
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
            }
        }
    }

    /// Accepts no more. Returns those who are connected and wait to be accepted at addresses that nobody else holds, since
    /// closing these would reset them. Must be called within a runtime.
    #[must_use]
    pub fn end(self) -> Vec<(Socket, Peer)> {
        drop(self.listeners);
        self.claims.into_iter().filter_map(Arc::into_inner).flat_map(Claim::end).collect()
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Socket, Peer)>> {
        // Begins where it ended, so that a flood at one address does not keep out those at another.
        for _ in 0..self.listeners.len() {
            self.listeners.rotate_left(1);
            if let Some(Poll::Ready(accepted)) =
                self.listeners.first().map(|listener| listener.poll_accept(context))
            {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

/// The client was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
