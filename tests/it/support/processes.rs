//! Processes and those below them, as proc(5) tells of them.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// Kills these processes and all below them. Each is stopped before its children are listed: one
/// that still ran could have a child more, which the death of its parent would hide from us.
pub fn kill_families(mut family: Vec<u32>) {
    let mut stopped = 0;
    while let Some(pid) = family.get(stopped).copied() {
        signal(pid, Signal::SIGSTOP);
        eventually("a process stops", || {
            proc_stat(pid).is_none_or(|(state, _)| matches!(state, 'T' | 'Z' | 'X')).then_some(())
        });
        family.extend(children(pid));
        stopped += 1;
    }
    for pid in family {
        signal(pid, Signal::SIGKILL);
    }
}

fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

pub fn children(of: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| proc_stat(*pid).is_some_and(|(_, parent)| parent == of))
        .collect()
}

/// The state and the parent of a process that exists.
fn proc_stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name stands in parentheses and may contain anything.
    let mut after = stat.rsplit_once(") ")?.1.split(' ');
    Some((after.next()?.parse().ok()?, after.next()?.parse().ok()?))
}
