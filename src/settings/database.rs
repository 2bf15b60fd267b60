//! Reads `[databases.NAME]`: the kind's defaults, the forward and the probe.

use std::sync::Arc;
use std::time::Duration;

use super::bastion::{read_at_least, read_positive};
use super::listen;
use super::plan::{
    CredentialsPlan, DatabasePlan, ForwardPlan, Kind, LoginPlan, ProbeLevel, ProbePlan, ProbeWhen, TlsMode,
    TlsPlan,
};
use super::reader::{Report, Section};
use super::values::{BastionName, HostOrSocket, Port, Whole};
use crate::ids::{HostPort, Name, POSTGRES_SOCKET, Target};
use crate::secret::SecretSource;

/// A probe that follows the last one sooner is load, not news.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

const RDS_BUNDLE: &str = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem";

/// Parts of the names of services that speak PostgreSQL's protocol but bill or wake by the query: a default made for
/// PostgreSQL would cost their users money, so they are refused rather than guessed at.
const UNSUPPORTED_HOSTS: [(&str, &str); 4] = [
    (".redshift.amazonaws.", "Amazon Redshift"),
    (".redshift-serverless.amazonaws.", "Amazon Redshift Serverless"),
    (".databricks.com", "Databricks Lakebase"),
    (".azuredatabricks.net", "Databricks Lakebase"),
];

pub(super) fn read(
    name: Name,
    mut section: Section,
    bastions: &[Name],
    report: &mut Report,
) -> Option<Arc<DatabasePlan>> {
    let ways = read_bastions(&mut section, bastions, report);
    let host: Option<HostOrSocket> = section.require("host", report);
    let kind = read_kind(&mut section, host.as_ref(), report);
    let target = read_target(host.as_ref(), &mut section, report);
    let forward = read_forward(&mut section, report);
    let login = read_login(&mut section, report);
    let tls = read_tls(kind, target.as_ref(), &mut section, report);
    let probe = read_probe(kind, host.as_ref(), login, tls, &mut section, report);
    section.finish(report);
    Some(Arc::new(DatabasePlan {
        name,
        bastions: ways?,
        kind: kind?,
        target: target?,
        forward: forward?,
        probe,
    }))
}

fn read_bastions(section: &mut Section, known: &[Name], report: &mut Report) -> Option<Vec<Name>> {
    let named: Vec<BastionName> = section.require("bastion", report)?;
    let named: Vec<Name> = named.into_iter().map(|BastionName(name)| name).collect();
    for (index, name) in named.iter().enumerate() {
        if !known.contains(name) {
            report.problem(section, "bastion", no_such_bastion(name, known));
        } else if named.iter().take(index).any(|earlier| earlier == name) {
            report.problem(section, "bastion", format!("\"{name}\" stands twice in this list"));
        }
    }
    Some(named)
}

/// Says that a name is none of the bastions'.
pub(super) fn no_such_bastion(name: &Name, known: &[Name]) -> String {
    let names: Vec<&str> = known.iter().map(Name::as_str).collect();
    let known =
        if names.is_empty() { "there is none".to_owned() } else { format!("known are {}", names.join(", ")) };
    format!("there is no [bastions.{name}]: {known}")
}

