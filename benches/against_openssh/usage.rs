//! What processes have used, as proc(5) tells.

use std::fs;
use std::time::Duration;

use crate::support::processes::children;

/// Linux counts processor time for user space in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process and of those below it, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let below: f64 = children(pid).into_iter().map(cpu_seconds).sum();
    below + own_cpu_seconds(pid).unwrap_or_default()
}

fn own_cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u32>().ok();
    // utime and stime, fields 14 and 15; the third one is the first after the name.
    Some((TICK * (ticks(11)? + ticks(12)?)).as_secs_f64())
}

/// Memory of a process and of those below it, in kB.
pub struct Memory {
    pub resident: f64,
    /// Pages that several processes share count by their share.
    pub proportional: f64,
}

pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
    };
    let own = Memory { resident: figure("Rss:"), proportional: figure("Pss:") };
    children(pid).into_iter().map(memory).fold(own, |sum, below| Memory {
        resident: sum.resident + below.resident,
        proportional: sum.proportional + below.proportional,
    })
}
