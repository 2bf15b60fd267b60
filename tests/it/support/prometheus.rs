//! A real Prometheus.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::account::find;
use super::daemon::request;
use super::{eventually, free_port};

pub struct Prometheus {
    pub port: u16,
    child: Child,
    dir: TempDir,
}

impl Prometheus {
    /// Starts one with this configuration, and waits until it answers.
    pub fn start(config: &str) -> Self {
        let dir = TempDir::with_prefix("prometheus-").unwrap();
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let port = free_port();
        let child = spawn(dir.path(), port);
        let mut prometheus = Self { port, child, dir };
        eventually("Prometheus is ready", || {
            if let Some(status) = prometheus.child.try_wait().unwrap() {
                panic!("Prometheus ended with {status}:\n{}", prometheus.log());
            }
            TcpStream::connect(("127.0.0.1", port)).ok()?;
            (prometheus.get("/-/ready").0 == 200).then_some(())
        });
        prometheus
    }

    /// What a query evaluates to at this moment: one element for each series.
    pub fn query(&self, promql: &str) -> Value {
        let encoded: String = promql.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (code, body) = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(code, 200, "{promql}: {body}");
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        answer["data"]["result"].take()
    }

    /// In HTTP/1.0, so that the answer does not come in chunks.
    fn get(&self, path: &str) -> (u16, String) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        request(address, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn spawn(dir: &Path, port: u16) -> Child {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(find("prometheus"))
        .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("log")).unwrap())
        .spawn()
        .unwrap()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- Prometheus on port {} said:\n{}", self.port, self.log());
        }
    }
}
