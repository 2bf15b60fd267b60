//! Programs that see files of ours in place of the system's own, as another machine would have them.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use super::account::Account;

/// A command that runs a program as this account, in a mount namespace of its own in which each of these files and
/// directories stands at the place beside it. Whoever may not mount makes it in a user namespace, and in that another in
/// which it is itself again. It dies with the thread that started it.
pub fn seeing(instead: &[(PathBuf, &str)], account: &Account, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    let back = if geteuid().is_root() {
        format!("setpriv --reuid {} --regid {} --clear-groups", account.uid, account.gid)
    } else {
        command.arg("--map-root-user");
        format!("unshare --user --map-user={} --map-group={}", account.uid, account.gid)
    };
    let mounts: String = instead
        .iter()
        .map(|(ours, place)| format!("mount --bind '{}' {place} && ", ours.display()))
        .collect();
    let script = format!("{mounts}exec {back} setpriv --pdeathsig KILL \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(program);
    command
}
