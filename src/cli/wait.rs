//! `wait`: returns when databases can be reached. Also for `exec`, which has to wait first.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::asking::{find, print_json};
use super::reach::Standing;
use super::{Format, Patience, Stop, block_on};
use crate::client::{self, Silence, Status};

/// The time from one look to the next, which doubles: short for a tunnel that is about to be up, and long for the many
/// jobs that wait for the same one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long an answer may take at least, however little time is left.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// After how long without an answer a wait says what it waits for.
const SILENT: Duration = Duration::from_secs(2);

/// What was seen of a daemon.
enum Seen {
    /// Nobody answers; why.
    Nobody(String),
    /// Waiting is no help; why.
    Never(String),
    /// How each of the databases stands.
    Standings(Box<Status>, Vec<Standing>),
}

impl Seen {
    fn is_all_reachable(&self) -> bool {
        matches!(self, Self::Standings(_, standings) if standings.iter().all(Standing::is_reachable))
    }

    fn is_final(&self) -> bool {
        self.is_all_reachable() || matches!(self, Self::Never(_))
    }

    /// A line for each thing that is missing.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Nobody(why) | Self::Never(why) => vec![why.clone()],
            Self::Standings(_, standings) => {
                let missing = standings.iter().filter(|standing| !standing.is_reachable());
                missing.map(Standing::line).collect()
            }
        }
    }

    /// What is said of it while it is waited for, to see whether it is still the same.
    fn reasons(&self) -> Vec<String> {
        match self {
            Self::Nobody(_) | Self::Never(_) => self.lines(),
            Self::Standings(_, standings) => {
                let mut missing = standings.iter().filter(|standing| !standing.is_reachable());
                let first = missing.next().into_iter().flat_map(Standing::reasons);
                let mut reasons: Vec<String> = first.map(|reason| reason.join(" ")).collect();
                reasons.push(missing.count().to_string());
                reasons
            }
        }
    }
}

/// What `wait` prints for programs.
#[derive(Serialize)]
struct Report<'a> {
    reachable: bool,
    waited_seconds: f64,
    /// Why no daemon answers, if none does.
    daemon: Option<&'a str>,
    /// Why waiting is no help, if it is none: a name that the daemon does not know, or an address that is none.
    error: Option<&'a str>,
    databases: &'a [Standing],
}

pub(super) fn wait(
    url: &str,
    names: &[String],
    patience: Patience,
    stable: Duration,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Stop> {
    let started = Instant::now();
    let seen = block_on(until_reachable(url, names, patience, stable))?;
    let reachable = seen.is_all_reachable();
    let (daemon, error, databases) = match &seen {
        Seen::Nobody(why) => (Some(why.as_str()), None, &[][..]),
        Seen::Never(why) => (None, Some(why.as_str()), &[][..]),
        Seen::Standings(_, standings) => (None, None, standings.as_slice()),
    };
    match format {
        Format::Json => {
            let waited_seconds = started.elapsed().as_secs_f64();
            print_json(&Report { reachable, waited_seconds, daemon, error, databases }, out)?;
        }
        Format::Text => {
            for standing in databases.iter().filter(|standing| standing.is_reachable()) {
                writeln!(out, "{}", standing.line())?;
            }
        }
    }
    if reachable { Ok(()) } else { Err(Stop::Unreached(seen.lines())) }
}

/// Waits for one database, and returns the status that shows it reachable.
pub(super) fn wait_for(url: &str, name: &str, patience: Patience) -> Result<Status, Stop> {
    let names = [name.to_owned()];
    match block_on(until_reachable(url, &names, patience, Duration::ZERO))? {
        Seen::Standings(status, standings) if standings.iter().all(Standing::is_reachable) => Ok(*status),
        seen => Err(Stop::Unreached(seen.lines())),
    }
}

/// Looks again and again until all is reachable, never can be, or time is up, and returns what was seen last. Looks at
/// least once. A wait that takes long says on standard error what it waits for, and again when that changes.
async fn until_reachable(
    url: &str,
    names: &[String],
    Patience { timeout: patience }: Patience,
    stable: Duration,
) -> Seen {
    let started = Instant::now();
    let deadline = started + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut pause = FIRST_PAUSE;
    let mut told = Vec::new();
    loop {
        let seen = look(url, names, stable, left().max(LAST_LOOK)).await;
        if seen.is_final() || left().is_zero() {
            return seen;
        }
        let reasons = seen.reasons();
        if started.elapsed() >= SILENT && told != reasons {
            say(&seen);
            told = reasons;
        }
        sleep(pause.min(left())).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// One line, however many are waited for: what each of them is missing is said at the end.
fn say(seen: &Seen) {
    let lines = seen.lines();
    let Some(first) = lines.first() else { return };
    let others = match lines.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    };
    let _ = writeln!(io::stderr(), "tunnelkeeper: waiting: {first}{others}");
}

async fn look(url: &str, names: &[String], stable: Duration, bound: Duration) -> Seen {
    let status = match timeout(bound, client::status(url)).await {
        Ok(Ok(status)) => Box::new(status),
        Ok(Err(Silence::Now(why))) => return Seen::Nobody(why),
        Ok(Err(Silence::Lasting(why))) => return Seen::Never(why),
        Err(_) => return Seen::Nobody(format!("the daemon at {url} does not answer in time")),
    };
    match standings(&status, names, stable) {
        Ok(standings) => Seen::Standings(status, standings),
        Err(why) => Seen::Never(why),
    }
}

fn standings(status: &Status, names: &[String], stable: Duration) -> Result<Vec<Standing>, String> {
    let of = |database| Standing::of(&status.snapshot, database, stable);
    let databases = &status.snapshot.databases;
    match names {
        [] if databases.is_empty() => {
            Err("the daemon has no database: there is nothing to wait for".to_owned())
        }
        [] => Ok(databases.iter().map(of).collect()),
        names => names.iter().map(|name| find(status, name).map(of)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Database;
    use crate::snapshot::tests::troubled;

    #[test]
    fn what_says_nothing_of_databases_is_not_taken_for_one_that_reaches_all() {
        let mut snapshot = troubled();
        snapshot.databases.clear();
        let status = Status { snapshot, elsewhere: None };
        assert!(standings(&status, &[], Duration::ZERO).unwrap_err().contains("the daemon has no database"));
    }

    #[test]
    fn one_line_is_said_again_only_when_the_reason_is_another() {
        let seen = |change: fn(&mut Database)| {
            let mut snapshot = troubled();
            snapshot.daemon.ready = true;
            for database in &mut snapshot.databases {
                database.probe.verdict = "down".to_owned();
                change(database);
            }
            let status = Status { snapshot, elsewhere: None };
            let standings = standings(&status, &[], Duration::ZERO).unwrap();
            Seen::Standings(Box::new(status), standings)
        };
        let first = seen(|_| {});
        assert_eq!(first.lines().len(), 2);
        let later = seen(|database| {
            if let Some(failure) = &mut database.probe.last_failure {
                failure.detail = "after 12 s".to_owned();
            }
        });
        assert_eq!(first.reasons(), later.reasons());
        let other = seen(|database| {
            if let Some(failure) = &mut database.probe.last_failure {
                failure.reason = "timeout".to_owned();
            }
        });
        assert_ne!(first.reasons(), other.reasons());
        assert_ne!(first.reasons(), Seen::Nobody("gone".to_owned()).reasons());
    }
}
