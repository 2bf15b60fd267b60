//! A configuration file, whatever stands in it: it is either complete, or every problem says where it is and what is wrong;
//! and what was written as a secret is shown nowhere.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use tunnelkeeper::settings::{Problem, Settings, Surroundings, load};

/// What secrets begin with, in the corpus.
const SECRET: &str = "s3cret";
/// The keys that may be secrets.
const SECRETS: [&str; 6] = [
    "password",
    "identity_passphrase",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "client_secret",
];

/// What comes of a file with this text, in a directory of its own.
fn loaded(text: &[u8]) -> Result<Settings, Vec<Problem>> {
    static DIRECTORIES: AtomicU64 = AtomicU64::new(0);
    let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("tunnelkeeper-fuzz-{}-{number}", std::process::id()));
    fs::create_dir(&directory).expect("the directory is made");
    let file = directory.join("tunnelkeeper.toml");
    fs::write(&file, text).expect("the file is written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("only we read it");
    let uid = fs::metadata(&file).expect("it is there").uid();
    let loaded = load(&Surroundings { uid, config_option: Some(file), ..Surroundings::default() });
    fs::remove_dir_all(directory).expect("it was there");
    loaded
}

/// Whether secrets stand in the input as nothing but values of keys that are secrets.
fn secrets_are_in_their_place(text: &str) -> bool {
    let is_secret_key = |line: &str| {
        line.split_once('=').is_some_and(|(key, _)| SECRETS.iter().any(|secret| key.trim() == *secret))
    };
    let stray = |line: &str| line.contains(SECRET) && !is_secret_key(line);
    // A string over several lines could make anything of what looks like a key.
    !text.contains("\"\"\"") && !text.contains("'''") && !text.split(['\n', '\r']).any(stray)
}

pub fn check(input: &[u8]) {
    let loaded = loaded(input);
    let text = String::from_utf8_lossy(input);
    let shown = match &loaded {
        Ok(settings) => {
            is_complete(settings);
            format!(
                "{settings:?} {}",
                settings.effective.iter().map(|key| key.value.to_string()).collect::<String>()
            )
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "it is refused for no reason");
            for problem in problems {
                assert!(!problem.source.is_empty() || !problem.key.is_empty(), "{problem:?} is nowhere");
                assert!(!problem.text.is_empty(), "{problem:?} says nothing");
                let line = problem.to_string();
                assert!(!line.chars().any(char::is_control), "{line:?} is not one line");
            }
            problems.iter().map(|problem| format!("{problem} {problem:?}")).collect()
        }
    };
    if secrets_are_in_their_place(&text) {
        assert!(!shown.contains(SECRET), "a secret is shown: {shown}");
    }
}

fn is_complete(settings: &Settings) {
    let plan = &settings.plan;
    assert!(!plan.databases.is_empty());
    let names: Vec<_> = plan.bastions.iter().map(|bastion| &bastion.name).collect();
    for database in &plan.databases {
        assert!(
            !database.bastions.is_empty() && database.bastions.iter().all(|bastion| names.contains(&bastion))
        );
        assert!(!names.contains(&&database.name), "{} is two things", database.name);
    }
    for bastion in &plan.bastions {
        assert!(bastion.at.port != 0 && !bastion.at.host.is_empty());
        assert!(bastion.pool.min >= 1 && bastion.pool.min <= bastion.pool.max);
        assert!(bastion.reconnect.min <= bastion.reconnect.max);
        assert!(plan.jumps(bastion).len() < names.len(), "{} jumps in a circle", bastion.name);
    }
    let keys: BTreeSet<_> = settings.effective.iter().map(|key| &key.key).collect();
    assert_eq!(keys.len(), settings.effective.len(), "a key is in force twice");
}
