//! Which user of this machine is at the other end of a local connection: over TCP the kernel's table of sockets says
//! so, of a Unix socket the kernel has said it already.
//!
//! The table is Linux's; elsewhere, and for peers on other machines, nobody is known. See proc_net_tcp in the kernel's
//! documentation for the format.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};
use tokio::time::timeout;

use crate::local::Peer;

/// A mass of clients that is cut at once is looked up in one reading.
const FRESH_FOR: Duration = Duration::from_millis(200);

/// How long a name is looked for: those who ask have a client to cut at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of a connection that has ended (`TCP_TIME_WAIT`), and its empty queues.
const TIME_WAIT: &str = " 06 00000000:00000000 ";

type Owners = HashMap<(SocketAddr, SocketAddr), u32>;

/// Reads the kernel's table when it is asked, and not more often than needed.
#[derive(Debug, Default)]
pub struct SocketTable {
    last: Mutex<Option<(Instant, Arc<Owners>)>>,
    turns: tokio::sync::Mutex<()>,
}

impl SocketTable {
    /// The name of the user who is `peer` of the connection whose address here is `local`; the number where the user has
    /// no name. Nothing where it takes too long: names of users may have to be asked for elsewhere.
    pub async fn look_up(self: &Arc<Self>, peer: &Peer, local: Option<SocketAddr>) -> Option<String> {
        let peer = peer.clone();
        let look_up = async {
            // One thread serves a mass of clients that is cut at once.
            let _turn = self.turns.lock().await;
            let table = Arc::clone(self);
            tokio::task::spawn_blocking(move || table.user(&peer, local)).await.ok()?
        };
        timeout(PATIENCE, look_up).await.ok()?
    }

    fn user(&self, peer: &Peer, local: Option<SocketAddr>) -> Option<String> {
        let uid = match peer {
            Peer::Tcp(peer) => *self.owners().get(&(plain(*peer), plain(local?)))?,
            Peer::Process { uid, .. } => *uid,
        };
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        Some(name.unwrap_or_else(|| uid.to_string()))
    }

    fn owners(&self) -> Arc<Owners> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, owners)) if at.elapsed() < FRESH_FOR => Arc::clone(owners),
            _ => {
                let owners = Arc::new(read());
                *last = Some((Instant::now(), Arc::clone(&owners)));
                owners
            }
        }
    }
}

/// IPv4 addresses may appear mapped into IPv6.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn read() -> Owners {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    // Ended connections stay in the table for a minute: on a busy machine they are most of it, and nobody's.
    lines.filter(|line| !line.contains(TIME_WAIT)).filter_map(parse).collect()
}

/// `sl local remote state queues timer retransmits uid ...`
fn parse(line: &str) -> Option<((SocketAddr, SocketAddr), u32)> {
    let mut fields = line.split_ascii_whitespace();
    let local = address(fields.nth(1)?)?;
    let remote = address(fields.next()?)?;
    let uid = fields.nth(4)?.parse().ok()?;
    Some(((local, remote), uid))
}

/// Hexadecimal, each group of four bytes in the machine's own order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let group = |index: usize| {
        let digits = ip.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(group(0)?)),
        32 => {
            let bytes: Vec<u8> = (0..4).map(group).collect::<Option<Vec<_>>>()?.concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        }
        _ => return None,
    };
    Some(plain(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_table() {
        let line =
            "   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 1 1";
        let parsed = parse(line).unwrap();
        assert_eq!(parsed, (("127.0.0.1:8080".parse().unwrap(), "127.0.0.1:50000".parse().unwrap()), 1000));
        let v6 = address("00000000000000000000000001000000:0016").unwrap();
        assert_eq!(v6, "[::1]:22".parse().unwrap());
        for bad in ["", "sl local_address", "0: x:1 y:2 01", "0: 0100007F:1F90"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn our_own_connection_is_ours() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_server, peer) = listener.accept().unwrap();
            let me = User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
            let user = SocketTable::default().user(&Peer::Tcp(peer), client.peer_addr().ok());
            assert_eq!(user, Some(me), "{any}");
        }
    }
}
