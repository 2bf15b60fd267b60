//! Who the servers run as. PostgreSQL refuses to run as root, so root lends them the account that Debian's package
//! made for it; anybody else runs them as themselves.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, geteuid};

/// What to install, on the system that CI has.
const INSTALL: &str = "install what the tests need: sudo apt-get install openssh-server postgresql";

pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

pub fn account() -> Account {
    let me = geteuid();
    let user = if me.is_root() { User::from_name("postgres") } else { User::from_uid(me) };
    let user = user.unwrap().unwrap_or_else(|| panic!("{INSTALL}"));
    Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
}

impl Account {
    /// A command that runs as this account and dies with the thread that started it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if geteuid().is_root() {
            command.args([
                "--reuid",
                &self.uid.to_string(),
                "--regid",
                &self.gid.to_string(),
                "--clear-groups",
            ]);
        }
        command.arg(program);
        command
    }

    /// Makes a file or directory this account's own.
    pub fn give(&self, path: &Path) {
        if geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)).unwrap();
        }
    }
}

/// A server's program, wherever the system keeps it.
pub fn find(program: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.filter_map(Result::ok).map(|version| version.path().join("bin")));
    }
    places.push(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin")));
    let found = places.iter().map(|place| place.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not there: {INSTALL}"))
}
