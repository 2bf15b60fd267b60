//! What all checks together come to.

use std::net::IpAddr;

use super::{Check, Side, Subject};
use crate::failure::{Cause, Failure, Phase};

/// Something to be mended.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Where it shows itself.
    pub subjects: Vec<String>,
    /// What it is.
    pub failure: Failure,
    /// Who has to change something.
    pub side: Side,
    /// The same by name, where it has one.
    pub place: String,
    /// The address that an allow list would have to know us by, where it may be one that keeps us out.
    pub source: Option<IpAddr>,
    /// The public line of the daemon's own key, where the bastion rejects that.
    pub own_key: Option<String>,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Every check has passed.
    pub passed: bool,
    /// A sentence for each thing that a person wants to know first.
    pub summary: Vec<String>,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Of checks that have been made.
    #[must_use]
    pub fn of(checks: &[Check]) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        for check in checks {
            for failure in check.failures() {
                let subject = check.subject.name();
                match findings.iter_mut().find(|known| is_the_same(&known.failure, failure)) {
                    Some(known) => known.subjects.push(subject),
                    None => findings.push(finding(check, subject, failure)),
                }
            }
        }
        let passed = checks.iter().all(Check::passed);
        Self { passed, summary: summary(checks, passed), findings }
    }
}

/// Its advice may differ by what it was about.
fn is_the_same(one: &Failure, other: &Failure) -> bool {
    (one.cause, one.detail()) == (other.cause, other.detail())
}

fn finding(check: &Check, subject: String, failure: &Failure) -> Finding {
    let side = side(check, failure);
    let source =
        check.source.filter(|source| matches!(side, Side::Network | Side::Bastion) && !source.is_loopback());
    let place = place(check, failure, side);
    let own_key = check.own_key.clone().filter(|_| failure.cause == Cause::AuthRejected);
    Finding { subjects: vec![subject], failure: failure.clone(), side, place, source, own_key }
}

/// What a jump connects to is no database.
fn side(check: &Check, failure: &Failure) -> Side {
    match (&check.subject, Side::of(failure.cause)) {
        (Subject::Bastion(_), Side::Database) => Side::Network,
        (_, side) => side,
    }
}

fn place(check: &Check, failure: &Failure, side: Side) -> String {
    match (side, &check.subject) {
        (Side::Bastion, Subject::Bastion(plan)) => match &plan.jump {
            Some(jump) if failure.cause.phase() == Phase::Channel => format!("bastion {jump}"),
            _ => format!("bastion {}", plan.name),
        },
        (Side::Bastion, Subject::Database(way)) => format!("bastion {}", way.bastion),
        (Side::Database, Subject::Database(way)) => format!("database {}", way.database.name),
        _ => side.label().to_owned(),
    }
}

/// How a thing stands that has one way or several.
struct Standing {
    name: String,
    good: Vec<String>,
    bad: Vec<String>,
}

fn summary(checks: &[Check], passed: bool) -> Vec<String> {
    let bastions = checks.iter().filter(|check| check.subject.database().is_none());
    let (bastion_count, bad_bastions) = count(bastions.map(|check| (check.passed(), bare(&check.subject))));
    let mut databases: Vec<Standing> = Vec::new();
    for check in checks {
        let Subject::Database(way) = &check.subject else { continue };
        let (name, bastion) = (way.database.name.to_string(), way.bastion.to_string());
        if databases.last().is_none_or(|last| last.name != name) {
            databases.push(Standing { name, good: Vec::new(), bad: Vec::new() });
        }
        if let Some(last) = databases.last_mut() {
            if check.passed() { last.good.push(bastion) } else { last.bad.push(bastion) }
        }
    }
    let (database_count, bad_databases) =
        count(databases.iter().map(|standing| (!standing.good.is_empty(), standing.name.clone())));
    if passed {
        let all = [number(bastion_count, "bastion"), number(database_count, "database")];
        return vec![format!("All is well: {}.", all.join(" and "))];
    }
    let mut summary = Vec::new();
    if !bad_bastions.is_empty() {
        let of = number(bastion_count, "bastion");
        summary.push(format!("{} of {of} cannot be used: {}.", bad_bastions.len(), bad_bastions.join(", ")));
    }
    if !bad_databases.is_empty() {
        let of = number(database_count, "database");
        summary.push(format!(
            "{} of {of} cannot be used: {}.",
            bad_databases.len(),
            bad_databases.join(", ")
        ));
    }
    for Standing { name, good, bad } in &databases {
        if !good.is_empty() && !bad.is_empty() {
            let (good, bad) = (good.join(" and "), bad.join(" or "));
            summary.push(format!("{name} can be used through {good}, and not through {bad}."));
        }
    }
    summary
}

fn bare(subject: &Subject) -> String {
    match subject {
        Subject::Bastion(plan) => plan.name.to_string(),
        Subject::Database(way) => way.database.name.to_string(),
    }
}

/// How many there are, and the names of those that are bad.
fn count(all: impl Iterator<Item = (bool, String)>) -> (usize, Vec<String>) {
    let (mut count, mut bad) = (0, Vec::new());
    for (good, name) in all {
        count += 1;
        bad.extend((!good).then_some(name));
    }
    (count, bad)
}

fn number(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
