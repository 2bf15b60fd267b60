//! The Debian package as an operator meets it: installed, configured, started, reloaded, restarted, upgraded, removed, in
//! a machine with systemd as its first process. `make test-system` builds the package and runs this, as root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod machine;
/// What the other tests wait by.
#[path = "../it/support/patience.rs"]
mod patience;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use machine::{Machine, PACKAGE, said};
use patience::eventually;

/// The highest exposure that `systemd-analyze security` may see, in tenths.
const MOST_EXPOSURE: &str = "15";

const CONFIGURATION: &str = "/etc/tunnelkeeper/tunnelkeeper.toml";

/// What each query of the test asks, as somebody who has nothing to do with the daemon.
const QUERY: &str = "timeout 60 runuser -u job -- env PGPASSWORD=sesame psql -h 127.0.0.1 -p 15432 -U reader -d postgres -Atc 'select 41 + 1'";

fn configuration(database: &str) -> String {
    format!(
        "[bastions.prod]\nhost = \"127.0.0.1\"\nuser = \"gate\"\n\n\
         [databases.analytics]\nbastion = \"prod\"\nhost = \"127.0.0.1\"\n{database}"
    )
}

#[test]
fn an_operator_installs_uses_and_removes_it() {
    if !nix::unistd::geteuid().is_root() {
        panic!("it boots a machine, which needs root: sudo make test-system");
    }
    let machine = Machine::boot(&package());
    prepare(&machine);
    is_installed(&machine);
    is_started(&machine);
    is_confined(&machine);
    is_reloaded(&machine);
    knows_its_clients(&machine);
    lends_its_socket_to_a_group(&machine);
    comes_back_when_it_hangs(&machine);
    is_started_when_its_address_is_free(&machine);
    refuses_nobody_while_it_restarts(&machine);
    gets_its_secrets(&machine);
    gives_up_without_a_configuration(&machine);
    is_upgraded(&machine);
    is_removed(&machine);
}

/// The newest package that `make deb` has made.
fn package() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debian");
    let files = fs::read_dir(&dir).expect("`make deb` comes first").map(|entry| entry.unwrap().path());
    let packages = files.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("`make deb` comes first")
}

/// A bastion's account and a database's, and somebody who runs jobs.
fn prepare(machine: &Machine) {
    machine.run("useradd --create-home job && useradd --create-home --shell /usr/sbin/nologin gate");
    eventually("PostgreSQL is there", || {
        machine.try_run("runuser -u postgres -- psql -Atc 'select 1'").status.success().then_some(())
    });
    machine.run("runuser -u postgres -- psql -c \"create role reader login password 'sesame'\"");
}

fn is_installed(machine: &Machine) {
    let output = machine.try_run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {PACKAGE}"));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("then: systemctl enable --now tunnelkeeper"), "{}", said(&output));
    assert_eq!(machine.ask("systemctl is-enabled tunnelkeeper").trim(), "disabled");
    assert_eq!(machine.ask("systemctl is-active tunnelkeeper").trim(), "inactive");
    assert_eq!(
        machine.run(
            "stat -c '%a %U %G' /etc/tunnelkeeper /etc/tunnelkeeper/tunnelkeeper.toml /var/lib/tunnelkeeper"
        ),
        "750 root tunnelkeeper\n640 root tunnelkeeper\n700 tunnelkeeper tunnelkeeper\n"
    );
    assert!(
        machine
            .run("man --version >/dev/null 2>&1; zcat /usr/share/man/man1/tunnelkeeper.1.gz")
            .contains(".TH")
    );
    machine.run("bash -n /usr/share/bash-completion/completions/tunnelkeeper");
    machine.run(&format!(
        "tunnelkeeper --version && tunnelkeeper config check --config {CONFIGURATION} || test $? = 78"
    ));
}

