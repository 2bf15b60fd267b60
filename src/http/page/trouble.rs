//! What is wrong, each with its reason and what to do; and what was wrong and is over.

use maud::{Markup, html};

use super::table::{folded, row};
use super::{age, mark, sentence};
use crate::snapshot::{Bastion, Database, Snapshot, Trouble};

/// Everything that is wrong now. Nothing at all where nothing is.
pub(super) fn lasting(snapshot: &Snapshot) -> Markup {
    let bastions = || snapshot.bastions.iter().filter_map(|bastion| of_bastion(snapshot, bastion));
    let databases = || snapshot.databases.iter().flat_map(|database| of_database(snapshot, database));
    html! {
        @if bastions().next().is_some() || databases().next().is_some() {
            section.trouble #trouble {
                h2 { "What is wrong" }
                @for card in bastions().chain(databases()) { (card) }
            }
        }
    }
}

fn of_bastion(snapshot: &Snapshot, bastion: &Bastion) -> Option<Markup> {
    let lasting = Trouble::lasting(bastion.last_failure.as_ref());
    let warning = bastion.certificate_warning(snapshot.at);
    let cut = bastion.session_cut.as_ref();
    let next = bastion.next_key.as_ref();
    if lasting.is_none() && warning.is_none() && cut.is_none() && next.is_none() {
        return None;
    }
    let (class, what) = match (bastion.up, lasting) {
        (_, None) if cut.is_some() => ("odd", "its sessions are cut again and again"),
        (_, None) if warning.is_none() => ("odd", "a next key waits for the bastion to accept it"),
        (_, None) => ("odd", "the certificate has to be renewed"),
        (true, Some(_)) => ("odd", "up, but not as it is configured now"),
        (false, Some(_)) => ("bad", "the tunnel is down"),
    };
    let since = bastion.down_since.filter(|_| !bastion.up).or(lasting.map(|trouble| trouble.since));
    let facts = next_attempt(snapshot, bastion).into_iter().chain(behind(snapshot, bastion));
    let facts = facts.collect::<Vec<_>>().join("; ");
    let more = html! {
        @if let Some(warning) = warning { p { (warning) } }
        @if let Some(next) = next {
            p { "The next key, for " (age(snapshot, next.since)) ", which its authorized_keys needs too: " code { (next.public_key) } }
            p.hint { code { "tunnelkeeper keygen " (bastion.name) " --next" } " prints it with the restrictions that belong before it" }
        }
        @if let Some(cut) = cut { p { (cut.detail) } p.hint { (sentence(&cut.hint)) } }
        @if let Some(key) = &bastion.public_key {
            p { "Its authorized_keys needs: " code { (key) } }
            p.hint { code { "tunnelkeeper keygen " (bastion.name) } " prints it with the restrictions that belong before it" }
        }
        @if !facts.is_empty() { p.facts { (facts) } }
    };
    let since = since.map(|since| age(snapshot, since));
    Some(card(&format!("trouble.{}", bastion.name), class, &bastion.name, what, since, lasting, &more))
}

fn next_attempt(snapshot: &Snapshot, bastion: &Bastion) -> Option<String> {
    let left = bastion.next_attempt?.0.duration_since(snapshot.at.0).ok()?;
    Some(format!("next attempt in {:.0} s", left.as_secs_f64().ceil()))
}

fn behind(snapshot: &Snapshot, bastion: &Bastion) -> Option<String> {
    let behind = snapshot.databases.iter().filter(|database| database.bastions.contains(&bastion.name));
    let names: Vec<&str> = behind.map(|database| database.name.as_str()).collect();
    (!names.is_empty()).then(|| format!("databases behind it: {}", names.join(", ")))
}

fn of_database<'a>(snapshot: &'a Snapshot, database: &'a Database) -> impl Iterator<Item = Markup> + 'a {
    let probe =
        if database.probe.verdict == "down" { "the probe finds it down" } else { "the probe has failed" };
    let troubles = [
        ("clients", "clients are not connected to it", &database.last_failure),
        ("probe", probe, &database.probe.last_failure),
    ];
    troubles.into_iter().filter_map(move |(part, what, trouble)| {
        let lasting = Trouble::lasting(trouble.as_ref())?;
        let since = Some(age(snapshot, lasting.since));
        let id = format!("trouble.{}.{part}", database.name);
        Some(card(&id, "bad", &database.name, what, since, Some(lasting), &html! {}))
    })
}

fn card(
    id: &str,
    class: &str,
    name: &str,
    what: &str,
    since: Option<String>,
    trouble: Option<&Trouble>,
    more: &Markup,
) -> Markup {
    html! {
        article #(id) .(class) {
            h3 { (mark(class, name)) ": " (what) @if let Some(since) = since { " " span.facts { "for " (since) } } }
            @if let Some(trouble) = trouble {
                (explained(trouble))
                p.hint { (sentence(&trouble.hint)) }
            }
            (more)
        }
    }
}

/// The same words as in the log and in what clients are told, so that they are found by them.
fn explained(trouble: &Trouble) -> Markup {
    html! { p { code.cause { (trouble.phase) " " (trouble.reason) ": " } (trouble.detail) } }
}

const OVER: [&str; 4] = ["Where", "Last seen", "Failure", "What to do if it returns"];

/// The last failure of each part that has recovered from it.
pub(super) fn over(snapshot: &Snapshot) -> Markup {
    let bastions = snapshot.bastions.iter().map(|bastion| (&bastion.name, "tunnel", &bastion.last_failure));
    let databases = snapshot.databases.iter().flat_map(|database| {
        [
            (&database.name, "clients", &database.last_failure),
            (&database.name, "probe", &database.probe.last_failure),
        ]
    });
    let over: Vec<Markup> = bastions
        .chain(databases)
        .filter_map(|(name, part, trouble)| {
            let trouble = trouble.as_ref().filter(|trouble| !trouble.current)?;
            let id = format!("over.{name}.{part}");
            let cells = [
                html! { (name) " " span.facts { (part) } },
                html! { (age(snapshot, trouble.last)) " ago" },
                explained(trouble),
                html! { p { (sentence(&trouble.hint)) } },
            ];
            Some(row(&id, &OVER, &cells))
        })
        .collect();
    if over.is_empty() {
        return html! {};
    }
    folded("over", "Failures that are over", &over.len().to_string(), false, &OVER, &over)
}
