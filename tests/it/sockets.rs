//! Unix sockets at both ends, and listeners that systemd hands over.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group, User, getegid, geteuid};
use tempfile::TempDir;

use crate::support::client::{psql, psql_on, run_psql, said};
use crate::support::daemon::{command, configured, run};
use crate::support::{Bastion, Daemon, Postgres, eventually, free_port, tunnel};

const ASK: &str = "SELECT coalesce(host(inet_client_addr()), 'a Unix socket')";

#[test]
fn a_database_behind_a_unix_socket_of_the_bastion() {
    let postgres = Postgres::shared();
    let (_bastion, daemon) = tunnel("", &postgres.socket_section("analytics", "prod"));
    let answer = run_psql(daemon.address("analytics"), "user=trusted", ASK);
    assert_eq!(answer.as_deref(), Ok("a Unix socket"));
    eventually("the probe is answered", || {
        (daemon.database("analytics")["probe"]["verdict"] == "up").then_some(())
    });
    let database = daemon.database("analytics");
    assert_eq!(database["host"], postgres.socket().display().to_string());
    assert_eq!(database["port"], 0);
    // Whoever asks for TLS hears what the database says of it.
    let error = run_psql(daemon.address("analytics"), "user=trusted sslmode=require", ASK).unwrap_err();
    assert!(error.contains("server does not support SSL"), "{error}");
}

#[test]
fn what_is_wrong_with_a_socket_of_the_bastion_is_named() {
    let socket = Postgres::shared().socket();
    for (lines, path) in [
        ("", "/nonexistent/.s.PGSQL.5432".to_owned()),
        ("AllowStreamLocalForwarding no", socket.display().to_string()),
        ("PermitOpen none", socket.display().to_string()),
    ] {
        let bastion = Bastion::with(lines);
        let daemon = Daemon::start(&format!(
            "{}[databases.analytics]\nbastion = \"prod\"\nhost = {path:?}\nlisten = \"127.0.0.1:0\"\n\
             probe = {{ level = \"off\" }}\nhold = {{ timeout = \"0s\" }}\n",
            bastion.section("prod", bastion.port),
        ));
        daemon.wait_up("prod");
        let error = run_psql(daemon.address("analytics"), "user=trusted", ASK).unwrap_err();
        let port = bastion.port;
        // sshd does not tell one from the other.
        let told =
            format!("channel connect_failed: 127.0.0.1:{port} cannot connect to {path}: \"open failed\"");
        assert!(error.contains(&told), "{error}");
        assert!(error.contains("AllowStreamLocalForwarding"), "{error}");
    }
}

#[test]
fn the_line_of_keygen_opens_one_socket_and_no_other() {
    let postgres = Postgres::shared();
    let bastion = Bastion::start();
    let section = bastion.keyless_section("prod", bastion.port);
    let mut daemon = Daemon::start(&format!("{section}{}", postgres.socket_section("analytics", "prod")));
    let output = run(&daemon.config(), &["keygen", "prod"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("restrict,")).unwrap().trim();
    let socket = postgres.socket().display().to_string();
    assert!(line.contains(&format!("port-forwarding,command=\"/bin/false\",permitopen=\"[{socket}]:*\"")));
    bastion.authorize(line);
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.contains("Match User")).skip(1).collect();
    assert!(lines.iter().any(|line| line.trim() == "AllowStreamLocalForwarding local"), "{lines:?}");

    // What it prints for sshd holds every account to the same here.
    let strict = Bastion::with(&lines.join("\n"));
    strict.authorize(line);
    let config = fs::read_to_string(daemon.config()).unwrap();
    let config = config.replace(&section, "");
    let other = strict.path("other.sock");
    let _other = UnixListener::bind(&other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o777)).unwrap();
    let key = daemon.dir.path().join("state/keys/prod").display().to_string();
    for bastion in [&bastion, &strict] {
        let again = Daemon::start(&format!(
            "{config}[databases.other]\nbastion = \"prod\"\nhost = {:?}\nlisten = \"127.0.0.1:0\"\n\
             probe = {{ level = \"off\" }}\nhold = {{ timeout = \"0s\" }}\n{}identity = {key:?}\n",
            other.display().to_string(),
            bastion.keyless_section("prod", bastion.port),
        ));
        again.wait_up("prod");
        assert_eq!(run_psql(again.address("analytics"), "user=trusted", ASK).as_deref(), Ok("a Unix socket"));
        let refused = run_psql(again.address("other"), "user=trusted", "SELECT 1").unwrap_err();
        assert!(refused.contains("channel connect_failed"), "{refused}");
        let denied = format!("Received request to connect to path {}", other.display());
        eventually("sshd has said why", || bastion.log().contains(&denied).then_some(()));
    }
}

