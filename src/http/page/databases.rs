//! The databases: whether a tunnel and the probe reach them, and where clients find them.

use maud::{Markup, html};

use super::chart::chart;
use super::headline::is_unreachable;
use super::mark;
use super::table::{row, section as titled};
use crate::history::{History, Unit};
use crate::ids::Name;
use crate::snapshot::{Database, Snapshot, Trouble, show_millis};

const COLUMNS: [&str; 7] =
    ["Database", "Tunnel", "Probe", "Last hour", "Probe took", "Clients", "Clients connect to"];

pub(super) fn section(snapshot: &Snapshot, history: &History) -> Markup {
    let rows = html! { @for database in &snapshot.databases { (of_database(snapshot, history, database)) } };
    titled("databases", "Databases", &COLUMNS, &rows)
}

fn of_database(snapshot: &Snapshot, history: &History, database: &Database) -> Markup {
    let Database { name, kind, .. } = database;
    let track = Name::parse(name).ok().and_then(|name| history.track(&Unit::Database(name)));
    let latency = database.probe.latency_seconds.filter(|_| database.up && database.probe.verdict == "up");
    let cells = [
        html! {
            (name)
            div.facts { (kind) " at " (database.target()) }
            @if !database.accepting { div { (mark("odd", "removed: takes no new clients")) } }
        },
        html! {
            (tunnel(snapshot, database))
            div.facts { "through " (database.bastions.join(", ")) }
        },
        html! { (verdict(database)) div.facts { (database.probe.level) } },
        chart(name, "probe", track),
        html! { (latency.map_or("–".to_owned(), show_millis)) },
        html! {
            (database.clients_active)
            @if database.clients_held > 0 { " " (mark("odd", &format!("{} held", database.clients_held))) }
        },
        html! { @for address in &database.listen { div { code { (address) } } } },
    ];
    row(&format!("database.{name}"), &COLUMNS, &cells)
}

fn tunnel(snapshot: &Snapshot, database: &Database) -> Markup {
    match (database.up, is_unreachable(snapshot, database)) {
        (true, _) => mark("good", "up"),
        (false, true) => mark("bad", "down"),
        (false, false) => mark("unknown", "connecting"),
    }
}

fn verdict(database: &Database) -> Markup {
    let verdict = database.probe.verdict.as_str();
    match (verdict, database.up) {
        // While the tunnel is down nothing is probed, and what holds is what was.
        ("up" | "down", false) => mark("unknown", &format!("was {verdict}")),
        ("up", true) => mark("good", verdict),
        _ if Trouble::lasting(database.probe.last_failure.as_ref()).is_some() => {
            let class = if verdict == "down" { "bad" } else { "odd" };
            html! { a href={ "#trouble." (database.name) ".probe" } { (mark(class, verdict)) } }
        }
        _ => mark("unknown", verdict),
    }
}
