//! Local TCP listeners: bound before anything else starts, accepting through the system's passing shortages.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::clock::OnceAMinute;
use crate::failure::plain;

/// Connections that the kernel may keep for us; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long to wait when the system has no descriptors left, which only time can give back.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// A listener cannot be bound.
#[derive(Debug)]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    pub error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "{address} is in use by another program: stop it, or listen elsewhere")
            }
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    f,
                    "{address} is not an address of this machine: listen on 127.0.0.1, or on one that is"
                )
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "{address} may not be bound by this user: choose a port above 1023")
            }
            _ => write!(f, "{address} cannot be bound: {}", plain(error)),
        }
    }
}

/// Bound listeners, at least one.
#[derive(Debug)]
pub struct Bound {
    sockets: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    shortage: OnceAMinute,
}

impl Bound {
    /// Binds all addresses, or none.
    ///
    /// # Errors
    /// The first that cannot be bound.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, BindError> {
        let mut bound = Self { sockets: Vec::new(), addresses: Vec::new(), shortage: OnceAMinute::default() };
        for address in addresses {
            let socket = listen(*address).map_err(|error| BindError { address: *address, error })?;
            bound.addresses.push(socket.local_addr().unwrap_or(*address));
            bound.sockets.push(socket);
        }
        Ok(bound)
    }

    /// Where it listens, with the real port where the configuration said 0.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits for the next client. The future may be dropped at any time.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match poll_fn(|context| self.poll_accept(context)).await {
                Ok((socket, peer)) => {
                    let options = SockRef::from(&socket);
                    // A kernel that refuses an option serves us less well, but serves.
                    let _ = options.set_tcp_nodelay(true);
                    let _ = options.set_keepalive(true);
                    return (socket, peer);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if self.shortage.is_due() {
                        warn!(
                            listen = %self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
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

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        // Begins where it ended, so that a flood at one address does not keep out those at another.
        for _ in 0..self.sockets.len() {
            self.sockets.rotate_left(1);
            if let Some(Poll::Ready(accepted)) =
                self.sockets.first().map(|socket| socket.poll_accept(context))
            {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the kernel to forget the last run's connections.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that 0.0.0.0 and [::] can be listed side by side.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// The client was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_accept() {
        let any: Vec<SocketAddr> = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        let mut bound = Bound::bind(&any).unwrap();
        for address in bound.addresses().to_vec() {
            assert_ne!(address.port(), 0);
            let client = TcpStream::connect(address).await.unwrap();
            let (_, peer) = bound.accept().await;
            assert_eq!(peer, client.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = Bound::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let taken = first.addresses()[0];
        let error = Bound::bind(&[taken]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{taken} is in use by another program: stop it, or listen elsewhere")
        );
    }
}
