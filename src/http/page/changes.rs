//! The last changes: what went down or came up, and when the configuration was read anew.

use std::time::SystemTime;

use maud::{Markup, html};

use super::table::{row, section as titled};
use super::{age, mark, written};
use crate::history::{Change, History, Unit};
use crate::snapshot::{Snapshot, Stamp};

const COLUMNS: [&str; 4] = ["When (UTC)", "What", "Change", "Why"];

pub(super) fn section(snapshot: &Snapshot, history: &History) -> Markup {
    let rows = html! { @for change in history.changes() { (of_change(snapshot, change)) } };
    titled("changes", "Last changes", &COLUMNS, &rows)
}

fn of_change(snapshot: &Snapshot, change: &Change) -> Markup {
    let (name, what) = match (&change.unit, change.good) {
        (Some(Unit::Bastion(name)), true) => (name.as_str(), "tunnel up"),
        (Some(Unit::Bastion(name)), false) => (name.as_str(), "tunnel down"),
        (Some(Unit::Database(name)), true) => (name.as_str(), "probe up"),
        (Some(Unit::Database(name)), false) => (name.as_str(), "probe down"),
        (None, true) => ("configuration", "reloaded"),
        (None, false) => ("configuration", "refused"),
    };
    let at = Stamp(change.at);
    let since_epoch = change.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let id = format!("change.{}.{name}.{}", since_epoch.as_micros(), u8::from(change.good));
    let cells = [
        html! { (time(snapshot, at)) " " span.facts { (age(snapshot, at)) " ago" } },
        html! { span.name { (name) } },
        mark(if change.good { "good" } else { "bad" }, what),
        html! { @if let Some(why) = &change.why { p { (why) } } },
    ];
    row(&id, &COLUMNS, &cells)
}

/// With its date only where that is another than today's.
fn time(snapshot: &Snapshot, at: Stamp) -> Markup {
    let (now, at) = (written(snapshot.at), written(at));
    let shown = at.trim_end_matches('Z');
    let time = shown.split_once('T').filter(|(date, _)| now.starts_with(date)).map(|(_, time)| time);
    html! { time datetime=(at) { (time.map_or_else(|| shown.replace('T', " "), str::to_owned)) } }
}