/// A place for a socket where psql finds it as host and port 5432.
struct Place {
    dir: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::with_prefix("sockets-").unwrap();
        let path = dir.path().join(".s.PGSQL.5432");
        Self { dir, path }
    }

    /// `[databases.analytics]` that listens here, among others.
    fn section(&self, others: &str) -> String {
        let listen = format!("listen = [\"unix:{}\"{others}]", self.path.display());
        Postgres::shared().unprobed_section("analytics", "prod").replace("listen = \"127.0.0.1:0\"", &listen)
    }

    fn psql(&self, sql: &str) -> Command {
        psql_on(&self.dir.path().display().to_string(), 5432, "user=trusted", sql)
    }
}

#[test]
fn psql_over_a_unix_socket() {
    let place = Place::new();
    let (_bastion, daemon) = tunnel("", &place.section(", \"127.0.0.1:0\""));
    let listen = daemon.database("analytics")["listen"].clone();
    assert_eq!(listen[0], format!("unix:{}", place.path.display()));
    assert_eq!(said(&mut place.psql("SELECT 4711")).as_deref(), Ok("4711"));
    let tcp: SocketAddr = listen[1].as_str().unwrap().parse().unwrap();
    assert_eq!(run_psql(tcp, "user=trusted", "SELECT 4711").as_deref(), Ok("4711"));
    // libpq asks for no encryption there. Whoever does gets the database's own answer.
    let mut client = UnixStream::connect(&place.path).unwrap();
    client.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").unwrap();
    let mut answer = [0];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
}

#[test]
fn a_unix_client_that_waits_in_vain_is_told_why() {
    let place = Place::new();
    let _daemon = Daemon::start(&format!(
        "[bastions.prod]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"u\"\n{}hold = {{ timeout = \"1s\" }}\n",
        free_port(),
        place.section("")
    ));
    let error = said(&mut place.psql("SELECT 1")).unwrap_err();
    assert!(error.contains("FATAL:  tunnelkeeper: database \"analytics\" cannot be reached"), "{error}");
}

/// A group that whoever runs the tests may give a file to.
fn some_group() -> Group {
    let gid = if geteuid().is_root() { User::from_name("postgres").unwrap().unwrap().gid } else { getegid() };
    Group::from_gid(gid).unwrap().unwrap()
}

#[test]
fn a_socket_is_for_whom_the_configuration_says_and_goes_with_the_daemon() {
    let (place, group) = (Place::new(), some_group());
    let keys = format!("socket_mode = \"0620\"\nsocket_group = {:?}\n", group.name);
    let bastion = "[bastions.prod]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"u\"\n";
    let mut daemon = Daemon::start(&format!("{bastion}{}{keys}", place.section("")));
    let metadata = fs::symlink_metadata(&place.path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, Gid::from_raw(metadata.gid())), (0o620, group.gid));
    // It is ours, and nobody else's to take.
    let output = run(&daemon.config(), &["run"]);
    assert_eq!(output.status.code(), Some(1));
    let taken = format!(
        "databases.analytics.listen: unix:{} is in use by another program: stop it, or listen elsewhere",
        place.path.display()
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains(&taken), "{output:?}");
    UnixStream::connect(&place.path).unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(!place.path.exists());
}

#[test]
fn a_socket_that_changes_hands_is_for_whom_the_new_one_says() {
    let (place, group) = (Place::new(), some_group());
    let bastion = "[bastions.prod]\nhost = \"127.0.0.1\"\nport = 1\nuser = \"u\"\n";
    let section = format!("{bastion}{}", place.section(""));
    let keys = |group: &str| format!("socket_mode = \"0620\"\nsocket_group = {group:?}\n");
    let access = || {
        let metadata = fs::symlink_metadata(&place.path).unwrap();
        (metadata.mode() & 0o7777, Gid::from_raw(metadata.gid()))
    };
    let daemon = Daemon::start(&section);
    let before = access();
    let renamed = section.replace("databases.analytics", "databases.reports");
    // A group that does not exist changes nothing.
    for section in [&section, &renamed] {
        let problems = daemon.reload(&format!("{section}{}", keys("no such group")));
        assert!(problems.len() == 1 && problems[0].contains("there is no group"), "{problems:?}");
    }
    assert_eq!((access(), daemon.database("analytics")["name"].as_str()), (before, Some("analytics")));
    assert!(daemon.reload(&format!("{renamed}{}", keys(&group.name))).is_empty());
    assert_eq!(access(), (0o620, group.gid));
    let added = daemon.wait_event("the database has been added");
    assert_eq!(added["database"], "reports");
    assert_eq!(added["listen"], format!("unix:{}", place.path.display()));
    assert!(daemon.reload(&renamed).is_empty());
    assert_eq!(access(), before);
    UnixStream::connect(&place.path).unwrap();
}

