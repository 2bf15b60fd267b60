//! The forwarders, each a process of its own with the same forwards to the same servers.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::arguments::Plan;
use crate::servers;
use crate::support::account::find;
use crate::support::postgres::{DATABASE, TRUSTED};
use crate::support::processes::kill_families;
use crate::support::{Bastion, eventually, free_port};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    /// tunnelkeeper.
    Ours,
    /// Another build of it.
    Other,
    /// `ssh -N -L` with the cipher that we prefer.
    SameCipher,
    /// `ssh -N -L` as it comes.
    Defaults,
    /// `autossh`, as its users are told to call it.
    Autossh,
}

impl Peer {
    pub fn title(self) -> &'static str {
        match self {
            Self::Ours => "tunnelkeeper",
            Self::Other => "other tunnelkeeper",
            Self::SameCipher => "ssh, aes128-gcm",
            Self::Defaults => "ssh",
            Self::Autossh => "autossh",
        }
    }
}

/// A server behind the bastion.
#[derive(Clone, Copy)]
pub enum Target {
    Source(u16),
    Sink(u16),
    Echo(u16),
    Greeter(u16),
    Postgres(u16),
}

impl Target {
    fn port(self) -> u16 {
        let (Self::Source(port)
        | Self::Sink(port)
        | Self::Echo(port)
        | Self::Greeter(port)
        | Self::Postgres(port)) = self;
        port
    }

    /// Has a word with it, through a forward.
    fn greet(self, address: SocketAddr) -> io::Result<()> {
        let mut socket = servers::connect(address)?;
        match self {
            Self::Source(_) => socket.write_all(&1_u64.to_be_bytes())?,
            Self::Sink(_) => socket.shutdown(std::net::Shutdown::Write)?,
            Self::Echo(_) => socket.write_all(b"x")?,
            Self::Greeter(_) => {}
            // Asks whether it would speak TLS.
            Self::Postgres(_) => socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?,
        }
        socket.read_exact(&mut [0])
    }
}

/// What a forwarder is to do.
pub struct Task<'a> {
    pub bastion: &'a Bastion,
    /// The bastion's, or where the way to it begins.
    pub at: SocketAddr,
    pub targets: Vec<Target>,
    /// Lines that our `[bastions]` and each of our `[databases]` has beyond what it needs.
    pub bastion_keys: &'a str,
    pub database_keys: &'a str,
}

impl<'a> Task<'a> {
    pub fn new(bastion: &'a Bastion, targets: Vec<Target>) -> Self {
        Self {
            bastion,
            at: (Ipv4Addr::LOCALHOST, bastion.port).into(),
            targets,
            bastion_keys: "",
            database_keys: "",
        }
    }
}

/// A forwarder that carries.
pub struct Forwarder {
    pub peer: Peer,
    /// One for each target, in order.
    pub addresses: Vec<SocketAddr>,
    child: Child,
    dir: TempDir,
}

