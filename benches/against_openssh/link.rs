//! A long way to the bastion: a relay that passes everything on so much later, and holds any amount meanwhile.
//!
//! It stands for the time of the way alone. TCP's own windows end at the relay, and a connection to it is made at once.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::servers::BLOCK;

/// Starts a relay to a port; returns its own. The delay is that of each direction.
pub fn delayed(server: u16, delay: Duration) -> u16 {
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
