//! The files beside the source say what the program does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::daemon::{command, configured};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every key in force, with its value and its source.
fn shown(configuration: &str) -> BTreeMap<String, (Value, String)> {
    // The tables of the file itself are complete: nothing is put before them.
    let (_dir, path) = configured(&format!("# [http]\n{configuration}"));
    let output = command(&path, &["config", "show", "--format", "json"])
        .env("ANALYTICS_PASSWORD", "not shown")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}\n{configuration}");
    let keys: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    keys.iter().map(|key| (text(&key["key"]), (key["value"].clone(), text(&key["source"])))).collect()
}

#[test]
fn every_configuration_file_loads() {
    let files: Vec<PathBuf> =
        fs::read_dir(file("config")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in &files {
        assert!(!shown(&fs::read_to_string(path).unwrap()).is_empty());
    }
    assert!(files.len() >= 7, "{files:?}");
}

/// The ways to log in that not every kind has, each with the keys that the reference shows for it.
const LOGINS: [(&str, &[&str]); 7] = [
    ("kind = \"rds\"\nmethod = \"iam\"", &["region", "access_key_id", "secret_access_key", "session_token"]),
    ("kind = \"rds\"\nmethod = \"iam\"", &["region", "iam_profile"]),
    ("kind = \"redshift\"\nmethod = \"iam\"", &["cluster_id", "region", "endpoint_url"]),
    ("kind = \"redshift-serverless\"\nmethod = \"iam\"", &["workgroup", "region", "endpoint_url"]),
    ("kind = \"alloydb\"\nmethod = \"iam\"", &["credentials_file"]),
    ("kind = \"lakebase\"\nmethod = \"oauth\"", &["workspace", "client_id", "client_secret", "instance"]),
    ("kind = \"lakebase\"\nmethod = \"oauth\"", &["workspace", "client_id", "client_secret", "endpoint"]),
];

fn is_of_a_login(line: &str) -> bool {
    line.split_once(" = ").is_some_and(|(key, _)| LOGINS.iter().any(|(_, keys)| keys.contains(&key)))
}

#[test]
fn the_reference_shows_every_way_to_log_in() {
    let reference = fs::read_to_string(file("config/tunnelkeeper.toml")).unwrap();
    let bastion = "[bastions.prod]\nhost = \"b\"\nuser = \"u\"\n";
    for (way, keys) in LOGINS {
        let lines: String = keys
            .iter()
            .map(|key| {
                let line = reference.lines().find(|line| line.starts_with(&format!("# {key} = ")));
                let line = line.unwrap_or_else(|| panic!("{key} is not in the reference"));
                format!("{}\n", line.trim_start_matches("# "))
            })
            .collect();
        let database = "[databases.d]\nbastion = \"prod\"\nhost = \"db\"\nlisten = \"127.0.0.1:0\"\nuser = \"u\"\ndatabase = \"d\"";
        let shown = shown(&format!("{bastion}{database}\n{way}\ntls.mode = \"verify-full\"\n{lines}"));
        for key in keys {
            assert!(shown.contains_key(&format!("databases.d.{key}")), "{key}: {shown:?}");
        }
    }
}

#[test]
fn the_smallest_configuration_of_the_readme_loads() {
    let readme = fs::read_to_string(file("README.md")).unwrap();
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let whole: Vec<&&str> = blocks.iter().filter(|block| block.contains("[bastions.")).collect();
    assert!(!whole.is_empty());
    assert!(whole.iter().all(|block| shown(block)["bastions.prod.port"].0 == 22));
}

#[test]
fn the_reference_names_every_key_with_its_default() {
    let reference = fs::read_to_string(file("config/tunnelkeeper.toml")).unwrap();
    let is_assignment = |line: &str| {
        let key = line.split(" = ").next().unwrap();
        line.contains(" = ") && key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.')
    };
    // Pins exclude files of known hosts, a mode that does not verify excludes roots; and files that are named exist.
    let alternatives = ["jump = ", "known_hosts = ", "host_key = ", "tls.ca = "];
    assert!(alternatives.iter().all(|key| reference.contains(&format!("\n# {key}"))));
    let written_out: Vec<&str> = reference
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_assignment(rest)).unwrap_or(line))
        .filter(|line| !alternatives.iter().any(|key| line.starts_with(key)) && !is_of_a_login(line))
        .collect();
    let (defaults, written_out) = (shown(&reference), shown(&written_out.join("\n")));
    let mut checked = 0;
    for (key, (value, source)) in &defaults {
        // It is as many as this machine has cores.
        if source == "default" && key != "daemon.threads" && key != "bastions.prod.known_hosts" {
            let (written, by) = &written_out[key];
            assert_ne!(by, "default", "{key} is not in the reference");
            assert_eq!(written, value, "{key} has another default");
            checked += 1;
        }
    }
    assert!(checked >= 25, "{checked}");
}

/// The tests that a row of the threat model names, each with the file that it is in.
fn named_tests(row: &str) -> Vec<(&str, &str)> {
    let quoted = row.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once(".rs: ")).collect()
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string(file("docs/threat-model.md")).unwrap();
    let tables = text.split("shown by |\n").skip(1).map(|rest| rest.split("\n\n").next().unwrap());
    let rows: Vec<&str> = tables.flat_map(|table| table.lines().skip(1)).collect();
    assert!(rows.len() >= 35, "only {} rows were seen", rows.len());
    for row in rows {
        let tests = named_tests(row);
        assert!(!tests.is_empty(), "nothing shows it: {row}");
        for (path, test) in tests {
            let code = fs::read_to_string(file(&format!("{path}.rs")))
                .unwrap_or_else(|error| panic!("{path}.rs: {error}"));
            let place =
                code.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{path}.rs has no {test}"));
            let attributes = code[..place].rsplit("\n\n").next().unwrap();
            assert!(attributes.contains("test"), "{path}.rs: {test} is no test");
        }
    }
}
