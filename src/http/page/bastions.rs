//! The bastions with their tunnels, and the sessions that these consist of.

use maud::{Markup, html};

use super::chart::chart;
use super::clients::show_bytes;
use super::headline::is_down;
use super::table::{self, row};
use super::{age, mark};
use crate::history::{History, Unit};
use crate::ids::Name;
use crate::snapshot::{Bastion, Session, Snapshot, show_millis};

const BASTIONS: [&str; 6] = ["Bastion", "Tunnel", "Last hour", "Round trip", "Sessions", "Clients"];
const SESSIONS: [&str; 8] =
    ["Session", "State", "Age", "Round trip", "Pings unanswered", "Clients", "Gate", "Address"];

pub(super) fn section(snapshot: &Snapshot, history: &History) -> Markup {
    let rows = html! { @for bastion in &snapshot.bastions { (of_bastion(snapshot, history, bastion)) } };
    table::section("bastions", "Bastions", &BASTIONS, &rows)
}

fn of_bastion(snapshot: &Snapshot, history: &History, bastion: &Bastion) -> Markup {
    let Bastion { name, user, host, port, jump, .. } = bastion;
    let since = if bastion.up { bastion.up_since } else { bastion.down_since };
    let track = Name::parse(name).ok().and_then(|name| history.track(&Unit::Bastion(name)));
    let cells = [
        html! {
            (name)
            div.facts {
                (user) "@" (host) ":" (port)
                @if let Some(jump) = jump { " through " (jump) }
            }
        },
        html! { (tunnel(bastion)) @if let Some(since) = since { " " span.facts { "for " (age(snapshot, since)) } } },
        chart(name, "round trip", track),
        html! { (bastion.worst_round_trip().map_or("–".to_owned(), show_millis)) },
        html! { (bastion.established().count()) },
        html! { (bastion.clients()) },
    ];
    row(&format!("bastion.{name}"), &BASTIONS, &cells)
}

fn tunnel(bastion: &Bastion) -> Markup {
    match (bastion.up, is_down(bastion)) {
        (true, _) => mark("good", "up"),
        (_, true) => html! { a href={ "#trouble." (bastion.name) } { (mark("bad", "down")) } },
        _ => mark("unknown", "connecting"),
    }
}

/// Every session, folded up while all of them are well.
pub(super) fn sessions(snapshot: &Snapshot) -> Markup {
    let of = |bastion| move |session| (bastion, session);
    let sessions = || snapshot.bastions.iter().flat_map(|bastion| bastion.sessions.iter().map(of(bastion)));
    let rows: Vec<Markup> =
        sessions().map(|(bastion, session)| of_session(snapshot, bastion, session)).collect();
    let states = ["established", "connecting", "suspect", "retiring"].into_iter().filter_map(|state| {
        let count = sessions().filter(|(_, session)| session.state == state).count();
        (count > 0).then(|| format!("{count} {state}"))
    });
    let summary = if rows.is_empty() { "none".to_owned() } else { states.collect::<Vec<_>>().join(", ") };
    let odd = sessions().any(|(_, session)| session.state == "suspect" || !session.gate_open);
    table::folded("sessions", "Sessions", &summary, odd, &SESSIONS, &rows)
}

fn of_session(snapshot: &Snapshot, bastion: &Bastion, session: &Session) -> Markup {
    let class = match session.state.as_str() {
        "established" => "good",
        "suspect" => "bad",
        _ => "unknown",
    };
    let cells = [
        html! { (bastion.name) " " (session.id) },
        mark(class, &session.state),
        html! { (age(snapshot, session.since)) },
        html! { (session.round_trip_seconds.map_or("–".to_owned(), show_millis)) },
        html! { (session.keepalives_unanswered) },
        html! { (session.clients) },
        if session.gate_open {
            html! { "open" }
        } else {
            mark("odd", &format!("shut, {} wait", show_bytes(session.backlog_bytes as u64)))
        },
        html! { code { (session.address.as_deref().unwrap_or("–")) } },
    ];
    row(&format!("session.{}.{}", bastion.name, session.id), &SESSIONS, &cells)
}
