//! The rules for Prometheus: it accepts them, their tests pass, every alert has its tests and its page in the runbook,
//! and all of them are about series that the daemon has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::support::account::find;
use crate::support::bastion::make_key;
use crate::support::client::said;
use crate::support::{Bastion, Daemon, Fault, Postgres, Relay, eventually};

const RULE_FILES: [&str; 2] = ["recording.rules.yml", "alerts.rules.yml"];

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct TestFile {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    #[serde(default)]
    alert_rule_test: Vec<AlertTest>,
    #[serde(default)]
    promql_expr_test: Vec<ExpressionTest>,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    exp_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ExpressionTest {
    expr: String,
}

impl AlertTest {
    /// Whether this rule is among those that are to fire. Several may have one name.
    fn expects(&self, rule: &Rule) -> bool {
        self.exp_alerts.iter().any(|expected| {
            rule.labels.iter().all(|(name, value)| expected.exp_labels.get(name) == Some(value))
        })
    }
}

pub fn dashboards(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards").join(path)
}

fn prometheus(path: &str) -> PathBuf {
    dashboards("prometheus").join(path)
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rules() -> Vec<Rule> {
    let files = RULE_FILES.map(|name| read::<RuleFile>(&prometheus(name)));
    files.into_iter().flat_map(|file| file.groups).flat_map(|group| group.rules).collect()
}

fn alerts() -> Vec<Rule> {
    let alerts: Vec<Rule> = rules().into_iter().filter(|rule| rule.alert.is_some()).collect();
    assert!(alerts.len() >= 21, "only {} alerts were seen", alerts.len());
    alerts
}

fn test_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(prometheus("tests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    files
}

fn tests() -> Vec<Test> {
    test_files().iter().flat_map(|path| read::<TestFile>(path).tests).collect()
}

/// What a checker says of files that it accepts.
fn accepted(program: &str, arguments: &[&str], files: &[PathBuf]) -> String {
    said(Command::new(find(program)).args(arguments).args(files))
        .unwrap_or_else(|error| panic!("{program} {arguments:?} {files:?}: {error}"))
}

#[test]
fn prometheus_and_alertmanager_accept_their_files() {
    for name in RULE_FILES {
        let rules: usize =
            read::<RuleFile>(&prometheus(name)).groups.iter().map(|group| group.rules.len()).sum();
        let said =
            accepted("promtool", &["check", "rules", "--lint=all", "--lint-fatal"], &[prometheus(name)]);
        assert!(said.contains(&format!("SUCCESS: {rules} rules found")), "{said}");
    }
    let said = accepted("promtool", &["check", "config"], &[prometheus("prometheus.example.yml")]);
    assert!(said.contains("2 rule files found"), "{said}");
    let said = accepted("amtool", &["check-config"], &[prometheus("alertmanager.example.yml")]);
    assert!(said.contains("2 inhibit rules") && said.contains("2 receivers"), "{said}");
}

#[test]
fn the_rules_pass_their_tests() {
    let files = test_files();
    let said = accepted("promtool", &["test", "rules"], &files);
    assert_eq!(said.matches("SUCCESS").count(), files.len(), "{said}");
}

#[test]
fn every_alert_is_seen_to_fire_and_to_be_silent() {
    let tests = tests();
    for rule in alerts() {
        let (name, labels) = (rule.alert.as_ref().unwrap(), &rule.labels);
        let (fires, silent): (Vec<&AlertTest>, Vec<&AlertTest>) = tests
            .iter()
            .flat_map(|test| &test.alert_rule_test)
            .filter(|test| test.alertname == *name)
            .partition(|test| test.expects(&rule));
        assert!(!fires.is_empty(), "no test has {name} {labels:?} fire");
        assert!(!silent.is_empty(), "no test has {name} {labels:?} be silent");
    }
}

fn runbook() -> String {
    fs::read_to_string(dashboards("RUNBOOK.md")).unwrap()
}

/// Every text that names series.
fn readers<'a>(rules: &'a [Rule], runbook: &'a String) -> impl Iterator<Item = &'a String> {
    let annotations = rules.iter().flat_map(|rule| rule.annotations.values());
    rules.iter().map(|rule| &rule.expr).chain(annotations).chain([runbook])
}

#[test]
fn what_is_recorded_is_tested_and_what_is_read_is_recorded() {
    let (rules, tests, runbook) = (rules(), tests(), runbook());
    let tested = tests.iter().flat_map(|test| &test.promql_expr_test).map(|test| &test.expr);
    let expressions: Vec<&String> = rules.iter().map(|rule| &rule.expr).chain(tested).collect();
    let records: BTreeSet<&str> = rules.iter().filter_map(|rule| rule.record.as_deref()).collect();
    assert!(records.len() > 20, "only {} records were seen", records.len());
    for record in &records {
        assert!(expressions.iter().any(|expr| expr.contains(record)), "no test goes through {record}");
    }
    for text in readers(&rules, &runbook) {
        for (name, _) in words(text).into_iter().filter(|(name, _)| name.contains(":tunnelkeeper_")) {
            assert!(records.contains(name), "nothing records {name}");
        }
    }
}

/// The anchors of the sections, as the usual renderers of Markdown make them.
fn anchors(markdown: &str) -> Vec<String> {
    let headings = markdown.lines().filter_map(|line| line.strip_prefix("## "));
    headings.map(|heading| heading.to_lowercase().replace(' ', "-").replace('`', "")).collect()
}

#[test]
fn every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on() {
    let anchors = anchors(&runbook());
    let alerts = alerts();
    for rule in &alerts {
        let name = rule.alert.as_ref().unwrap();
        assert!(["page", "warning"].contains(&rule.labels["severity"].as_str()), "{name}");
        for annotation in ["summary", "description"] {
            assert!(!rule.annotations[annotation].is_empty(), "{name} has no {annotation}");
        }
        assert!(rule.annotations["description"].contains("$labels.instance"), "{name} names no daemon");
        let (base, anchor) = rule.annotations["runbook_url"].split_once('#').unwrap();
        // One base, so that one command puts another in its place.
        assert_eq!(base, "https://runbooks.example.com/tunnelkeeper/RUNBOOK.md", "{name}");
        assert_eq!(anchor, name.to_lowercase());
        assert!(anchors.iter().any(|known| known == anchor), "the runbook has no {anchor}");
    }
    let names: BTreeSet<String> =
        alerts.iter().map(|rule| rule.alert.as_ref().unwrap().to_lowercase()).collect();
    for anchor in anchors.iter().filter(|anchor| anchor.starts_with("tunnelkeeper")) {
        assert!(names.contains(anchor), "the runbook explains {anchor}, which is no alert");
    }
}

/// The words of a text that can be names of series, each with what follows it.
fn words(text: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_name) {
        let word = &rest[start..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        found.push(word.split_at(end));
        rest = &word[end..];
    }
    found
}

/// The daemon's series among them. Recorded series have colons in their names.
fn series(text: &str) -> Vec<(&str, &str)> {
    let is_ours = |name: &str| name.starts_with("tunnelkeeper_") && !name.contains(':');
    words(text).into_iter().filter(|(name, _)| is_ours(name)).collect()
}

/// The family that a series belongs to.
fn family(name: &str) -> &str {
    let suffixes = ["_bucket", "_count", "_sum"];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// The matchers behind a series' name: labels with all values that they speak of.
fn matchers(after: &str) -> Vec<(&str, &str)> {
    let Some((inside, _)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) else {
        return Vec::new();
    };
    let matchers = inside.split(", ").filter_map(|matcher| {
        let (label, values) = matcher.split_once(['=', '!'])?;
        Some((label, values.trim_start_matches(['=', '~']).trim_matches('"')))
    });
    matchers.flat_map(|(label, values)| values.split('|').map(move |value| (label, value))).collect()
}

/// What a daemon says that has a bastion with a certificate, one whose idle sessions are cut, and databases that were probed, one by a temporary login.
fn exposition() -> String {
    let dir = tempfile::TempDir::with_prefix("authority-").unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let authority = make_key(dir.path(), "authority", &["-t", "ed25519", "-N", ""]);
    let bastion = Bastion::with(&format!("TrustedUserCAKeys {}.pub", authority.display()));
    let sign = ["-q", "-I", "the id", "-n", &bastion.account.name, "-V", "-1h:+365d", "-s"];
    said(Command::new("ssh-keygen").args(sign).arg(&authority).arg(bastion.path("identity.pub"))).unwrap();
    let prod = bastion.section("prod", bastion.port);
    let (analytics, signed) = {
        let postgres = Postgres::shared();
        (postgres.section("analytics", "prod"), postgres.signed_section("signed", "prod"))
    };
    let relay = Relay::before(bastion.port);
    relay.set(Fault::CutIdle(Duration::from_millis(1500)));
    let cut = format!("{}keepalive_interval = \"1m\"\n", bastion.section("cut", relay.port));
    let idle = Postgres::shared().unprobed_section("idle", "cut");
    let daemon = Daemon::start(&format!("{prod}{analytics}{signed}{cut}{idle}"));
    eventually("all is known of the bastion and the database", || {
        let text = daemon.get("/metrics").1;
        let known = [
            "ssh_certificate_expiry_timestamp_seconds",
            "certificate_expiry_timestamp_seconds",
            "credential_expiry_timestamp_seconds",
            "probe_up",
            "session_cut_seconds",
        ];
        known.iter().all(|name| text.contains(&format!("\ntunnelkeeper_{name}{{"))).then_some(text)
    })
}

#[test]
fn every_series_and_label_that_is_named_exists() {
    let text = exposition();
    let exposed: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let has = |name: &str, part: &str| {
        exposed.iter().any(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(part))
        })
    };
    let families: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let (rules, runbook) = (rules(), runbook());
    let mut named = BTreeSet::new();
    for text in readers(&rules, &runbook) {
        named.extend(series(text).into_iter().map(|(name, _)| family(name)));
    }
    for name in &named {
        assert!(families.contains(name), "there is no {name}");
    }
    assert!(named.len() > 20, "only {} series were seen", named.len());
    assert!(rules.iter().any(|rule| rule.expr.contains("process_start_time_seconds")));
    assert!(has("process_start_time_seconds", ""));
    let mut checked = 0;
    for (name, after) in rules.iter().flat_map(|rule| series(&rule.expr)) {
        for (label, value) in matchers(after) {
            assert!(has(name, &format!("{label}=\"{value}\"")), "there is no {name}{{{label}=\"{value}\"}}");
            checked += 1;
        }
    }
    assert!(checked > 12, "only {checked} labels were seen");
}
