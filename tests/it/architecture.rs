//! The rules of the house, as `src/lib.rs` tells them, read off the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines a file may have.
const MAX_LINES: usize = 500;

/// Outside crates that only some modules may name.
const DOORS: [(&str, &[&str]); 15] = [
    ("russh", &["ssh"]),
    ("tokio_postgres", &["postgres"]),
    ("prometheus", &["metrics"]),
    ("hyper", &["http", "client"]),
    ("signal_hook", &["signals"]),
    ("config", &["settings"]),
    ("tracing_subscriber", &["telemetry"]),
    ("clap", &["cli"]),
    ("sd_listen_fds", &["listener"]),
    ("sd_notify", &["systemd"]),
    ("reqwest", &["credentials"]),
    ("aws_config", &["credentials"]),
    ("aws_credential_types", &["credentials"]),
    ("aws_sigv4", &["credentials"]),
    ("aws_smithy_xml", &["credentials"]),
];

/// What the floors below the settings must not touch.
const OUTSIDE: [&str; 8] = [
    "tokio::",
    "std::fs",
    "std::net::Tcp",
    "std::process::",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "std::thread",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A file's code without its tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let without_tests = text.split("#[cfg(test)]").next().unwrap();
    without_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test_code(path: &Path) -> bool {
    matches!(path.file_stem().and_then(|stem| stem.to_str()), Some("tests" | "fake"))
}

/// The module on a floor that a file belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Each module's floor, from the headings in lib.rs.
fn floors() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut floors = BTreeMap::new();
    let mut floor = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("// Floor ") {
            floor = heading.split(':').next().unwrap().parse().ok();
        } else if let Some(module) = line.strip_prefix("pub mod ") {
            floors.insert(module.trim_end_matches(';').to_owned(), floor.unwrap());
        }
    }
    floors
}

/// The modules that a piece of code names as `crate::MODULE`.
fn named(code: &str) -> Vec<String> {
    let word =
        |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    code.match_indices("crate::").map(|(at, found)| word(&code[at + found.len()..])).collect()
}

/// Whether a crate's name stands in the code as a path's beginning.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn nobody_reaches_up_or_sideways() {
    let floors = floors();
    assert!(floors.len() > 30, "only {} modules are on floors", floors.len());
    let mut checked = 0;
    let mut wrong = Vec::new();
    let mut words: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in rust_files(&root().join("src")).into_iter().filter(|file| !is_test_code(file)) {
        let module = module_of(&file);
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let floor = floors.get(&module).unwrap_or_else(|| panic!("{module} is on no floor"));
        for other in named(&code(&file)).into_iter().filter(|other| *other != module) {
            // Macros are named from the root, whichever module they stand in.
            let Some(their_floor) = floors.get(&other) else { continue };
            checked += 1;
            if *floor == 0 && *their_floor == 0 {
                words.entry(module.clone()).or_default().insert(other);
            } else if their_floor >= floor {
                wrong.push(format!("{} (floor {floor}) names {other} (floor {their_floor})", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for word in words.keys() {
        let mut below: BTreeSet<String> = words[word].clone();
        while let Some(next) = below.iter().find_map(|w| words.get(w)?.iter().find(|w| !below.contains(*w))) {
            below.insert(next.clone());
        }
        assert!(!below.contains(word), "{word} stands in a circle");
    }
    assert!(checked > 150, "only {checked} uses were seen");
}

#[test]
fn each_outside_crate_has_one_door() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for file in rust_files(&root().join("src")).into_iter().filter(|file| !is_test_code(file)) {
        let (module, code) = (module_of(&file), code(&file));
        for (name, doors) in DOORS.iter().filter(|(name, _)| names_crate(&code, name)) {
            seen += 1;
            if !doors.contains(&module.as_str()) {
                wrong.push(format!("{} names {name}, whose doors are {doors:?}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 20, "only {seen} doors were seen");
}

#[test]
fn words_and_rules_touch_nothing_outside() {
    let floors = floors();
    let mut files = 0;
    for file in rust_files(&root().join("src")).into_iter().filter(|file| !is_test_code(file)) {
        if floors.get(&module_of(&file)).is_some_and(|floor| *floor <= 1) {
            files += 1;
            let code = code(&file);
            for outside in OUTSIDE {
                assert!(!code.contains(outside), "{} names {outside}", file.display());
            }
        }
    }
    assert!(files > 12, "only {files} files were seen");
}

#[test]
fn no_file_is_too_large_and_none_is_forgotten() {
    let mut sizes: Vec<usize> = Vec::new();
    for file in rust_files(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", file.display());
        assert!(
            text.starts_with("//!") || is_test_code(&file),
            "{} does not say what it is for",
            file.display()
        );
        sizes.push(lines);
    }
    assert!(sizes.len() > 60, "only {} files were seen", sizes.len());
    let main = fs::read_to_string(root().join("tests/it/main.rs")).unwrap();
    for entry in fs::read_dir(root().join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            path.is_dir() || stem == "main" || main.contains(&format!("mod {stem};")),
            "{stem} is not run"
        );
    }
}
