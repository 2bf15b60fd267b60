//! The page in one line: how many tunnels and databases are up, or are not.

use maud::{Markup, html};

use super::mark;
use crate::snapshot::{Bastion, Database, Snapshot, Trouble};

pub(super) struct Headline {
    tunnels: Count,
    databases: Count,
}

struct Count {
    what: &'static str,
    all: usize,
    up: usize,
    down: usize,
}

impl Headline {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self {
            tunnels: Count::of("tunnel", &snapshot.bastions, |bastion| bastion.up, is_down),
            databases: Count::of("database", &snapshot.databases, is_reachable, |database| {
                is_unreachable(snapshot, database)
            }),
        }
    }

    /// For the browser's tab.
    pub(super) fn title(&self) -> String {
        match self.tunnels.down + self.databases.down {
            0 => "tunnelkeeper".to_owned(),
            down => format!("{down} down · tunnelkeeper"),
        }
    }

    pub(super) fn markup(&self) -> Markup {
        html! { (self.tunnels.markup()) " " (self.databases.markup()) }
    }
}

impl Count {
    fn of<T>(
        what: &'static str,
        all: &[T],
        is_up: impl Fn(&T) -> bool,
        is_down: impl Fn(&T) -> bool,
    ) -> Self {
        let count = |which: &dyn Fn(&T) -> bool| all.iter().filter(|one| which(one)).count();
        Self { what, all: all.len(), up: count(&is_up), down: count(&is_down) }
    }

    fn markup(&self) -> Markup {
        let Self { what, all, up, down } = self;
        let plural = if *all == 1 { "" } else { "s" };
        match (all, up, down) {
            (0, ..) => mark("unknown", &format!("no {what}s")),
            (_, _, 1..) => mark("bad", &format!("{down} of {all} {what}{plural} down")),
            _ if up == all => mark("good", &format!("{all} {what}{plural} up")),
            _ => mark("odd", &format!("{up} of {all} {what}{plural} up")),
        }
    }
}

/// It has failed; until then it is only on its way.
pub(super) fn is_down(bastion: &Bastion) -> bool {
    !bastion.up && Trouble::lasting(bastion.last_failure.as_ref()).is_some()
}

fn is_reachable(database: &Database) -> bool {
    database.up && matches!(database.probe.verdict.as_str(), "up" | "not probed")
}

/// No tunnel to it is up nor on its way for the first time, or its probe finds it down.
pub(super) fn is_unreachable(snapshot: &Snapshot, database: &Database) -> bool {
    let ways = || snapshot.bastions.iter().filter(|bastion| database.bastions.contains(&bastion.name));
    if database.up { database.probe.verdict == "down" } else { ways().all(is_down) }
}
