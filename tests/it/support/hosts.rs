//! A process for which names lead elsewhere than for the rest of the machine.

use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;

/// A command that sees this file as /etc/hosts, in a mount namespace of its own, and dies with the thread that started it.
/// Whoever may not mount is root in a user namespace for it.
pub fn command_with_hosts(hosts: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let script = "mount --bind \"$0\" /etc/hosts && exec setpriv --pdeathsig KILL \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(hosts).arg(program);
    command
}
