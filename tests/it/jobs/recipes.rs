//! What docs/job-runners.md tells people to write, tried as they would: by real clients, through the real forward.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::account::find;
use crate::support::hosts::command_with_hosts;
use crate::support::postgres::{INTERNAL, PASSWORD, SCRAM};
use crate::support::{Bastion, Daemon, Postgres};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/job-runners.md"));

/// The block of code in a section of the page that has these words in it.
pub fn recipe(section: &str, words: &str) -> String {
    let heading = format!("\n## {section}\n");
    let (_, rest) = PAGE.split_once(&heading).unwrap_or_else(|| panic!("there is no section {section:?}"));
    let text = rest.split("\n## ").next().unwrap();
    let blocks = blocks(text);
    let found = blocks.into_iter().find(|block| block.contains(words));
    found.unwrap_or_else(|| panic!("{section:?} has no block with {words:?}"))
}

/// The blocks of code in a text, without the indentation that a list gives them.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(fence) = lines.by_ref().find(|line| line.trim_start().starts_with("```")) {
        let indentation = fence.len() - fence.trim_start().len();
        let block = lines.by_ref().take_while(|line| line.trim() != "```");
        blocks.push(block.map(|line| format!("{}\n", line.get(indentation..).unwrap_or_default())).collect());
    }
    blocks
}

/// The page's database `analytics`, with the daemon that leads to it, and a job that may use it.
pub struct Stage {
    pub bastion: Bastion,
    pub daemon: Daemon,
    /// The job's home.
    home: TempDir,
    /// The second address at which the database listens, on the database's own port.
    pub own: &'static str,
    pub port: u16,
}

/// Makes the page's database, whose owner is the job's user.
fn make_analytics() {
    static MADE: OnceLock<String> = OnceLock::new();
    MADE.get_or_init(|| {
        Postgres::shared().sql("postgres", &format!("CREATE DATABASE analytics OWNER {SCRAM}"))
    });
}

impl Stage {
    /// `own` is a loopback address that no other test listens on.
    pub fn set(own: &'static str) -> Self {
        let postgres = Postgres::shared();
        Self::before(own, INTERNAL, postgres.port, &postgres.ca())
    }

    /// The same by way of another server, known by another name.
    pub fn before(own: &'static str, name: &str, port: u16, ca: &Path) -> Self {
        make_analytics();
        let bastion = Bastion::that_knows(&[name]);
        let home = TempDir::with_prefix("home-").unwrap();
        let daemon = Daemon::start(&format!(
            "{}[databases.analytics]\nkind = \"postgres\"\nbastion = \"prod\"\nhost = \"{name}\"\nport = {port}\n\
             listen = [\"127.0.0.1:0\", \"{own}:{port}\"]\ndatabase = \"analytics\"\nuser = \"{SCRAM}\"\n\
             password = \"{PASSWORD}\"\ntls = {{ mode = \"verify-full\", ca = {ca:?} }}\n",
            bastion.section("prod", bastion.port)
        ));
        daemon.wait_up("prod");
        fs::write(home.path().join("hosts"), format!("127.0.0.1 localhost\n{own} {name}\n")).unwrap();
        let stage = Self { bastion, daemon, home, own, port };
        fs::copy(ca, stage.file("ca.pem")).unwrap();
        stage
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A recipe of the page with this stage's ports and files in it, in the job's home under this name.
    pub fn write(&self, name: &str, recipe: &str) -> PathBuf {
        let local = self.daemon.address("analytics").port().to_string();
        let text = recipe
            .replace("/etc/tunnelkeeper/ca.pem", &self.file("ca.pem").display().to_string())
            .replace("15432", &local)
            .replace("127.0.0.2", self.own)
            .replace("5432,", &format!("{},", self.port))
            .replace("5439", &self.port.to_string());
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A program of the clients', in the job's environment. It dies with the thread that started it.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(client(program));
        self.furnish(command)
    }

    /// The same where the database's name leads to its own loopback address.
    pub fn client_with_hosts(&self, program: &str) -> Command {
        self.furnish(command_with_hosts(&self.file("hosts"), &client(program)))
    }

    fn furnish(&self, mut command: Command) -> Command {
        let ours = Path::new(env!("CARGO_BIN_EXE_tunnelkeeper")).parent().unwrap();
        let clients = client("python3");
        let psql = find("psql");
        let path = [ours, clients.parent().unwrap(), psql.parent().unwrap(), Path::new("/usr/bin:/bin")];
        let path = path.map(|place| place.display().to_string()).join(":");
        command
            .env_clear()
            .envs([("PGUSER", SCRAM), ("PGPASSWORD", PASSWORD), ("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")])
            .envs([("PATH", path), ("TUNNELKEEPER_URL", self.daemon.url())])
            .env("HOME", self.home.path())
            // The driver of Redshift takes no file of roots.
            .env("SSL_CERT_FILE", self.file("ca.pem"))
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }
}

/// A program that was installed for these tests, or one of the system's.
fn client(program: &str) -> PathBuf {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/bin");
    assert!(clients.exists(), "the clients are not there: run make prepare");
    let path = clients.join(program);
    if path.exists() {
        path
    } else if program == "tunnelkeeper" {
        env!("CARGO_BIN_EXE_tunnelkeeper").into()
    } else {
        find(program)
    }
}
