//! What systemd hears of the daemon: a socket of ours stands for the one of the service manager.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Bastion, Daemon, PATIENCE, Postgres};

/// The service manager's side.
struct Manager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Manager {
    fn listening_to(config: &str, watchdog: Duration) -> (Self, Daemon) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let daemon = Daemon::with(config, |command| {
            command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        });
        (Self { socket, dir }, daemon)
    }

    fn next(&self) -> String {
        let mut message = [0; 4096];
        let len = self.socket.recv(&mut message).expect("the daemon says nothing");
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    }

    /// The messages up to one that contains this text.
    fn until(&self, text: &str) -> Vec<String> {
        let mut heard = vec![self.next()];
        while !heard.last().unwrap().contains(text) {
            assert!(heard.len() < 200, "{text:?} is not among {heard:#?}");
            heard.push(self.next());
        }
        heard
    }
}

#[test]
fn systemd_hears_how_the_daemon_is() {
    let mut bastion = Bastion::start();
    let section = Postgres::shared().unprobed_section("analytics", "prod");
    let config = format!("{}{section}", bastion.section("prod", bastion.port));
    let (manager, daemon) = Manager::listening_to(&config, Duration::from_secs(4));
    assert_eq!(manager.next(), "READY=1");
    manager.until("STATUS=1 of 1 tunnels up");
    for _ in 0..3 {
        manager.until("WATCHDOG=1");
    }

    bastion.kill();
    let status = manager.until("STATUS=0 of 1 tunnels up; down: prod (").pop().unwrap();
    assert!(["session ", "tcp refused"].iter().any(|cause| status.contains(cause)), "{status}");
    bastion.start_again();
    manager.until("STATUS=1 of 1 tunnels up");

    daemon.begin_reload("nonsense");
    let reloading = manager.until("RELOADING=1").pop().unwrap();
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.until("READY=1");
    manager.until("STATUS=1 of 1 tunnels up; the configuration was not reloaded");
    daemon.begin_reload(&config);
    manager.until("RELOADING=1");
    manager.until("READY=1");

    daemon.signal(Signal::SIGTERM);
    manager.until("STOPPING=1");
}

#[test]
fn a_manager_that_does_not_read_does_not_keep_it_from_ending() {
    let (bastion, section) = (Bastion::start(), Postgres::shared().unprobed_section("analytics", "prod"));
    let config = format!("{}{section}", bastion.section("prod", bastion.port));
    let (manager, mut daemon) = Manager::listening_to(&config, Duration::from_secs(60));
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    // Until it is full.
    while sender.send_to(b"X=1", manager.dir.path().join("notify")).is_ok() {}
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}
