//! What the tests stand on.

pub mod account;
pub mod agent;
pub mod bastion;
pub mod browser;
pub mod client;
pub mod daemon;
pub mod postgres;
pub mod processes;
pub mod prometheus;
pub mod relay;
pub mod webhook;

use std::net::TcpListener;
use std::time::{Duration, Instant};

pub use agent::Agent;
pub use bastion::Bastion;
pub use browser::Browser;
pub use daemon::Daemon;
pub use postgres::Postgres;
pub use relay::{Fault, Relay};

/// A bastion, and a daemon whose tunnel to it is up. `keys` are the bastion's, `databases` whole sections.
pub fn tunnel(keys: &str, databases: &str) -> (Bastion, Daemon) {
    let bastion = Bastion::start();
    let daemon = Daemon::start(&format!("{}{keys}{databases}", bastion.section("prod", bastion.port)));
    daemon.wait_up("prod");
    (bastion, daemon)
}

/// How long anything may take that is bound to happen. One bound for all, far above what any of it needs: a test
/// that runs into it has failed, and no test's result depends on its size.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "it never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago, for servers that cannot tell which one they took.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A runtime for a test that speaks to databases.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
