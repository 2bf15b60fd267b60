//! Walks a table of the merged configuration key by key: reads typed values, remembers each value's source for
//! `config show`, and collects every problem instead of stopping at the first.

use std::collections::BTreeMap;
use std::env::split_paths;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::{Value, ValueKind};

use super::plan::ListenAt;
use super::sources::ENVIRONMENT;
use super::values::Setting;
use super::{Effective, Note, Problem, Surroundings};
use crate::ids::Name;

pub(super) type Table = BTreeMap<String, Value>;

/// Collects what the readers find.
pub(super) struct Report {
    pub(super) problems: Vec<Problem>,
    pub(super) effective: Vec<Effective>,
    pub(super) notes: Vec<Note>,
    pub(super) listeners: Vec<Listener>,
    /// The environment variable that gives a key, by the key's path.
    variables: BTreeMap<String, String>,
    /// A configuration file that others can read: no secret may be written in any.
    pub(super) readable_by_others: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
    pub(super) state_directory: Option<PathBuf>,
    pub(super) state_dir_in_use: Option<PathBuf>,
    pub(super) rust_log: Option<OsString>,
}

impl Report {
    /// Begins with the problems of the sources.
    pub(super) fn new(
        surroundings: &Surroundings,
        variables: BTreeMap<String, String>,
        readable_by_others: Option<PathBuf>,
        problems: Vec<Problem>,
    ) -> Self {
        let variable = |name: &str| surroundings.variables.get(name).filter(|value| !value.is_empty());
        // systemd separates several state directories by colons; the first is ours.
        let state_directory = variable("STATE_DIRECTORY").and_then(|list| split_paths(list).next());
        Self {
            problems,
            effective: Vec::new(),
            notes: Vec::new(),
            listeners: Vec::new(),
            variables,
            readable_by_others,
            home: variable("HOME").map(PathBuf::from),
            state_directory: state_directory.filter(|dir| !dir.as_os_str().is_empty()),
            state_dir_in_use: surroundings.state_dir_in_use.clone(),
            rust_log: variable("RUST_LOG").cloned(),
        }
    }

    pub(super) fn problem(&mut self, section: &Section, key: &str, text: impl Into<String>) {
        self.problem_at(section.source_of(key).to_owned(), section.path_of(key), text.into());
    }

    pub(super) fn problem_at(&mut self, source: String, path: String, text: String) {
        let inside = format!("{path}.");
        let mut variables = self.variables.iter().filter(|_| source == ENVIRONMENT);
        let variable = variables.find(|(key, _)| **key == path || key.starts_with(&inside));
        let key = variable.map_or(path, |(_, name)| name.clone());
        self.problems.push(Problem { source, key, text });
    }

    pub(super) fn listener(&mut self, section: &Section, key: &str, at: ListenAt) {
        let source = section.source_of(key).to_owned();
        self.listeners.push(Listener { at, source, key: section.path_of(key) });
    }

    pub(super) fn note(&mut self, section: &Section, key: &str, text: impl Into<String>) {
        self.notes.push(Note { key: section.path_of(key), text: text.into() });
    }
}

/// What is listened on, and the key that says so.
pub(super) struct Listener {
    pub(super) at: ListenAt,
    pub(super) source: String,
    pub(super) key: String,
}

/// A value together with what reading it may need to know.
pub(super) struct Given<'a> {
    pub(super) value: &'a Value,
    report: &'a Report,
}

impl Given<'_> {
    pub(super) fn is_from_environment(&self) -> bool {
        is_from_environment(self.value)
    }

    pub(super) fn readable_by_others(&self) -> Option<&Path> {
        self.report.readable_by_others.as_deref()
    }

    /// A path as the user means it: `~/` is the home directory, and a relative path is relative to the file that
    /// names it.
    pub(super) fn path(&self, text: &str) -> Result<PathBuf, String> {
        if text.is_empty() {
            return Err("is empty: write the path of a file".to_owned());
        }
        if let Some(rest) = text.strip_prefix("~/") {
            let home = self
                .report
                .home
                .as_ref()
                .ok_or_else(|| format!("\"{text}\" needs $HOME, which is not set"))?;
            return Ok(home.join(rest));
        }
        let base = self
            .value
            .origin()
            .filter(|_| !self.is_from_environment())
            .and_then(|file| Path::new(file).parent());
        Ok(base.map_or_else(|| PathBuf::from(text), |base| base.join(text)))
    }

    pub(super) fn with<'a>(&'a self, value: &'a Value) -> Given<'a> {
        Given { value, report: self.report }
    }
}

