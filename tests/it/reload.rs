//! Another configuration while the daemon runs.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use tokio_postgres::Client;

use crate::support::bastion::{make_key, public_line};
use crate::support::client::{Job, connect, job};
use crate::support::{Bastion, Daemon, Postgres, Relay, eventually, free_port, runtime};

const SHORT_DRAIN: &str =
    "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\ndrain_timeout = \"1s\"\nstate_dir = \"state\"\n";

async fn answers(client: &Client) -> bool {
    client.simple_query("SELECT 1").await.is_ok()
}

fn sessions(daemon: &Daemon, bastion: &str) -> Vec<(u64, String)> {
    let sessions = daemon.bastion(bastion)["sessions"].clone();
    let session = |session: &serde_json::Value| {
        (session["id"].as_u64().unwrap(), session["state"].as_str().unwrap().to_owned())
    };
    sessions.as_array().unwrap().iter().map(session).collect()
}

fn has_series_of(daemon: &Daemon, label: &str) -> bool {
    daemon.metrics().keys().any(|series| series.contains(label))
}

#[test]
fn only_what_changed_is_touched() {
    let bastion = Bastion::start();
    let section = format!("{SHORT_DRAIN}{}", bastion.section("prod", bastion.port));
    let database = |name: &str| Postgres::shared().section(name, "prod");
    let all = format!("{section}{}{}{}", database("same"), database("changed"), database("removed"));
    let daemon = Daemon::start(&all);
    daemon.wait_up("prod");
    let runtime = runtime();
    let open = |name: &str| runtime.block_on(connect(daemon.address(name))).unwrap();
    let (same, changed, removed) = (open("same"), open("changed"), open("removed"));
    let (addresses, session) =
        ((daemon.address("same"), daemon.address("changed")), sessions(&daemon, "prod")[0].0);
    let loaded = daemon.metric("config_last_reload_success_timestamp_seconds");
    let removed_at = daemon.address("removed");

    // A broken file changes nothing.
    let problems = daemon.reload(&format!("{all}frobnicate = 1\n"));
    assert!(
        problems.len() == 1 && problems[0].contains("databases.removed.frobnicate: unknown key"),
        "{problems:?}"
    );
    assert_eq!(daemon.metric("config_last_reload_successful"), 0.0);
    assert_eq!(daemon.metric("config_last_reload_success_timestamp_seconds"), loaded);

    // Nor does a port that is in use, whatever else is new.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let in_the_way = database("added").replace("127.0.0.1:0\"", &format!("127.0.0.1:{port}\""));
    let new = format!("{section}{}{}hold = {{ timeout = \"0s\" }}\n", database("same"), database("changed"));
    let problems = daemon.reload(&format!("{new}{in_the_way}"));
    assert!(
        problems.len() == 1
            && problems[0].contains(&format!("databases.added.listen: 127.0.0.1:{port} is in use"))
    );
    assert!(daemon.status()["databases"].as_array().unwrap().len() == 3);
    drop(taken);
    for client in [&same, &changed, &removed] {
        assert!(runtime.block_on(answers(client)));
    }

    assert!(daemon.reload(&format!("{new}{in_the_way}")).is_empty());
    assert_eq!(daemon.metric("config_last_reload_successful"), 1.0);
    assert!(daemon.metric("config_last_reload_success_timestamp_seconds") > loaded);
    assert_eq!(runtime.block_on(job(daemon.address("added"))), Job::Done);
    assert_eq!((daemon.address("same"), daemon.address("changed")), addresses);
    assert!(TcpStream::connect(removed_at).is_err(), "it accepts no more");
    for client in [&same, &changed] {
        assert!(runtime.block_on(answers(client)));
    }
    assert_eq!(sessions(&daemon, "prod")[0].0, session, "its session was not touched");

    // The removed one's client may finish for a second, and is then cut; its series go with it.
    eventually("it has gone", || (daemon.status()["databases"].as_array().unwrap().len() == 3).then_some(()));
    assert!(!runtime.block_on(answers(&removed)));
    assert!(!has_series_of(&daemon, "database=\"removed\"") && has_series_of(&daemon, "database=\"added\""));
    assert_eq!(daemon.wait_event("client cut")["reason"], "drained");
}