/// None where neither of the two keys says it.
fn read_kind(section: &mut Section, host: Option<&HostOrSocket>, report: &mut Report) -> Option<Kind> {
    let Some(HostOrSocket(host)) = host.filter(|_| !section.has("kind")) else {
        return section.get("kind", report);
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_rds = host.ends_with(".rds.amazonaws.com") || host.ends_with(".rds.amazonaws.com.cn");
    let inferred = if is_rds { Kind::Rds } else { Kind::Postgres };
    let unsupported = UNSUPPORTED_HOSTS.iter().find(|(part, _)| host.contains(part));
    if let Some((_, service)) = unsupported {
        let text = format!(
            "is {service}, which is not supported yet, since a probe may cost money: write kind = \"postgres\" and a \
             probe.level that you accept, such as \"tls\""
        );
        report.problem(section, "host", text);
    }
    Some(section.get_or("kind", inferred, report))
}

fn read_target(host: Option<&HostOrSocket>, section: &mut Section, report: &mut Report) -> Option<Target> {
    let Some(HostOrSocket(path)) = host.filter(|host| host.is_socket()) else {
        let port: Port = section.get_or("port", Whole(5432), report);
        return host.map(|HostOrSocket(name)| Target::Tcp(HostPort::new(name, port.port())));
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    if let Some(port) = section.get::<Port>("port", report) {
        // libpq takes a directory and a port; the file's name is the same everywhere.
        let advice = if name.starts_with(POSTGRES_SOCKET) {
            "leave it out".to_owned()
        } else {
            format!("write host = \"{path}/{POSTGRES_SOCKET}{}\" alone", port.port())
        };
        report.problem(section, "port", format!("is of no use with a Unix socket as `host`: {advice}"));
    } else if !name.starts_with(POSTGRES_SOCKET) {
        let text = format!(
            "\"{path}\" is taken for the socket itself: PostgreSQL's is named {POSTGRES_SOCKET}5432 in its directory"
        );
        report.note(section, "host", text);
    }
    Some(Target::Unix(path.as_str().into()))
}

fn read_forward(section: &mut Section, report: &mut Report) -> Option<ForwardPlan> {
    let listen = listen::read(section, report);
    let mut hold = section.section("hold", "hold = { timeout = \"30s\" }", report);
    let hold_timeout = hold.get_or("timeout", Duration::from_secs(30), report);
    let hold_max: Whole<0, 1_000_000> = hold.get_or("max", Whole(500), report);
    hold.finish(report);
    let max_clients: Whole<1, 1_000_000> = section.get_or("max_clients", Whole(1000), report);
    let idle_timeout: Option<Duration> = section.get("idle_timeout", report);
    if idle_timeout == Some(Duration::ZERO) {
        report.problem(section, "idle_timeout", "must be longer than nothing: leave it out for no limit");
    }
    let stall_timeout = read_positive(section, "stall_timeout", Duration::from_secs(60), report);
    Some(ForwardPlan {
        listen: listen?,
        hold_timeout,
        hold_max: hold_max.size(),
        max_clients: max_clients.size(),
        idle_timeout,
        stall_timeout,
    })
}

fn read_login(section: &mut Section, report: &mut Report) -> Option<LoginPlan> {
    let user: Option<String> = section.get("user", report);
    let password: Option<SecretSource> = section.get("password", report);
    let database: Option<String> = section.get("database", report);
    if user.is_none() {
        for key in ["password", "database"] {
            if section.has(key) && !section.has("user") {
                report.problem(section, key, "is of no use without `user`: the probe logs in only with both");
            }
        }
    }
    Some(LoginPlan { database, credentials: CredentialsPlan::Password { user: user?, password } })
}

fn read_tls(
    kind: Option<Kind>,
    target: Option<&Target>,
    section: &mut Section,
    report: &mut Report,
) -> TlsPlan {
    let mut tls = section.section("tls", "tls = { mode = \"verify-full\" }", report);
    let is_socket = matches!(target, Some(Target::Unix(_)));
    let default = match kind {
        _ if is_socket => TlsMode::Disable,
        Some(Kind::Rds) if tls.has("ca") => TlsMode::VerifyFull,
        Some(Kind::Rds) => TlsMode::Require,
        Some(Kind::Postgres) | None => TlsMode::Prefer,
    };
    let mode = tls.get_or("mode", default, report);
    let ca = tls.get("ca", report);
    let allow_unverified = tls.get_or("allow_unverified", false, report);
    let mode_is_known = kind.is_some() || tls.has("mode");
    if is_socket && (ca.is_some() || mode.verifies()) {
        let key = if mode.verifies() { "mode" } else { "ca" };
        let text = "there is nothing to verify: PostgreSQL speaks no TLS over a Unix socket, which is as safe as the \
                    bastion itself; leave tls out";
        report.problem(&tls, key, text);
    } else if ca.is_some() && !mode.verifies() && mode_is_known {
        report.problem(&tls, "ca", "is of no use with this tls.mode: write mode = \"verify-full\"");
    }
    if kind == Some(Kind::Rds) && !is_socket && !tls.has("mode") && !tls.has("ca") {
        let text = format!("the probe does not verify this database: fetch {RDS_BUNDLE} and name it here");
        report.note(&tls, "ca", text);
    }
    tls.finish(report);
    TlsPlan { mode, ca, allow_unverified }
}

fn read_probe(
    kind: Option<Kind>,
    host: Option<&HostOrSocket>,
    login: Option<LoginPlan>,
    tls: TlsPlan,
    section: &mut Section,
    report: &mut Report,
) -> ProbePlan {
    let mut probe = section.section("probe", "probe = { level = \"query\" }", report);
    let default_level = if login.is_some() { ProbeLevel::Query } else { ProbeLevel::Tls };
    let level = probe.get_or("level", default_level, report);
    if level >= ProbeLevel::Login && login.is_none() && !section.has("user") {
        report.problem(&probe, "level", "needs the database's `user` (and mostly `password`) to log in with");
    }
    // An Aurora cluster may be set to scale to zero, which a probe that always runs would prevent.
    let is_cluster = |HostOrSocket(host): &HostOrSocket| host.to_ascii_lowercase().contains(".cluster-");
    let may_sleep = kind == Some(Kind::Rds) && host.is_some_and(is_cluster);
    let default_when = if may_sleep { ProbeWhen::Active } else { ProbeWhen::Always };
    if may_sleep && !probe.has("when") {
        let text = "this Aurora cluster is probed only while clients are active, since it may scale to zero: write \
                    when = \"always\" if it does not";
        report.note(&probe, "when", text);
    }
    let when = probe.get_or("when", default_when, report);
    let interval = read_at_least(MIN_INTERVAL, &mut probe, "interval", Duration::from_secs(15), report);
    let timeout = read_positive(&mut probe, "timeout", Duration::from_secs(5), report);
    let failures: Whole<1, 100> = probe.get_or("failures", Whole(2), report);
    let fresh_login = read_positive(&mut probe, "fresh_login", Duration::from_secs(600), report);
    let query = probe.get_or("query", "SELECT 1".to_owned(), report);
    probe.finish(report);
    ProbePlan { level, when, interval, timeout, failures: failures.count(), fresh_login, query, login, tls }
}
