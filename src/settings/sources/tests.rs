use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde_json::{Value, json};

use super::*;
use crate::secret::SecretSource;
use crate::settings::tests::{Case, SMALLEST};

#[test]
fn conf_d_and_the_environment_are_laid_over_the_file() {
    let case = Case::new("[bastions.prod]\nhost = \"b\"\nuser = \"u\"\n[log]\nlevel = \"warn\"\n")
        .env("TUNNELKEEPER__HTTP__LISTEN", "off")
        .env("TUNNELKEEPER__BASTIONS__PROD__PORT", "2222")
        .env("TUNNELKEEPER__DATABASES__ONE__PASSWORD", "007")
        .env("TUNNELKEEPER__DAEMON__GENERATE_KEYS", "false")
        .env("TUNNELKEEPER_URL", "http://ignored");
    let database = "bastion = \"prod\"\nhost = \"d\"\nuser = \"probe\"\n";
    case.write(
        "conf.d/2.toml",
        &format!("[log]\nlevel = \"debug\"\n[databases.two]\n{database}listen = \"127.0.0.1:2\"\n"),
    );
    case.write(
        "conf.d/1.toml",
        &format!(
            "[log]\nlevel = \"info\"\n[databases.one]\n{database}listen = [\"127.0.0.1:1\", \"[::1]:1\"]\n"
        ),
    );
    case.write("conf.d/notes.txt", "not read");
    let settings = case.load();
    assert_eq!(settings.plan.log.level.as_str(), "debug");
    assert_eq!(settings.plan.http.listen, None);
    assert_eq!(settings.plan.bastions[0].at.port, 2222);
    assert!(!settings.plan.daemon.generate_keys);
    assert_eq!(settings.plan.databases[0].forward.listen.at.len(), 2);
    let login = settings.plan.databases[0].probe.login.as_ref().unwrap();
    assert!(
        matches!(login.secrets()[0], ("password", SecretSource::Plain(secret)) if secret.expose() == "007")
    );
    let source = |key: &str| {
        let found = settings.effective.iter().find(|effective| effective.key == key);
        found
            .map(|effective| {
                (effective.value.clone(), effective.source.rsplit('/').next().unwrap().to_owned())
            })
            .unwrap()
    };
    let expect = |value: Value, from: &str| (value, from.to_owned());
    assert_eq!(source("log.level"), expect(json!("debug"), "2.toml"));
    assert_eq!(source("http.listen"), expect(json!("off"), "the environment"));
    assert_eq!(source("bastions.prod.port"), expect(json!(2222), "the environment"));
    assert_eq!(source("bastions.prod.connect_timeout"), expect(json!("15s"), "default"));
    assert_eq!(source("databases.one.password"), expect(json!("(masked)"), "the environment"));
}

#[test]
fn the_environment_need_not_be_text_where_a_path_is_meant() {
    let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let mut case = Case::new(SMALLEST);
    case.surroundings.variables.insert("HOME".to_owned(), bytes(b"/home/\xff"));
    case.surroundings.variables.insert("OTHER".to_owned(), bytes(b"\xff"));
    let named = case.dir.path().join(bytes(b"\xff.toml"));
    fs::rename(case.surroundings.config_option.take().unwrap(), &named).unwrap();
    case.surroundings.variables.insert("TUNNELKEEPER_CONFIG".to_owned(), named.clone().into());
    assert_eq!(case.load().files, [named]);
    case.surroundings.variables.insert("TUNNELKEEPER__HTTP__LISTEN".to_owned(), bytes(b"\xff"));
    assert_eq!(
        case.problems(),
        ["the environment: TUNNELKEEPER__HTTP__LISTEN: is not text: write it in UTF-8"]
    );
}

#[test]
fn unknown_keys_of_the_environment_are_refused_too() {
    let case = Case::new(SMALLEST)
        .env("TUNNELKEEPER__HTTP__LISTN", "off")
        .env("TUNNELKEEPER__BASTIONS__PROD__PORT", "ssh")
        .env("TUNNELKEEPER__DATABASES__OTHER__PASSWORD__VAULT", "x")
        .env("TUNNELKEEPER__DATABASES__OTHER__USER", "u")
        .env("TUNNELKEEPER__DAEMON__GENERATE_KEYS", "no");
    let expected = [
        "TUNNELKEEPER__HTTP__LISTN: unknown key: did you mean \"listen\"?",
        "TUNNELKEEPER__DAEMON__GENERATE_KEYS: is \"no\": write true or false",
        "TUNNELKEEPER__BASTIONS__PROD__PORT: is \"ssh\": write a whole number from 1 to 65535",
        "TUNNELKEEPER__DATABASES__OTHER__PASSWORD__VAULT: has the unknown source \"vault\"",
        "databases.other.listen: is missing",
    ];
    let problems = case.problems();
    for text in expected {
        let full = format!("the environment: {text}");
        assert!(problems.iter().any(|problem| problem.starts_with(&full)), "{full}\nnot in {problems:#?}");
    }
}