impl Forwarder {
    pub fn start(plan: &Plan, peer: Peer, task: &Task) -> Self {
        let dir = TempDir::with_prefix("forwarder-").unwrap();
        let addresses: Vec<SocketAddr> =
            task.targets.iter().map(|_| (Ipv4Addr::LOCALHOST, free_port()).into()).collect();
        let mut command = match peer {
            Peer::Ours => tunnelkeeper(&plan.ours, task, &addresses, dir.path()),
            Peer::Other => tunnelkeeper(&plan.other, task, &addresses, dir.path()),
            Peer::SameCipher => {
                let mut command = ssh("KILL", "ssh", task, &addresses, dir.path());
                command.args(["-c", "aes128-gcm@openssh.com"]);
                command
            }
            Peer::Defaults => ssh("KILL", "ssh", task, &addresses, dir.path()),
            Peer::Autossh => autossh(task, &addresses, dir.path()),
        };
        let log = File::create(dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut forwarder = Self { peer, addresses, child: command.spawn().unwrap(), dir };
        forwarder.wait(&task.targets);
        forwarder
    }

    fn wait(&mut self, targets: &[Target]) {
        for (target, address) in targets.iter().zip(self.addresses.clone()) {
            eventually("a forwarder carries", || {
                if let Some(status) = self.child.try_wait().unwrap() {
                    let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
                    panic!("{:?} ended with {status}: {log}", self.peer);
                }
                target.greet(address).ok()
            });
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its first target is reached.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        kill_families(vec![self.pid()]);
        let _ = self.child.wait();
    }
}

/// One of each peer, with the same task.
pub fn start_all(plan: &Plan, task: &Task) -> Vec<Forwarder> {
    plan.peers.iter().map(|peer| Forwarder::start(plan, *peer, task)).collect()
}

/// A command that ends with this process.
pub fn bound(signal: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

fn tunnelkeeper(binary: &Path, task: &Task, addresses: &[SocketAddr], dir: &Path) -> Command {
    let known_hosts = known_hosts(task, dir);
    let mut config = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\nstate_dir = {:?}\n\
         [bastions.bench]\nhost = \"{}\"\nport = {}\nuser = {:?}\nidentity = {:?}\nknown_hosts = {known_hosts:?}\n{}",
        dir.join("state"),
        task.at.ip(),
        task.at.port(),
        task.bastion.account.name,
        task.bastion.path("identity"),
        task.bastion_keys
    );
    for (number, (target, address)) in task.targets.iter().zip(addresses).enumerate() {
        let probe = match target {
            Target::Postgres(_) => format!("user = \"{TRUSTED}\"\ndatabase = \"{DATABASE}\""),
            _ => "probe = { level = \"off\" }".to_owned(),
        };
        write!(
            config,
            "[databases.target-{number}]\nbastion = \"bench\"\nhost = \"127.0.0.1\"\nport = {}\n\
             listen = \"{address}\"\n{probe}\n{}",
            target.port(),
            task.database_keys
        )
        .unwrap();
    }
    let path = dir.join("tunnelkeeper.toml");
    fs::write(&path, config).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let mut command = bound("KILL", binary);
    command.env_remove("RUST_LOG").arg("--config").arg(path).arg("run");
    command
}

/// A file with the bastion's key, wherever the way to it begins.
fn known_hosts(task: &Task, dir: &Path) -> PathBuf {
    let line = task.bastion.known_hosts_line(task.at.port());
    let path = dir.join("known_hosts");
    fs::write(&path, line.replace("127.0.0.1", &task.at.ip().to_string())).unwrap();
    path
}

fn ssh(signal: &str, program: &str, task: &Task, addresses: &[SocketAddr], dir: &Path) -> Command {
    let known_hosts = known_hosts(task, dir);
    let mut command = bound(signal, &find(program));
    // Options of the system's own ssh_config would be this machine's.
    command.args(["-F", "none", "-N", "-p"]).arg(task.at.port().to_string());
    command.arg("-i").arg(task.bastion.path("identity"));
    command.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display()));
    for option in ["BatchMode=yes", "IdentitiesOnly=yes", "ExitOnForwardFailure=yes"] {
        command.args(["-o", option]);
    }
    for (target, address) in task.targets.iter().zip(addresses) {
        command.arg("-L").arg(format!("{address}:127.0.0.1:{}", target.port()));
    }
    command.arg(format!("{}@{}", task.bastion.account.name, task.at.ip()));
    command
}

/// Its manual wants no monitoring port beside ServerAlive, and a gate time of 0 for a tunnel that shall come back anyway.
fn autossh(task: &Task, addresses: &[SocketAddr], dir: &Path) -> Command {
    let mut command = ssh("TERM", "autossh", task, addresses, dir);
    command.env("AUTOSSH_GATETIME", "0").args(["-M", "0"]);
    command.args(["-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=10"]);
    command
}
