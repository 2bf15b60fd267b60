//! The real daemon, as a process of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, eventually};

pub struct Daemon {
    pub dir: TempDir,
    child: Child,
    /// Its log, one JSON object a line.
    log: Arc<Mutex<Vec<Value>>>,
    /// What it printed that is no log line.
    other: Arc<Mutex<String>>,
    http: SocketAddr,
}

/// A command line of the product in a clean environment.
pub fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunnelkeeper"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.arg("--config").arg(config).args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command of the product to its end.
pub fn run(config: &Path, arguments: &[&str]) -> Output {
    command(config, arguments).output().unwrap()
}

/// A directory with a configuration file in it, which nobody else can read.
pub fn configured(config: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::with_prefix("daemon-").unwrap();
    let path = write_config(dir.path(), config);
    (dir, path)
}

fn write_config(dir: &Path, config: &str) -> PathBuf {
    let path = dir.join("tunnelkeeper.toml");
    let state_dir = dir.join("state");
    let common = format!("[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nstate_dir = {state_dir:?}\n");
    // A test that sets these tables itself brings them along.
    let head = if config.contains("[http]") || config.contains("[daemon]") { "" } else { &common };
    fs::write(&path, format!("{head}{config}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

impl Daemon {
    pub fn start(config: &str) -> Self {
        Self::with(config, |_| {})
    }

    /// Starts a daemon whose command the test may change first.
    pub fn with(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let (dir, path) = configured(config);
        let mut command = command(&path, &["run"]);
        command.env("RUST_LOG", "tunnelkeeper=debug").stdout(Stdio::piped()).stderr(Stdio::piped());
        change(&mut command);
        Self::spawn(dir, command)
    }

    /// Starts a command that is the daemon, or becomes it. What it says on standard error is piped.
    pub fn spawn(dir: TempDir, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (log, other) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        collect(child.stderr.take().unwrap(), &log, &other);
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, &log, &other);
        }
        let http = eventually("the daemon has started", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {:?} {}", log.lock().unwrap(), other.lock().unwrap());
            }
            let log = log.lock().unwrap();
            let started = log.iter().find(|event| event["message"] == "started")?;
            let url = started["status"].as_str().unwrap();
            Some(url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap())
        });
        Self { dir, child, log, other, http }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("tunnelkeeper.toml")
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Asks over HTTP; returns the status and the body.
    pub fn get(&self, path: &str) -> (u16, String) {
        request(self.http, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    pub fn status(&self) -> Value {
        let (code, body) = self.get("/api/v1/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn bastion(&self, name: &str) -> Value {
        named(&self.status()["bastions"], name)
    }

    pub fn database(&self, name: &str) -> Value {
        named(&self.status()["databases"], name)
    }

    /// Where a database's forward listens.
    pub fn address(&self, database: &str) -> SocketAddr {
        self.database(database)["listen"][0].as_str().unwrap().parse().unwrap()
    }

    pub fn wait_up(&self, bastion: &str) {
        eventually("the tunnel is up", || self.bastion(bastion)["up"].as_bool().unwrap().then_some(()));
    }

    pub fn wait_down(&self, bastion: &str) {
        eventually("the tunnel is down", || (!self.bastion(bastion)["up"].as_bool().unwrap()).then_some(()));
    }

    /// All series by name and labels, without the product's prefix.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let (code, body) = self.get("/metrics");
        assert_eq!(code, 200, "{body}");
        let lines = body.lines().filter_map(|line| line.strip_prefix("tunnelkeeper_"));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(key, value)| (key.to_owned(), value.parse().unwrap()))
            .collect()
    }

    pub fn metric(&self, series: &str) -> f64 {
        *self.metrics().get(series).unwrap_or_else(|| panic!("there is no series {series}"))
    }

    /// The log's events so far with this message. The log may be behind what status and metrics say.
    pub fn events(&self, message: &str) -> Vec<Value> {
        self.log.lock().unwrap().iter().filter(|event| event["message"] == message).cloned().collect()
    }

    pub fn wait_event(&self, message: &str) -> Value {
        self.wait_event_where(message, |_| true)
    }

    pub fn wait_event_where(&self, message: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let what = format!("the log says \"{message}\"");
        eventually(&what, || self.events(message).into_iter().find(&matches))
    }

    /// Everything it has printed.
    pub fn printed(&self) -> String {
        let lines: Vec<String> = self.log.lock().unwrap().iter().map(ToString::to_string).collect();
        format!("{}\n{}", lines.join("\n"), self.other.lock().unwrap())
    }

    /// Writes another configuration and has it loaded.
    pub fn begin_reload(&self, config: &str) {
        write_config(self.dir.path(), config);
        self.signal(Signal::SIGHUP);
    }

    /// Does so and waits for it; returns what is wrong with it.
    pub fn reload(&self, config: &str) -> Vec<String> {
        let good = "the configuration has been reloaded";
        let bad = "the configuration is not reloaded, and stays as it was";
        let before = (self.events(good).len(), self.events(bad).len());
        self.begin_reload(config);
        eventually("the configuration is read", || {
            let (good, bad) = (self.events(good), self.events(bad));
            let refused = &self.status()["daemon"]["configuration"]["problems"];
            let told = bad.len() - before.1;
            (good.len() > before.0 || (told > 0 && told == refused.as_array().unwrap().len())).then_some(())
        });
        let problems = self.events(bad).into_iter().skip(before.1);
        problems.map(|event| event["problem"].as_str().unwrap().to_owned()).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the daemon ends", || self.child.try_wait().unwrap())
    }

    /// A figure from /proc/PID/status, such as VmRSS, in kB.
    pub fn memory_kb(&self, figure: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon said:\n{}", self.printed());
            return;
        }
        // Whatever the test was about: it may have passed only since what broke was started again.
        let printed = self.printed();
        assert!(!printed.contains("please report this"), "a part of the daemon broke:\n{printed}");
    }
}

fn named(list: &Value, name: &str) -> Value {
    let found = list.as_array().unwrap().iter().find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {name} in {list}")).clone()
}

fn collect(stream: impl Read + Send + 'static, log: &Arc<Mutex<Vec<Value>>>, other: &Arc<Mutex<String>>) {
    let (log, other) = (Arc::clone(log), Arc::clone(other));
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(event) => log.lock().unwrap().push(event),
                Err(_) => {
                    let mut other = other.lock().unwrap();
                    other.push_str(&line);
                    other.push('\n');
                }
            }
        }
    });
}

/// Sends an HTTP request as it stands; returns the status and the body.
pub fn request(address: SocketAddr, request: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, body.to_owned())
}