/// Values from the environment are all text.
pub(super) fn is_from_environment(value: &Value) -> bool {
    value.origin() == Some(ENVIRONMENT)
}

/// The source of a value. Merging leaves tables without one: that of a secret is its winning key's.
fn origin(value: &Value) -> Option<&str> {
    value.origin().or_else(|| match &value.kind {
        ValueKind::Table(table) => {
            table.values().filter_map(origin).max_by_key(|origin| *origin == ENVIRONMENT)
        }
        _ => None,
    })
}

/// A table of the configuration, and which of its keys have been asked for.
pub(super) struct Section {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    source: String,
}

impl Section {
    pub(super) fn new(path: &str, table: Table) -> Self {
        // What is missing is missed in the file, whatever the environment adds to it.
        let source = table.values().filter_map(origin).min_by_key(|origin| *origin == ENVIRONMENT);
        let source = source.unwrap_or_default().to_owned();
        Self { path: path.to_owned(), table, known: Vec::new(), source }
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn source_of(&self, key: &str) -> &str {
        self.table.get(key).and_then(origin).unwrap_or(&self.source)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A value that is there or not, without a default.
    pub(super) fn get<T: Setting>(&mut self, key: &'static str, report: &mut Report) -> Option<T> {
        self.known.push(key);
        let value = self.table.get(key)?;
        match T::read(&Given { value, report }) {
            Ok(setting) => {
                let source = origin(value).unwrap_or_default().to_owned();
                report.effective.push(Effective { key: self.path_of(key), value: setting.show(), source });
                Some(setting)
            }
            Err(text) => {
                report.problem(self, key, text);
                None
            }
        }
    }

    /// A value with a default.
    pub(super) fn get_or<T: Setting>(&mut self, key: &'static str, default: T, report: &mut Report) -> T {
        match self.get(key, report) {
            Some(setting) => setting,
            None => {
                if !self.has(key) {
                    let effective = Effective {
                        key: self.path_of(key),
                        value: default.show(),
                        source: "default".to_owned(),
                    };
                    report.effective.push(effective);
                }
                default
            }
        }
    }

    /// A value that must be there.
    pub(super) fn require<T: Setting>(&mut self, key: &'static str, report: &mut Report) -> Option<T> {
        let setting = self.get(key, report);
        if setting.is_none() && !self.has(key) {
            report.problem(self, key, "is missing");
        }
        setting
    }

    /// A table within this one, which is written as `form` says; an empty one if it is not there.
    pub(super) fn section(&mut self, key: &'static str, form: &str, report: &mut Report) -> Self {
        self.known.push(key);
        let path = self.path_of(key);
        let mut section = match self.table.get(key).map(|value| &value.kind) {
            None => Self::new(&path, Table::new()),
            Some(ValueKind::Table(table)) => Self::new(&path, table.clone().into_iter().collect()),
            Some(_) => {
                report.problem(self, key, format!("is not a table: write {form}"));
                Self::new(&path, Table::new())
            }
        };
        if section.source.is_empty() {
            section.source = self.source_of(key).to_owned();
        }
        section
    }

    /// All tables within the table `key`, whose names the user chose, in the order of their names.
    pub(super) fn named_sections(
        &mut self,
        key: &'static str,
        form: &str,
        report: &mut Report,
    ) -> Vec<(Name, Self)> {
        let section = self.section(key, form, report);
        let mut named = Vec::new();
        for (text, value) in &section.table {
            match (Name::parse(text), &value.kind) {
                (Err(problem), _) => report.problem(&section, text, problem),
                (Ok(name), ValueKind::Table(table)) => {
                    let path = section.path_of(text);
                    let mut inner = Self::new(&path, table.clone().into_iter().collect());
                    if inner.source.is_empty() {
                        inner.source = section.source_of(text).to_owned();
                    }
                    named.push((name, inner));
                }
                (Ok(_), _) => {
                    let form = format!("is not a table: write [{}]", section.path_of(text));
                    report.problem(&section, text, form);
                }
            }
        }
        named
    }

    /// Reports the keys that nothing asked for.
    pub(super) fn finish(self, report: &mut Report) {
        for key in self.table.keys().filter(|key| !self.known.contains(&key.as_str())) {
            let nearest = self
                .known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(&key.to_lowercase(), known), known))
                .min()
                .filter(|(distance, known)| *distance <= 1 + known.len() / 3);
            let text = match nearest {
                Some((_, known)) => format!("unknown key: did you mean \"{known}\"?"),
                None => format!("unknown key: known are {}", self.known.join(", ")),
            };
            report.problem(&self, key, text);
        }
    }
}
