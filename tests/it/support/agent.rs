//! A real ssh-agent.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::account::find;
use super::eventually;

pub struct Agent {
    pub socket: PathBuf,
    child: Child,
    _dir: TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let dir = TempDir::with_prefix("agent-").unwrap();
        let socket = dir.path().join("socket");
        // Whatever it is to ask a person is denied.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(find("ssh-agent"))
            .args(["-D", "-a"])
            .arg(&socket)
            .env("SSH_ASKPASS", find("false"))
            .env("SSH_ASKPASS_REQUIRE", "force")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the agent listens", || socket.exists().then_some(()));
        Self { socket, child, _dir: dir }
    }

    /// Adds a key, and the certificate that lies beside it.
    pub fn add(&self, key: &Path, options: &[&str]) {
        let status = Command::new(find("ssh-add"))
            .arg("-q")
            .args(options)
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// `agent = "..."`.
    pub fn line(&self) -> String {
        format!("agent = {:?}\n", self.socket.display().to_string())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
