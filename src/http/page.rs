//! The status page: the snapshot for people, without scripts.

use maud::{DOCTYPE, Markup, html};

use crate::snapshot::{Bastion, Client, Database, Snapshot, Trouble, show_millis};

/// How many clients are listed: the page is for the eye.
const MAX_CLIENTS: usize = 50;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.up { color: #0a6b2d; } .down { color: #b00020; font-weight: 600; } .unknown { color: #806000; }
.trouble { color: #444; } .hint { color: #666; } code { font-size: .85em; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } th, td { border-color: #444; }
.up { color: #5fd38d; } .down { color: #ff6b6b; } .unknown { color: #e0b040; } .trouble, .hint { color: #aaa; } }
";

pub(super) fn render(snapshot: &Snapshot) -> String {
    let daemon = &snapshot.daemon;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content="5";
                meta name="viewport" content="width=device-width";
                title { "tunnelkeeper" }
                style { (maud::PreEscaped(STYLE)) }
            }
            body {
                h1 { "tunnelkeeper " (daemon.version) }
                p {
                    @if daemon.ready { span.up { "ready" } }
                    @else { span.down { (daemon.not_ready_because.join("; ")) } }
                    ", running for " (snapshot.age(daemon.started)) ", pid " (daemon.pid)
                }
                @if let Some(warning) = daemon.configuration.warning() { p.down { (warning) } }
                h2 { "Bastions" }
                table {
                    tr { th { "Bastion" } th { "Tunnel" } th { "Address" } th { "Sessions" } th { "Round trip" } th { "Clients" } }
                    @for bastion in &snapshot.bastions { (bastion_row(snapshot, bastion)) }
                }
                h2 { "Databases" }
                table {
                    tr { th { "Database" } th { "Listens on" } th { "Tunnel" } th { "Probe" } th { "Clients" } th { "Held" } }
                    @for database in &snapshot.databases { (database_row(snapshot, database)) }
                }
                (clients(snapshot))
                p.hint { "As of " (snapshot.at) ". The same as JSON: " a href="/api/v1/status" { "/api/v1/status" } }
            }
        }
    };
    page.into_string()
}

fn bastion_row(snapshot: &Snapshot, bastion: &Bastion) -> Markup {
    html! {
        tr {
            td { (bastion.name) }
            td {
                @if bastion.up { span.up { "up" } @if let Some(since) = bastion.up_since { " for " (snapshot.age(since)) } }
                @else { span.down { "down" } @if let Some(since) = bastion.down_since { " for " (snapshot.age(since)) } }
                @if let Some(warning) = bastion.certificate_warning(snapshot.at) { div.unknown { (warning) } }
                (explain(snapshot, bastion.last_failure.as_ref()))
                @if let Some(key) = &bastion.public_key {
                    div.hint {
                        "Its authorized_keys needs: " code { (key) } ". "
                        code { "tunnelkeeper keygen " (bastion.name) }
                        " prints it with the restrictions that belong before it."
                    }
                }
            }
            td { (bastion.user) "@" (bastion.host) ":" (bastion.port) }
            td { (bastion.established().count()) }
            td { @match bastion.worst_round_trip() { Some(time) => { (show_millis(time)) } None => "–" } }
            td { (bastion.clients()) }
        }
    }
}

fn database_row(snapshot: &Snapshot, database: &Database) -> Markup {
    let probe = &database.probe;
    let class = match probe.verdict.as_str() {
        "up" => "up",
        "down" => "down",
        _ => "unknown",
    };
    html! {
        tr {
            td { (database.name) div.hint { (database.target()) } }
            td { @for address in &database.listen { div { (address) } } }
            td {
                @if database.up { span.up { "up" } } @else { span.down { "down" } }
                div.hint { "through " (database.bastions.join(", ")) }
                (explain(snapshot, database.last_failure.as_ref()))
            }
            td {
                // While the tunnel is down nothing is probed, and what holds is what was.
                @if !database.up && class != "unknown" { "was " }
                span class=(class) { (probe.verdict) }
                @if let ("up", true, Some(time)) = (class, database.up, probe.latency_seconds) { " " (show_millis(time)) }
                div.hint { "level " (probe.level) }
                (explain(snapshot, probe.last_failure.as_ref()))
            }
            td { (database.clients_active) }
            td { (database.clients_held) }
        }
    }
}

fn clients(snapshot: &Snapshot) -> Markup {
    let more = snapshot.clients().count().saturating_sub(MAX_CLIENTS);
    html! {
        @if snapshot.clients().next().is_some() {
            h2 { "Clients" }
            table {
                tr { th { "Client" } th { "Database" } th { "Activity" } th { "User" } th { "Application" } th { "Bytes sent" } th { "Received" } }
                @for (database, client) in snapshot.clients().take(MAX_CLIENTS) { (client_row(snapshot, database, client)) }
            }
            @if more > 0 { p.hint { "and " (more) " more" } }
        }
    }
}

fn client_row(snapshot: &Snapshot, database: &Database, client: &Client) -> Markup {
    html! {
        tr {
            td { (client.peer) div.hint { "for " (snapshot.age(client.since)) } }
            td { (database.name) }
            td { (client.show_activity(snapshot)) }
            td { (client.show_login()) }
            td { (client.application_name.as_deref().unwrap_or("-")) }
            td { (client.to_database_bytes) }
            td { (client.from_database_bytes) }
        }
    }
}

fn explain(snapshot: &Snapshot, trouble: Option<&Trouble>) -> Markup {
    html! {
        @if let Some(trouble) = Trouble::lasting(trouble) {
            div.trouble { (trouble) " (for " (snapshot.age(trouble.since)) ")" }
            div.hint { (trouble.hint) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::troubled;

    #[test]
    fn what_lasts_is_explained() {
        let page = render(&troubled());
        for (text, times) in [
            ("auth rejected: the", 1),
            ("channel prohibited: the", 1),
            ("db_login rejected: the", 2),
            ("(for 10s)", 4),
            ("heal prohibited", 1),
            ("tunnelkeeper keygen gone", 1),
            ("in a query for 7s", 2),
            ("me in d", 2),
            ("&lt;b&gt;", 2),
            ("held", 2),
        ] {
            assert_eq!(page.matches(text).count(), times, "{text} in {page}");
        }
    }
}
