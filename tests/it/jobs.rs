//! What jobs rely on: they wait for a database, reach it by its real name, know nothing of the configuration, and read
//! in their own client's words what is wrong.

mod dbt;
mod drivers;
mod names;
mod recipes;
mod redshift;
mod services;
mod tls;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::account::{account, find};
use crate::support::client::{psql, run_psql};
use crate::support::daemon::command;
use crate::support::postgres::{DATABASE, TRUSTED};
use crate::support::{Bastion, Daemon, Postgres, eventually, free_port, tunnel};

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The product for a job: as another user where there is one to be, without a configuration.
struct Job {
    dir: TempDir,
    url: String,
}

impl Job {
    fn of(daemon: &Daemon) -> Self {
        Self::at(daemon.url())
    }

    fn at(url: String) -> Self {
        let dir = TempDir::with_prefix("job-").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The build's own directory may be closed to others. Another process writes the copy, since a file that this
        // one had open for writing, if only in a child that another test is about to start, can't be run ("text busy").
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_tunnelkeeper")).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        Self { dir, url }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = account().command(&self.dir.path().join("tunnelkeeper"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TUNNELKEEPER_URL", &self.url).args(arguments).stdin(Stdio::null());
        command.env("TUNNELKEEPER_CONFIG", "/nonexistent/tunnelkeeper.toml").current_dir("/");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The environment in which `exec` puts a command.
    fn environment(&self, own: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut command = self.command(&["exec", "analytics", "--", "env"]);
        let output = command.envs(own.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        out(&output).lines().filter_map(pair).filter(|(name, _)| name.starts_with("PG")).collect()
    }
}

/// A database whose certificate is for the name by which the bastion knows it.
fn verified(mode: &str) -> String {
    let postgres = Postgres::shared();
    let tls = format!("tls = {{ mode = {mode:?}, ca = {:?} }}\n", postgres.ca().display().to_string());
    let host = if mode == "verify-full" { "localhost" } else { "127.0.0.1" };
    format!(
        "{}{tls}",
        postgres.section("analytics", "prod").replace("\"127.0.0.1\"\nport", &format!("{host:?}\nport"))
    )
}

/// Whether the connection is encrypted, and where it came out.
const WHERE_AM_I: &str = "SELECT ssl, current_database() FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

fn psql_arguments() -> [String; 7] {
    ["psql", "-X", "-q", "-A", "-t", "-c", WHERE_AM_I].map(|word| match word {
        "psql" => find("psql").display().to_string(),
        word => word.to_owned(),
    })
}

#[test]
fn a_job_reaches_its_database_by_its_real_name() {
    let (_bastion, daemon) = tunnel("", &verified("verify-full"));
    let job = Job::of(&daemon);
    let arguments = psql_arguments();
    let exec: Vec<&str> =
        ["exec", "analytics", "--"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    // What is left over from other work must neither lead elsewhere nor take the protection away.
    let leftovers = [
        ("PGUSER", TRUSTED),
        ("PGHOST", "elsewhere.invalid"),
        ("PGHOSTADDR", "127.0.0.9"),
        ("PGPORT", "1"),
        ("PGDATABASE", "postgres"),
        ("PGSERVICE", "elsewhere"),
        ("PGSSLMODE", "disable"),
    ];
    let output = job.command(&exec).envs(leftovers).output().unwrap();
    assert_eq!(out(&output).trim(), format!("t|{DATABASE}"), "{output:?}");
    let file = job.run(&["service-file"]);
    assert_eq!(file.status.code(), Some(0), "{file:?}");
    let services = job.dir.path().join("pg_service.conf");
    fs::write(&services, &file.stdout).unwrap();
    let output = account()
        .command(Path::new(&arguments[0]))
        .env_clear()
        .env("PGSERVICEFILE", &services)
        .args(&arguments[1..])
        .arg(format!("service=analytics user={TRUSTED}"))
        .output()
        .unwrap();
    assert_eq!(out(&output).trim(), format!("t|{DATABASE}"), "{output:?}\n{}", out(&file));
    let address = daemon.address("analytics");
    let environment =
        job.environment(&[("PGUSER", "me"), ("PGPASSWORD", "mine"), ("PGSERVICE", "elsewhere")]);
    let expected = [
        ("PGDATABASE", DATABASE),
        ("PGHOST", "localhost"),
        ("PGHOSTADDR", "127.0.0.1"),
        ("PGPASSWORD", "mine"),
        ("PGPORT", &address.port().to_string()),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", &Postgres::shared().ca().display().to_string()),
        ("PGUSER", "me"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(environment.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_wildcard_listener_is_reached_on_loopback() {
    let section = Postgres::shared().section("analytics", "prod");
    let remote =
        section.replace("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:0\"\nallow_remote_clients = true");
    let (_bastion, daemon) = tunnel("", &remote);
    let environment = Job::of(&daemon).environment(&[]);
    assert_eq!(environment["PGHOSTADDR"], "127.0.0.1");
    assert_eq!(environment["PGSSLMODE"], "prefer");
    assert!(!environment.contains_key("PGSSLROOTCERT"), "{environment:?}");
}

#[test]
fn a_unix_socket_is_used_where_there_is_nothing_else() {
    let dir = TempDir::with_prefix("sockets-").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = |name: &str| format!("\"unix:{}/{name}\"", dir.path().display());
    let listening = |name: &str, listen: &str| {
        let section = Postgres::shared().section(name, "prod");
        section.replace("\"127.0.0.1:0\"", &format!("[{listen}]\nsocket_mode = \"0666\""))
    };
    let (_bastion, daemon) = tunnel(
        "",
        &format!(
            "{}{}{}",
            listening("analytics", &socket(".s.PGSQL.6543")),
            listening("both", &format!("{}, \"127.0.0.1:0\"", socket(".s.PGSQL.6544"))),
            listening("unnamed", &socket("pg.sock")),
        ),
    );
    let job = Job::of(&daemon);
    let environment = job.environment(&[("PGHOSTADDR", "127.0.0.9")]);
    assert_eq!(environment["PGHOST"], dir.path().display().to_string());
    assert!(!environment.contains_key("PGHOSTADDR"), "{environment:?}");
    let arguments = psql_arguments();
    let exec: Vec<&str> =
        ["exec", "analytics", "--"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let output = job.command(&exec).env("PGUSER", TRUSTED).output().unwrap();
    assert_eq!(out(&output).trim(), format!("f|{DATABASE}"), "{output:?}");
    let file = out(&job.run(&["service-file"]));
    assert!(file.contains("[both]\nhost=127.0.0.1\nhostaddr=127.0.0.1\n"), "{file}");
    assert!(file.contains("# There is no [unnamed]: libpq cannot use its listener unix:"), "{file}");
    let unnamed = job.run(&["exec", "unnamed", "--", "true"]);
    assert_eq!(unnamed.status.code(), Some(125), "{unnamed:?}");
    assert!(err(&unnamed).contains("give the socket the name .s.PGSQL.5432"), "{unnamed:?}");
}

/// What a process is, told by a shell that it has become. The mask is told at last, since a shell that waits for another
/// program blocks signals.
const SELF_PORTRAIT: &str =
    "echo $$; ls /proc/$$/fd; tr '\\0' '\\n' < /proc/$$/cmdline; exec grep ^Sig[BI] /proc/$$/status";

#[test]
fn exec_becomes_the_command() {
    let (_bastion, daemon) = tunnel("", &Postgres::shared().section("analytics", "prod"));
    let url = daemon.url();
    let shell = ["sh", "-c", SELF_PORTRAIT, "name with  blanks"];
    let arguments: Vec<&str> = ["exec", "analytics", "--url", &url, "--"].into_iter().chain(shell).collect();
    let portrait = |mut command: Command| {
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (pid, output) = (child.id(), child.wait_with_output().unwrap());
        out(&output).replace(&pid.to_string(), "PID")
    };
    let became = portrait(command(Path::new("/none"), &arguments));
    // The very same as of a process that was started without us.
    let mut direct = Command::new("sh");
    direct.args(&shell[1..]);
    assert_eq!(became, portrait(direct));
    assert!(became.contains("SigIgn:") && became.starts_with("PID\n0\n1\n"), "{became}");
    let killed =
        command(Path::new("/none"), &["exec", "analytics", "--url", &url, "--", "sh", "-c", "kill -TERM $$"]);
    let mut killed = killed;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status().unwrap()), Some(15));
}

#[test]
fn the_codes_of_exec_tell_our_failures_from_the_commands() {
    let (_bastion, daemon) = tunnel("", &Postgres::shared().section("analytics", "prod"));
    let job = Job::of(&daemon);
    let fails = |arguments: &[&str], code: i32, words: &str| {
        // Directories that it may not enter would be another reason.
        let output = job.command(arguments).env("PATH", "/usr/bin:/bin").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
        assert!(err(&output).contains(words), "{words:?} is not in {output:?}");
    };
    fails(&["exec", "analytics", "--", "sh", "-c", "exit 3"], 3, "");
    fails(&["exec", "analytics", "--", "frobnicate"], 127, "\"frobnicate\" cannot be run: No such file");
    let letter = job.dir.path().join("letter");
    fs::write(&letter, "not a program").unwrap();
    fails(
        &["exec", "analytics", "--", &letter.display().to_string()],
        126,
        "cannot be run: Permission denied",
    );
    fails(&["exec", "nobody", "--", "true"], 125, "the daemon has no database \"nobody\"");
    fails(&["exec", "prod", "--", "true"], 125, "\"prod\" is a bastion: name a database behind it");
    // Wrong usage is not the command's either, psql's 2 least of all.
    fails(&["exec", "analytics", "psql"], 125, "unexpected argument 'psql'");
    fails(&["exec", "analytics", "--timeout", "soon", "--", "true"], 125, "write for example");
    fails(&["exec", "analytics"], 125, "required arguments");
    fails(&["wait", "--frobnicate"], 2, "unexpected argument");
    let help = job.run(&["exec", "--help"]);
    assert_eq!(help.status.code(), Some(0), "{help:?}");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    fails(
        &["exec", "analytics", "--timeout", "0s", "--url", &nobody, "--", "true"],
        125,
        "no daemon answers at",
    );
}

#[test]
fn wait_begins_before_the_daemon() {
    let port = free_port();
    let job = Job::at(format!("http://127.0.0.1:{port}"));
    let once = job.run(&["wait", "--timeout", "0s"]);
    assert_eq!(once.status.code(), Some(1), "{once:?}");
    assert!(err(&once).contains("no daemon answers at"), "{once:?}");
    let mut waiting = job.command(&["wait", "analytics", "--format", "json"]);
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let dir = TempDir::with_prefix("state-").unwrap();
    let bastion = Bastion::start();
    let mut said = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    assert!(first.starts_with("tunnelkeeper: waiting: no daemon answers at"), "{first}");
    let _daemon = Daemon::start(&format!(
        "[http]\nlisten = \"127.0.0.1:{port}\"\n[daemon]\nstate_dir = {:?}\n{}{}",
        dir.path(),
        bastion.section("prod", bastion.port),
        Postgres::shared().section("analytics", "prod")
    ));
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["reachable"], &report["error"]), (&true.into(), &Value::Null), "{report}");
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert!(rest.iter().all(|line| line.starts_with("tunnelkeeper: waiting: ")), "{rest:?}");
}

#[test]
fn wait_says_what_is_missing_and_why() {
    let bastion = Bastion::start();
    let postgres = Postgres::shared();
    let daemon = Daemon::start(&format!(
        "[bastions.gone]\nhost = \"127.0.0.1\"\nport = {}\nuser = \"u\"\n[databases.lost]\nbastion = \"gone\"\nhost = \"h\"\n\
         listen = \"127.0.0.1:0\"\n{}{}{}probe = {{ interval = \"100ms\" }}\n",
        free_port(),
        bastion.section("prod", bastion.port),
        postgres.unprobed_section("unprobed", "prod"),
        postgres.section("barred", "prod").replace(TRUSTED, "nobody_knows"),
    ));
    let job = Job::of(&daemon);
    daemon.wait_event("bastion not reached");
    daemon.wait_event("database down");
    daemon.wait_up("prod");
    // A database that is not probed is as reachable as its tunnel.
    let one = job.run(&["wait", "unprobed"]);
    assert_eq!((one.status.code(), out(&one).as_str()), (Some(0), "unprobed is reachable\n"), "{one:?}");
    let all = job.run(&["wait", "--timeout", "0s"]);
    assert_eq!((all.status.code(), out(&all).as_str()), (Some(1), "unprobed is reachable\n"), "{all:?}");
    let text = err(&all);
    let lines: Vec<&str> = text.lines().collect();
    let start = "tunnelkeeper: barred is not reachable: the probe says down: db_login ";
    assert!(lines[0].starts_with(start) && lines[0].contains("(hint: "), "{text}");
    let start = "tunnelkeeper: lost is not reachable: bastion gone is down: tcp refused: cannot connect to";
    assert!(lines[1].starts_with(start) && lines[1].contains("(hint: "), "{text}");
    assert_eq!(lines.len(), 2, "{text}");
    // However long it may wait, it does not wait for what will never be.
    for (name, words) in
        [("nobody", "the daemon has no database \"nobody\""), ("prod", "\"prod\" is a bastion")]
    {
        let unknown = job.run(&["wait", name, "unprobed", "--timeout", "1h"]);
        assert_eq!((unknown.status.code(), out(&unknown).as_str()), (Some(1), ""), "{unknown:?}");
        assert!(err(&unknown).contains(words), "{unknown:?}");
        let json = job.run(&["wait", name, "--timeout", "1h", "--format", "json"]);
        let report: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((json.status.code(), &report["reachable"]), (Some(1), &false.into()), "{report}");
        assert!(report["error"].as_str().unwrap().contains(words), "{report}");
    }
    let json = job.run(&["wait", "lost", "unprobed", "--timeout", "0s", "--format", "json"]);
    assert_eq!(json.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["reachable"], &report["daemon"]), (&false.into(), &Value::Null));
    let [lost, unprobed] = report["databases"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&lost["name"], &lost["reachable"]), (&"lost".into(), &false.into()));
    let missing = &lost["missing"][0];
    assert_eq!(
        (&missing["check"], &missing["failure"]["phase"]),
        (&"tunnel".into(), &"tcp".into()),
        "{report}"
    );
    assert_eq!((&unprobed["reachable"], &unprobed["missing"]), (&true.into(), &Value::Array(Vec::new())));
}

#[test]
fn stable_is_longer_than_reachable() {
    let (_bastion, daemon) = tunnel("", &Postgres::shared().section("analytics", "prod"));
    let job = Job::of(&daemon);
    assert_eq!(job.run(&["wait", "--stable", "200ms"]).status.code(), Some(0));
    let output = job.run(&["wait", "--stable", "1h", "--timeout", "0s"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(err(&output).contains("only, not yet for 1h"), "{output:?}");
}

#[test]
fn a_daemon_that_drains_is_not_waited_for_in_vain() {
    let (_bastion, mut daemon) = tunnel("", &Postgres::shared().unprobed_section("analytics", "prod"));
    let job = Job::of(&daemon);
    let mut client = psql(daemon.address("analytics"), &format!("user={TRUSTED}"), "SELECT pg_sleep(600)");
    let mut client = client.spawn().unwrap();
    eventually("the client is carried", || {
        (daemon.database("analytics")["clients_active"] == 1).then_some(())
    });
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_event("stopping");
    let output = eventually("the daemon says that it drains", || {
        Some(job.run(&["wait", "--timeout", "0s"])).filter(|output| output.status.code() == Some(1))
    });
    assert!(err(&output).contains("the daemon is not ready: draining"), "{output:?}");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    client.wait().unwrap();
}

#[test]
fn what_psql_prints_while_the_tunnel_is_down_and_when_it_is_cut() {
    let section = format!(
        "{}hold = {{ timeout = \"0s\" }}\n",
        Postgres::shared().unprobed_section("analytics", "prod")
    );
    let (mut bastion, daemon) = tunnel("", &section);
    let address = daemon.address("analytics");
    let login = |mode: &str| {
        let ca = Postgres::shared().ca().display().to_string();
        format!("user={TRUSTED} sslmode={mode} sslrootcert={ca} host=localhost hostaddr={}", address.ip())
    };
    let cut = ["disable", "require"].map(|mode| {
        psql(address, &login(mode), "SELECT pg_sleep(601)").stderr(Stdio::piped()).spawn().unwrap()
    });
    eventually("the queries run", || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(601)'";
        (Postgres::shared().sql("postgres", running).parse::<usize>().unwrap() >= 2
            && daemon.database("analytics")["clients_active"] == 2)
            .then_some(())
    });
    bastion.kill();
    daemon.wait_down("prod");
    let [plain, encrypted] = cut.map(|client| err(&client.wait_with_output().unwrap()));
    assert!(
        plain.starts_with("FATAL:  tunnelkeeper: the connection to database \"analytics\" was cut: session "),
        "{plain}"
    );
    assert!(encrypted.starts_with("server closed the connection unexpectedly"), "{encrypted}");
    for mode in ["disable", "allow", "prefer"] {
        let said = run_psql(address, &login(mode), "SELECT 1").unwrap_err();
        let words = "FATAL:  tunnelkeeper: database \"analytics\" cannot be reached: bastion \"prod\" is down since 20";
        assert!(said.contains(words), "{mode}: {said}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let said = run_psql(address, &login(mode), "SELECT 1").unwrap_err();
        assert!(said.ends_with("server does not support SSL, but SSL was required"), "{mode}: {said}");
    }
}

#[test]
fn what_a_package_installs_is_well_formed() {
    let print = |arguments: &[&str]| {
        let output = command(Path::new("/none"), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        out(&output)
    };
    let dir = TempDir::with_prefix("package-").unwrap();
    let script = |shell: &str| -> PathBuf {
        let path = dir.path().join(shell);
        fs::write(&path, print(&["completions", shell])).unwrap();
        path
    };
    let bash = Command::new("bash").arg("-n").arg(script("bash")).output().unwrap();
    assert!(bash.status.success(), "{bash:?}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(fs::read_to_string(script(shell)).unwrap().contains("service-file"), "{shell}");
    }
    let page = print(&["man"]);
    assert_eq!(page, print(&["man"]));
    let headings: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    let expected = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "COMMANDS",
        "ENVIRONMENT",
        "FILES",
        "\"EXIT STATUS\"",
        "\"SEE ALSO\"",
    ];
    assert_eq!(headings, expected);
    let commands: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SS ")).collect();
    for command in ["run", "\"config show", "\"wait [OPTIONS]", "\"exec [OPTIONS] <DATABASE>"] {
        assert!(
            commands.iter().any(|heading| heading.starts_with(command)),
            "{command} is not in {commands:?}"
        );
    }
    assert!(page.contains("tunnelkeeper\\fR [\\-\\-config FILE] COMMAND"), "{page}");
    assert!(page.contains("TUNNELKEEPER_URL") && page.contains("PGHOSTADDR"), "{page}");
}

#[test]
fn a_port_of_another_program_is_not_waited_for_where_it_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 1024]).unwrap();
        socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let output = Job::at(format!("http://{address}")).run(&["wait", "--timeout", "1h"]);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(err(&output).contains("is not tunnelkeeper"), "{output:?}");
}
