//! What the tests stand on.

pub mod account;
pub mod agent;
pub mod authority;
pub mod bastion;
pub mod browser;
pub mod client;
pub mod cloud;
pub mod daemon;
pub mod handshake;
pub mod hosts;
pub mod instead;
pub mod logins;
pub mod patience;
pub mod postgres;
pub mod processes;
pub mod prometheus;
pub mod relay;
pub mod room;
pub mod sni;
pub mod webhook;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

pub use agent::Agent;
pub use bastion::Bastion;
pub use browser::Browser;
pub use cloud::{Cloud, Reply};
pub use daemon::Daemon;
pub use patience::{PATIENCE, eventually};
pub use postgres::Postgres;
pub use relay::{Fault, Relay};
pub use sni::SniRouter;

/// A bastion, and a daemon whose tunnel to it is up. `keys` are the bastion's, `databases` whole sections.
pub fn tunnel(keys: &str, databases: &str) -> (Bastion, Daemon) {
    let bastion = Bastion::start();
    let daemon = Daemon::start(&format!("{}{keys}{databases}", bastion.section("prod", bastion.port)));
    daemon.wait_up("prod");
    (bastion, daemon)
}

/// A port that is free, for servers that cannot tell which one they took, and given out once. It is not one of those that
/// the system gives to whoever asks for any (32768 and up), which would be gone before the server has started.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different ones.
    let begin = std::process::id().wrapping_mul(997);
    loop {
        let next = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + next).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A runtime for a test that speaks to databases.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
