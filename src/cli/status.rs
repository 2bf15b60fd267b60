//! `status`: the running daemon's view, as a table for people or as it came for programs.

use std::io::Write;
use std::time::Duration;

use super::asking::{MAX_SHOWN, ask, print_json};
use super::{Format, Stop};
use crate::failure::one_line;
use crate::snapshot::{Bastion, Database, Snapshot, Trouble, show_millis};

/// How often a watched daemon is asked.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Cursor to the corner, and nothing behind it.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

pub(super) fn status(url: &str, names: &[String], format: Format, out: &mut impl Write) -> Result<(), Stop> {
    let mut snapshot = ask(url)?.snapshot;
    keep_only(&mut snapshot, names)?;
    match format {
        Format::Json => print_json(&snapshot, out),
        Format::Text => {
            print(&snapshot, out)?;
            // There may be hundreds, which only those want to see who ask for them.
            if !names.is_empty() {
                clients(&snapshot).print(out)?;
            }
            Ok(())
        }
    }
}

/// Shows the status again and again, until nobody reads it any more. A daemon that does not answer may be on its way
/// back, and that is what is shown then. `clear`: a screen for each.
pub(super) fn watch(
    url: &str,
    names: &[String],
    format: Format,
    clear: bool,
    out: &mut impl Write,
) -> Result<(), Stop> {
    loop {
        // Written at once, so that the screen is never seen half empty.
        let mut screen = if clear { CLEAR_SCREEN.into() } else { Vec::new() };
        match status(url, names, format, &mut screen) {
            Err(Stop::Failed(text)) => writeln!(screen, "{text}")?,
            shown => shown?,
        }
        out.write_all(&screen)?;
        out.flush()?;
        std::thread::sleep(WATCH_EVERY);
    }
}

fn keep_only(snapshot: &mut Snapshot, names: &[String]) -> Result<(), Stop> {
    for name in names {
        let known = snapshot.bastions.iter().map(|bastion| &bastion.name);
        let mut known = known.chain(snapshot.databases.iter().map(|database| &database.name));
        if !known.any(|known| known == name) {
            let name = name.escape_debug();
            return Err(Stop::Failed(format!("the daemon has no bastion or database \"{name}\"")));
        }
    }
    if !names.is_empty() {
        let Snapshot { bastions, databases, .. } = snapshot;
        databases.retain(|database| names.contains(&database.name));
        // Why a database cannot be reached is mostly to be seen at its bastion.
        let behind = |name: &String| databases.iter().any(|database| database.bastions.contains(name));
        bastions.retain(|bastion| names.contains(&bastion.name) || behind(&bastion.name));
    }
    Ok(())
}

fn print(snapshot: &Snapshot, out: &mut impl Write) -> std::io::Result<()> {
    let daemon = &snapshot.daemon;
    let ready = if daemon.ready { "ready".to_owned() } else { daemon.not_ready_because.join("; ") };
    let (version, pid, age) = (&daemon.version, daemon.pid, snapshot.age(daemon.started));
    let line = format!("tunnelkeeper {version}, pid {pid}, running for {age}: {ready}");
    writeln!(out, "{}", one_line(&line, MAX_SHOWN))?;
    if let Some(warning) = daemon.configuration.warning() {
        writeln!(out, "{}", one_line(&warning, MAX_SHOWN))?;
    }
    let mut bastions = Table::new(&["BASTION", "TUNNEL", "ADDRESS", "SESSIONS", "ROUND TRIP", "CLIENTS"]);
    for bastion in &snapshot.bastions {
        add_bastion(&mut bastions, snapshot, bastion);
    }
    bastions.print(out)?;
    let mut databases =
        Table::new(&["DATABASE", "LISTENS ON", "BASTION", "TUNNEL", "PROBE", "CLIENTS", "HELD"]);
    for database in &snapshot.databases {
        add_database(&mut databases, snapshot, database);
    }
    databases.print(out)
}

fn add_bastion(table: &mut Table, snapshot: &Snapshot, bastion: &Bastion) {
    let (word, since) = if bastion.up { ("up", bastion.up_since) } else { ("down", bastion.down_since) };
    let tunnel = since.map_or(word.to_owned(), |since| format!("{word} {}", snapshot.age(since)));
    table.row(&[
        bastion.name.clone(),
        tunnel,
        show_address(bastion),
        bastion.established().count().to_string(),
        bastion.worst_round_trip().map_or("-".to_owned(), show_millis),
        bastion.clients().to_string(),
    ]);
    if let Some(warning) = bastion.certificate_warning(snapshot.at) {
        table.line(&warning);
    }
    if let Some(next) = &bastion.next_key {
        let age = snapshot.age(next.since);
        table.line(&format!("next key, not accepted yet (for {age}): {}", next.public_key));
        let keygen = format!("`tunnelkeeper keygen {} --next`", bastion.name);
        table.line(&format!("{keygen} prints it with the restrictions that belong before it"));
    }
    if let Some(cut) = &bastion.session_cut {
        table.line(&cut.detail);
        table.line(&format!("hint: {}", cut.hint));
    }
    if bastion.up {
        return;
    }
    table.explain("", snapshot, bastion.last_failure.as_ref());
    if let Some(key) = &bastion.public_key {
        table.line(&format!("key:  {key}"));
        let keygen = format!("`tunnelkeeper keygen {}`", bastion.name);
        table.line(&format!("{keygen} prints it with the restrictions that belong before it"));
    }
    if let Some(next) = bastion.next_attempt.filter(|next| next.0 > snapshot.at.0) {
        let seconds = next.0.duration_since(snapshot.at.0).unwrap_or_default().as_secs_f64().ceil();
        table.line(&format!("next attempt in {seconds} s"));
    }
}