#[test]
fn what_the_environment_adds_to_a_file() {
    let case = Case::new(SMALLEST)
        .env("TUNNELKEEPER__DATABASES__ANALYTICS__PASSWORD__FILE", "/run/password")
        .env("TUNNELKEEPER__BASTIONS__PROD__CONNECT_TIMEOUT", "9s");
    let settings = case.load();
    let login = settings.plan.databases[0].probe.login.as_ref().unwrap();
    assert_eq!(login.secrets(), [("password", &SecretSource::File("/run/password".into()))]);
    let key = settings.effective.iter().find(|effective| effective.key == "databases.analytics.password");
    assert_eq!(key.unwrap().source, "the environment");
    let case = Case::new("[bastions.prod]\nhost = \"b\"\n")
        .env("TUNNELKEEPER__BASTIONS__PROD__CONNECT_TIMEOUT", "9s");
    assert_eq!(case.problems(), ["tunnelkeeper.toml: bastions.prod.user: is missing"]);
}

#[test]
fn two_definitions_and_broken_files_are_named() {
    let case = Case::new(SMALLEST);
    case.write("conf.d/a.toml", "[databases.analytics]\nport = 1\n");
    case.write("conf.d/b.toml", "[databases.other\npassword = \"hunter2\"\n");
    let problems = case.problems();
    assert_eq!(problems[0], "conf.d/a.toml: databases.analytics: is defined in tunnelkeeper.toml already");
    assert!(
        problems[1].starts_with("conf.d/b.toml: is not TOML: TOML parse error at line 1, column"),
        "{problems:?}"
    );
    assert!(!problems.join("").contains("hunter2"));
}

#[test]
fn what_is_no_file_is_named_once() {
    let plain = SMALLEST.replace("{ env = \"ANALYTICS_PASSWORD\" }", "\"hunter2\"");
    let case = Case::new(&plain);
    let path = |name: &str| case.dir.path().join(name);
    fs::create_dir_all(path("conf.d/dir.toml")).unwrap();
    nix::unistd::mkfifo(&path("conf.d/pipe.toml"), nix::sys::stat::Mode::from_bits_retain(0o644)).unwrap();
    std::os::unix::fs::symlink("nowhere", path("conf.d/link.toml")).unwrap();
    assert_eq!(
        case.problems(),
        [
            "conf.d/dir.toml: is not a file",
            "conf.d/link.toml: is a link to a file that does not exist: remove it, or make that file",
            "conf.d/pipe.toml: is not a file"
        ]
    );
    fs::remove_dir_all(path("conf.d")).unwrap();
    std::os::unix::fs::symlink("conf.d", path("conf.d")).unwrap();
    let problems = case.problems();
    assert!(problems.len() == 1 && problems[0].starts_with("conf.d: cannot be read: "), "{problems:?}");
}

#[test]
fn files_that_others_can_write_are_refused() {
    let case = Case::new(SMALLEST);
    case.write("conf.d/a.toml", "");
    case.chmod("tunnelkeeper.toml", 0o606);
    case.chmod("conf.d", 0o777);
    assert_eq!(
        case.problems(),
        [
            "conf.d: can be written by others (mode 0777): chmod o-w it",
            "tunnelkeeper.toml: can be written by others (mode 0606): chmod o-w it"
        ]
    );
}

#[test]
fn files_of_another_user_are_refused() {
    let mut case = Case::new(SMALLEST);
    if case.surroundings.uid == 0 {
        // Root's own files are fine for anyone, so root gives one away.
        std::os::unix::fs::chown(case.dir.path().join("tunnelkeeper.toml"), Some(12345), None).unwrap();
    } else {
        case.surroundings.uid += 1;
    }
    let problems = case.problems();
    assert!(problems[0].contains("it must belong to root or to the user running this"), "{problems:?}");
}

#[test]
fn a_missing_file_says_how_to_go_on() {
    let mut case = Case::new("");
    case.surroundings.config_option = Some(case.dir.path().join("none.toml"));
    let problems = case.problems();
    assert!(problems[0].starts_with("none.toml: there is no such file: write it"), "{problems:?}");
}
