//! A real moto, in which one user may ask for the logins of one cluster, and signatures are checked.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::account::find;
use crate::support::eventually;

/// How many questions moto takes without looking at who asks: those of account.py.
const UNCHECKED: &str = "4";

pub struct Moto {
    pub port: u16,
    pub key_id: String,
    pub secret: String,
    child: Child,
    _dir: TempDir,
}

impl Moto {
    pub fn start() -> Self {
        let dir = TempDir::with_prefix("moto-").unwrap();
        let log = dir.path().join("log");
        let mut child = Command::new(find("setpriv"))
            .args(["--pdeathsig", "KILL", &program("moto_server"), "-H", "127.0.0.1", "-p", "0"])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", UNCHECKED)
            .env("HOME", dir.path())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let port = eventually("moto says where it listens", || {
            let said = fs::read_to_string(&log).unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("moto ended with {status}:\n{said}");
            }
            let (_, port) = said.split_once("Running on http://127.0.0.1:")?;
            port.split_once('\n')?.0.trim().parse().ok()
        });
        let home = dir.path().to_owned();
        let mut moto = Self { port, key_id: String::new(), secret: String::new(), child, _dir: dir };
        let made = Command::new(program("python"))
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/aws/account.py"), &port.to_string()])
            .env("HOME", home)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let account: Value = serde_json::from_slice(&made.stdout).unwrap();
        let text = |key: &str| account[key].as_str().unwrap().to_owned();
        (moto.key_id, moto.secret) = (text("id"), text("secret"));
        moto
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> String {
    let path = format!("{}/target/moto/bin/{name}", env!("CARGO_MANIFEST_DIR"));
    assert!(fs::exists(&path).unwrap(), "moto is not there: run make prepare");
    path
}
