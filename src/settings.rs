//! The configuration: from its sources to a checked [`Plan`], with every problem found at once.
//!
//! Reading opens nothing but the configuration's own files. What comes out is complete and consistent: no later
//! stage meets a missing value, a wrong name or a bad range. The only module that names the `config` crate.

mod bastion;
mod daemon;
mod database;
mod kind;
mod listen;
mod login;
pub mod plan;
mod probe;
mod reader;
mod sources;
mod tls;
mod together;
mod trust;
mod url;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::path::PathBuf;

pub use plan::Plan;
pub use sources::DEFAULT_FILE;
pub use values::{LogFilter, show_duration};

/// What the configuration may depend on besides its files. Passed in, so that tests do not share a process-wide
/// environment.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Environment variables; one whose name is not Unicode is none of ours.
    pub variables: BTreeMap<String, OsString>,
    /// The daemon's effective user.
    pub uid: u32,
    /// The file named with `--config`.
    pub config_option: Option<PathBuf>,
    /// The state directory of the daemon that runs, which cannot have another one before it is started again.
    pub state_dir_in_use: Option<PathBuf>,
}

/// The effective configuration and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the daemon shall do.
    pub plan: Plan,
    /// Every key with its value and where the value came from, in the order of the reference file.
    pub effective: Vec<Effective>,
    /// Advice that does not stop anything.
    pub notes: Vec<Note>,
    /// The files read, in the order in which they were applied.
    pub files: Vec<PathBuf>,
}

/// One key of the effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The path of the key, such as `bastions.prod.port`.
    pub key: String,
    /// The value, secrets masked.
    pub value: serde_json::Value,
    /// A file, "the environment" or "default".
    pub source: String,
}

/// Advice about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The path of the key.
    pub key: String,
    /// A sentence without a full stop.
    pub text: String,
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, or "the environment"; empty where no source is to blame.
    pub source: String,
    /// The path of the key, or the environment variable that gives it; empty where the whole file is meant.
    pub key: String,
    /// What is wrong and what to do: a sentence without a full stop.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.key] {
            // Whatever a file's author took for a key: it must not forge a line of what is printed.
            for c in part.chars() {
                if c.is_control() { write!(f, "{}", c.escape_debug())? } else { f.write_char(c)? }
            }
            if !part.is_empty() {
                f.write_str(": ")?;
            }
        }
        f.write_str(&self.text)
    }
}

/// Reads and checks the whole configuration.
///
/// # Errors
/// Every problem found, in the order of the files and keys; nothing is applied then.
pub fn load(surroundings: &Surroundings) -> Result<Settings, Vec<Problem>> {
    let sources::Merged { root, files, variables, readable_by_others, problems } =
        sources::merge(surroundings);
    let mut report = reader::Report::new(surroundings, variables, readable_by_others, problems);
    let plan = read_plan(root, &mut report);
    let reader::Report { problems, effective, notes, .. } = report;
    match plan {
        Some(plan) if problems.is_empty() => Ok(Settings { plan, effective, notes, files }),
        _ => Err(problems),
    }
}

fn read_plan(root: reader::Table, report: &mut reader::Report) -> Option<Plan> {
    let mut root = reader::Section::new("", root);
    let http = daemon::read_http(root.section("http", "[http]", report), report);
    let log = daemon::read_log(root.section("log", "[log]", report), report);
    let daemon = daemon::read_daemon(root.section("daemon", "[daemon]", report), report);
    let bastions = root.named_sections("bastions", "[bastions.NAME]", report);
    let bastion_names: Vec<_> = bastions.iter().map(|(name, _)| name.clone()).collect();
    let databases = root.named_sections("databases", "[databases.NAME]", report);
    root.finish(report);
    for (name, section) in &databases {
        if bastion_names.contains(name) {
            report.problem(section, "", format!("a bastion is named \"{name}\" too: names must differ"));
        }
    }
    let bastions: Vec<_> = bastions
        .into_iter()
        .map(|(name, section)| bastion::read(name, section, &bastion_names, &daemon, report))
        .collect();
    let databases: Vec<_> = databases
        .into_iter()
        .map(|(name, section)| database::read(name, section, &bastion_names, report))
        .collect();
    together::refuse_shared_addresses(report);
    together::refuse_circles(bastions.iter().flatten(), report);
    // Every reader has reported its problems by now; a part that is missing comes with at least one.
    let bastions = bastions.into_iter().collect::<Option<_>>()?;
    let databases = databases.into_iter().collect::<Option<_>>()?;
    let plan = Plan { http, log, daemon, bastions, databases };
    together::look_for_work(&plan, report);
    Some(plan)
}

#[cfg(test)]
mod tests;
