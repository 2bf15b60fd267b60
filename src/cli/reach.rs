//! Whether a database can be reached, read off one snapshot: as `/readyz/NAME` has it, and as a job needs it on top. A
//! daemon that takes no clients counts, and a first probe that is still under way is waited for. Decides, asks nobody.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::failure::one_line;
use crate::snapshot::{Database, Snapshot, Trouble};

use super::asking::MAX_SHOWN;

/// How a database stands at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Standing {
    name: String,
    reachable: bool,
    /// What is missing, if anything is.
    missing: Vec<Missing>,
}

/// One thing that keeps a database from being reached.
#[derive(Debug, Serialize)]
struct Missing {
    /// `daemon`, `tunnel`, `probe` or `stable`.
    check: &'static str,
    text: String,
    failure: Option<Trouble>,
}

impl Standing {
    /// `stable`: for how long it has to have been reachable.
    pub(super) fn of(snapshot: &Snapshot, database: &Database, stable: Duration) -> Self {
        let mut missing = missing(snapshot, database);
        if missing.is_empty() {
            missing.extend(unstable(snapshot, database, stable));
        }
        Self { name: database.name.clone(), reachable: missing.is_empty(), missing }
    }

    pub(super) fn is_reachable(&self) -> bool {
        self.reachable
    }

    /// What is missing, without what changes while it stays the same, such as how long it has been so.
    pub(super) fn reasons(&self) -> impl Iterator<Item = [&str; 4]> {
        self.missing.iter().map(|missing| {
            let failure = missing.failure.as_ref();
            let [phase, reason] =
                failure.map_or([""; 2], |trouble| [trouble.phase.as_str(), trouble.reason.as_str()]);
            [self.name.as_str(), missing.check, phase, reason]
        })
    }

    /// One line; whatever answered may have put anything into it.
    pub(super) fn line(&self) -> String {
        let Self { name, reachable, missing } = self;
        let line = if *reachable {
            format!("{name} is reachable")
        } else {
            let missing: Vec<String> = missing.iter().map(Missing::line).collect();
            format!("{name} is not reachable: {}", missing.join("; "))
        };
        one_line(&line, MAX_SHOWN)
    }
}

impl Missing {
    fn line(&self) -> String {
        match &self.failure {
            Some(trouble) => format!("{}: {trouble} (hint: {})", self.text, trouble.hint),
            None => self.text.clone(),
        }
    }
}

fn missing(snapshot: &Snapshot, database: &Database) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !snapshot.daemon.ready {
        let text = format!("the daemon is not ready: {}", snapshot.daemon.not_ready_because.join("; "));
        missing.push(Missing { check: "daemon", text, failure: None });
    }
    if !database.up {
        let behind = snapshot.bastions.iter().filter(|bastion| database.bastions.contains(&bastion.name));
        missing.extend(behind.map(|bastion| Missing {
            check: "tunnel",
            text: format!("bastion {} is down", bastion.name),
            failure: bastion.last_failure.clone(),
        }));
    }
    let text = match database.probe.verdict.as_str() {
        "down" => "the probe says down",
        // What comes first after a start is the tunnel, and then the probe.
        "unknown" if database.up => "no probe has succeeded yet",
        _ => return missing,
    };
    let failure = database.probe.last_failure.clone();
    missing.push(Missing { check: "probe", text: text.to_owned(), failure });
    missing
}

fn unstable(snapshot: &Snapshot, database: &Database, stable: Duration) -> Option<Missing> {
    let since = reachable_since(snapshot, database).unwrap_or(snapshot.at.0);
    let age = snapshot.at.0.duration_since(since).unwrap_or_default();
    (age < stable).then(|| {
        let show =
            |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
        let text = format!("it has been so for {} only, not yet for {}", show(age), show(stable));
        Missing { check: "stable", text, failure: None }
    })
}

/// Since when a database that is reachable has been so without a break, as far as its daemon knows.
fn reachable_since(snapshot: &Snapshot, database: &Database) -> Option<SystemTime> {
    let behind = snapshot.bastions.iter().filter(|bastion| database.bastions.contains(&bastion.name));
    let tunnel = behind.filter(|bastion| bastion.up).filter_map(|bastion| bastion.up_since).min()?;
    let probe = database.probe.since.filter(|_| database.probe.verdict == "up");
    Some(probe.map_or(tunnel, |probe| probe.max(tunnel)).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Stamp;
    use crate::snapshot::tests::troubled;

    fn standing(stable: u64, change: impl FnOnce(&mut Snapshot)) -> String {
        let mut snapshot = troubled();
        snapshot.daemon.ready = true;
        for database in &mut snapshot.databases {
            database.probe.verdict = "up".to_owned();
        }
        change(&mut snapshot);
        let database = snapshot.databases.first().unwrap();
        Standing::of(&snapshot, database, Duration::from_secs(stable)).line()
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason_and_its_hint() {
        assert_eq!(standing(0, |_| {}), "analytics is reachable");
        let probe = |verdict: &'static str| {
            move |snapshot: &mut Snapshot| {
                snapshot.databases[0].probe.verdict = verdict.to_owned();
            }
        };
        assert_eq!(standing(0, probe("not probed")), "analytics is reachable");
        assert_eq!(
            standing(0, probe("down")),
            "analytics is not reachable: the probe says down: db_login rejected: the  [2Jdetail (hint: heal rejected)"
        );
        let line = standing(0, probe("unknown"));
        assert!(line.starts_with("analytics is not reachable: no probe has succeeded yet: "), "{line}");
        let line = standing(0, |snapshot| snapshot.daemon.ready = false);
        assert!(line.ends_with(": the daemon is not ready: draining: the daemon was told to stop"), "{line}");
        let line = standing(0, |snapshot| snapshot.databases.swap(0, 1));
        assert_eq!(
            line,
            "lost is not reachable: bastion gone is down: auth rejected: the  [2Jdetail (hint: heal rejected)"
        );
    }

    #[test]
    fn stable_is_counted_from_the_youngest_of_what_it_takes() {
        let seconds_ago =
            |snapshot: &Snapshot, seconds: u64| Some(Stamp(snapshot.at.0 - Duration::from_secs(seconds)));
        for (tunnel, probe, stable, reachable) in [
            (Some(9), Some(9), 9, true),
            (Some(9), Some(9), 10, false),
            (Some(9), Some(2), 5, false),
            (Some(2), Some(9), 5, false),
            (Some(9), None, 5, true),
            (None, Some(9), 5, false),
            (None, None, 0, true),
        ] {
            let line = standing(stable, |snapshot| {
                let prod = snapshot.bastions.iter().position(|bastion| bastion.name == "prod").unwrap();
                snapshot.bastions[prod].up_since = tunnel.and_then(|ago| seconds_ago(snapshot, ago));
                snapshot.databases[0].probe.since = probe.and_then(|ago| seconds_ago(snapshot, ago));
            });
            assert_eq!(line == "analytics is reachable", reachable, "{tunnel:?} {probe:?} {stable} {line}");
        }
        // A second bastion that flaps is no break as long as the first one stands.
        let line = standing(5, |snapshot| {
            snapshot.databases[0].bastions.push("gone".to_owned());
            for (index, ago) in [(0, 1), (1, 9)] {
                snapshot.bastions[index].up = true;
                snapshot.bastions[index].up_since = seconds_ago(snapshot, ago);
            }
        });
        assert_eq!(line, "analytics is reachable");
    }
}
