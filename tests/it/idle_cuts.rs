//! What cuts sessions again and again is recognised, and said with its remedy.

use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::run;
use crate::support::{Bastion, Daemon, Fault, Relay, eventually};

/// A tunnel that nobody uses, so that nothing passes but what keeps it.
fn unused(bastion: &Bastion, port: u16, more: &str) -> Daemon {
    let database = "[databases.analytics]\nbastion = \"prod\"\nhost = \"127.0.0.1\"\nlisten = \"127.0.0.1:0\"\n\
                    probe = { level = \"off\" }\n";
    let pace = "reconnect = { min = \"10ms\", max = \"100ms\" }\n";
    Daemon::start(&format!("{}{pace}{more}{database}", bastion.section("prod", port)))
}

/// What cuts the sessions of a daemon, once it says so.
fn cut(daemon: &Daemon) -> Value {
    eventually("it is known what cuts sessions", || {
        Some(daemon.bastion("prod")["session_cut"].clone()).filter(|cut| !cut.is_null())
    })
}

/// Every surface says the same of it.
fn said_everywhere(daemon: &Daemon, cut: &Value) {
    let series = format!("session_cut_seconds{{after={},bastion=\"prod\"}}", cut["after"]);
    let (seconds, detail) = (cut["seconds"].as_f64().unwrap(), cut["detail"].as_str().unwrap());
    assert!((daemon.metric(&series) - seconds).abs() <= 1.0, "{cut}");
    let event = daemon.wait_event("sessions are cut");
    assert_eq!((&event["bastion"], &event["after"]), (&"prod".into(), &cut["after"]), "{event}");
    assert_eq!(event["hint"], cut["hint"], "{event}");
    let losses = daemon.events("session lost");
    assert!(losses.iter().any(|lost| lost["hint"].as_str().unwrap().contains("3 sessions")), "{losses:?}");
    let status = run(&daemon.config(), &["status", "--url", &daemon.url()]);
    let status = String::from_utf8(status.stdout).unwrap();
    let words = detail.split_once("sessions").unwrap().1;
    let page = daemon.get("/").1;
    assert!(status.contains(words) && status.contains("hint: "), "{status}");
    assert!(page.contains(words), "{cut} is not on {page}");
}

#[test]
fn a_balancer_that_cuts_what_is_idle_is_recognised_and_the_remedy_helps() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    relay.set(Fault::CutIdle(Duration::from_secs(3)));
    let interval = "keepalive_interval = \"1m\"\n";
    let daemon = unused(&bastion, relay.port, interval);
    let cut = cut(&daemon);
    assert_eq!((&cut["after"], &cut["seconds"]), (&"idle".into(), &3.into()), "{cut}");
    assert_eq!(cut["at_most"], false, "{cut}");
    let remedy = "keepalive_interval = \"1s\"\n";
    assert!(cut["hint"].as_str().unwrap().contains(remedy.trim()), "{cut}");
    said_everywhere(&daemon, &cut);

    let config = std::fs::read_to_string(daemon.config()).unwrap();
    assert!(daemon.reload(&config.replace(interval, remedy)).is_empty());
    daemon.wait_up("prod");
    let losses = || daemon.events("session lost").len();
    eventually("what was found is forgotten", || {
        daemon.bastion("prod")["session_cut"].is_null().then_some(())
    });
    let before = losses();
    // Longer than it was ever left alone for.
    eventually("a session lives", || {
        let session = &daemon.bastion("prod")["sessions"][0];
        let since = humantime::parse_rfc3339(session["since"].as_str()?).unwrap();
        (since.elapsed().unwrap() > Duration::from_secs(6)).then_some(())
    });
    assert!(losses() <= before + 1, "{:?}", daemon.events("session lost"));
}

#[test]
fn what_cuts_at_a_jump_is_told_of_the_jump() {
    let (edge, prod) = (Bastion::start(), Bastion::start());
    let relay = Relay::before(edge.port);
    relay.set(Fault::CutIdle(Duration::from_secs(3)));
    let jump = format!("jump = \"edge\"\nkeepalive_interval = \"1m\"\n{}", edge.section("edge", relay.port));
    let daemon = unused(&prod, prod.port, &jump);
    let cut = eventually("it is known what cuts sessions", || {
        Some(daemon.bastion("edge")["session_cut"].clone()).filter(|cut| !cut.is_null())
    });
    assert_eq!((&cut["after"], &cut["seconds"]), (&"idle".into(), &3.into()), "{cut}");
    // Nobody pings a jump but who goes through it.
    assert!(cut["hint"].as_str().unwrap().contains("[bastions.prod]"), "{cut}");
    assert!(daemon.bastion("prod")["session_cut"].is_null());
}

