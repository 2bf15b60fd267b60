//! `config check` and `config show`.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use serde_json::Value;

use super::{Format, Stop};
use crate::failure::plain;
use crate::secret::SecretSource;
use crate::settings::plan::{AgentPlan, BastionPlan, DatabasePlan, IdentityPlan, LoginPlan, TrustPlan};
use crate::settings::{Note, Settings};

pub(super) fn check(settings: &Settings, out: &mut impl Write) -> Result<(), Stop> {
    for note in settings.notes.iter().chain(&missing_files(settings)) {
        writeln!(out, "note: {}: {}", note.key, note.text)?;
    }
    writeln!(out, "the configuration is good: {} ({})", how_many(settings), files(settings))?;
    Ok(())
}

/// The files that it was read from.
pub(super) fn files(settings: &Settings) -> String {
    settings.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What it configures.
pub(super) fn how_many(settings: &Settings) -> String {
    let (bastions, databases) = (settings.plan.bastions.len(), settings.plan.databases.len());
    format!(
        "{bastions} {}, {databases} {}",
        if bastions == 1 { "bastion" } else { "bastions" },
        if databases == 1 { "database" } else { "databases" },
    )
}

/// The files that it names, and that cannot be read.
pub(super) fn missing_files(settings: &Settings) -> Vec<Note> {
    let bastions = settings.plan.bastions.iter().flat_map(|bastion| bastion_files(bastion));
    let databases = settings.plan.databases.iter().flat_map(|database| database_files(database));
    bastions.chain(databases).filter_map(|(key, path)| look_at(key, &path)).collect()
}

/// The files that the configuration names itself, each with its key: those of the defaults need not exist.
fn bastion_files(bastion: &BastionPlan) -> Vec<(String, PathBuf)> {
    let identities: &[_] = match &bastion.identity {
        IdentityPlan::Files(paths) => paths,
        IdentityPlan::Own { .. } | IdentityPlan::Agent => &[],
    };
    let known_hosts = match &bastion.trust {
        TrustPlan::Files(known) => known.files.iter().filter(|path| known.requires(path)).cloned().collect(),
        TrustPlan::Pins(_) => Vec::new(),
    };
    let secret = |source: &Option<SecretSource>| secret_file(source.as_ref()).into_iter().collect();
    let groups: [(&str, Vec<PathBuf>); 6] = [
        ("identity", identities.to_vec()),
        ("identity_passphrase", secret(&bastion.passphrase)),
        ("certificate", bastion.certificates.clone()),
        ("agent", bastion.agent.iter().filter_map(AgentPlan::socket).collect()),
        ("password", secret(&bastion.password)),
        ("known_hosts", known_hosts),
    ];
    let key = |key: &str| format!("bastions.{}.{key}", bastion.name);
    let files = groups.into_iter();
    files.flat_map(|(name, paths)| paths.into_iter().map(move |path| (key(name), path))).collect()
}

fn database_files(database: &DatabasePlan) -> Vec<(String, PathBuf)> {
    let key = |key: &str| format!("databases.{}.{key}", database.name);
    let secrets = database.probe.login.iter().flat_map(LoginPlan::secrets);
    let secrets = secrets.filter_map(|(name, source)| Some((key(name), secret_file(Some(source))?)));
    let roots = database.probe.tls.ca.clone().map(|path| (key("tls.ca"), path));
    let google = database.probe.login.as_ref().and_then(LoginPlan::credentials_file);
    let google = google.map(|path| (key("credentials_file"), path.to_owned()));
    secrets.chain(google).chain(roots).collect()
}

fn secret_file(source: Option<&SecretSource>) -> Option<PathBuf> {
    match source {
        Some(SecretSource::File(path)) => Some(path.clone()),
        _ => None,
    }
}

/// Looks without opening, which would wait for the other end of a pipe.
fn look_at(key: String, path: &Path) -> Option<Note> {
    let readable = || access(path, AccessFlags::R_OK).map_err(std::io::Error::from);
    let text = match fs::metadata(path).and_then(|_| readable()) {
        Ok(()) => return None,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            format!("there is no such file yet: {}", path.display())
        }
        Err(error) => {
            format!("{} cannot be read by the user running this: {}", path.display(), plain(&error))
        }
    };
    Some(Note { key, text })
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
        let assignment = format!("{key} = {}", toml(&effective.value));
        writeln!(out, "{assignment:<48} # {}", effective.source)?;
    }
    Ok(())
}

/// A list of one is shown as the one. TOML takes over how JSON writes all that is not a table.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(values) if values.len() == 1 => values.iter().map(toml).collect(),
        Value::Array(values) => format!("[{}]", values.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| format!("{key} = {}", toml(value)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
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
