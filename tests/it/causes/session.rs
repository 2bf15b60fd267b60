//! Sessions that end, or never begin.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use russh::Disconnect;
use russh::server::{Auth, Handler, Session, VerifiedPublicKey};
use serde_json::Value;
use socket2::SockRef;

use super::scripted::Scripted;
use super::{At, bastion_fails, says, server, status_shows};
use crate::agents::daemon;
use crate::support::Bastion;

const PASS: u8 = 0;
const GARBLE: u8 = 1;
const RESET: u8 = 2;

/// A relay before a server, which does to what that server says next as it is told.
fn tampering(behind: u16) -> (u16, Arc<AtomicU8>) {
    let mood = Arc::new(AtomicU8::new(PASS));
    let told = Arc::clone(&mood);
    let port = server(move |near| {
        let far = TcpStream::connect(("127.0.0.1", behind)).unwrap();
        let (mut from_near, mut to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_near, &mut to_far);
            let _ = to_far.shutdown(Shutdown::Both);
        });
        let _ = pass(far, near, &told);
    });
    (port, mood)
}

fn pass(mut far: TcpStream, mut near: TcpStream, told: &AtomicU8) -> std::io::Result<()> {
    let mut block = [0; 64 << 10];
    loop {
        let read = far.read(&mut block)?;
        // Each is done once: the session that follows is a good one.
        match told.swap(PASS, Ordering::SeqCst) {
            RESET => {
                SockRef::from(&near).set_linger(Some(Duration::ZERO))?;
                return SockRef::from(&near).shutdown(Shutdown::Read);
            }
            GARBLE => block[read / 2] ^= 1,
            _ if read == 0 => return near.shutdown(Shutdown::Write),
            _ => {}
        }
        near.write_all(&block[..read])?;
    }
}

/// Lets everybody in, and out again.
struct Fickle;

impl Handler for Fickle {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        session.disconnect(Disconnect::ByApplication, "not today", "en")
    }
}

/// Why a session was lost to which this has been done.
fn lost_by(tampering_with: u8) -> Value {
    let bastion = Bastion::start();
    let (port, mood) = tampering(bastion.port);
    let daemon = daemon(&format!("{}keepalive_interval = \"1s\"\n", bastion.section("prod", port)));
    daemon.wait_up("prod");
    mood.store(tampering_with, Ordering::SeqCst);
    status_shows(&daemon, &At::Bastion("prod"))
}

super::cases! {
    a_connection_that_is_reset: [SessionReset] => {
        [says(lost_by(RESET), "Connection reset by peer", "load balancer")]
    }

    bytes_that_are_changed_on_the_way: [SessionProtocol] => {
        [says(lost_by(GARBLE), "the session to 127.0.0.1:", "what stands between")]
    }

    a_bastion_that_lets_us_in_and_out_again: [SessionNotEstablished] => {
        let scripted = Scripted::start(|| Fickle, |_| {});
        [says(bastion_fails(&scripted.section), "before it answered a ping", "its log")]
    }
}
