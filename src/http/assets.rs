//! What belongs to the status page: its style, its script and its icon. They are in the program, and come from nowhere else.

use std::hash::{DefaultHasher, Hash, Hasher};

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/page.svg");

/// The content type and the text of what stands at a path.
pub(super) fn find(path: &str) -> Option<(&'static str, &'static str)> {
    match path {
        "/page.css" => Some(("text/css; charset=utf-8", STYLE)),
        "/page.js" => Some(("text/javascript; charset=utf-8", SCRIPT)),
        "/page.svg" => Some(("image/svg+xml", ICON)),
        _ => None,
    }
}

/// Differs between programs whose assets differ: the page asks for them by it, so that a browser may keep them, and
/// the script of an earlier daemon knows by it that it is out of date.
pub(super) fn version() -> String {
    let mut hasher = DefaultHasher::new();
    (STYLE, SCRIPT, ICON).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
