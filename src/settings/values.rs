//! The kinds of values a key may have: how each is read from TOML or from an environment variable, and shown.

use std::path::PathBuf;
use std::time::Duration;

use config::ValueKind;
use serde_json::{Value as Json, json};

use super::reader::{Given, is_from_environment};
use crate::host_keys::Fingerprint;
use crate::ids::{Name, check_account, check_host, check_remote_socket_path};
use crate::secret::{Secret, SecretSource};

/// A value that a key may have.
pub(super) trait Setting: Sized {
    /// Reads it, or says in one sentence what is wrong with it.
    fn read(given: &Given<'_>) -> Result<Self, String>;
    /// Shows it, secrets masked.
    fn show(&self) -> Json;
}

pub(super) fn kind_of(kind: &ValueKind) -> &'static str {
    match kind {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a number",
        ValueKind::Float(_) => "a fraction",
        ValueKind::String(_) => "text",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

/// What was found where something else is expected.
fn found(given: &Given<'_>) -> String {
    match &given.value.kind {
        ValueKind::String(text) if given.is_from_environment() => format!("\"{}\"", text.escape_debug()),
        other => kind_of(other).to_owned(),
    }
}

pub(super) fn text<'a>(given: &'a Given<'_>, expected: &str) -> Result<&'a str, String> {
    match &given.value.kind {
        ValueKind::String(text) => Ok(text),
        other => Err(format!("is {}: write {expected} in quotes", kind_of(other))),
    }
}

impl Setting for String {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "text")?;
        if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
    }
    fn show(&self) -> Json {
        json!(self)
    }
}

impl Setting for bool {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        match &given.value.kind {
            ValueKind::Boolean(value) => Ok(*value),
            ValueKind::String(text) if given.is_from_environment() && text == "true" => Ok(true),
            ValueKind::String(text) if given.is_from_environment() && text == "false" => Ok(false),
            _ => Err(format!("is {}: write true or false", found(given))),
        }
    }
    fn show(&self) -> Json {
        json!(self)
    }
}

/// What is logged: the events from a level on, of all targets or of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl LogFilter {
    /// Reads levels separated by commas, each for all targets or as `target=level` for one.
    ///
    /// # Errors
    /// Says in one sentence what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Result<Vec<String>, String> =
            text.split(',').map(str::trim).map(log_filter_part).collect();
        parts.map(|parts| Self(parts.join(",")))
    }

    /// As a tracing filter.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

/// Tracing itself would take a word that is no level for a target, and log nothing of all others.
fn log_filter_part(part: &str) -> Result<String, String> {
    let (target, word) =
        part.rsplit_once('=').map_or((None, part), |(target, word)| (Some(target.trim()), word.trim()));
    let word = word.to_ascii_lowercase();
    let is_target = |target: &str| {
        !target.is_empty()
            && target.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '-' | '.'))
    };
    if LEVELS.contains(&word.as_str()) && target.is_none_or(is_target) {
        return Ok(target.map_or(word.clone(), |target| format!("{target}={word}")));
    }
    let alike = |level: &&&str| !word.is_empty() && (word.starts_with(**level) || level.starts_with(&word));
    let advice = match LEVELS.iter().find(alike) {
        Some(level) => format!("did you mean \"{level}\"?"),
        None => "write off, error, warn, info, debug or trace, or TARGET=LEVEL".to_owned(),
    };
    Err(format!("\"{}\" is not a log level: {advice}", part.escape_debug()))
}

impl Setting for LogFilter {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        Self::parse(text(given, "a log level")?)
    }
    fn show(&self) -> Json {
        json!(self.0)
    }
}

/// A whole number within bounds.
#[derive(Clone, Copy)]
pub(super) struct Whole<const MIN: i64, const MAX: i64>(pub(super) i64);

impl<const MIN: i64, const MAX: i64> Whole<MIN, MAX> {
    /// The number as a size; bounds are never negative.
    pub(super) fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or_default()
    }
    pub(super) fn port(self) -> u16 {
        u16::try_from(self.0).unwrap_or_default()
    }
    pub(super) fn count(self) -> u32 {
        u32::try_from(self.0).unwrap_or_default()
    }
}

