//! What all forwarders are measured on: the servers, and that nothing of them is left behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::servers::Servers;
use crate::support::processes::{children, kill_families};
use crate::support::{Bastion, Postgres};

pub struct Stage {
    pub bastion: Bastion,
    pub servers: Servers,
    pub postgres: &'static Postgres,
    /// Everything that anybody writes is in here.
    root: Option<TempDir>,
}

impl Stage {
    pub fn set() -> Self {
        raise_descriptor_limit();
        let root = TempDir::with_prefix("against-openssh-").unwrap();
        // The servers run as somebody else, if this is root.
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        tempfile::env::override_temp_dir(root.path()).unwrap();
        let mut signals = Signals::new([SIGINT, SIGTERM]).unwrap();
        let path = root.path().to_owned();
        thread::spawn(move || {
            for signal in signals.forever() {
                kill_families(children(process::id()));
                let _ = fs::remove_dir_all(&path);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
        Self { bastion: bastion(), servers: Servers::start(), postgres: Postgres::shared(), root: Some(root) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bastion.kill();
        // PostgreSQL is shared by the whole process, so nobody else ends it in time.
        kill_families(children(process::id()));
        if let Some(root) = self.root.take() {
            let _ = root.close();
        }
    }
}

const QUIET: &str = "LogLevel ERROR\nMaxStartups 1000";

/// An sshd that says nothing of its work and takes any number of logins at a time.
pub fn bastion() -> Bastion {
    Bastion::with(QUIET)
}

/// The same, on a further address.
pub fn bastion_at(address: &str) -> Bastion {
    Bastion::with(&format!("{QUIET}\nListenAddress {address}"))
}

/// Forwarders and servers inherit it.
fn raise_descriptor_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}
