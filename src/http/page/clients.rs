//! The clients: who they are on this machine, what they are about, and what has gone through.

use maud::{Markup, html};

use super::table::{folded, row};
use super::{age, mark};
use crate::snapshot::{Client, Database, Snapshot};

/// How many are listed: the page is for the eye.
const MAX_LISTED: usize = 50;

const COLUMNS: [&str; 9] =
    ["Client", "Database", "Activity", "User", "Application", "Session", "Age", "Sent", "Received"];

pub(super) fn section(snapshot: &Snapshot) -> Markup {
    let all = snapshot.clients().count();
    let held = snapshot.clients().filter(|(_, client)| client.held).count();
    let listed = snapshot.clients().take(MAX_LISTED);
    let rows: Vec<Markup> = listed.map(|(database, client)| of_client(snapshot, database, client)).collect();
    let summary = match all {
        0 => "none".to_owned(),
        1..=MAX_LISTED => format!("{} carried, {held} held", all - held),
        _ => format!("{} carried, {held} held; the first {MAX_LISTED} are listed", all - held),
    };
    folded("clients", "Clients", &summary, true, &COLUMNS, &rows)
}

fn of_client(snapshot: &Snapshot, database: &Database, client: &Client) -> Markup {
    let activity = client.show_activity(snapshot);
    let cells = [
        html! { (client.peer) },
        html! { (database.name) },
        if client.held {
            mark("odd", &activity)
        } else {
            html! { (activity) }
        },
        html! { (client.show_login()) },
        html! { (client.application_name.as_deref().unwrap_or("-")) },
        html! {
            @if let (Some(bastion), Some(session)) = (&client.bastion, client.session) { (bastion) " " (session) }
            @else { "-" }
        },
        html! { (age(snapshot, client.since)) },
        html! { (show_bytes(client.to_database_bytes)) },
        html! { (show_bytes(client.from_database_bytes)) },
    ];
    row(&format!("client.{}.{}", database.name, client.id), &COLUMNS, &cells)
}

/// An amount of data, to two or three figures.
pub(super) fn show_bytes(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut amount = bytes as f64;
    let mut shown = "B";
    for unit in units {
        if amount < 999.5 {
            break;
        }
        (amount, shown) = (amount / 1000.0, unit);
    }
    if shown == "B" || amount >= 9.95 {
        format!("{amount:.0} {shown}")
    } else {
        format!("{amount:.1} {shown}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_data() {
        for (bytes, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9949, "9.9 kB"),
            (9950, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (7_300_000_000, "7.3 GB"),
            (5_000_000_000_000_000, "5000 TB"),
        ] {
            assert_eq!(show_bytes(bytes), shown);
        }
    }
}
