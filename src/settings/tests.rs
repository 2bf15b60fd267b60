use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::plan::{AgentPlan, IdentityPlan, Kind, KnownHostsPlan, ProbeLevel, ProbeWhen, TlsMode, TrustPlan};
use super::*;
use crate::host_keys::HostKeyPolicy;
use crate::ids::Target;

pub(super) const SMALLEST: &str = r#"
[bastions.prod]
host = "bastion.example.com"
user = "tunnelkeeper"

[databases.analytics]
bastion = "prod"
host = "analytics.internal"
listen = "127.0.0.1:15432"
database = "analytics"
user = "tunnelkeeper_probe"
password = { env = "ANALYTICS_PASSWORD" }
"#;

pub(super) struct Case {
    pub(super) dir: tempfile::TempDir,
    pub(super) surroundings: Surroundings,
}

impl Case {
    pub(super) fn new(main: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid =
            fs::metadata(dir.path()).map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata)).unwrap();
        let path = dir.path().join("tunnelkeeper.toml");
        let surroundings = Surroundings {
            variables: BTreeMap::new(),
            uid,
            config_option: Some(path),
            ..Surroundings::default()
        };
        let case = Self { dir, surroundings };
        case.write("tunnelkeeper.toml", main);
        case
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.chmod(name, 0o600);
    }

    pub(super) fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.surroundings.variables.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn load(&self) -> Settings {
        load(&self.surroundings).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    /// The problems as text, without the name of the temporary directory.
    pub(super) fn problems(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        let problems = load(&self.surroundings).expect_err("the configuration was accepted");
        problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect()
    }
}