#[test]
fn the_socket_of_a_daemon_that_was_killed_is_replaced() {
    let place = Place::new();
    let bastion = Bastion::start();
    let config = format!("{}{}", bastion.section("prod", bastion.port), place.section(""));
    let mut killed = Daemon::start(&config);
    killed.signal(Signal::SIGKILL);
    killed.wait();
    assert!(place.path.exists() && UnixStream::connect(&place.path).is_err());
    let _daemon = Daemon::start(&config);
    assert_eq!(said(&mut place.psql("SELECT 4711")).as_deref(), Ok("4711"));
}

fn whoami() -> String {
    User::from_uid(geteuid()).unwrap().unwrap().name
}

#[test]
fn a_unix_client_is_known_by_its_process_and_cut_with_words_between_messages() {
    let place = Place::new();
    let (mut bastion, daemon) = tunnel("", &place.section(""));
    let job = place.psql("SELECT pg_sleep(3600), 'cut me'").stderr(Stdio::piped()).spawn().unwrap();
    let peer = format!("pid {} (psql)", job.id());
    eventually("the query runs", || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3600), ''cut me''%' AND \
                       pid <> pg_backend_pid()";
        (Postgres::shared().sql("postgres", running) == "1").then_some(())
    });
    assert_eq!(daemon.database("analytics")["clients"][0]["peer"], peer);
    bastion.kill();
    let Output { status, stderr, .. } = job.wait_with_output().unwrap();
    let told = String::from_utf8(stderr).unwrap();
    assert!(!status.success());
    assert!(
        told.contains("FATAL:  tunnelkeeper: the connection to database \"analytics\" was cut"),
        "{told}"
    );
    let event = daemon.wait_event("client cut");
    assert_eq!((&event["peer"], &event["user"]), (&peer.into(), &whoami().into()), "{event}");
    assert!(!event.to_string().contains("cut me"), "what it was started with is nobody's business: {event}");
}

#[test]
fn a_unix_client_in_the_middle_of_a_result_finds_it_broken_off() {
    let place = Place::new();
    let (mut bastion, daemon) = tunnel("", &place.section(""));
    let mut job = place.psql("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT");
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who prints into a pipe that nobody reads takes no more.
    let mut printed = job.stdout.take().unwrap();
    let mut before = 0.0;
    eventually("it takes no more", || {
        let taken = daemon.metric("client_bytes_total{database=\"analytics\",direction=\"from_database\"}");
        let same = taken > 100_000.0 && taken == std::mem::replace(&mut before, taken);
        same.then_some(())
    });
    bastion.kill();
    let event = daemon.wait_event("client cut");
    assert_eq!(event["told"], false, "{event}");
    let mut rest = Vec::new();
    printed.read_to_end(&mut rest).unwrap();
    let output = job.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("server closed the connection unexpectedly"), "{told}");
    assert!(rest.len() < 1_000_000_000);
}

/// Changes a command so that it starts as systemd starts it: with these sockets as descriptors 3 and 4. `names` are
/// theirs.
fn activate(command: &mut Command, names: &str, first: impl Into<OwnedFd>, second: Option<OwnedFd>) {
    let script = if second.is_some() { "exec 3<&0 4<&1 0</dev/null 1>&2" } else { "exec 3<&0 0</dev/null" };
    let mut activated = Command::new("sh");
    activated.arg("-c").arg(format!("{script}; export LISTEN_PID=$$; exec \"$@\"")).arg("sh");
    activated.arg(command.get_program()).args(command.get_args()).env_clear();
    activated.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    activated.env("LISTEN_FDS", if second.is_some() { "2" } else { "1" }).env("LISTEN_FDNAMES", names);
    activated
        .stdin(first.into())
        .stdout(second.map_or_else(Stdio::piped, Stdio::from))
        .stderr(Stdio::piped());
    *command = activated;
}

fn listening_on(bastion: &Bastion, listen: &str) -> String {
    let listen = format!("listen = {listen}");
    let database = Postgres::shared().unprobed_section("analytics", "prod");
    format!(
        "{}{}",
        bastion.section("prod", bastion.port),
        database.replace("listen = \"127.0.0.1:0\"", &listen)
    )
}

