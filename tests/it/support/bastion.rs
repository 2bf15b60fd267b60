//! A real sshd.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::account::{Account, account, find};
use super::instead::{hosts_by, seeing};
use super::processes::{children, kill_families};
use super::{eventually, free_port};

pub struct Bastion {
    pub port: u16,
    pub account: Account,
    dir: TempDir,
    running: Option<Child>,
    /// What serves connections that an earlier listener has accepted.
    orphans: Mutex<Vec<u32>>,
    log: Arc<Mutex<String>>,
    /// What it alone sees in place of the system's own: each a directory or file, and where it sees that.
    instead: Vec<(PathBuf, &'static str)>,
}

/// Makes a key pair with ssh-keygen, and returns the private key's path.
pub fn make_key(dir: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let status = Command::new("ssh-keygen")
        .args(["-q", "-C", name, "-f"])
        .arg(&path)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    path
}

pub fn public_line(key: &Path) -> String {
    fs::read_to_string(format!("{}.pub", key.display())).unwrap().trim().to_owned()
}

impl Bastion {
    pub fn start() -> Self {
        Self::with("")
    }

    /// Starts an sshd with further lines in its configuration; they come first, so they win.
    pub fn with(lines: &str) -> Self {
        let mut bastion = Self::prepare(lines);
        bastion.start_again();
        bastion
    }

    /// Starts an sshd that also takes this password. Whoever it is for must not matter, so PAM compares it; `account`
    /// is the line by which PAM then judges the account.
    pub fn with_password(password: &str, account: &str, lines: &str) -> Self {
        let methods = "UsePAM yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication yes\n";
        let mut bastion = Self::prepare(&format!("{lines}\n{methods}"));
        let (dir, script) = (bastion.path("pam.d"), bastion.path("check"));
        fs::create_dir(&dir).unwrap();
        fs::write(&script, format!("#!/bin/sh\nread -r given\n[ \"$given\" = '{password}' ]\n")).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let check = format!("pam_exec.so quiet expose_authtok {}", script.display());
        let service = format!(
            "auth required {check}\nauth required pam_permit.so\naccount required {account}\n\
             password required pam_unix.so\nsession required pam_permit.so\n"
        );
        fs::write(dir.join("sshd"), service).unwrap();
        bastion.instead.push((dir, "/etc/pam.d"));
        bastion.start_again();
        bastion
    }

    /// Starts an sshd that finds this machine by these names, as a bastion finds databases that are there for it alone, and
    /// no other machine.
    pub fn that_knows(names: &[&str]) -> Self {
        let mut bastion = Self::prepare("");
        let hosts = bastion.path("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost {}\n", names.join(" "))).unwrap();
        bastion.instead.push((hosts, "/etc/hosts"));
        let places = bastion.path("nsswitch.conf");
        fs::write(&places, hosts_by("files")).unwrap();
        bastion.instead.push((places, "/etc/nsswitch.conf"));
        bastion.start_again();
        bastion
    }