#[test]
fn jumps_lead_somewhere() {
    let bastion =
        |name: &str, jump: &str| format!("[bastions.{name}]\nhost = \"{name}\"\nuser = \"u\"\n{jump}\n");
    let database = "[databases.d]\nbastion = \"c\"\nhost = \"d\"\nlisten = \"127.0.0.1:15432\"\n";
    let case = |a: &str, c: &str| {
        let bastions = [bastion("a", a), bastion("b", "jump = \"a\""), bastion("c", c)].concat();
        Case::new(&format!("{bastions}{database}"))
    };
    let plan = case("", "jump = \"b\"").load().plan;
    let jumps = plan.jumps(&plan.bastions[2]);
    let names: Vec<&str> = jumps.iter().map(|jump| jump.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let only = plan.bastions.iter().map(|bastion| plan.is_only_jump(&bastion.name)).collect::<Vec<_>>();
    assert_eq!(only, [true, true, false]);
    for (a, c, expected) in [
        ("jump = \"b\"", "jump = \"b\"", "bastions.a.jump: goes in a circle: a through b through a"),
        ("jump = \"a\"", "", "bastions.a.jump: goes in a circle: a through a"),
        ("", "jump = \"x\"", "bastions.c.jump: there is no [bastions.x]: known are a, b, c"),
        ("", "jump = \"b\"\nproxy_command = [\"nc\"]", "bastions.c.jump: and `proxy_command` are two ways"),
    ] {
        let problems = case(a, c).problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:#?}");
    }
}

#[test]
fn the_smallest_file_gets_every_default() {
    let case = Case::new(SMALLEST).env("HOME", "/home/me").env("STATE_DIRECTORY", "/var/lib/tk:/other");
    let settings = case.load();
    let bastion = &settings.plan.bastions[0];
    assert_eq!(bastion.at.to_string(), "bastion.example.com:22");
    assert_eq!(bastion.identity, IdentityPlan::Own { path: "/var/lib/tk/keys/prod".into(), generate: true });
    let files = ["/etc/tunnelkeeper/known_hosts", "/var/lib/tk/known_hosts", "/home/me/.ssh/known_hosts"];
    let known_hosts = KnownHostsPlan {
        files: files.iter().map(PathBuf::from).collect(),
        named: false,
        own: Some(files[1].into()),
        policy: HostKeyPolicy::Strict,
        update: true,
    };
    assert_eq!(bastion.trust, TrustPlan::Files(known_hosts));
    assert_eq!((bastion.keepalive_interval.as_secs(), bastion.keepalive_timeout.as_secs()), (30, 300));
    assert_eq!((bastion.pool.min, bastion.pool.max), (1, 4));
    let database = &settings.plan.databases[0];
    assert_eq!(
        (database.kind, database.target.to_string().as_str()),
        (Kind::Postgres, "analytics.internal:5432")
    );
    assert_eq!(database.forward.hold_timeout, Duration::from_secs(30));
    assert_eq!((database.forward.hold_max, database.forward.max_clients), (500, 1000));
    assert_eq!((database.probe.level, database.probe.when), (ProbeLevel::Query, ProbeWhen::Always));
    assert_eq!(database.probe.tls.mode, TlsMode::Prefer);
    assert_eq!(settings.plan.http.listen.unwrap().to_string(), "127.0.0.1:9822");
    assert!(settings.notes.is_empty(), "{:?}", settings.notes);
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let case = Case::new(
        r#"
        frobnicate = 1
        [http]
        listen = "localhost:9822"
        [bastions.Prod]
        host = "b"
        [bastions.prod]
        hots = "bastion"
        port = 70000
        user = ""
        keepalive_timeout = "30s"
        sessions = { min = 5, max = 4 }
        host_key = "MD5:aa"
        proxy_command = "nc %h %p"
        [databases.prod]
        bastion = "pord"
        hots = "db"
        host = "db:5432"
        listen = ["0.0.0.0:15432", "127.0.0.1:15432"]
        hold = { timeout = "30" }
        probe = { level = "login", frequency = "1s" }
        password = "x"
        "#,
    );
    let expected = [
        "bastions.Prod: \"Prod\" is not a usable name",
        "frobnicate: unknown key: known are http, log, daemon, bastions, databases",
        "http.listen: \"localhost:9822\" names a host: write the address, \"127.0.0.1:9822\"",
        "databases.prod: a bastion is named \"prod\" too",
        "bastions.prod.host: is missing",
        "bastions.prod.port: is 70000: write a whole number from 1 to 65535",
        "bastions.prod.user: is empty",
        "bastions.prod.keepalive_timeout: must be longer than keepalive_interval (30s)",
        "bastions.prod.sessions.min: is above sessions.max (4)",
        "bastions.prod.proxy_command: is one text with blanks: write a list of words",
        "bastions.prod.host_key: \"MD5:aa\" is not a fingerprint",
        "bastions.prod.hots: unknown key: did you mean \"host\"?",
        "databases.prod.bastion: there is no [bastions.pord]: known are prod",
        "databases.prod.host: \"db:5432\" is not a host: write the port in the key `port`",
        "databases.prod.hots: unknown key: did you mean \"host\"?",
        "databases.prod.listen: 0.0.0.0:15432 can be reached from other machines",
        "databases.prod.listen: 127.0.0.1:15432 is taken by databases.prod.listen already (0.0.0.0:15432)",
        "databases.prod.hold.timeout: \"30\" is not a duration: write for example \"30s\"",
        "databases.prod.password: is of no use without `user`",
        "databases.prod.probe.level: needs the database's `user`",
        "databases.prod.probe.frequency: unknown key: known are level, when",
    ];
    let problems = case.problems();
    for text in expected {
        let full = format!("tunnelkeeper.toml: {text}");
        assert!(problems.iter().any(|problem| problem.starts_with(&full)), "{full}\nnot in {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn the_probe_is_checked_too() {
    let case = Case::new(&format!(
        "{SMALLEST}\ntls = {{ mode = \"require\", ca = \"x.pem\" }}\nprobe = {{ level = \"logn\", interval = \"0s\", when = 3 }}"
    ));
    let problems = case.problems();
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(problems.iter().any(|p| p.contains("probe.level: \"logn\" is not one of \"off\", \"connect\"")));
}

#[test]
fn a_log_filter_is_made_of_levels() {
    for (level, expected) in [
        ("warning", "\"warning\" is not a log level: did you mean \"warn\"?"),
        ("info,hyper=ERR", "\"hyper=ERR\" is not a log level: did you mean \"error\"?"),
        (
            "loud",
            "\"loud\" is not a log level: write off, error, warn, info, debug or trace, or TARGET=LEVEL",
        ),
        ("tunnelkeeper", "\"tunnelkeeper\" is not a log level: write off"),
        ("info,", "\"\" is not a log level: write off"),
        ("=info", "\"=info\" is not a log level: did you mean \"info\"?"),
    ] {
        let case = Case::new(&format!("nonsense = 1\n{SMALLEST}\n[log]\nlevel = \"{level}\"\n"));
        let problems = case.problems();
        assert!(problems.len() == 2 && problems[1].contains("nonsense"), "{problems:?}");
        assert!(
            problems[0].starts_with(&format!("tunnelkeeper.toml: log.level: {expected}")),
            "{problems:?}"
        );
        let problems = Case::new(SMALLEST).env("RUST_LOG", level).problems();
        assert!(problems[0].starts_with(&format!("the environment: RUST_LOG: {expected}")), "{problems:?}");
    }
    let text = format!("{SMALLEST}\n[log]\nlevel = \"warn\"\n");
    assert_eq!(Case::new(&text).env("RUST_LOG", "").load().plan.log.level.as_str(), "warn");
    let settings = Case::new(&text).env("RUST_LOG", "info, hyper=Off").load();
    assert_eq!(settings.plan.log.level.as_str(), "info,hyper=off");
    let shown: Vec<_> = settings.effective.iter().filter(|effective| effective.key == "log.level").collect();
    assert!(shown.len() == 1 && shown[0].source == "the environment (RUST_LOG)", "{shown:?}");
}

#[test]
fn values_out_of_range_are_refused_with_what_to_write() {
    for (line, expected) in [
        ("idle_timeout = \"500us\"", "idle_timeout: \"500us\" is finer than a millisecond"),
        ("idle_timeout = \"2years\"", "idle_timeout: \"2years\" is longer than a year"),
        ("stall_timeout = \"0s\"", "stall_timeout: must be at least 1ms"),
        ("probe.interval = \"99ms\"", "probe.interval: must be at least 100ms"),
        (
            "listen = \"[::ffff:127.0.0.1]:1\"",
            "listen: \"[::ffff:127.0.0.1]:1\" is an IPv4 address written as IPv6: \
          write \"127.0.0.1:1\"",
        ),
    ] {
        let start =
            "[bastions.b]\nhost = \"b\"\nuser = \"u\"\n[databases.d]\nbastion = \"b\"\nhost = \"d\"\n";
        let listen = if line.starts_with("listen") { "" } else { "listen = \"127.0.0.1:1\"" };
        let problems = Case::new(&format!("{start}{listen}\n{line}\n")).problems();
        let full = format!("tunnelkeeper.toml: databases.d.{expected}");
        assert!(problems.len() == 1 && problems[0].starts_with(&full), "{full}\nnot in {problems:?}");
    }
}

#[test]
fn a_plain_secret_needs_files_that_others_cannot_read() {
    let plain = SMALLEST.replace("{ env = \"ANALYTICS_PASSWORD\" }", "\"hunter2\"");
    let case = Case::new(&plain);
    case.write("conf.d/a.toml", "");
    assert!(!format!("{:?}", case.load().effective).contains("hunter2"));
    case.chmod("conf.d/a.toml", 0o644);
    let problems = case.problems();
    assert!(problems[0].contains("conf.d/a.toml can be read by others: chmod o-r it"), "{problems:?}");
    assert!(!problems.join("").contains("hunter2"));
}

#[test]
fn secrets_name_exactly_one_source() {
    for (value, expected) in [
        ("{ env = \"A\", file = \"b\" }", "must name exactly one source"),
        ("{}", "must name exactly one source"),
        ("{ vault = \"x\" }", "has the unknown source \"vault\""),
        ("{ command = [] }", "is an empty list"),
        ("{ credential = \"../x\" }", "is not the name of a credential"),
        ("5", "is a number: write { env"),
    ] {
        let case = Case::new(&SMALLEST.replace("{ env = \"ANALYTICS_PASSWORD\" }", value));
        let problems = case.problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{value}: {problems:?}");
    }
}

#[test]
fn paths_are_relative_to_the_file_that_names_them() {
    let text =
        SMALLEST.replace("user = \"tunnelkeeper\"", "user = \"u\"\nidentity = [\"keys/a\", \"~/b\", \"/c\"]");
    let case = Case::new(&text).env("HOME", "/home/me");
    let here = case.dir.path();
    let expected = vec![here.join("keys/a"), Path::new("/home/me/b").to_owned(), Path::new("/c").to_owned()];
    assert_eq!(case.load().plan.bastions[0].identity, IdentityPlan::Files(expected));
}

#[test]
fn whoever_says_how_to_log_in_needs_no_key_of_the_daemons_own() {
    let with = |keys: &str| {
        let user = format!("user = \"u\"\n{keys}");
        Case::new(&SMALLEST.replace("user = \"tunnelkeeper\"", &user)).env("HOME", "/home/me")
    };
    let bastion = |keys: &str| with(keys).load().plan.bastions[0].clone();
    let own = |generate| IdentityPlan::Own { path: "/var/lib/tunnelkeeper/keys/prod".into(), generate };
    for (keys, identity, agent) in [
        ("", own(true), None),
        ("agent = false", own(true), None),
        ("password = { env = \"P\" }", own(false), None),
        ("agent = true", IdentityPlan::Agent, Some(AgentPlan::Environment)),
        ("agent = \"~/socket\"", IdentityPlan::Agent, Some(AgentPlan::Socket("/home/me/socket".into()))),
        (
            "agent = true\nidentity = \"/k\"",
            IdentityPlan::Files(vec!["/k".into()]),
            Some(AgentPlan::Environment),
        ),
    ] {
        let plan = bastion(keys);
        assert_eq!((&plan.identity, &plan.agent), (&identity, &agent), "{keys}");
    }
    let beside = |keys: &str| bastion(keys).certificate_files();
    assert_eq!(beside(""), [Path::new("/var/lib/tunnelkeeper/keys/prod-cert.pub")]);
    assert_eq!(
        beside("identity = [\"/a\", \"/b.pub\"]"),
        [Path::new("/a-cert.pub"), Path::new("/b-cert.pub")]
    );
    assert_eq!(beside("certificate = \"/c\""), [Path::new("/c")]);
    assert!(beside("agent = true").is_empty());
    for (keys, expected) in [
        ("agent = 1", "is a number: write true or false, or the path of the agent's socket in quotes"),
        ("agent = \"true\"", "is text: write true or false, or the path"),
        ("agent = true\nidentity_passphrase = { env = \"P\" }", "is of no use without `identity`"),
    ] {
        let problems = with(keys).problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{keys}: {problems:?}");
    }
    let by_environment = with("").env("TUNNELKEEPER__BASTIONS__PROD__AGENT", "true").load();
    assert_eq!(by_environment.plan.bastions[0].agent, Some(AgentPlan::Environment));
}

#[test]
fn without_a_user_the_probe_stops_at_tls() {
    let text = "[bastions.b]\nhost = \"b\"\nuser = \"u\"\n[databases.d]\nbastion = \"b\"\nhost = \"d\"\nlisten = \"127.0.0.1:1\"\n";
    assert_eq!(Case::new(text).load().plan.databases[0].probe.level, ProbeLevel::Tls);
    let problems = Case::new(&format!("{text}probe = {{ level = \"query\" }}")).problems();
    assert!(problems[0].contains("needs the database's `user`"), "{problems:?}");
}

#[test]
fn an_address_is_used_once() {
    for (first, second, expected) in [
        (
            "127.0.0.1:1",
            "\"127.0.0.1:1\"",
            "127.0.0.1:1 is taken by databases.analytics.listen already: choose",
        ),
        (
            "127.0.0.1:1",
            "\"0.0.0.0:1\"",
            "0.0.0.0:1 is taken by databases.analytics.listen already (127.0.0.1:1)",
        ),
        ("[::]:1", "\"[::1]:1\"", "[::1]:1 is taken by databases.analytics.listen already ([::]:1)"),
        ("127.0.0.1:1", "[\"[::1]:2\", \"[::1]:2\"]", "[::1]:2 stands twice in this list"),
        ("127.0.0.1:1", "\"127.0.0.1:9822\"", "127.0.0.1:9822 is taken by http.listen already: choose"),
        ("[::]:1", "[\"0.0.0.0:1\", \"127.0.0.1:0\", \"127.0.0.1:0\"]", ""),
    ] {
        let text = SMALLEST.replace("127.0.0.1:15432\"", &format!("{first}\"\nallow_remote_clients = true"));
        let case = Case::new(&text);
        let other = "[databases.two]\nbastion = \"prod\"\nhost = \"d\"\nallow_remote_clients = true\n";
        case.write("conf.d/a.toml", &format!("{other}listen = {second}\n"));
        if expected.is_empty() {
            case.load();
        } else {
            let problems = case.problems();
            let full = format!("conf.d/a.toml: databases.two.listen: {expected}");
            assert!(problems.len() == 1 && problems[0].starts_with(&full), "{problems:?}");
        }
    }
}

#[test]
fn nothing_to_do_is_a_problem_of_its_own() {
    let text = "there is nothing to do: describe at least one bastion as [bastions.NAME]";
    let problems = Case::new("").problems();
    assert!(problems.len() == 1 && problems[0].contains(text), "{problems:?}");
    let problems = Case::new("[database.analytics]\n").problems();
    assert!(problems.len() == 1 && problems[0].contains("did you mean \"databases\"?"), "{problems:?}");
}

#[test]
fn what_is_no_table_is_shown_as_one() {
    for (text, expected) in [
        ("http = 1", "http: is not a table: write [http]"),
        ("bastions = 1", "bastions: is not a table: write [bastions.NAME]"),
        ("databases.d = 1", "databases.d: is not a table: write [databases.d]"),
        (
            "databases.d.hold = \"30s\"",
            "databases.d.hold: is not a table: write hold = { timeout = \"30s\" }",
        ),
        (
            "databases.d.tls = \"x\"",
            "databases.d.tls: is not a table: write tls = { mode = \"verify-full\" }",
        ),
        (
            "bastions.b.sessions = 2",
            "bastions.b.sessions: is not a table: write sessions = { min = 1, max = 4 }",
        ),
    ] {
        let problems = Case::new(text).problems();
        let full = format!("tunnelkeeper.toml: {expected}");
        assert!(problems.contains(&full), "{full}\nnot in {problems:#?}");
    }
}

#[test]
fn keys_are_printed_on_one_line_and_compared_in_any_case() {
    let problems = Case::new("[http]\n\"LISTEN\" = 1\n\"a\\nb\" = 1\n").problems();
    assert!(problems[0].contains("http.LISTEN: unknown key: did you mean \"listen\"?"), "{problems:?}");
    assert!(problems[1].contains("http.a\\nb: unknown key"), "{problems:?}");
}

#[test]
fn what_follows_from_another_problem_is_none() {
    for (wrong, expected) in [
        ("host = \"x.rds.amazonaws.com:5432\"\ntls = { ca = \"rds.pem\" }", "databases.d.host"),
        ("host = \"d\"\nkind = \"rsd\"\ntls = { ca = \"rds.pem\" }", "databases.d.kind"),
        ("host = \"d\"\nuser = \"\"\nprobe = { level = \"query\" }", "databases.d.user"),
    ] {
        let start = "[bastions.b]\nhost = \"b\"\nuser = \"u\"\n[databases.d]\nbastion = \"b\"\nlisten = \"127.0.0.1:1\"";
        let problems = Case::new(&format!("{start}\n{wrong}\n")).problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
    }
}

#[test]
fn a_path_is_a_socket_on_the_bastion() {
    let with = |more: &str| {
        Case::new(&SMALLEST.replace("analytics.internal\"", &format!("/run/pg/.s.PGSQL.5432\"\n{more}")))
    };
    let settings = with("").load();
    let database = &settings.plan.databases[0];
    assert_eq!(database.target, Target::Unix("/run/pg/.s.PGSQL.5432".into()));
    assert_eq!((database.kind, database.probe.tls.mode), (Kind::Postgres, TlsMode::Disable));
    assert!(settings.notes.is_empty(), "{:?}", settings.notes);
    assert_eq!(with("tls.mode = \"prefer\"").load().plan.databases[0].probe.tls.mode, TlsMode::Prefer);
    for (more, expected) in [
        ("port = 5432", "port: is of no use with a Unix socket as `host`: leave it out"),
        ("tls.mode = \"verify-full\"", "tls.mode: there is nothing to verify"),
        ("tls.ca = \"x.pem\"", "tls.ca: there is nothing to verify"),
    ] {
        let problems = with(more).problems();
        let full = format!("tunnelkeeper.toml: databases.analytics.{expected}");
        assert!(problems.len() == 1 && problems[0].starts_with(&full), "{problems:?}");
    }
    // As libpq is told of it.
    let directory = SMALLEST.replace("analytics.internal\"", "/run/pg\"\nport = 6432");
    let problems = Case::new(&directory).problems();
    assert!(problems[0].ends_with("write host = \"/run/pg/.s.PGSQL.6432\" alone"), "{problems:?}");
    let settings = Case::new(&SMALLEST.replace("analytics.internal", "/run/pg")).load();
    assert!(settings.notes[0].text.contains("is taken for the socket itself"), "{:?}", settings.notes);
}
