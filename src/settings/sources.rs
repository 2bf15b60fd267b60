//! The sources of the configuration: one file, the files beside it in `conf.d`, and the environment. Checks who
//! may write them, and merges them with the `config` crate, later ones winning.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Config, Environment, FileFormat, Format, Map, Source, Value, ValueKind};
use zeroize::Zeroizing;

use super::reader::Table;
use super::{Problem, Surroundings};
use crate::failure::plain;

/// The file read where neither `--config` nor `$TUNNELKEEPER_CONFIG` names one.
pub const DEFAULT_FILE: &str = "/etc/tunnelkeeper/tunnelkeeper.toml";

/// The `config` crate's name for values that came from environment variables.
pub(super) const ENVIRONMENT: &str = "the environment";

/// How the names of variables that give keys begin, as the `config` crate compares them.
const PREFIX: &str = "tunnelkeeper__";

/// Far more than any real configuration.
const MAX_FILE_LEN: u64 = 1 << 20;

/// All sources laid over each other.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) root: Table,
    pub(super) files: Vec<PathBuf>,
    /// The environment variable that gives a key, by the key's path.
    pub(super) variables: BTreeMap<String, String>,
    /// The first file that others can read.
    pub(super) readable_by_others: Option<PathBuf>,
    pub(super) problems: Vec<Problem>,
}

/// A file's content as a source of the `config` crate.
#[derive(Clone, Debug)]
struct Parsed(Map<String, Value>);

impl Source for Parsed {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }
    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

pub(super) fn merge(surroundings: &Surroundings) -> Merged {
    let mut merged = Merged::default();
    let environment = Environment::with_prefix("TUNNELKEEPER")
        .prefix_separator("__")
        .separator("__")
        .source(Some(variables(surroundings, &mut merged)));
    let mut builder = Config::builder();
    let mut defined = BTreeMap::new();
    for path in files(surroundings, &mut merged.problems) {
        let Some(table) = read_file(&path, surroundings.uid, &mut merged) else { continue };
        refuse_second_definitions(&path, &table, &mut defined, &mut merged.problems);
        builder = builder.add_source(Parsed(table));
        merged.files.push(path);
    }
    match builder.add_source(environment).build().and_then(|config| config.collect()) {
        Ok(table) => merged.root = table.into_iter().collect(),
        Err(error) => {
            let text = format!("the variables TUNNELKEEPER__... cannot be read: {error}");
            merged.problems.push(Problem { source: ENVIRONMENT.to_owned(), key: String::new(), text });
        }
    }
    merged
}

/// The variables that give keys.
fn variables(surroundings: &Surroundings, merged: &mut Merged) -> Map<String, String> {
    let mut variables = Map::new();
    for (name, value) in &surroundings.variables {
        let lower = name.to_lowercase();
        let Some(path) = lower.strip_prefix(PREFIX).map(|path| path.replace("__", ".")) else { continue };
        merged.variables.insert(path, name.clone());
        if let Some(text) = value.to_str() {
            variables.insert(name.clone(), text.to_owned());
        } else {
            let (source, key) = (ENVIRONMENT.to_owned(), name.clone());
            merged.problems.push(Problem { source, key, text: "is not text: write it in UTF-8".to_owned() });
        }
    }
    variables
}

fn problem(path: &Path, text: impl Into<String>) -> Problem {
    Problem { source: path.display().to_string(), key: String::new(), text: text.into() }
}

/// The files to read, in the order in which they are applied.
fn files(surroundings: &Surroundings, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let named = surroundings.config_option.clone().or_else(|| {
        surroundings.variables.get("TUNNELKEEPER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from)
    });
    let main = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let parts_dir = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let mut files = vec![main];
    let entries = fs::metadata(&parts_dir).and_then(|metadata| {
        problems.extend(check_owner(&parts_dir, &metadata, surroundings.uid));
        fs::read_dir(&parts_dir)
    });
    match entries {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => problems.push(problem(&parts_dir, format!("cannot be read: {}", plain(&error)))),
        Ok(entries) => {
            let mut parts: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
            parts.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            parts.sort();
            files.append(&mut parts);
        }
    }
    files
}

fn read_file(path: &Path, uid: u32, merged: &mut Merged) -> Option<Map<String, Value>> {
    let refuse = |merged: &mut Merged, text: String| {
        merged.problems.push(problem(path, text));
        None
    };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
            let text = "is a link to a file that does not exist: remove it, or make that file";
            return refuse(merged, text.to_owned());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return refuse(
                merged,
                "there is no such file: write it (the README shows the smallest one that works), or name another \
                 with --config"
                    .to_owned(),
            );
        }
        Err(error) => return refuse(merged, format!("cannot be read: {}", plain(&error))),
    };
    if !metadata.is_file() {
        return refuse(merged, "is not a file".to_owned());
    }
    merged.problems.extend(check_owner(path, &metadata, uid));
    if metadata.mode() & 0o004 != 0 && merged.readable_by_others.is_none() {
        merged.readable_by_others = Some(path.to_owned());
    }
    if metadata.len() > MAX_FILE_LEN {
        return refuse(merged, format!("is larger than {MAX_FILE_LEN} bytes"));
    }
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => return refuse(merged, format!("cannot be read: {}", plain(&error))),
    };
    match FileFormat::Toml.parse(Some(&path.display().to_string()), &text) {
        Ok(table) => Some(table),
        Err(error) => refuse(merged, format!("is not TOML: {}", syntax_error(&error.to_string()))),
    }
}

/// The parser's message names the line on one line, draws it on the next and explains it on the last. The drawing
/// is left out, since the line may hold a secret.
fn syntax_error(message: &str) -> String {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default().trim();
    match lines.filter(|line| !line.contains('|')).map(str::trim).rfind(|line| !line.is_empty()) {
        Some(explanation) => format!("{first}: {explanation}"),
        None => first.to_owned(),
    }
}

/// Whoever can write the configuration can run commands as the daemon.
fn check_owner(path: &Path, metadata: &Metadata, uid: u32) -> Option<Problem> {
    let owner = metadata.uid();
    if owner != 0 && owner != uid {
        return Some(problem(
            path,
            format!("belongs to user {owner}: it must belong to root or to the user running this"),
        ));
    }
    let mode = metadata.mode() & 0o7777;
    (mode & 0o002 != 0)
        .then(|| problem(path, format!("can be written by others (mode {mode:04o}): chmod o-w it")))
}

/// A bastion or database is one thing in one place: half of it in another file is a mistake.
fn refuse_second_definitions(
    path: &Path,
    table: &Map<String, Value>,
    defined: &mut BTreeMap<String, PathBuf>,
    problems: &mut Vec<Problem>,
) {
    for group in ["bastions", "databases"] {
        let Some(ValueKind::Table(members)) = table.get(group).map(|value| &value.kind) else { continue };
        for name in members.keys() {
            let key = format!("{group}.{name}");
            match defined.get(&key) {
                Some(first) => {
                    let text = format!("is defined in {} already", first.display());
                    problems.push(Problem { source: path.display().to_string(), key, text });
                }
                None => {
                    defined.insert(key, path.to_owned());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