#[test]
fn sockets_from_systemd() {
    let (bastion, place) = (Bastion::start(), Place::new());
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&place.path).unwrap();
    let address = tcp.local_addr().unwrap();
    let config = listening_on(&bastion, "[\"systemd:analytics\", \"systemd:local\"]");
    let start = || {
        let (tcp, unix) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
        Daemon::with(&config, |command| activate(command, "analytics:local", tcp, Some(unix.into())))
    };
    let mut daemon = start();
    let listen = daemon.database("analytics")["listen"].clone();
    let expected = [address.to_string(), format!("unix:{}", place.path.display())];
    assert_eq!(listen, serde_json::json!(expected));
    assert_eq!(run_psql(address, "user=trusted", "SELECT 4711").as_deref(), Ok("4711"));
    assert_eq!(said(&mut place.psql("SELECT 4712")).as_deref(), Ok("4712"));
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(place.path.exists(), "the socket is systemd's");
    // Who comes in between waits in the socket.
    let mut early = psql(address, "user=trusted", "SELECT 4713").stdout(Stdio::piped()).spawn().unwrap();
    let mut early_too = place.psql("SELECT 4714").stdout(Stdio::piped()).spawn().unwrap();
    eventually("both have come", || {
        let connected = |pid: u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            let mut links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
            links.any(|link| link.to_string_lossy().starts_with("socket:")).then_some(())
        };
        connected(early.id()).and_then(|()| connected(early_too.id()))
    });
    assert!(early.try_wait().unwrap().is_none() && early_too.try_wait().unwrap().is_none());
    let _daemon = start();
    for (job, expected) in [(early, "4713\n"), (early_too, "4714\n")] {
        assert_eq!(String::from_utf8(job.wait_with_output().unwrap().stdout).unwrap(), expected);
    }
}

#[test]
fn what_systemd_hands_over_and_what_not_is_named() {
    let bastion = Bastion::start();
    let loopback = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let remote = everywhere.local_addr().unwrap();
    let (file, _other) = UnixStream::pair().unwrap();
    for (listener, names, expected) in [
        (
            loopback(),
            "reports",
            "databases.analytics.listen: systemd:analytics was not handed over by systemd, but reports: correct".to_owned(),
        ),
        (
            everywhere.into(),
            "analytics",
            format!("systemd:analytics is {remote}, which can be reached from other machines: write 127.0.0.1"),
        ),
        (file.into(), "analytics", "systemd:analytics is not a listening stream socket".to_owned()),
        (fs::File::open("/dev/null").unwrap().into(), "analytics", "is not a listening stream socket".to_owned()),
    ] {
        let (_dir, config) = configured(&listening_on(&bastion, "\"systemd:analytics\""));
        let mut command = command(&config, &["run"]);
        activate(&mut command, names, listener, None);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(&expected), "{output:?}\n{expected}");
    }
    let (_dir, config) = configured(&listening_on(&bastion, "\"systemd:analytics\""));
    let mut command = command(&config, &["run"]);
    activate(&mut command, "analytics:other", loopback(), None);
    let output = command.env("LISTEN_FDS", "2").output().unwrap();
    let expected = "LISTEN_FDS promises a socket as descriptor 4, which is not open";
    assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    let config = listening_on(&bastion, "\"127.0.0.1:0\"");
    let daemon = Daemon::with(&config, |command| activate(command, "spare", loopback(), None));
    let note = daemon.wait_event("systemd handed over a socket that no database listens on");
    assert_eq!(note["name"], "spare");
    // One that is not used any more.
    let used = listening_on(&bastion, "\"systemd:analytics\"");
    let daemon = Daemon::with(&used, |command| activate(command, "analytics", loopback(), None));
    assert!(daemon.events("systemd handed over a socket that no database listens on").is_empty());
    assert!(daemon.reload(&config).is_empty());
    let note = daemon.wait_event("systemd handed over a socket that no database listens on");
    assert_eq!(note["name"], "analytics");
    // One that is meant to be reached from elsewhere.
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let config = format!("{}allow_remote_clients = true\n", listening_on(&bastion, "\"systemd:analytics\""));
    let daemon = Daemon::with(&config, |command| activate(command, "analytics", everywhere, None));
    assert!(daemon.database("analytics")["listen"][0].as_str().unwrap().starts_with("0.0.0.0:"));
}

#[test]
fn sockets_from_systemd_are_not_passed_on_to_commands() {
    let (bastion, place) = (Bastion::start(), Place::new());
    let seen = place.dir.path().join("seen");
    let show =
        |path: &Path| format!("(env; ls -l /proc/self/fd) > {0}.new; mv {0}.new {0}; exit 1", path.display());
    let proxy = format!("proxy_command = {:?}\n[databases", ["sh", "-c", &show(&seen)]);
    let config = listening_on(&bastion, "\"systemd:analytics\"").replacen("[databases", &proxy, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inode =
        fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener))).unwrap().ino();
    let _daemon = Daemon::with(&config, |command| activate(command, "analytics", listener, None));
    let text = eventually("the command has run", || fs::read_to_string(&seen).ok());
    assert!(text.contains("PATH=") && text.contains("/fd"), "{text}");
    assert!(!text.contains("LISTEN_") && !text.contains(&format!("socket:[{inode}]")), "{text}");
}