#[test]
fn an_address_that_changes_or_moves_refuses_nobody_in_between() {
    let bastion = Bastion::start();
    let section = bastion.section("prod", bastion.port);
    let (one, two) = (free_port(), free_port());
    let database = |name: &str, port: u16| {
        Postgres::shared().section(name, "prod").replace("127.0.0.1:0\"", &format!("127.0.0.1:{port}\""))
    };
    let daemon = Daemon::start(&format!("{section}{}", database("old", one)));
    daemon.wait_up("prod");
    let runtime = runtime();
    let client = runtime.block_on(connect(daemon.address("old"))).unwrap();
    // Under another name at the same address, and at one more.
    let both = database("new", one)
        .replace("listen = ", "listen = [")
        .replace(&format!("127.0.0.1:{one}\""), &format!("127.0.0.1:{one}\", \"127.0.0.1:{two}\"]"));
    assert!(daemon.reload(&format!("{section}{both}")).is_empty());
    for port in [one, two] {
        assert_eq!(runtime.block_on(job(([127, 0, 0, 1], port).into())), Job::Done);
    }
    assert!(runtime.block_on(answers(&client)), "the old name's client is left alone for a while");
    let only = database("new", two);
    assert!(daemon.reload(&format!("{section}{only}")).is_empty());
    eventually("the first is let go", || TcpStream::connect(("127.0.0.1", one)).is_err().then_some(()));
    assert_eq!(runtime.block_on(job(([127, 0, 0, 1], two).into())), Job::Done);
    assert!(daemon.reload(&format!("{section}{both}")).is_empty());
    assert_eq!(runtime.block_on(job(([127, 0, 0, 1], one).into())), Job::Done);
}

#[test]
fn a_bastion_changes_in_place_or_gets_new_sessions() {
    let bastion = Bastion::start();
    let other = make_key(bastion.path("x").parent().unwrap(), "other", &["-t", "ed25519", "-N", ""]);
    let first = public_line(&bastion.path("identity"));
    bastion.authorize(&format!("{first}\n{}", public_line(&other)));
    let (section, database) =
        (bastion.section("prod", bastion.port), Postgres::shared().section("analytics", "prod"));
    let daemon = Daemon::start(&format!("{section}{database}"));
    daemon.wait_up("prod");
    let runtime = runtime();
    let address = daemon.address("analytics");
    let client = runtime.block_on(connect(address)).unwrap();
    let before = sessions(&daemon, "prod");

    assert!(daemon.reload(&format!("{section}keepalive_interval = \"1s\"\n{database}")).is_empty());
    eventually("it is pinged every second", || {
        let count = daemon.metric("keepalive_rtt_seconds_count{bastion=\"prod\"}");
        (count > 3.0).then_some(())
    });
    assert_eq!(sessions(&daemon, "prod")[0], before[0]);

    let rotated = section.replace("/identity\"", "/other\"");
    assert!(daemon.reload(&format!("{rotated}{database}")).is_empty());
    eventually("a new session is there, and the old one has its client", || {
        let now = sessions(&daemon, "prod");
        let old = now.iter().find(|(id, _)| *id == before[0].0)?;
        let new = now.iter().any(|(id, state)| *id > before.last().unwrap().0 && state == "established");
        (old.1 == "retiring" && new).then_some(())
    });
    assert_eq!(runtime.block_on(job(address)), Job::Done);
    assert!(runtime.block_on(answers(&client)));
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 1.0);
    assert!(daemon.events("tunnel down: clients are held").is_empty());
    drop(client);
    eventually("the old session ends with its last client", || {
        sessions(&daemon, "prod").iter().all(|(id, _)| *id != before[0].0).then_some(())
    });
}