impl<const MIN: i64, const MAX: i64> Setting for Whole<MIN, MAX> {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let number = match &given.value.kind {
            ValueKind::I64(number) => Some(*number),
            ValueKind::String(text) if given.is_from_environment() => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            Some(number) => Err(format!("is {number}: write a whole number from {MIN} to {MAX}")),
            None => Err(format!("is {}: write a whole number from {MIN} to {MAX}", found(given))),
        }
    }
    fn show(&self) -> Json {
        json!(self.0)
    }
}

/// A TCP port.
pub(super) type Port = Whole<1, 65535>;

impl Setting for Duration {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "a duration such as \"30s\" or \"5m\"")?;
        match humantime::parse_duration(text) {
            Ok(duration) if duration > Self::from_secs(366 * 24 * 3600) => {
                Err(format!("\"{text}\" is longer than a year"))
            }
            Ok(duration) if !duration.subsec_nanos().is_multiple_of(1_000_000) => Err(format!(
                "\"{text}\" is finer than a millisecond: write whole milliseconds, such as \"1ms\""
            )),
            Ok(duration) => Ok(duration),
            Err(_) => Err(format!(
                "\"{}\" is not a duration: write for example \"30s\" or \"5m\"",
                text.escape_debug()
            )),
        }
    }
    fn show(&self) -> Json {
        json!(show_duration(*self))
    }
}

/// A duration as it would be written in the configuration, in its largest whole unit.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if !millis.is_multiple_of(1000) => format!("{millis}ms"),
        _ if !millis.is_multiple_of(60_000) => format!("{}s", millis / 1000),
        _ if !millis.is_multiple_of(3_600_000) => format!("{}m", millis / 60_000),
        _ => format!("{}h", millis / 3_600_000),
    }
}

/// An amount of memory.
#[derive(Clone, Copy)]
pub(super) struct Bytes(pub(super) usize);

const UNITS: [(&str, usize); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl Setting for Bytes {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "an amount such as \"256MiB\"")?;
        let parsed = UNITS.iter().find_map(|(unit, factor)| {
            let number: usize = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*factor)
        });
        parsed.map(Self).ok_or_else(|| {
            format!("\"{}\" is not an amount of memory: write for example \"256MiB\"", text.escape_debug())
        })
    }
    fn show(&self) -> Json {
        let unit = UNITS.iter().rev().find(|(_, factor)| self.0.is_multiple_of(*factor));
        unit.map_or(json!(self.0), |(unit, factor)| json!(format!("{}{unit}", self.0 / factor)))
    }
}

/// A host name or an IP address.
#[derive(Clone)]
pub(super) struct Host(pub(super) String);

impl Setting for Host {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "a host name or an IP address")?;
        check_host(text).map(|()| Self(text.to_owned()))
    }
    fn show(&self) -> Json {
        json!(self.0)
    }
}

/// The name of an account on a bastion.
#[derive(Clone)]
pub(super) struct Account(pub(super) String);

impl Setting for Account {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "the name of an account")?;
        check_account(text).map(|()| Self(text.to_owned()))
    }
    fn show(&self) -> Json {
        json!(self.0)
    }
}

/// A host name, an IP address, or the path of a Unix socket on the bastion.
#[derive(Clone)]
pub(super) struct HostOrSocket(pub(super) String);

impl HostOrSocket {
    pub(super) fn is_socket(&self) -> bool {
        self.0.starts_with('/')
    }
}

impl Setting for HostOrSocket {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "a host name, an IP address or the path of a Unix socket")?;
        let check = if text.starts_with('/') { check_remote_socket_path } else { check_host };
        check(text).map(|()| Self(text.to_owned()))
    }
    fn show(&self) -> Json {
        json!(self.0)
    }
}

/// The name of a bastion.
#[derive(Clone)]
pub(super) struct BastionName(pub(super) Name);

impl Setting for BastionName {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        Name::parse(text(given, "the name of a bastion")?).map(Self)
    }
    fn show(&self) -> Json {
        json!(self.0.as_str())
    }
}

/// The path of a file.
impl Setting for PathBuf {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        given.path(text(given, "the path of a file")?)
    }
    fn show(&self) -> Json {
        json!(self.display().to_string())
    }
}

impl Setting for Fingerprint {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        Self::parse(text(given, "a fingerprint")?)
    }
    fn show(&self) -> Json {
        json!(self.to_string())
    }
}

