//! `wait`: returns when databases can be reached. Also for `exec`, which has to wait first.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::asking::{find, print_json};
use super::reach::Standing;
use super::{Format, Patience, Stop, runtime};
use crate::client::{self, Silence, Status};

/// The time from one look to the next, which doubles: short for a tunnel that is about to be up, and long for the many
/// jobs that wait for the same one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long an answer may take at least, however little time is left.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What was seen of a daemon.
pub(super) enum Seen {
    /// Nobody answers; why.
    Nobody(String),
    /// How each of the databases stands.
    Standings(Box<Status>, Vec<Standing>),
}

impl Seen {
    fn is_all_reachable(&self) -> bool {
        matches!(self, Self::Standings(_, standings) if standings.iter().all(Standing::is_reachable))
    }
}

/// What `wait` prints for programs.
#[derive(Serialize)]
struct Report<'a> {
    reachable: bool,
    waited_seconds: f64,
    /// Why no daemon answers, if none does.
    daemon: Option<&'a str>,
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
    let seen = runtime()?.block_on(until_reachable(url, names, patience, stable))?;
    let reachable = seen.is_all_reachable();
    let (daemon, databases) = match &seen {
        Seen::Nobody(why) => (Some(why.as_str()), &[][..]),
        Seen::Standings(_, standings) => (None, standings.as_slice()),
    };
    match format {
        Format::Json => {
            let waited_seconds = started.elapsed().as_secs_f64();
            print_json(&Report { reachable, waited_seconds, daemon, databases }, out)?;
        }
        Format::Text => {
            for standing in databases.iter().filter(|standing| standing.is_reachable()) {
                writeln!(out, "{}", standing.line())?;
            }
        }
    }
    if reachable { Ok(()) } else { Err(unreached(seen)) }
}

/// Waits for one database, and returns the status that shows it reachable.
pub(super) fn wait_for(url: &str, name: &str, patience: Patience) -> Result<Status, Stop> {
    let names = [name.to_owned()];
    match runtime()?.block_on(until_reachable(url, &names, patience, Duration::ZERO))? {
        Seen::Standings(status, standings) if standings.iter().all(Standing::is_reachable) => Ok(*status),
        seen => Err(unreached(seen)),
    }
}

/// A line for each database that is missing something.
fn unreached(seen: Seen) -> Stop {
    match seen {
        Seen::Nobody(why) => Stop::Unreached(vec![why]),
        Seen::Standings(_, standings) => {
            let missing = standings.iter().filter(|standing| !standing.is_reachable());
            Stop::Unreached(missing.map(Standing::line).collect())
        }
    }
}

/// Looks again and again until all is reachable or time is up, and says what was seen last. Looks at least once.
async fn until_reachable(
    url: &str,
    names: &[String],
    Patience { timeout: patience }: Patience,
    stable: Duration,
) -> Result<Seen, Stop> {
    let deadline = Instant::now() + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut pause = FIRST_PAUSE;
    loop {
        let seen = look(url, names, stable, left().max(LAST_LOOK)).await?;
        if seen.is_all_reachable() || left().is_zero() {
            return Ok(seen);
        }
        sleep(pause.min(left())).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

async fn look(url: &str, names: &[String], stable: Duration, bound: Duration) -> Result<Seen, Stop> {
    let status = match timeout(bound, client::status(url)).await {
        Ok(Ok(status)) => Box::new(status),
        Ok(Err(Silence::Now(why))) => return Ok(Seen::Nobody(why)),
        Ok(Err(lasting @ Silence::Lasting(_))) => return Err(Stop::Failed(lasting.to_string())),
        Err(_) => return Ok(Seen::Nobody(format!("the daemon at {url} does not answer in time"))),
    };
    let of = |database| Standing::of(&status.snapshot, database, stable);
    let standings = if names.is_empty() {
        status.snapshot.databases.iter().map(of).collect()
    } else {
        names.iter().map(|name| find(&status, name).map(of)).collect::<Result<_, _>>()?
    };
    Ok(Seen::Standings(status, standings))
}
