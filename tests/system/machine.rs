//! A Debian of its own with systemd as its first process: a container of systemd-nspawn, whose changes live in memory and
//! go with it. Needs root. The files beneath are made once, by debootstrap.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::patience::eventually;

const PACKAGES: &str =
    "systemd,systemd-sysv,dbus,openssh-server,openssh-client,postgresql,debconf-utils,procps";

/// Where the package is seen from within.
pub const PACKAGE: &str = "/srv/tunnelkeeper.deb";

/// A running machine.
pub struct Machine {
    container: Child,
    init: u32,
}

impl Machine {
    /// Boots one that has a package at hand.
    pub fn boot(package: &Path) -> Self {
        let root = debian();
        // However this process ends, the machine ends with it.
        let mut nspawn = Command::new("setpriv");
        nspawn.args([
            "--pdeathsig",
            "KILL",
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--private-network",
        ]);
        nspawn
            .args(["--volatile=overlay", "--console=pipe", "--machine=tunnelkeeper-test", "--directory"])
            .arg(&root);
        nspawn.arg(format!("--bind-ro={}:{PACKAGE}", package.display()));
        nspawn.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let container = nspawn.spawn().unwrap();
        let mut machine = Self { container, init: 0 };
        machine.init =
            eventually("the machine has a first process", || first_process(machine.container.id()));
        eventually("the machine has booted", || {
            let state = machine.ask("systemctl is-system-running");
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        machine
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init.to_string(), "--", program]).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    /// What a command line of the shell did.
    pub fn try_run(&self, line: &str) -> Output {
        self.command("sh", &["-c", line]).output().unwrap()
    }

    /// Starts a command line of the shell that goes on by itself, until its caller ends it.
    pub fn start(&self, line: &str) -> Child {
        self.command("sh", &["-c", line]).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// What a command line prints, which has to succeed.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}\n{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints, however it ends.
    pub fn ask(&self, line: &str) -> String {
        String::from_utf8_lossy(&self.try_run(line).stdout).into_owned()
    }

    /// What a command line prints that has to fail.
    pub fn refused(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(!output.status.success(), "{line}\n{}", said(&output));
        said(&output)
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: &str) {
        let mut command = self.command("sh", &["-c", &format!("cat > {path}")]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{path}");
    }

    /// What the daemon has logged.
    pub fn journal(&self) -> String {
        self.ask("journalctl --no-pager --output cat --unit tunnelkeeper")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init != 0 {
            eprintln!(
                "{}",
                self.ask("systemctl status --no-pager tunnelkeeper; journalctl --no-pager --lines 80")
            );
        }
        // Whatever is in the container ends with its first process, and nspawn with that.
        let _ =
            Command::new("kill").args(["-KILL", &self.init.max(self.container.id()).to_string()]).status();
        let _ = self.container.wait();
    }
}

/// The process that nspawn has put first.
fn first_process(nspawn: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then(|| child.parse().unwrap())
}

/// A Debian of the release and from the source of this machine's own.
fn debian() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
    let complete = root.join("etc/complete");
    if !complete.exists() {
        let _ = fs::remove_dir_all(&root);
        let (release, source) = source();
        eprintln!("making a Debian {release} from {source}, once");
        let output = Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), &release])
            .arg(&root)
            .arg(&source)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        fs::write(&complete, "").unwrap();
    }
    root
}

/// The first source of packages that this machine has: its release and its address.
fn source() -> (String, String) {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let codename = fs::read_to_string("/etc/os-release").unwrap();
    let codename = codename.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
    let uri = text.lines().find_map(|line| line.strip_prefix(codename)?.strip_prefix(' '));
    (codename.to_owned(), uri.expect("this machine has a source of its own release").to_owned())
}

/// All that a command printed.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
