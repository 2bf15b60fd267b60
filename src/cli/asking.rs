//! What the commands that ask a running daemon have in common.

use std::io::Write;

use serde::Serialize;

use super::libpq::Standpoint;
use super::{Stop, block_on};
use crate::client::{self, Status};
use crate::snapshot::Database;

/// Longer than anything that a daemon has to say, in characters.
pub(super) const MAX_SHOWN: usize = 2000;

/// Asks once.
pub(super) fn ask(url: &str) -> Result<Status, Stop> {
    block_on(client::status(url))?.map_err(|silence| Stop::Failed(silence.to_string()))
}

/// The database of this name.
///
/// # Errors
/// Why there is none.
pub(super) fn find<'a>(status: &'a Status, name: &str) -> Result<&'a Database, String> {
    let snapshot = &status.snapshot;
    let found = snapshot.databases.iter().find(|database| database.name == name);
    found.ok_or_else(|| {
        let shown = name.escape_debug();
        if snapshot.bastions.iter().any(|bastion| bastion.name == name) {
            format!("\"{shown}\" is a bastion: name a database behind it")
        } else {
            format!("the daemon has no database \"{shown}\": `tunnelkeeper status` shows those that it has")
        }
    })
}

/// Where clients of a daemon stand that run here.
pub(super) fn standpoint(status: &Status) -> Standpoint {
    let file = openssl_probe::probe().cert_file;
    let system_roots = file.and_then(|path| path.to_str().map(str::to_owned));
    Standpoint { elsewhere: status.elsewhere, system_roots }
}

pub(super) fn print_json(value: &impl Serialize, out: &mut impl Write) -> Result<(), Stop> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Stop::Failed(error.to_string()))?;
    Ok(writeln!(out, "{}", escape_controls(&text))?)
}

/// JSON leaves those beyond ASCII as they are, and a terminal may obey them.
fn escape_controls(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match u32::from(c) {
            code @ 0x7f..=0x9f => escaped.push_str(&format!("\\u{code:04x}")),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_in_json() {
        let text = "\u{9b}2J\u{7f}ä";
        let json = escape_controls(&serde_json::to_string(text).unwrap());
        assert_eq!(json, "\"\\u009b2J\\u007fä\"");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
