//! The whole vocabulary, held against its tests, its hints and the runbook.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tunnelkeeper::failure::Cause;

use super::{Case, auth, banner, channel, client, database, dns, elsewhere, kex, session, tcp};

/// Where the runbook has a line for each.
const SECTION: &str = "\n## Failures, one by one\n";

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn cases() -> impl Iterator<Item = &'static Case> {
    let here = [
        dns::CASES,
        tcp::CASES,
        banner::CASES,
        kex::CASES,
        auth::CASES,
        session::CASES,
        channel::CASES,
        database::CASES,
        client::CASES,
    ];
    here.into_iter().flatten().chain(elsewhere::CASES)
}

/// The lines of the runbook, as phase and reason; each says what it means, where to look and what to do.
fn runbook() -> BTreeSet<(String, String)> {
    let text = read("dashboards/RUNBOOK.md");
    let section = text.split_once(SECTION).unwrap().1.split("\n## ").next().unwrap();
    let mut lines = BTreeSet::new();
    for part in section.split("\n### ").skip(1) {
        let (phase, rest) = part.split_once('\n').unwrap();
        for line in rest.lines().filter(|line| line.starts_with("| `")) {
            let line = line.replace("\\|", " or ");
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
            let words = [phase, cells[0]].map(|word| word.trim_matches('`').to_owned());
            assert!(lines.insert(words.clone().into()), "{words:?} stands twice");
        }
    }
    lines
}

#[test]
fn every_cause_has_a_test_a_hint_and_a_line_in_the_runbook() {
    let mut runbook = runbook();
    let mut without = Vec::new();
    println!("{:<12} {:<20} hint, and the tests", "phase", "reason");
    for cause in Cause::ALL {
        let (phase, reason) = (cause.phase().as_str(), cause.reason());
        let mut tests = cases().filter(|case| case.causes.contains(cause)).peekable();
        if tests.peek().is_none() {
            without.push(format!("a test of {cause:?}"));
        }
        println!("{phase:<12} {reason:<20} {}", cause.hint());
        for Case { file, test, .. } in tests {
            println!("{:<33} {file} {test}", "");
        }
        assert!(!cause.hint().is_empty());
        if !runbook.remove(&(phase.to_owned(), reason.to_owned())) {
            without.push(format!("a line in the runbook for {phase} {reason}"));
        }
    }
    assert!(without.is_empty(), "there is not {without:#?}");
    assert!(runbook.is_empty(), "the runbook explains {runbook:?}, which do not exist");
}

/// A test of another file may go or be another one some day; the table must not name it then.
#[test]
fn what_other_tests_prove_is_still_proved_by_them() {
    let mut checked = 0;
    for Case { file, test, causes } in elsewhere::CASES {
        let text = read(file);
        let start = text.find(&format!("#[test]\nfn {test}() {{\n"));
        let start = start.unwrap_or_else(|| panic!("{file} has no test {test}"));
        let body = text[start..].split("\n}\n").next().unwrap();
        for cause in *causes {
            let reason = cause.reason();
            let names = [format!("\"{reason}\""), format!("\\\"{reason}\\\""), format!("Cause::{cause:?}")];
            assert!(names.iter().any(|name| body.contains(name)), "{file} {test} says nothing of {cause:?}");
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} were checked");
}
