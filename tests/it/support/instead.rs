//! Programs that see files of ours in place of the system's own, as another machine would have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use super::account::Account;

/// The system's /etc/nsswitch.conf (nsswitch.conf(5)), but hosts are looked for in these places.
pub fn hosts_by(places: &str) -> String {
    let system = fs::read_to_string("/etc/nsswitch.conf").unwrap();
    let others = system.lines().filter(|line| !line.starts_with("hosts:"));
    others.map(|line| format!("{line}\n")).chain([format!("hosts: {places}\n")]).collect()
}

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