/// One value, or a list of at least one.
impl<T: Setting> Setting for Vec<T> {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        match &given.value.kind {
            ValueKind::Array(values) if values.is_empty() => Err("is an empty list".to_owned()),
            ValueKind::Array(values) => values.iter().map(|value| T::read(&given.with(value))).collect(),
            _ => T::read(given).map(|one| vec![one]),
        }
    }
    fn show(&self) -> Json {
        self.iter().map(T::show).collect()
    }
}

/// A command as a list of words.
#[derive(Clone)]
pub(super) struct Argv(pub(super) Vec<String>);

impl Setting for Argv {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        match &given.value.kind {
            ValueKind::String(text) if text.contains(char::is_whitespace) => Err(
                "is one text with blanks: write a list of words, such as [\"ssh\", \"-W\", \"%h:%p\", \"gateway\"], \
                 since no shell splits it"
                    .to_owned(),
            ),
            _ => Vec::read(given).map(Self),
        }
    }
    fn show(&self) -> Json {
        self.0.show()
    }
}

const SECRET_FORMS: &str = "{ env = \"VARIABLE\" }, { file = \"path\" }, { credential = \"name\" } or \
                            { command = [\"program\", \"argument\"] }";

impl Setting for SecretSource {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        match &given.value.kind {
            ValueKind::String(_) => plain_secret(given),
            ValueKind::Table(table) => {
                // A source that the environment names replaces the one that a file names, as any value does.
                let replaced = table.values().any(is_from_environment);
                let mut keys = table.iter().filter(|(_, value)| !replaced || is_from_environment(value));
                let (Some((key, value)), None) = (keys.next(), keys.next()) else {
                    return Err(format!("must name exactly one source: write {SECRET_FORMS}"));
                };
                let inner = given.with(value);
                match key.as_str() {
                    "env" => String::read(&inner).map(Self::Env),
                    "file" => PathBuf::read(&inner).map(Self::File),
                    "credential" => credential_name(&inner).map(Self::Credential),
                    "command" => Vec::<String>::read(&inner).map(Self::Command),
                    other => Err(format!(
                        "has the unknown source \"{}\": write {SECRET_FORMS}",
                        other.escape_debug()
                    )),
                }
            }
            other => Err(format!("is {}: write {SECRET_FORMS}", kind_of(other))),
        }
    }
    fn show(&self) -> Json {
        match self {
            Self::Env(variable) => json!({ "env": variable }),
            Self::File(path) => json!({ "file": path.display().to_string() }),
            Self::Credential(name) => json!({ "credential": name }),
            Self::Command(argv) => json!({ "command": [argv.first(), "..."] }),
            Self::Plain(_) => json!("(masked)"),
        }
    }
}

fn plain_secret(given: &Given<'_>) -> Result<SecretSource, String> {
    let secret = Secret::new(String::read(given)?);
    match given.readable_by_others() {
        Some(file) if !given.is_from_environment() => Err(format!(
            "is written in the configuration, but {} can be read by others: chmod o-r it, or write {SECRET_FORMS}",
            file.display()
        )),
        _ => Ok(SecretSource::Plain(secret)),
    }
}

fn credential_name(given: &Given<'_>) -> Result<String, String> {
    let name = String::read(given)?;
    if name.contains('/') || name.starts_with('.') {
        return Err(format!("\"{}\" is not the name of a credential", name.escape_debug()));
    }
    Ok(name)
}

/// Lets a fieldless enum be a setting by its words.
macro_rules! words {
    ($type:ty { $($word:literal => $variant:path),* $(,)? }) => {
        impl $crate::settings::values::Setting for $type {
            fn read(given: &$crate::settings::reader::Given<'_>) -> Result<Self, String> {
                let word = <String as $crate::settings::values::Setting>::read(given)?;
                match word.as_str() {
                    $($word => Ok($variant),)*
                    other => Err(format!(
                        "\"{}\" is not one of {}",
                        other.escape_debug(),
                        [$(concat!("\"", $word, "\"")),*].join(", ")
                    )),
                }
            }
            fn show(&self) -> serde_json::Value {
                match self { $($variant => serde_json::json!($word)),* }
            }
        }
    };
}
pub(super) use words;