    fn prepare(lines: &str) -> Self {
        let dir = TempDir::with_prefix("bastion-").unwrap();
        let account = account();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let host_key = make_key(dir.path(), "host", &["-t", "ed25519", "-N", ""]);
        let identity = make_key(dir.path(), "identity", &["-t", "ed25519", "-N", ""]);
        let port = free_port();
        let bastion = Self {
            port,
            account,
            dir,
            running: None,
            orphans: Mutex::default(),
            log: Arc::default(),
            instead: Vec::new(),
        };
        bastion.authorize(&public_line(&identity));
        bastion.account.give(&host_key);
        fs::write(
            bastion.path("sshd_config"),
            format!(
                "{lines}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
                 UsePAM no\nPidFile none\nLogLevel VERBOSE\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\n{}\n",
                host_key.display(),
                bastion.path("authorized_keys").display(),
                // Of this one keyword the last line wins.
                if lines.contains("MaxStartups") { "" } else { "MaxStartups 100" },
            ),
        )
        .unwrap();
        bastion
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces the authorized_keys file.
    pub fn authorize(&self, lines: &str) {
        let path = self.path("authorized_keys");
        fs::write(&path, format!("{lines}\n")).unwrap();
        self.account.give(&path);
    }

    /// The known_hosts line for this sshd, as seen at a port.
    pub fn known_hosts_line(&self, port: u16) -> String {
        let line = public_line(&self.path("host"));
        let key = line.rsplit_once(' ').unwrap().0;
        format!("[127.0.0.1]:{port} {key}")
    }

    /// `[bastions.NAME]` for a daemon that connects to `port`: this sshd's, or that of a relay before it.
    pub fn keyless_section(&self, name: &str, port: u16) -> String {
        let known_hosts = self.path(&format!("known_hosts.{name}.{port}"));
        fs::write(&known_hosts, self.known_hosts_line(port)).unwrap();
        format!(
            "[bastions.{name}]\nhost = \"127.0.0.1\"\nport = {port}\nuser = {:?}\nknown_hosts = {:?}\n",
            self.account.name,
            known_hosts.display().to_string(),
        )
    }

    /// The same with the key that this sshd accepts.
    pub fn section(&self, name: &str, port: u16) -> String {
        let identity = self.path("identity").display().to_string();
        format!("{}identity = {identity:?}\n", self.keyless_section(name, port))
    }

    /// The same for a daemon that knows it by a name.
    pub fn named_section(&self, name: &str, host: &str) -> String {
        let known_hosts = self.path(&format!("known_hosts.{name}.{}", self.port));
        let section = self.section(name, self.port).replace("\"127.0.0.1\"", &format!("{host:?}"));
        let line = self.known_hosts_line(self.port).replace("127.0.0.1", host);
        fs::write(known_hosts, line).unwrap();
        section
    }

    /// The same for a daemon to which nobody has said which host key is right.
    pub fn unknown_section(&self, name: &str) -> String {
        let section = self.section(name, self.port);
        section
            .lines()
            .filter(|line| !line.starts_with("known_hosts"))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    pub fn start_again(&mut self) {
        assert!(self.running.is_none());
        let mut child = self
            .command(&find("sshd"))
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&self.log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        self.running = Some(child);
        let port = self.port;
        eventually("sshd listens", || {
            let running = self.running.as_mut().unwrap();
            if let Some(status) = running.try_wait().unwrap() {
                let log = self.log.lock().unwrap().clone();
                panic!("sshd ended with {status}:\n{log}");
            }
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
    }

    /// sshd looks for some things in one place only.
    fn command(&self, program: &Path) -> Command {
        match self.instead.is_empty() {
            true => self.account.command(program),
            false => seeing(&self.instead, &self.account, program),
        }
    }

    /// Restarts it with another configuration.
    pub fn reconfigure(&mut self, change: impl FnOnce(String) -> String) {
        self.kill();
        let path = self.path("sshd_config");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(config)).unwrap();
        self.start_again();
    }

    /// The process that listens; those that serve connections are below it.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Kills sshd and all processes that serve its connections, as a machine that loses power does.
    pub fn kill(&mut self) {
        kill_families(std::mem::take(&mut *self.orphans.lock().unwrap()));
        let Some(mut child) = self.running.take() else { return };
        kill_families(vec![child.id()]);
        let _ = child.wait();
    }

    /// Ends the process that listens; those that serve connections go on.
    pub fn kill_listener(&mut self) {
        let Some(mut child) = self.running.take() else { return };
        self.orphans.lock().unwrap().extend(children(child.id()));
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Ends the processes that serve connections; the listener goes on.
    pub fn kill_sessions(&self) {
        let mut sessions = std::mem::take(&mut *self.orphans.lock().unwrap());
        sessions.extend(self.running.iter().flat_map(|listener| children(listener.id())));
        kill_families(sessions);
    }
}

impl Drop for Bastion {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- sshd on port {} said:\n{}", self.port, self.log());
        }
        self.kill();
    }
}