/// As the configuration that is installed says: trust, keygen, start, status.
fn is_started(machine: &Machine) {
    machine.write(CONFIGURATION, &configuration("listen = \"127.0.0.1:15432\"\n"));
    let fingerprint = machine.run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d ' ' -f 2");
    machine.run(&format!("tunnelkeeper trust prod --fingerprint {}", fingerprint.trim()));
    let key = machine.run("tunnelkeeper keygen prod");
    let line = key.lines().find(|line| line.contains("ssh-ed25519 ")).unwrap();
    machine.run("install -d -m 700 -o gate -g gate ~gate/.ssh");
    machine.write("~gate/.ssh/authorized_keys", &format!("{line}\n"));
    // Root made them, and the daemon has to read them.
    let owners = machine.run("find /var/lib/tunnelkeeper -printf '%u %P\\n'");
    assert!(owners.contains("keys/prod\n") && owners.contains("known_hosts\n"), "{owners}");
    assert!(owners.lines().all(|line| line.starts_with("tunnelkeeper ")), "{owners}");

    machine.run("systemctl enable --now tunnelkeeper");
    has_status(machine, "1 of 1 tunnels up");
    let status = machine.run("systemctl status --no-pager tunnelkeeper");
    assert!(
        status.contains("active (running)") && status.contains("Status: \"1 of 1 tunnels up\""),
        "{status}"
    );
    assert_eq!(machine.run(QUERY).trim(), "42");
    assert!(machine.run("runuser -u job -- tunnelkeeper status").contains("analytics"));
    machine.run("runuser -u job -- tunnelkeeper wait analytics --timeout 10s");
}

/// Waits until systemd says so of the daemon, and nothing else.
fn has_status(machine: &Machine, expected: &str) {
    eventually(expected, || {
        let status = machine.ask("systemctl show -P StatusText tunnelkeeper");
        let rest = status.trim_end().strip_prefix(expected);
        // What comes behind a sentence's end is another one.
        rest.is_some_and(|rest| !rest.starts_with(';')).then_some(())
    });
}

