//! The status page: the snapshot and the last hour, for people. What is wrong comes first, with its reason and what to do.
//!
//! It is whole without script; the script only exchanges what has changed (`page/page.js`). Nothing is written into it that
//! could do anything: neither styles nor scripts, and all text is escaped by maud. [`super::routes`] serves it.

mod bastions;
mod changes;
mod chart;
mod clients;
mod databases;
mod headline;
mod table;
mod trouble;

use maud::{DOCTYPE, Markup, html};

use super::assets;
use crate::history::History;
use crate::snapshot::{Snapshot, Stamp};
use headline::Headline;

pub(super) fn render(snapshot: &Snapshot, history: &History) -> String {
    let headline = Headline::of(snapshot);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            (head(&headline))
            body {
                (header(snapshot, &headline))
                main {
                    (trouble::lasting(snapshot))
                    (bastions::section(snapshot, history))
                    (databases::section(snapshot, history))
                    (bastions::sessions(snapshot))
                    (clients::section(snapshot))
                    (changes::section(snapshot, history))
                    (trouble::over(snapshot))
                }
                (footer())
            }
        }
    };
    page.into_string()
}

fn head(headline: &Headline) -> Markup {
    let version = assets::version();
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (headline.title()) }
            link rel="icon" type="image/svg+xml" href={ "/page.svg?v=" (version) };
            link rel="stylesheet" href={ "/page.css?v=" (version) };
            script src={ "/page.js?v=" (version) } defer {}
            noscript { meta http-equiv="refresh" content="5"; }
        }
    }
}

fn header(snapshot: &Snapshot, headline: &Headline) -> Markup {
    let (daemon, now) = (&snapshot.daemon, written(snapshot.at));
    html! {
        header {
            h1 { "tunnelkeeper " span.version { (daemon.version) } }
            // The only part that is read out when it changes: nothing in it may change with time alone.
            div role="status" {
                p #headline { (headline.markup()) }
                p #away hidden {}
            }
            p.facts {
                @if daemon.ready { "ready" } @else { (mark("odd", &daemon.not_ready_because.join("; "))) }
                ", running for " (age(snapshot, daemon.started)) ", pid " (daemon.pid)
                ", as of " time #at datetime=(now) { (now.trim_end_matches('Z').replace('T', " ")) } " UTC"
            }
            @if let Some(warning) = daemon.configuration.warning() { p { (mark("odd", &warning)) } }
        }
    }
}

fn footer() -> Markup {
    html! {
        footer {
            p {
                "The same for programs: " a href="/api/v1/status" { "/api/v1/status" } ", " a href="/metrics" { "/metrics" } ". "
    "Charts cover the last hour."
            }
        }
    }
}

/// A word with a sign before it whose shape says the same as its colour: `good`, `bad`, `odd` or `unknown`.
fn mark(class: &str, word: &str) -> Markup {
    html! { span.mark.(class) { (word) } }
}

/// How long ago something was, in at most two units.
fn age(snapshot: &Snapshot, stamp: Stamp) -> String {
    snapshot.age(stamp).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A time of the wall clock, in UTC.
fn written(stamp: Stamp) -> String {
    humantime::format_rfc3339_seconds(stamp.0).to_string()
}

/// A sentence in which what is to be typed stands between backticks.
fn sentence(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

#[cfg(test)]
mod tests;
