//! A long way to the bastion: whatever is sent there arrives so much later.
//!
//! A `Line` is a network of its own between two addresses, with TCP's handshake and windows as over a real distance. A
//! relay is what a proxy that takes TCP connections close by makes of it: to connect takes no time at all.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::peers::bound;
use crate::servers::BLOCK;
use crate::support::account::find;
use crate::support::eventually;

/// Of the network that RFC 2544 sets aside for measurements.
pub const NEAR: &str = "198.18.7.1";
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);
const INTERFACE: &str = "bench-line";

/// What is sent to the far address arrives at the near one, as if the far one had sent it.
pub struct Line {
    tunnel: Child,
    _dir: TempDir,
}

impl Line {
    /// Only root may make one.
    pub fn lay(delay: Duration) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let dir = TempDir::with_prefix("line-").unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        let packets = UnixDatagram::bind(&here).unwrap();
        let mut tunnel = bound("KILL", &find("socat"))
            .args(["-b", "65536"])
            .arg(format!("TUN:{NEAR}/30,up,iff-no-pi,tun-type=tun,tun-name={INTERFACE}"))
            .arg(format!("UNIX-SENDTO:{},bind={}", here.display(), there.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the line is there", || {
            assert!(tunnel.try_wait().unwrap().is_none(), "socat ended: is there another {INTERFACE}?");
            // Large packets, since it is the way that is to be measured and not the machine.
            let mut ip = Command::new(find("ip"));
            ip.args(["link", "set", INTERFACE, "mtu", "65000", "txqueuelen", "10000"]);
            ip.stderr(Stdio::null()).status().unwrap().success().then_some(())
        });
        turn_back(packets, there, delay);
        Some(Self { tunnel, _dir: dir })
    }

    pub fn address() -> IpAddr {
        FAR.into()
    }
}

/// Sends each packet back to where it came from, so much later, as the far address's own. Its checksums stay right, since
/// the two addresses only change places.
fn turn_back(packets: UnixDatagram, there: PathBuf, delay: Duration) {
    let (depart, arrive) = mpsc::channel::<(Instant, Vec<u8>)>();
    let back = packets.try_clone().unwrap();
    thread::spawn(move || {
        let mut packet = vec![0; 65536];
        while let Ok(len) = packets.recv(&mut packet) {
            // Not so for what the machine says in IPv6 to whoever is new.
            if len >= 20 && packet[0] >> 4 == 4 {
                let (source, destination) = packet[12..20].split_at_mut(4);
                source.swap_with_slice(destination);
                if depart.send((Instant::now() + delay, packet[..len].to_vec())).is_err() {
                    return;
                }
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in arrive {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if back.send_to(&packet, &there).is_err() {
                return;
            }
        }
    });
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.tunnel.kill();
        let _ = self.tunnel.wait();
    }
}

/// Starts a relay to a port, which holds any amount meanwhile; returns its own port. The delay is that of each direction.
pub fn relay(server: u16, delay: Duration) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap());
            pass(&near, &far, delay);
            pass(&far, &near, delay);
        }
    });
    port
}

fn pass(from: &TcpStream, to: &TcpStream, delay: Duration) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    to.set_nodelay(true).unwrap();
    let (depart, arrive) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut block = vec![0; BLOCK];
        while let Ok(read @ 1..) = from.read(&mut block) {
            if depart.send((Instant::now() + delay, block[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in arrive {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
