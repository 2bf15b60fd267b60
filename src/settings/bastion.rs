//! Reads `[bastions.NAME]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::ValueKind;
use serde_json::{Value as Json, json};

use super::database::no_such_bastion;
use super::plan::{AgentPlan, BastionPlan, DaemonPlan, IdentityPlan};
use super::reader::{Given, Report, Section};
use super::trust;
use super::values::{Account, Argv, BastionName, Host, Port, Setting, Whole, show_duration};
use crate::backoff::Bounds;
use crate::ids::{HostPort, Name};
use crate::placement::PoolBounds;
use crate::secret::SecretSource;

type PoolSize = Whole<1, 64>;

pub(super) fn read(
    name: Name,
    mut section: Section,
    known: &[Name],
    daemon: &DaemonPlan,
    report: &mut Report,
) -> Option<Arc<BastionPlan>> {
    let host: Option<Host> = section.require("host", report);
    let port: Port = section.get_or("port", Whole(22), report);
    let user: Option<Account> = section.require("user", report);
    let jump = read_jump(&mut section, known, report);
    let proxy_command: Option<Argv> = section.get("proxy_command", report);
    if jump.is_some() && proxy_command.is_some() {
        report.problem(&section, "jump", "and `proxy_command` are two ways to the bastion: keep one of them");
    }
    let AgentKey(agent) = section.get_or("agent", AgentKey(None), report);
    let password: Option<SecretSource> = section.get("password", report);
    let identity = read_identity(&name, &mut section, daemon, agent.is_some(), report);
    let passphrase: Option<SecretSource> = section.get("identity_passphrase", report);
    if passphrase.is_some() && identity == Some(IdentityPlan::Agent) {
        let text = "is of no use without `identity`: the keys of an agent are open";
        report.problem(&section, "identity_passphrase", text);
    }
    let certificates: Option<Vec<PathBuf>> = section.get("certificate", report);
    let legacy_algorithms = section.get_or("legacy_algorithms", false, report);
    let trust = trust::read(&mut section, daemon, report);
    let (keepalive_interval, keepalive_timeout) = read_keepalive(&mut section, report);
    let connect_timeout = read_positive(&mut section, "connect_timeout", Duration::from_secs(15), report);
    let open_timeout = read_positive(&mut section, "open_timeout", Duration::from_secs(10), report);
    let pool = read_pool(&mut section, report);
    let reconnect = read_reconnect(&mut section, report);
    section.finish(report);
    Some(Arc::new(BastionPlan {
        name,
        at: HostPort::new(&host?.0, port.port()),
        user: user?.0,
        jump,
        proxy_command: proxy_command.map(|Argv(words)| words),
        identity: identity?,
        passphrase,
        certificates: certificates.unwrap_or_default(),
        agent,
        password,
        legacy_algorithms,
        trust: trust?,
        keepalive_interval,
        keepalive_timeout,
        connect_timeout,
        open_timeout,
        pool,
        reconnect,
    }))
}

fn read_jump(section: &mut Section, known: &[Name], report: &mut Report) -> Option<Name> {
    let BastionName(name) = section.get("jump", report)?;
    if !known.contains(&name) {
        report.problem(section, "jump", no_such_bastion(&name, known));
        return None;
    }
    Some(name)
}

fn read_identity(
    name: &Name,
    section: &mut Section,
    daemon: &DaemonPlan,
    has_agent: bool,
    report: &mut Report,
) -> Option<IdentityPlan> {
    if section.has("identity") {
        return section.get("identity", report).map(IdentityPlan::Files);
    }
    if has_agent {
        let _: Option<Vec<PathBuf>> = section.get("identity", report);
        return Some(IdentityPlan::Agent);
    }
    let path = daemon.state_dir.join("keys").join(name.as_str());
    section.get_or("identity", vec![path.clone()], report);
    // Whoever gives a password may well want no key.
    let generate = daemon.generate_keys && !section.has("password");
    Some(IdentityPlan::Own { path, generate })
}

/// The value of `agent`.
struct AgentKey(Option<AgentPlan>);

impl Setting for AgentKey {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        match &given.value.kind {
            ValueKind::String(text) if !matches!(text.as_str(), "true" | "false") => {
                given.path(text).map(|path| Self(Some(AgentPlan::Socket(path))))
            }
            _ => match bool::read(given) {
                Ok(on) => Ok(Self(on.then_some(AgentPlan::Environment))),
                Err(text) => Err(format!("{text}, or the path of the agent's socket in quotes")),
            },
        }
    }
    fn show(&self) -> Json {
        match &self.0 {
            None => json!(false),
            Some(AgentPlan::Environment) => json!(true),
            Some(AgentPlan::Socket(path)) => json!(path.display().to_string()),
        }
    }
}

fn read_keepalive(section: &mut Section, report: &mut Report) -> (Duration, Duration) {
    let interval = read_positive(section, "keepalive_interval", Duration::from_secs(30), report);
    let timeout = read_positive(section, "keepalive_timeout", Duration::from_secs(300), report);
    if timeout <= interval {
        let text = format!("must be longer than keepalive_interval ({})", show_duration(interval));
        report.problem(section, "keepalive_timeout", text);
    }
    (interval, timeout)
}

fn read_pool(section: &mut Section, report: &mut Report) -> PoolBounds {
    let given = section.has("sessions");
    let mut inner = section.section("sessions", "sessions = { min = 1, max = 4 }", report);
    let min: PoolSize = inner.get_or("min", Whole(1), report);
    // A pool that is told to be larger than the usual maximum is not held to it.
    let max: PoolSize = inner.get_or("max", Whole(min.0.max(4)), report);
    if given && min.0 > max.0 {
        report.problem(&inner, "min", format!("is above sessions.max ({})", max.0));
    }
    inner.finish(report);
    PoolBounds { min: min.size(), max: max.size() }
}

fn read_reconnect(section: &mut Section, report: &mut Report) -> Bounds {
    let mut inner = section.section("reconnect", "reconnect = { max = \"30s\" }", report);
    let min = read_positive(&mut inner, "min", Duration::from_millis(200), report);
    let max = read_positive(&mut inner, "max", Duration::from_secs(30).max(min), report);
    if min > max {
        report.problem(&inner, "min", format!("is above reconnect.max ({})", show_duration(max)));
    }
    inner.finish(report);
    Bounds { min, max }
}

/// A duration that must not be zero.
pub(super) fn read_positive(
    section: &mut Section,
    key: &'static str,
    default: Duration,
    report: &mut Report,
) -> Duration {
    read_at_least(Duration::from_millis(1), section, key, default, report)
}

pub(super) fn read_at_least(
    least: Duration,
    section: &mut Section,
    key: &'static str,
    default: Duration,
    report: &mut Report,
) -> Duration {
    let duration = section.get_or(key, default, report);
    if duration < least {
        report.problem(section, key, format!("must be at least {}", show_duration(least)));
    }
    duration
}