#[test]
fn a_nat_that_forgets_what_is_idle_is_found_out_by_the_next_ping() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    relay.set(Fault::ForgetIdle(Duration::from_secs(2)));
    let daemon = unused(&bastion, relay.port, "keepalive_interval = \"4s\"\n");
    let cut = cut(&daemon);
    assert_eq!((&cut["after"], &cut["at_most"]), (&"idle".into(), &true.into()), "{cut}");
    said_everywhere(&daemon, &cut);
}

#[test]
fn a_proxy_that_bounds_the_life_of_connections_is_recognised() {
    let bastion = Bastion::start();
    let relay = Relay::before(bastion.port);
    relay.set(Fault::CutOld(Duration::from_secs(6)));
    // Whatever passes meanwhile.
    let daemon = unused(&bastion, relay.port, "keepalive_interval = \"200ms\"\n");
    let cut = cut(&daemon);
    assert_eq!(cut["after"], "age", "{cut}");
    assert!(cut["hint"].as_str().unwrap().contains("no keepalive helps"), "{cut}");
    said_everywhere(&daemon, &cut);
}

#[test]
fn an_sshd_that_gets_no_answer_to_its_questions_is_recognised() {
    let bastion = Bastion::with("ClientAliveInterval 2\nClientAliveCountMax 2");
    let relay = Relay::before(bastion.port);
    let daemon = unused(&bastion, relay.port, "");
    for loss in 1..=3 {
        eventually("a session has been asked", || {
            let sessions = daemon.bastion("prod")["sessions"].clone();
            let session =
                sessions.as_array().unwrap().iter().find(|session| session["state"] == "established")?;
            let since = humantime::parse_rfc3339(session["since"].as_str()?).unwrap();
            (since.elapsed().unwrap() > Duration::from_secs(3)).then_some(())
        });
        relay.set(Fault::DeafOld);
        eventually("sshd gives it up", || (daemon.events("session lost").len() == loss).then_some(()));
    }
    let events = daemon.events("session lost");
    // It says so in its own log only.
    let unexplained = |lost: &Value| lost["detail"].as_str().unwrap().contains("without a word");
    assert!(
        events.iter().all(|lost| lost["reason"] == "closed_by_bastion" && unexplained(lost)),
        "{events:?}"
    );
    assert!(bastion.log().contains("Timeout, client not responding"), "{}", bastion.log());
    let cut = cut(&daemon);
    assert_eq!(cut["after"], "client_alive", "{cut}");
    // OpenSSH asks at once or twice its interval, as its whole seconds fall.
    assert!((2..=4).contains(&cut["seconds"].as_u64().unwrap()), "{cut}");
    assert!(cut["hint"].as_str().unwrap().contains("`ClientAliveInterval 30`"), "{cut}");
    said_everywhere(&daemon, &cut);
}

#[test]
fn an_sshd_that_is_restarted_now_and_then_cuts_nothing_regularly() {
    let mut bastion = Bastion::start();
    let daemon = unused(&bastion, bastion.port, "keepalive_interval = \"2s\"\n");
    for loss in 1..=4 {
        eventually("a session has come through a pause", || {
            let sessions = daemon.bastion("prod")["sessions"].clone();
            let session =
                sessions.as_array().unwrap().iter().find(|session| session["state"] == "established")?;
            let since = humantime::parse_rfc3339(session["since"].as_str()?).unwrap();
            (since.elapsed().unwrap() > Duration::from_secs(3 + loss)).then_some(())
        });
        bastion.kill();
        eventually("it is lost", || (daemon.events("session lost").len() as u64 == loss).then_some(()));
        bastion.start_again();
    }
    assert!(daemon.bastion("prod")["session_cut"].is_null(), "{}", daemon.bastion("prod"));
}
