//! `status`: the running daemon's view, as a table for people or as it came for programs.

use std::io::Write;
use std::time::Duration;

use super::{Format, Stop, runtime};
use crate::client;
use crate::snapshot::{Bastion, Database, Snapshot, Stamp, Trouble};

pub(super) fn status(
    url: Option<&str>,
    names: &[String],
    format: Format,
    out: &mut impl Write,
) -> Result<(), Stop> {
    let url = url.unwrap_or(client::DEFAULT_URL).trim_end_matches('/');
    let text = runtime()?.block_on(client::get(url, "/api/v1/status")).map_err(Stop::Failed)?;
    let mut snapshot: Snapshot =
        serde_json::from_str(&text).map_err(|_| Stop::Failed(client::not_a_daemon(url)))?;
    keep_only(&mut snapshot, names)?;
    match format {
        Format::Json => {
            let text =
                serde_json::to_string_pretty(&snapshot).map_err(|error| Stop::Failed(error.to_string()))?;
            writeln!(out, "{text}")?;
        }
        Format::Text => print(&snapshot, out)?,
    }
    Ok(())
}

fn keep_only(snapshot: &mut Snapshot, names: &[String]) -> Result<(), Stop> {
    for name in names {
        let known = snapshot.bastions.iter().map(|bastion| &bastion.name);
        let mut known = known.chain(snapshot.databases.iter().map(|database| &database.name));
        if !known.any(|known| known == name) {
            return Err(Stop::Failed(format!("the daemon has no bastion or database \"{name}\"")));
        }
    }
    if !names.is_empty() {
        snapshot.bastions.retain(|bastion| names.contains(&bastion.name));
        snapshot.databases.retain(|database| names.contains(&database.name));
    }
    Ok(())
}

fn print(snapshot: &Snapshot, out: &mut impl Write) -> std::io::Result<()> {
    let daemon = &snapshot.daemon;
    let ready = if daemon.ready { "ready".to_owned() } else { daemon.not_ready_because.join("; ") };
    writeln!(
        out,
        "tunnelkeeper {}, pid {}, running for {}: {ready}",
        daemon.version,
        daemon.pid,
        age(snapshot, daemon.started)
    )?;
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
    let established = bastion.sessions.iter().filter(|session| session.state != "connecting").count();
    let round_trip =
        bastion.sessions.iter().filter_map(|session| session.round_trip_seconds).reduce(f64::max);
    let clients: usize = bastion.sessions.iter().map(|session| session.clients).sum();
    let (word, since) = if bastion.up { ("up", bastion.up_since) } else { ("down", bastion.down_since) };
    let tunnel = since.map_or(word.to_owned(), |since| format!("{word} {}", age(snapshot, since)));
    table.row(vec![
        bastion.name.clone(),
        tunnel,
        format!("{}@{}:{}", bastion.user, bastion.host, bastion.port),
        established.to_string(),
        round_trip.map_or("-".to_owned(), millis),
        clients.to_string(),
    ]);
    if bastion.up {
        return;
    }
    table.explain(snapshot, bastion.last_failure.as_ref());
    if let Some(key) = &bastion.public_key {
        table.line(format!("key:  {key}"));
    }
    if let Some(next) = bastion.next_attempt.filter(|next| next.0 > snapshot.at.0) {
        let seconds = next.0.duration_since(snapshot.at.0).unwrap_or_default().as_secs_f64().ceil();
        table.line(format!("next attempt in {seconds} s"));
    }
}

fn add_database(table: &mut Table, snapshot: &Snapshot, database: &Database) {
    let probe = &database.probe;
    let latency = probe.latency_seconds.filter(|_| probe.verdict == "up").map(millis);
    table.row(vec![
        database.name.clone(),
        database.listen.join(" "),
        database.bastions.join(" "),
        if database.up { "up" } else { "down" }.to_owned(),
        latency.map_or(probe.verdict.clone(), |latency| format!("{} {latency}", probe.verdict)),
        database.clients_active.to_string(),
        database.clients_held.to_string(),
    ]);
    if probe.verdict != "up" {
        table.explain(snapshot, probe.last_failure.as_ref());
    }
}

fn age(snapshot: &Snapshot, stamp: Stamp) -> String {
    humantime::format_duration(Duration::from_secs(stamp.age(snapshot.at.0).as_secs())).to_string()
}

fn millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
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

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(Row::Cells(cells));
    }

    fn line(&mut self, text: String) {
        self.rows.push(Row::Line(text));
    }

    fn explain(&mut self, snapshot: &Snapshot, trouble: Option<&Trouble>) {
        if let Some(trouble) = trouble {
            self.line(format!("{trouble} (for {})", age(snapshot, trouble.since)));
            self.line(format!("hint: {}", trouble.hint));
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
