//! `config check` and `config show`.

use std::io::Write;

use super::{Format, Stop};
use crate::settings::Settings;

pub(super) fn check(settings: &Settings, out: &mut impl Write) -> Result<(), Stop> {
    for note in &settings.notes {
        writeln!(out, "note: {}: {}", note.key, note.text)?;
    }
    let files: Vec<String> = settings.files.iter().map(|file| file.display().to_string()).collect();
    let (bastions, databases) = (settings.plan.bastions.len(), settings.plan.databases.len());
    writeln!(
        out,
        "the configuration is good: {bastions} {}, {databases} {} ({})",
        if bastions == 1 { "bastion" } else { "bastions" },
        if databases == 1 { "database" } else { "databases" },
        files.join(", ")
    )?;
    Ok(())
}

pub(super) fn show(settings: &Settings, format: Format, out: &mut impl Write) -> Result<(), Stop> {
    match format {
        Format::Json => show_json(settings, out),
        Format::Text => show_text(settings, out),
    }
}

fn show_json(settings: &Settings, out: &mut impl Write) -> Result<(), Stop> {
    let keys: Vec<_> = settings
        .effective
        .iter()
        .map(|effective| {
            serde_json::json!({ "key": effective.key, "value": effective.value, "source": effective.source })
        })
        .collect();
    let text = serde_json::to_string_pretty(&keys).map_err(|error| Stop::Failed(error.to_string()))?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// As TOML, each value's source in a comment.
fn show_text(settings: &Settings, out: &mut impl Write) -> Result<(), Stop> {
    let mut open = String::new();
    let mut keys: Vec<_> =
        settings.effective.iter().map(|effective| (table_of(&effective.key), effective)).collect();
    // A table's own keys come before those of the tables within it.
    keys.sort_by_key(|((table, _), _)| rank(table));
    for ((table, key), effective) in keys {
        if table != open {
            writeln!(out, "{}[{table}]", if open.is_empty() { "" } else { "\n" })?;
            table.clone_into(&mut open);
        }
        let assignment = format!("{key} = {}", effective.value);
        writeln!(out, "{assignment:<48} # {}", effective.source)?;
    }
    Ok(())
}

fn table_of(key: &str) -> (String, &str) {
    key.rsplit_once('.').map_or((String::new(), key), |(table, key)| (table.to_owned(), key))
}

/// The order of the reference file.
fn rank(table: &str) -> (usize, String) {
    let groups = ["http", "log", "daemon", "bastions", "databases"];
    let group = table.split('.').next().unwrap_or_default();
    (groups.iter().position(|known| *known == group).unwrap_or(groups.len()), table.to_owned())
}
