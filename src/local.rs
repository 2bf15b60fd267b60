//! This machine's end of a forward: where it listens, and who connects.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddress {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl LocalAddress {
    /// The address and port, where it is no Unix socket.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether only this machine can connect to it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.tcp().is_none_or(|address| address.ip().to_canonical().is_loopback())
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who is at the other end of a local connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Where it connects from.
    Tcp(SocketAddr),
    /// The process that connected to a Unix socket.
    Process {
        /// Its number; none where it lives in a container whose processes we do not see.
        pid: Option<u32>,
        /// Its name, as it calls itself; never its arguments.
        command: Option<String>,
        /// Its user.
        uid: u32,
    },
}

impl Peer {
    /// Whether it is on this machine, or in this container. Packets that claim to come from loopback and do not, the kernel
    /// drops (Linux, ip-sysctl, `route_localnet`).
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Process { .. } => true,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Process { pid: Some(pid), command: Some(command), .. } => {
                write!(f, "pid {pid} ({command})")
            }
            Self::Process { pid: Some(pid), command: None, .. } => write!(f, "pid {pid}"),
            Self::Process { pid: None, uid, .. } => write!(f, "uid {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_shown_to_people() {
        let tcp: SocketAddr = "[::1]:5".parse().unwrap();
        assert_eq!(LocalAddress::Tcp(tcp).to_string(), "[::1]:5");
        assert_eq!(LocalAddress::Unix("/run/x".into()).to_string(), "unix:/run/x");
        assert_eq!(Peer::Tcp(tcp).to_string(), "[::1]:5");
        let process =
            |pid, command: Option<&str>| Peer::Process { pid, command: command.map(str::to_owned), uid: 7 };
        assert!(Peer::Tcp("[::ffff:127.0.0.1]:5".parse().unwrap()).is_local());
        assert!(!Peer::Tcp("192.0.2.1:5".parse().unwrap()).is_local());
        assert_eq!(process(Some(4711), Some("psql")).to_string(), "pid 4711 (psql)");
        assert_eq!(process(Some(4711), None).to_string(), "pid 4711");
        assert_eq!(process(None, None).to_string(), "uid 7");
    }
}
