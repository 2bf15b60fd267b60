//! The last hour of a bastion or a database: how long a round trip or a probe took, above a strip that shows when it was up
//! and, by a block that stands out, when it was not.
//!
//! The drawing scales to wherever it stands, and says the same in words.

use std::fmt::Write;

use maud::{Markup, html};

use crate::history::{BUCKETS, Bucket, Track};
use crate::snapshot::show_millis;

/// The upper part, for times, reaches down to here; a unit to the right is a bucket.
const BASE: u32 = 200;
/// And the whole.
const HEIGHT: u32 = 300;

pub(super) fn chart(name: &str, what: &str, track: Option<&Track>) -> Markup {
    let Some(track) = track else { return html! { "–" } };
    let buckets: Vec<Bucket> = track.buckets().collect();
    let longest = track.longest().map(|longest| longest.as_secs_f64());
    let (line, area) = times(&buckets, longest.unwrap_or_default());
    let words = words(what, track, longest);
    // Where nothing was measured there is only the strip.
    let (class, top) = if longest.is_some() { ("chart", 0) } else { ("chart strip", BASE) };
    html! {
        svg.(class) role="img" viewBox={ "0 " (top) " " (BUCKETS) " " (HEIGHT - top) } preserveAspectRatio="none" {
            title { (name) ", last hour: " (words) }
            @if longest.is_some() {
                path.area d=(area) {}
                path.line d=(line) {}
            }
            // The whole hour, also where nothing is known of it.
            path.hour d={ "M0 270h" (BUCKETS) "v20h-" (BUCKETS) "z" } {}
            path.up d=(blocks(&buckets, true, 270, 20)) {}
            path.down d=(blocks(&buckets, false, 225, 75)) {}
        }
        div.facts { (words) }
    }
}

fn words(what: &str, track: &Track, longest: Option<f64>) -> String {
    let up = track.availability().map(|share| {
        // What was down at all is not shown as if it had not been.
        format!("up {} %", (share * 1000.0).floor() / 10.0)
    });
    let longest = longest.map(|longest| format!("{what} at most {}", show_millis(longest)));
    let words: Vec<String> = up.into_iter().chain(longest).collect();
    if words.is_empty() { "nothing is known yet".to_owned() } else { words.join(", ") }
}

/// The outline of the times as steps, and the area below it.
fn times(buckets: &[Bucket], longest: f64) -> (String, String) {
    let (mut line, mut area) = (String::new(), String::new());
    let mut drawing = false;
    for (x, bucket) in buckets.iter().enumerate() {
        let Some(time) = bucket.longest() else {
            if drawing {
                let _ = write!(area, "V{BASE}Z");
            }
            drawing = false;
            continue;
        };
        // The longest does not touch the edge, where half of it would be cut off.
        let y = f64::from(BASE) - (time.as_secs_f64() / longest * f64::from(BASE - 10)).round();
        if drawing {
            let _ = write!(line, "V{y}H{}", x + 1);
        } else {
            let _ = write!(line, "M{x} {y}H{}", x + 1);
            let _ = write!(area, "M{x} {BASE}");
        }
        let _ = write!(area, "V{y}H{}", x + 1);
        drawing = true;
    }
    if drawing {
        let _ = write!(area, "V{BASE}Z");
    }
    (line, area)
}

/// A block for each stretch of buckets in which it was, or was not, reachable all the time.
fn blocks(buckets: &[Bucket], reachable: bool, top: u32, height: u32) -> String {
    let mut path = String::new();
    let mut x = 0;
    for stretch in buckets.chunk_by(|one, next| one.reachable() == next.reachable()) {
        let width = stretch.len();
        if stretch.first().and_then(|bucket| bucket.reachable()) == Some(reachable) {
            let _ = write!(path, "M{x} {top}h{width}v{height}h-{width}z");
        }
        x += width;
    }
    path
}
