//! What `doctor` finds, for programs and support tickets. No secret comes so far.

use std::io::Write;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cli::Stop;
use crate::cli::asking::print_json;
use crate::doctor::{Check, Finding, Outcome, Stage, Subject, Verdict};
use crate::settings::{Note, Problem, Settings};

pub(super) fn print(
    settings: &Settings,
    notes: &[Note],
    checks: &[Check],
    verdict: &Verdict,
    out: &mut impl Write,
) -> Result<(), Stop> {
    let notes: Vec<Value> = notes.iter().map(|note| json!({ "key": note.key, "text": note.text })).collect();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "at": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        "passed": verdict.passed,
        "summary": verdict.summary,
        "configuration": { "files": settings.files, "notes": notes, "problems": [] },
        "checks": checks.iter().map(check).collect::<Vec<_>>(),
        "findings": verdict.findings.iter().map(finding).collect::<Vec<_>>(),
    });
    print_json(&report, out)
}

pub(super) fn print_problems(problems: &[Problem], out: &mut impl Write) -> Result<(), Stop> {
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "passed": false,
        "configuration": { "problems": problems },
    });
    print_json(&report, out)
}

fn check(check: &Check) -> Value {
    let mut value = match &check.subject {
        Subject::Bastion(plan) => json!({
            "bastion": plan.name,
            "host": &*plan.at.host,
            "port": plan.at.port,
            "user": plan.user,
            "jump": plan.jump,
        }),
        Subject::Database(way) => json!({
            "database": way.database.name,
            "through": way.bastion,
            "host": way.database.target.host(),
            "port": way.database.target.port(),
        }),
    };
    if let Some(members) = value.as_object_mut() {
        members.insert("passed".to_owned(), check.passed().into());
        members.insert("source_address".to_owned(), json!(check.source));
        members.insert("stages".to_owned(), check.stages.iter().map(stage).collect());
    }
    value
}

fn stage(stage: &Stage) -> Value {
    let (word, detail, failed) = match &stage.outcome {
        Outcome::Passed(text) => ("passed", Some(text), None),
        Outcome::Failed(why) => ("failed", None, Some(why)),
        Outcome::NotAsked(reason) => ("not_asked", Some(reason), None),
        Outcome::Awaited | Outcome::NotReached => ("not_reached", None, None),
    };
    json!({
        "stage": stage.kind.key(),
        "outcome": word,
        "seconds": stage.took.map(|took| took.as_secs_f64()),
        "detail": detail.filter(|text| !text.is_empty()),
        "failure": failed,
    })
}

fn finding(finding: &Finding) -> Value {
    json!({
        "subjects": finding.subjects,
        "failure": finding.failure,
        "side": finding.side.key(),
        "place": finding.place,
        "source_address": finding.source,
        "public_key": finding.own_key,
    })
}
