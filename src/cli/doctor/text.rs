//! What `doctor` finds, for people: a line for each stage, and what is to be mended.

use std::io::{self, Write};
use std::time::Duration;

use crate::cli::configuration::{files, how_many};
use crate::doctor::{Check, Finding, Outcome, Stage, Subject, Verdict};
use crate::failure::Cause;
use crate::settings::{Note, Settings, Surroundings};

/// Columns of a line.
const WIDTH: usize = 80;
/// Where the text of a stage begins.
const STAGE_TEXT: usize = 29;
/// And that of a finding.
const FINDING_TEXT: usize = 9;

/// Whether lines have colours.
#[derive(Clone, Copy)]
pub(super) struct Style {
    colour: bool,
}

impl Style {
    /// On a terminal, unless `NO_COLOR` is set (no-color.org).
    pub(super) fn of(is_terminal: bool, surroundings: &Surroundings) -> Self {
        let unwanted = surroundings.variables.get("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: is_terminal && !unwanted }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn head(self, text: &str) -> String {
        self.paint("1", text)
    }
}

pub(super) fn print_configuration(
    settings: &Settings,
    notes: &[Note],
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    for line in wrap(&format!("configuration ({}): {}", files(settings), how_many(settings)), 0, 2) {
        writeln!(out, "{}", style.head(&line))?;
    }
    for Note { key, text } in notes {
        for line in indented(&format!("note: {key}: {text}"), 8) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// The lines of all that is certain and will stay as it is: up to the first stage that is still under way.
pub(super) fn settled(checks: &[Check], style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    for check in checks {
        lines.push(String::new());
        lines.extend(wrap(&title(&check.subject), 0, 2).iter().map(|line| style.head(line)));
        for stage in &check.stages {
            match &stage.outcome {
                Outcome::Awaited => return lines,
                Outcome::NotReached => {}
                _ => lines.extend(stage_lines(stage, style)),
            }
        }
        lines.extend(not_reached(check));
    }
    lines
}

fn title(subject: &Subject) -> String {
    match subject {
        Subject::Bastion(plan) => {
            let jump = plan.jump.as_ref().map_or(String::new(), |jump| format!(" through {jump}"));
            format!("bastion {} ({}@{}){jump}", plan.name, plan.user, plan.at)
        }
        Subject::Database(way) => {
            format!("database {} ({}) through {}", way.database.name, way.database.target, way.bastion)
        }
    }
}

fn stage_lines(stage: &Stage, style: Style) -> Vec<String> {
    let took = stage.took.map_or(String::new(), show);
    let (word, text) = match &stage.outcome {
        Outcome::Passed(text) => (format!("{}    ", style.good("ok")), text.clone()),
        Outcome::Failed(failure) => (style.bad("FAILED"), show_cause(failure.cause)),
        Outcome::NotAsked(reason) => ("-     ".to_owned(), format!("not asked: {reason}")),
        Outcome::Awaited | Outcome::NotReached => return Vec::new(),
    };
    let head = format!("  {:<11}  {word} {took:>7}", stage.kind.label());
    let mut text = wrap(&text, STAGE_TEXT, STAGE_TEXT).into_iter();
    let first = format!("{head}  {}", text.next().unwrap_or_default());
    std::iter::once(first.trim_end().to_owned()).chain(text).collect()
}

fn not_reached(check: &Check) -> Vec<String> {
    let left: Vec<&str> = check
        .stages
        .iter()
        .filter(|stage| stage.outcome == Outcome::NotReached)
        .map(|stage| stage.kind.label())
        .collect();
    if left.is_empty() {
        return Vec::new();
    }
    let why = match check.subject.behind() {
        Some(bastion) if check.is_cut_off() => format!(" (see bastion {bastion})"),
        _ => String::new(),
    };
    let text = format!("not reached: {}{why}", left.join(", "));
    indented(&text, 15)
}

fn show_cause(cause: Cause) -> String {
    format!("{} {}", cause.phase().as_str(), cause.reason())
}

fn show(took: Duration) -> String {
    let millis = took.as_secs_f64() * 1000.0;
    match millis {
        ..9.95 => format!("{millis:.1} ms"),
        ..999.5 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1000.0),
    }
}

/// One line, without its end: what is waited for.
pub(super) fn under_way(checks: &[Check], for_so_long: Duration) -> String {
    let current = checks.iter().filter_map(|check| {
        let stage = check.stages.iter().find(|stage| stage.outcome == Outcome::Awaited)?;
        Some(format!("{}: {}", check.subject.name(), stage.kind.label()))
    });
    let mut current = current.collect::<Vec<_>>().into_iter();
    let first = current.next().unwrap_or_default();
    let others = match current.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let line = format!("... {first}{others} ({} s)", for_so_long.as_secs());
    line.chars().take(WIDTH - 1).collect()
}

pub(super) fn print_verdict(verdict: &Verdict, style: Style, out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    for sentence in &verdict.summary {
        for line in wrap(sentence, 0, 0) {
            writeln!(out, "{}", if verdict.passed { style.good(&line) } else { style.bad(&line) })?;
        }
    }
    for finding in &verdict.findings {
        print_finding(finding, style, out)?;
    }
    Ok(())
}

fn print_finding(finding: &Finding, style: Style, out: &mut impl Write) -> io::Result<()> {
    let Finding { subjects, failure, place, source, own_key, .. } = finding;
    writeln!(out)?;
    for line in wrap(&format!("{}: {}", subjects.join(", "), show_cause(failure.cause)), 0, 2) {
        writeln!(out, "{}", style.head(&line))?;
    }
    let source = source.map(|source| {
        format!("this machine, which sends from {source} (behind NAT, the bastion sees another address)")
    });
    let fields = [
        ("found", Some(failure.detail().to_owned())),
        ("where", Some(place.clone())),
        ("do", Some(failure.hint().to_owned())),
        ("key", own_key.clone()),
        ("from", source),
    ];
    for (word, text) in fields.into_iter().filter_map(|(word, text)| Some((word, text?))) {
        let mut lines = wrap(&text, FINDING_TEXT, FINDING_TEXT).into_iter();
        writeln!(out, "  {word:<5}  {}", lines.next().unwrap_or_default())?;
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// A text that stands two columns from the left, its later lines as many as `rest`.
fn indented(text: &str, rest: usize) -> Vec<String> {
    let mut lines = wrap(text, 2, rest);
    if let Some(first) = lines.first_mut() {
        first.insert_str(0, "  ");
    }
    lines
}

/// Breaks a text between words into lines of at most [`WIDTH`] columns. The first begins at the column `first` and comes
/// without what stands before, the others are indented by `rest`. A longer word stays whole: somebody may want to copy it.
fn wrap(text: &str, first: usize, rest: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut column = first;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let len = word.chars().count();
        let is_begun = !line.trim_start().is_empty();
        if is_begun && column + 1 + len > WIDTH {
            lines.push(std::mem::replace(&mut line, " ".repeat(rest)));
            column = rest;
        } else if is_begun {
            line.push(' ');
            column += 1;
        }
        line.push_str(word);
        column += len;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_only_there() {
        let long = "x".repeat(100);
        let text = format!("{} {} end", "word ".repeat(20).trim(), long);
        let lines = wrap(&text, 10, 4);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH || line.trim() == long), "{lines:#?}");
        assert!(lines.first().unwrap().chars().count() <= WIDTH - 10);
        assert!(lines.iter().skip(1).all(|line| line.starts_with("    ") && !line.starts_with("     ")));
        let words: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
        assert_eq!(words, text.split(' ').collect::<Vec<_>>());
        assert_eq!(wrap("", 5, 5), [""]);
    }

    #[test]
    fn times_have_two_digits_that_matter() {
        for (micros, expected) in
            [(40, "0.0 ms"), (9_940, "9.9 ms"), (9_960, "10 ms"), (999_000, "999 ms"), (1_240_000, "1.2 s")]
        {
            assert_eq!(show(Duration::from_micros(micros)), expected);
        }
    }
}