fn is_confined(machine: &Machine) {
    let judged =
        machine.run(&format!("systemd-analyze security --no-pager --threshold={MOST_EXPOSURE} tunnelkeeper"));
    assert!(judged.contains("Overall exposure level"), "{judged}");
    for secret in [CONFIGURATION, "/var/lib/tunnelkeeper/keys/prod"] {
        machine.refused(&format!("runuser -u job -- cat {secret}"));
    }
    assert_eq!(machine.run("ps -o user= -C tunnelkeeper").trim(), "tunnelkeeper");
    // A machine within a machine may not be able to give as much.
    assert_eq!(machine.run("systemctl show -P LimitNOFILE tunnelkeeper").trim(), "65536");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limits = machine.run("cat /proc/$(systemctl show -P MainPID tunnelkeeper)/limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!([65536, most].iter().any(|limit| files.matches(&limit.to_string()).count() == 2), "{files}");
}

fn is_reloaded(machine: &Machine) {
    let pid = main_pid(machine);
    machine.write(CONFIGURATION, &configuration("lisen = \"127.0.0.1:15432\"\n"));
    machine.refused("systemctl reload tunnelkeeper");
    has_status(machine, "1 of 1 tunnels up; the configuration was not reloaded");
    let urgent = machine.run("journalctl --no-pager --output cat --priority warning --unit tunnelkeeper");
    assert!(urgent.contains("lisen") && !urgent.contains("INFO") && !urgent.contains("<3>"), "{urgent}");
    assert_eq!(machine.run(QUERY).trim(), "42");

    machine.write(CONFIGURATION, &configuration("listen = [\"127.0.0.1:15432\", \"unix:/run/tunnelkeeper/.s.PGSQL.5432\"]\nsocket_mode = \"0666\"\n"));
    machine.run("systemctl reload tunnelkeeper");
    eventually("the new socket is there", || {
        machine.try_run("test -S /run/tunnelkeeper/.s.PGSQL.5432").status.success().then_some(())
    });
    has_status(machine, "1 of 1 tunnels up");
    assert_eq!(
        machine.run(&QUERY.replace("127.0.0.1", "/run/tunnelkeeper").replace("15432", "5432")).trim(),
        "42"
    );
    assert_eq!(main_pid(machine), pid);
}

/// Nothing of its confinement keeps it from telling who they are, and how it is itself.
fn knows_its_clients(machine: &Machine) {
    let query = QUERY.replace("127.0.0.1 -p 15432", "/run/tunnelkeeper").replace("41 + 1", "pg_sleep(600)");
    let mut client = machine.start(&format!("exec {query}"));
    eventually("the client is named", || {
        machine.run("tunnelkeeper status analytics").contains(" (psql)").then_some(())
    });
    machine.run("pkill -u job psql");
    client.wait().unwrap();
    let metrics = machine.run(
        "bash -c 'exec 3<>/dev/tcp/127.0.0.1/9822; printf \"GET /metrics HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'",
    );
    let started = metrics.lines().find_map(|line| line.strip_prefix("process_start_time_seconds ")).unwrap();
    assert!(started.parse::<f64>().unwrap() > 1e9, "{started}");
}

fn main_pid(machine: &Machine) -> u32 {
    machine.run("systemctl show -P MainPID tunnelkeeper").trim().parse().unwrap()
}

fn drop_in(machine: &Machine, name: &str, text: &str) {
    let dir = "/etc/systemd/system/tunnelkeeper.service.d";
    machine.run(&format!("mkdir -p {dir}"));
    machine.write(&format!("{dir}/{name}.conf"), &format!("[Service]\n{text}\n"));
    machine.run("systemctl daemon-reload");
}

fn lends_its_socket_to_a_group(machine: &Machine) {
    drop_in(machine, "group", "SupplementaryGroups=job");
    let listen = "listen = [\"127.0.0.1:15432\", \"unix:/run/tunnelkeeper/.s.PGSQL.5432\"]";
    machine.write(CONFIGURATION, &configuration(&format!("{listen}\nsocket_group = \"job\"\n")));
    machine.run("systemctl restart tunnelkeeper");
    assert_eq!(machine.run("stat -c '%a %G' /run/tunnelkeeper/.s.PGSQL.5432").trim(), "660 job");
    let query = QUERY.replace("127.0.0.1 -p 15432", "/run/tunnelkeeper");
    assert_eq!(machine.run(&query).trim(), "42");
    machine.refused(&query.replace("-u job", "-u postgres"));
}

fn comes_back_when_it_hangs(machine: &Machine) {
    drop_in(machine, "watchdog", "WatchdogSec=10s");
    machine.run("systemctl restart tunnelkeeper");
    let pid = main_pid(machine);
    // It is fed for longer than it waits.
    let mut fed = BTreeSet::new();
    eventually("the watchdog is fed", || {
        fed.insert(machine.run("systemctl show -P WatchdogTimestampMonotonic tunnelkeeper"));
        (fed.len() > 5).then_some(())
    });
    assert_eq!(main_pid(machine), pid, "{}", machine.journal());
    machine.run(&format!("kill -STOP {pid}"));
    eventually("systemd has started it anew", || (![0, pid].contains(&main_pid(machine))).then_some(()));
    has_status(machine, "1 of 1 tunnels up");
    assert!(machine.journal().contains("Watchdog timeout"), "{}", machine.journal());
    assert_eq!(machine.run(QUERY).trim(), "42");
    machine.run("rm /etc/systemd/system/tunnelkeeper.service.d/watchdog.conf && systemctl daemon-reload");
}

fn is_started_when_its_address_is_free(machine: &Machine) {
    machine.write(CONFIGURATION, &configuration("listen = \"127.0.0.1:15432\"\n"));
    machine.run("systemctl stop tunnelkeeper");
    machine.run("systemd-run --unit=another systemd-socket-activate --listen=127.0.0.1:15432 true");
    eventually("another has the address", || {
        // Of those that listen (state 0A), port 0x3C48.
        machine.try_run("grep -q ':3C48 .* 0A ' /proc/net/tcp").status.success().then_some(())
    });
    machine.refused("systemctl start tunnelkeeper");
    eventually("it is tried again", || {
        let restarts: u32 = machine.run("systemctl show -P NRestarts tunnelkeeper").trim().parse().unwrap();
        (restarts >= 2).then_some(())
    });
    assert!(machine.journal().contains("127.0.0.1:15432"), "{}", machine.journal());
    machine.run("systemctl stop another");
    has_status(machine, "1 of 1 tunnels up");
}

fn refuses_nobody_while_it_restarts(machine: &Machine) {
    machine.write(CONFIGURATION, &configuration("listen = \"systemd:analytics\"\n"));
    machine.run("systemctl stop tunnelkeeper");
    machine.run("cp /usr/share/doc/tunnelkeeper/examples/tunnelkeeper.socket /etc/systemd/system/tunnelkeeper-analytics.socket");
    machine.run("systemctl daemon-reload && systemctl enable --now tunnelkeeper-analytics.socket");
    // Nobody has started it: the first client does.
    assert_eq!(machine.run(QUERY).trim(), "42");
    let asking = format!(
        "while ! test -e /run/enough; do {QUERY} >>/run/answers 2>>/run/refusals; done; wc -l < /run/answers; cat /run/refusals"
    );
    let clients = machine.start(&asking);
    let mut restarts = 0;
    while restarts < 5 {
        let before: usize = machine.ask("cat /run/answers | wc -l").trim().parse().unwrap();
        machine.run("systemctl restart tunnelkeeper");
        restarts += 1;
        eventually("clients are answered again", || {
            (machine.ask("cat /run/answers | wc -l").trim().parse::<usize>().unwrap() > before + 2)
                .then_some(())
        });
    }
    machine.run("touch /run/enough");
    let output = clients.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (answers, refusals) = text.split_once('\n').unwrap();
    assert_eq!(refusals, "", "{text}");
    assert!(answers.parse::<usize>().unwrap() > 10, "{text}");
}

fn gets_its_secrets(machine: &Machine) {
    machine.run("install -d -m 700 /etc/tunnelkeeper/secrets");
    machine.write("/etc/tunnelkeeper/secrets/analytics", "sesame\n");
    machine.run("chmod 600 /etc/tunnelkeeper/secrets/analytics");
    drop_in(machine, "credential", "LoadCredential=analytics:/etc/tunnelkeeper/secrets/analytics");
    machine.write(
        CONFIGURATION,
        &configuration(
            "listen = \"systemd:analytics\"\ndatabase = \"postgres\"\nuser = \"reader\"\n\
             password = { credential = \"analytics\" }\n",
        ),
    );
    machine.run("systemctl restart tunnelkeeper");
    let verdict = eventually("the probe has come to a verdict", || {
        let status = machine.run("tunnelkeeper status --format json");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let probe = status["databases"][0]["probe"].clone();
        (probe["verdict"] != "unknown").then_some(probe)
    });
    assert_eq!((&verdict["verdict"], &verdict["level"]), (&"up".into(), &"query".into()), "{verdict}");
    assert!(!machine.journal().contains("sesame"), "{}", machine.journal());
    assert!(!machine.run("tunnelkeeper config show").contains("sesame"));
}

fn gives_up_without_a_configuration(machine: &Machine) {
    let good = machine.run(&format!("cat {CONFIGURATION}"));
    machine.write(CONFIGURATION, "nonsense\n");
    let refusals = || machine.journal().matches("Failed with result 'exit-code'").count();
    let before = refusals();
    machine.refused("systemctl restart tunnelkeeper");
    let shown = machine.run("systemctl show -P ActiveState -P ExecMainStatus -P NRestarts tunnelkeeper");
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["0", "78", "failed"], "{shown}");

    // A client has it started once more, and again and again; and is served when the configuration is mended.
    let client = machine.start(QUERY);
    eventually("it was started for a client, and failed", || (refusals() > before + 4).then_some(()));
    assert_eq!(machine.run("systemctl is-failed tunnelkeeper-analytics.socket; true").trim(), "active");
    machine.write(CONFIGURATION, &good);
    let output = client.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42", "{}", said(&output));
    has_status(machine, "1 of 1 tunnels up");
}

