//! A process for which some files are others than for the rest of the machine, and names lead elsewhere.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

/// A command that sees this file as /etc/hosts, in a mount namespace of its own, and dies with the thread that started it.
pub fn command_with_hosts(hosts: &Path, program: &Path) -> Command {
    command_after(&format!("mount --bind '{}' /etc/hosts", hosts.display()), program)
}

/// A command that runs after these in a mount namespace of its own. Whoever may not mount is root in a user namespace
/// for it.
fn command_after(mounts: &str, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let script = format!("{mounts} && exec setpriv --pdeathsig KILL \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(program);
    command
}

/// Has a daemon's command run after these mounts.
pub fn mount_before(command: &mut Command, mounts: &str) {
    let mut other = command_after(mounts, Path::new(command.get_program()));
    other.env_clear().args(command.get_args());
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    *command = other;
}