#[test]
fn new_sessions_are_there_before_the_old_ones_go() {
    let bastion = Bastion::start();
    let other = make_key(bastion.path("x").parent().unwrap(), "other", &["-t", "ed25519", "-N", ""]);
    let section = bastion.section("prod", bastion.port);
    let rotated = section.replace("/identity\"", "/other\"");
    // Whoever finds no tunnel is refused at once.
    let database =
        format!("{}hold = {{ timeout = \"0s\" }}\n", Postgres::shared().section("analytics", "prod"));
    let daemon = Daemon::start(&format!("{section}{database}"));
    daemon.wait_up("prod");
    let (runtime, address) = (runtime(), daemon.address("analytics"));
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let jobs = runtime.spawn({
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        async move {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(job(address).await, Job::Done);
                done.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let more_jobs = || {
        let before = done.load(Ordering::SeqCst);
        eventually("jobs are done", || {
            (jobs.is_finished() || done.load(Ordering::SeqCst) > before + 20).then_some(())
        });
        assert!(!jobs.is_finished(), "a job was refused");
    };
    more_jobs();
    let first = sessions(&daemon, "prod").iter().map(|(id, _)| *id).max().unwrap();
    let is_new = |(id, _): &(u64, String)| *id > first;

    // The bastion does not know the new key: that is said, and the old sessions go on.
    assert!(daemon.reload(&format!("{rotated}{database}")).is_empty());
    let failure = daemon.wait_event("bastion not reached");
    assert_eq!((&failure["phase"], &failure["reason"]), (&"auth".into(), &"rejected".into()), "{failure}");
    more_jobs();
    let state = daemon.bastion("prod");
    assert!(state["up"].as_bool().unwrap() && !state["refusing"].as_bool().unwrap(), "{state}");
    assert_eq!(
        (&state["last_failure"]["phase"], &state["last_failure"]["current"]),
        (&"auth".into(), &true.into())
    );
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 1.0);
    // Somebody authorizes it, and says so.
    let keys = format!("{}\n{}", public_line(&bastion.path("identity")), public_line(&other));
    bastion.authorize(&keys);
    daemon.signal(Signal::SIGHUP);
    eventually("only new sessions are left", || {
        let sessions = sessions(&daemon, "prod");
        (!sessions.is_empty() && sessions.iter().all(is_new)).then_some(())
    });
    more_jobs();
    assert_eq!(daemon.bastion("prod")["last_failure"]["current"], false);
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(jobs).unwrap();
    assert!(daemon.events("tunnel down: clients are held").is_empty());
    assert!(daemon.events("sessions finish their clients").is_empty());
}

#[test]
fn what_was_wrong_with_the_way_before_is_forgotten() {
    let (bastion, gone) = (Bastion::start(), free_port());
    let database = Postgres::shared().unprobed_section("analytics", "prod");
    let daemon = Daemon::start(&format!("{}{database}", bastion.section("prod", gone)));
    daemon.wait_event("bastion not reached");
    eventually("it is shown", || {
        (daemon.bastion("prod")["last_failure"]["reason"] == "refused").then_some(())
    });
    assert!(daemon.reload(&format!("{}{database}", bastion.section("prod", bastion.port))).is_empty());
    daemon.wait_up("prod");
    let state = daemon.bastion("prod");
    assert!(state["last_failure"].is_null(), "{state}");
}

#[test]
fn a_host_that_is_not_trusted_any_more_gets_no_new_clients() {
    let bastion = Bastion::start();
    let section = bastion.section("prod", bastion.port);
    let database = Postgres::shared().unprobed_section("analytics", "prod");
    let daemon = Daemon::start(&format!("{section}{database}"));
    daemon.wait_up("prod");
    let runtime = runtime();
    let client = runtime.block_on(connect(daemon.address("analytics"))).unwrap();
    let known_hosts = section.lines().find(|line| line.starts_with("known_hosts")).unwrap();
    let pin = format!("host_key = [\"SHA256:{}\"]", "A".repeat(43));
    assert!(daemon.reload(&format!("{}{database}", section.replace(known_hosts, &pin))).is_empty());
    daemon.wait_down("prod");
    let failure = daemon.wait_event("bastion not reached");
    assert_eq!(failure["phase"], "host_key", "{failure}");
    assert!(!daemon.bastion("prod")["up"].as_bool().unwrap());
    assert!(runtime.block_on(answers(&client)), "who is there may finish");
}

#[test]
fn a_bastion_that_is_removed_is_up_until_its_last_client_has_left() {
    let chain = [Bastion::start(), Bastion::start(), Bastion::start()];
    let [edge, prod, spare] = &chain;
    let behind =
        |bastion: &Bastion, name: &str| format!("{}jump = \"edge\"\n", bastion.section(name, bastion.port));
    let common = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[daemon]\ndrain_timeout = \"1h\"\nstate_dir = \"state\"\n{}{}{}",
        edge.section("edge", edge.port),
        behind(spare, "spare"),
        Postgres::shared().section("stays", "spare")
    );
    let removed = format!("{}{}", behind(prod, "prod"), Postgres::shared().section("analytics", "prod"));
    let daemon = Daemon::start(&format!("{common}{removed}"));
    for bastion in ["prod", "spare", "edge"] {
        daemon.wait_up(bastion);
    }
    eventually("the probe is answered", || (daemon.get("/readyz/analytics").0 == 200).then_some(()));
    let runtime = runtime();
    let client = runtime.block_on(connect(daemon.address("analytics"))).unwrap();
    assert!(daemon.reload(&common).is_empty());
    eventually("it only finishes its client", || {
        let sessions = sessions(&daemon, "prod");
        (!sessions.is_empty() && sessions.iter().all(|(_, state)| state == "retiring")).then_some(())
    });
    assert!(runtime.block_on(answers(&client)));
    assert_eq!(daemon.metric("tunnel_up{bastion=\"prod\"}"), 1.0);
    assert!(sessions(&daemon, "edge").iter().any(|(_, state)| state == "retiring"));
    eventually("the database is not ready for anybody new", || {
        let (code, body) = daemon.get("/readyz/analytics");
        (code == 503 && body.contains("removed: the database takes no new clients")).then_some(())
    });
    drop(client);
    eventually("it is gone", || (!has_series_of(&daemon, "bastion=\"prod\"")).then_some(()));
    eventually("nothing of it is left at the jump", || {
        let (at_edge, at_spare) = (sessions(&daemon, "edge"), sessions(&daemon, "spare"));
        (at_edge.len() == at_spare.len() && at_edge.iter().all(|(_, state)| state == "established"))
            .then_some(())
    });
    assert_eq!(daemon.get("/readyz/analytics").0, 404);
}

#[test]
fn a_held_client_is_carried_by_the_way_that_a_reload_opens() {
    let (good, gone) = (Bastion::start(), free_port());
    let database = Postgres::shared().section("analytics", "prod");
    let daemon = Daemon::start(&format!("{}{database}", good.section("prod", gone)));
    let runtime = runtime();
    let held = runtime.spawn(job(daemon.address("analytics")));
    eventually("it is held", || (daemon.database("analytics")["clients_held"] == 1).then_some(()));
    // One more bastion, and the database moves behind it.
    let moved = Postgres::shared().section("analytics", "spare");
    let both = format!("{}{}{moved}", good.section("prod", gone), good.section("spare", good.port));
    assert!(daemon.reload(&both).is_empty());
    assert_eq!(runtime.block_on(held).unwrap(), Job::Done);
    assert!(daemon.reload(&format!("{}{moved}", good.section("spare", good.port))).is_empty());
    eventually("the first is forgotten", || (!has_series_of(&daemon, "bastion=\"prod\"")).then_some(()));
    assert_eq!(daemon.status()["bastions"].as_array().unwrap().len(), 1);
}

#[test]
fn a_bastion_that_others_go_through_changes_too() {
    let (edge, prod) = (Bastion::start(), Bastion::start());
    let relay = Relay::before(edge.port);
    let rest = format!(
        "{}jump = \"edge\"\n{}",
        prod.section("prod", prod.port),
        Postgres::shared().section("analytics", "prod")
    );
    let daemon = Daemon::start(&format!("{}{rest}", edge.section("edge", edge.port)));
    daemon.wait_up("prod");
    daemon.wait_up("edge");
    let runtime = runtime();
    let client = runtime.block_on(connect(daemon.address("analytics"))).unwrap();
    assert_eq!(relay.accepted(), 0);
    assert!(daemon.reload(&format!("{}{rest}", edge.section("edge", relay.port))).is_empty());
    eventually("sessions go the new way", || (relay.accepted() > 0).then_some(()));
    daemon.wait_up("prod");
    assert!(runtime.block_on(answers(&client)));
    assert_eq!(runtime.block_on(job(daemon.address("analytics"))), Job::Done);
    // A database directly behind it makes it a tunnel of its own.
    let direct = Postgres::shared().section("direct", "edge");
    assert!(daemon.reload(&format!("{}{rest}{direct}", edge.section("edge", relay.port))).is_empty());
    assert_eq!(runtime.block_on(job(daemon.address("direct"))), Job::Done);
    daemon.wait_up("edge");
    assert!(daemon.reload(&format!("{}{rest}", edge.section("edge", relay.port))).is_empty());
    eventually("it is only gone through again", || {
        (daemon.status()["databases"].as_array().unwrap().len() == 1).then_some(())
    });
    daemon.wait_up("edge");
    assert!(runtime.block_on(answers(&client)));
}

#[test]
fn a_listener_of_ours_that_is_in_the_way_is_said_to_be_ours() {
    let bastion = Bastion::start();
    let port = free_port();
    let listening = |listen: &str| {
        let listen = format!("{listen}:{port}\"\nallow_remote_clients = true");
        let database = Postgres::shared().unprobed_section("analytics", "prod");
        let section = bastion.section("prod", bastion.port);
        format!("{section}{}", database.replace("127.0.0.1:0\"", &listen))
    };
    let daemon = Daemon::start(&listening("127.0.0.1"));
    let problems = daemon.reload(&listening("0.0.0.0"));
    let expected = format!("0.0.0.0:{port} is still held as 127.0.0.1:{port} until this is applied: restart");
    assert!(problems.len() == 1 && problems[0].contains(&expected), "{problems:?}");
    assert_eq!(runtime().block_on(job(daemon.address("analytics"))), Job::Done);
}

#[test]
fn clients_of_a_database_that_went_and_came_back_are_waited_for() {
    let bastion = Bastion::start();
    let section = bastion.section("prod", bastion.port);
    let database = |name: &str| Postgres::shared().section(name, "prod");
    let both = format!("{section}{}{}", database("same"), database("analytics"));
    let mut daemon = Daemon::start(&both);
    daemon.wait_up("prod");
    let runtime = runtime();
    let client = runtime.block_on(connect(daemon.address("analytics"))).unwrap();
    assert!(runtime.block_on(answers(&client)));
    let bytes = "client_bytes_total{database=\"analytics\",direction=\"to_database\"}";
    let count = daemon.metric(bytes);
    assert!(count > 0.0);
    assert!(daemon.reload(&format!("{section}{}", database("same"))).is_empty());
    assert!(daemon.reload(&both).is_empty());
    assert_eq!(daemon.database("analytics")["clients"].as_array().unwrap().len(), 0);
    assert!(runtime.block_on(answers(&client)), "the old one's client is left alone");
    eventually("both count into one series", || (daemon.metric(bytes) > count).then_some(()));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_event("waiting for clients to finish")["clients"], 1);
    drop(client);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn what_needs_a_restart_is_said() {
    let (bastion, database) = (Bastion::start(), Postgres::shared().section("analytics", "prod"));
    let rest = format!("{}{database}", bastion.section("prod", bastion.port));
    let daemon = Daemon::start(&format!("{SHORT_DRAIN}{rest}"));
    let url = daemon.url();
    let other = "[http]\nlisten = \"127.0.0.1:1\"\n[daemon]\nstate_dir = \"elsewhere\"\nthreads = 7\n[log]\nlevel = \"warn\"\n";
    assert!(daemon.reload(&format!("{other}{rest}")).is_empty());
    let said = daemon.events("needs a restart to change: the daemon goes on as it is");
    let keys: Vec<&str> = said.iter().map(|event| event["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["http.listen", "daemon.threads"]);
    assert!(daemon.printed().contains("daemon.state_dir"));
    assert_eq!(daemon.url(), url);
    daemon.wait_up("prod");
}

#[test]
fn the_log_changes_in_place() {
    let (bastion, database) = (Bastion::start(), Postgres::shared().section("analytics", "prod"));
    let rest = format!("{}{database}", bastion.section("prod", bastion.port));
    let daemon = Daemon::with(&rest, |command| {
        command.env_remove("RUST_LOG");
    });
    daemon.wait_up("prod");
    assert!(daemon.events("session state").is_empty());
    assert!(daemon.reload(&format!("{rest}[log]\nlevel = \"debug\"\n")).is_empty());
    bastion.kill_sessions();
    daemon.wait_event("session state");
    daemon.begin_reload(&format!("{rest}[log]\nformat = \"text\"\n"));
    eventually("lines are for people", || {
        daemon
            .printed()
            .lines()
            .any(|line| line.contains("INFO the configuration has been reloaded"))
            .then_some(())
    });
}