fn is_upgraded(machine: &Machine) {
    let pid = main_pid(machine);
    let output = machine.try_run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {PACKAGE}"));
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("to run the new version: systemctl restart tunnelkeeper"),
        "{}",
        said(&output)
    );
    assert_eq!(main_pid(machine), pid);
    assert!(machine.run(&format!("cat {CONFIGURATION}")).contains("credential"));
    assert_eq!(machine.run(QUERY).trim(), "42");
}

fn is_removed(machine: &Machine) {
    machine.run("systemctl disable --now tunnelkeeper-analytics.socket; rm /etc/systemd/system/tunnelkeeper-analytics.socket");
    machine.run("DEBIAN_FRONTEND=noninteractive dpkg --remove tunnelkeeper");
    assert_eq!(machine.ask("systemctl is-active tunnelkeeper").trim(), "inactive");
    machine.refused("command -v tunnelkeeper");
    machine.run(&format!("test -e {CONFIGURATION} && test -e /var/lib/tunnelkeeper/keys/prod"));
    let purge = "DEBIAN_FRONTEND=noninteractive dpkg --purge tunnelkeeper";
    let output = machine.try_run(purge);
    assert!(output.status.success() && said(&output).contains("the keys stay"), "{}", said(&output));
    machine.run("test -e /var/lib/tunnelkeeper/keys/prod");
    machine.refused(&format!("test -e {CONFIGURATION}"));

    // Who is asked, and says yes.
    machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {PACKAGE}"));
    machine.run("echo tunnelkeeper tunnelkeeper/remove-state boolean true | debconf-set-selections");
    machine.run(purge);
    machine.refused("test -e /var/lib/tunnelkeeper");
}
