//! Reads `[databases.NAME.probe]`. A database that costs less while nobody uses it is not asked anything that wakes it or is
//! billed, unless the user wrote so.

use std::time::Duration;

use super::bastion::{read_at_least, read_positive};
use super::kind::Rest;
use super::login::{Method, Read};
use super::plan::{CredentialsPlan, LakebaseResource, ProbeLevel, ProbePlan, ProbeWhen, TlsPlan};
use super::reader::{Report, Section};
use super::values::Whole;

/// A probe that follows the last one sooner is load, not news.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn read(
    rest: Rest,
    Read { login, method }: Read,
    tls: TlsPlan,
    section: &mut Section,
    report: &mut Report,
) -> ProbePlan {
    let rest = match login.as_ref().map(|login| &login.credentials) {
        Some(CredentialsPlan::LakebaseOauth { resource: LakebaseResource::Instance(_), .. }) => Rest::Never,
        Some(CredentialsPlan::LakebaseOauth { resource: LakebaseResource::Endpoint(_), .. }) => Rest::Sleeps,
        _ => rest,
    };
    let mut probe = section.section("probe", "probe = { level = \"query\" }", report);
    let level = read_level(rest, login.is_some(), &mut probe, report);
    let could_log_in = method == Some(Method::Database) && !section.has("user");
    if level >= ProbeLevel::Login && login.is_none() && could_log_in {
        report.problem(&probe, "level", "needs the database's `user` (and mostly `password`) to log in with");
    }
    if let Some(login) = login.as_ref().filter(|_| level >= ProbeLevel::Login && !section.has("database")) {
        require_database(&login.credentials, section, report);
    }
    let when = read_when(rest, level, &mut probe, report);
    let interval = read_at_least(MIN_INTERVAL, &mut probe, "interval", Duration::from_secs(15), report);
    let timeout = read_positive(&mut probe, "timeout", Duration::from_secs(5), report);
    let failures: Whole<1, 100> = probe.get_or("failures", Whole(2), report);
    let fresh_login = read_positive(&mut probe, "fresh_login", Duration::from_secs(600), report);
    let query = probe.get_or("query", "SELECT 1".to_owned(), report);
    probe.finish(report);
    ProbePlan { level, when, interval, timeout, failures: failures.count(), fresh_login, query, login, tls }
}

/// The user of a temporary login is an identity of the cloud, after which nobody names a database.
fn require_database(credentials: &CredentialsPlan, section: &Section, report: &mut Report) {
    let example = match credentials {
        CredentialsPlan::Password { .. } | CredentialsPlan::RdsIam { .. } => return,
        CredentialsPlan::RedshiftIam { .. } | CredentialsPlan::RedshiftServerlessIam { .. } => "dev",
        CredentialsPlan::AlloydbIam { .. } => "postgres",
        CredentialsPlan::LakebaseOauth { .. } => "databricks_postgres",
    };
    let text = format!(
        "is missing: the database would take the user's name for it, so write for example database = \"{example}\""
    );
    report.problem(section, "database", text);
}

fn read_level(rest: Rest, has_login: bool, probe: &mut Section, report: &mut Report) -> ProbeLevel {
    let cost = rest.cost();
    let default = if has_login && cost.is_none() { ProbeLevel::Query } else { ProbeLevel::Tls };
    if let Some(cost) = cost.filter(|_| has_login && !probe.has("level")) {
        let text =
            format!("the probe stops at TLS, since {cost}: write level = \"query\" if you accept that");
        report.note(probe, "level", text);
    }
    probe.get_or("level", default, report)
}

fn read_when(rest: Rest, level: ProbeLevel, probe: &mut Section, report: &mut Report) -> ProbeWhen {
    let text = match rest.cost().filter(|_| level >= ProbeLevel::Login) {
        Some(cost) => Some(format!(
            "this database is probed only while clients are active, since {cost}: write when = \"always\" if you accept \
             that all day"
        )),
        None if rest == Rest::Perhaps => Some(
            "this Aurora cluster is probed only while clients are active, since it may scale to zero: write when = \
             \"always\" if it does not"
                .to_owned(),
        ),
        None => None,
    };
    let default = if text.is_some() { ProbeWhen::Active } else { ProbeWhen::Always };
    if let Some(text) = text.filter(|_| !probe.has("when")) {
        report.note(probe, "when", text);
    }
    probe.get_or("when", default, report)
}
