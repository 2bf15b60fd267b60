//! Listening on TCP addresses.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::{BACKLOG, Claim};
use crate::failure::plain;
use crate::local::LocalAddress;

pub(super) fn bind(address: SocketAddr) -> io::Result<Claim> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the kernel to forget the last run's connections.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that 0.0.0.0 and [::] can be listed side by side.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Claim::new(socket, LocalAddress::Tcp(bound), None)
}

pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "is in use by another program: stop it, or listen elsewhere".to_owned(),
        io::ErrorKind::AddrNotAvailable => {
            "is not an address of this machine: listen on 127.0.0.1, or on one that is".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "may not be bound by this user: choose a port above 1023".to_owned()
        }
        _ => format!("cannot be bound: {}", plain(error)),
    }
}

/// Sets up what connections inherit from the socket that listens, so that it need not be done for each: no small packet
/// waits for another, and one whose client is gone is noticed.
pub(super) fn tune(listener: &Socket) {
    // A kernel that refuses an option serves us less well, but serves.
    let _ = listener.set_tcp_nodelay(true);
    let _ = listener.set_keepalive(true);
}