fn show_address(bastion: &Bastion) -> String {
    let jump = bastion.jump.as_ref().map_or(String::new(), |jump| format!(" through {jump}"));
    format!("{}@{}:{}{jump}", bastion.user, bastion.host, bastion.port)
}

fn add_database(table: &mut Table, snapshot: &Snapshot, database: &Database) {
    let probe = &database.probe;
    table.row(&[
        database.name.clone(),
        database.listen.join(" "),
        database.bastions.join(" "),
        if database.up { "up" } else { "down" }.to_owned(),
        show_verdict(database),
        database.clients_active.to_string(),
        database.clients_held.to_string(),
    ]);
    table.explain("clients: ", snapshot, database.last_failure.as_ref());
    table.explain("probe: ", snapshot, probe.last_failure.as_ref());
}

fn clients(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(&["CLIENT", "DATABASE", "AGE", "ACTIVITY", "USER", "APPLICATION"]);
    for (database, client) in snapshot.clients() {
        table.row(&[
            client.peer.clone(),
            database.name.clone(),
            snapshot.age(client.since),
            client.show_activity(snapshot),
            client.show_login(),
            client.application_name.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

/// The verdict with its latency. While the tunnel is down nothing is probed, and what holds is what was.
fn show_verdict(database: &Database) -> String {
    let probe = &database.probe;
    match (probe.verdict.as_str(), database.up, probe.latency_seconds) {
        ("up", true, Some(latency)) => format!("up {}", show_millis(latency)),
        (verdict @ ("up" | "down"), false, _) => format!("was {verdict}"),
        (verdict, _, _) => verdict.to_owned(),
    }
}

/// Columns as wide as their widest cell, and lines of text between the rows.
struct Table {
    rows: Vec<Row>,
}

enum Row {
    Cells(Vec<String>),
    Line(String),
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { rows: vec![Row::Cells(head.iter().map(|cell| (*cell).to_owned()).collect())] }
    }

    /// Whatever answered may have put anything into it.
    fn row(&mut self, cells: &[String]) {
        self.rows.push(Row::Cells(cells.iter().map(|cell| one_line(cell, MAX_SHOWN)).collect()));
    }

    fn line(&mut self, text: &str) {
        self.rows.push(Row::Line(one_line(text, MAX_SHOWN)));
    }

    fn explain(&mut self, whose: &str, snapshot: &Snapshot, trouble: Option<&Trouble>) {
        if let Some(trouble) = Trouble::lasting(trouble) {
            self.line(&format!("{whose}{trouble} (for {})", snapshot.age(trouble.since)));
            self.line(&format!("hint: {}", trouble.hint));
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        if self.rows.len() == 1 {
            return Ok(());
        }
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        writeln!(out)?;
        for row in &self.rows {
            match row {
                Row::Line(text) => writeln!(out, "  {text}")?,
                Row::Cells(cells) => {
                    let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
                    let line = padded.collect::<Vec<_>>().join("  ");
                    writeln!(out, "{}", line.trim_end())?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::troubled;

    fn printed(names: &[&str]) -> String {
        let mut snapshot = troubled();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert!(keep_only(&mut snapshot, &names).is_ok());
        let mut out = Vec::new();
        print(&snapshot, &mut out).unwrap();
        clients(&snapshot).print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_lasts_is_explained_on_lines_of_its_own() {
        let text = printed(&["analytics"]);
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("analytics")).collect();
        assert_eq!(
            lines.get(1..5),
            Some(
                &[
                    "  clients: channel prohibited: the  [2Jdetail (for 10s)",
                    "  hint: heal prohibited",
                    "  probe: db_login rejected: the  [2Jdetail (for 10s)",
                    "  hint: heal rejected"
                ][..]
            ),
            "{text}"
        );
        assert!(!text.contains("auth rejected"), "{text}");
    }

    #[test]
    fn clients_are_shown_with_what_they_are_about() {
        let text = printed(&["analytics"]);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip_while(|line| !line.starts_with("CLIENT"))
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            rows.get(1..),
            Some(
                &[
                    vec!["127.0.0.1:5", "analytics", "10s", "in a query for 7s", "me in d", "<b> [2J"],
                    vec!["pid 4711 (psql)", "analytics", "10s", "held", "-", "-"],
                ][..]
            ),
            "{text}"
        );
    }

    #[test]
    fn a_database_is_shown_with_its_bastion() {
        let text = printed(&["lost"]);
        assert!(text.contains("gone ") && !text.contains("prod") && !text.contains("analytics"), "{text}");
        assert!(text.contains("auth rejected: ") && !text.contains("channel prohibited"), "{text}");
        assert!(
            text.contains("key:  ssh-ed25519 AAAA") && text.contains("`tunnelkeeper keygen gone`"),
            "{text}"
        );
        let text = printed(&["gone"]);
        assert!(!text.contains("lost"), "{text}");
    }
}
