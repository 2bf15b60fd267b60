//! What happens behind the bastion: to the databases.

use std::fs;
use std::net::SocketAddr;

use super::Moment::{Carrying, Opening};
use super::Newcomer::Served;
use super::Streams::{Pause, Survive};
use super::stage::Stage;
use super::stream::Echo;
use super::{Moment, Row, Streams, Trouble, Why, run};
use crate::support::client::{Job, job};
use crate::support::{Bastion, Fault, Postgres, Relay, eventually};

const fn row<T>(fault: T, when: Moment, streams: Streams, then: &'static [Why]) -> Row<T> {
    Row { fault, when, streams, lost: &[], then, newcomer: Served }
}

/// Accepts connections and says nothing any more: the relays before the two databases.
struct Silent(Vec<Relay>);

impl std::fmt::Debug for Silent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Silent")
    }
}

impl Trouble for Silent {
    fn begin(&self, _: &mut Stage) {
        self.0.iter().for_each(|relay| relay.set(Fault::Pause));
    }

    fn end(&self, stage: &mut Stage) {
        self.0.iter().for_each(|relay| relay.set(Fault::None));
        wait_for_verdict(stage, "up");
    }
}

fn wait_for_verdict(stage: &Stage, verdict: &str) {
    eventually(&format!("the probe finds the database {verdict}"), || {
        (stage.daemon.database("analytics")["probe"]["verdict"] == verdict).then_some(())
    });
}

/// `[databases.analytics]`, which is asked all the time.
fn probed(postgres: &Postgres, port: u16) -> String {
    let section = postgres.section("analytics", "prod");
    let section = section.replace(&format!("port = {}", postgres.port), &format!("port = {port}"));
    format!("{section}probe = {{ interval = \"200ms\", timeout = \"500ms\" }}\n")
}

/// A stage whose databases are at these ports.
fn stage(prod: Bastion, echo: Echo, more: &str) -> Stage {
    let (relay, section) = (Relay::before(prod.port), prod.section("prod", prod.port));
    let stage = Stage::build_with(prod, relay, echo, &section, more, |_| {});
    wait_for_verdict(&stage, "up");
    stage
}

#[test]
fn databases_that_accept_and_are_silent() {
    let (prod, echo, postgres) = (Bastion::start(), Echo::start(), Postgres::shared());
    let relays = [echo.address.port(), postgres.port].map(Relay::before);
    let at_relay = format!("port = {}", relays[0].port);
    let section = echo.section("echo", "prod").replace(&format!("port = {}", echo.address.port()), &at_relay);
    let more = format!("{section}{}", probed(postgres, relays[1].port));
    let mut stage = stage(prod, echo, &more);
    let silent = Silent(relays.into());
    run(&mut stage, &row(silent, Carrying, Pause, &[Why("db_query", "timeout"), Why("db_tls", "timeout")]));
    stage.end();
}

/// Is stopped, as for a restart.
struct Stopped(Postgres);

impl std::fmt::Debug for Stopped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Stopped")
    }
}

impl Trouble for Stopped {
    fn begin(&self, stage: &mut Stage) {
        self.0.stop();
        wait_for_verdict(stage, "down");
        let failure = stage.daemon.database("analytics")["probe"]["last_failure"].clone();
        let event = stage.daemon.wait_event("database down");
        assert_eq!(failure["phase"], "channel", "{failure}");
        assert!(event["database"] == "analytics" && event["phase"].is_string(), "{event}");
        let page = stage.daemon.get("/").1;
        assert!(page.contains("channel connect_failed: "), "{page}");
    }

    fn end(&self, stage: &mut Stage) {
        // Who comes while there is no database is held like everybody else.
        let job = stage.runtime.spawn(job(stage.daemon.address("analytics")));
        eventually("the job is held", || {
            (stage.daemon.database("analytics")["clients_held"] == 1).then_some(())
        });
        self.0.start_again();
        let held = stage.runtime.block_on(job).unwrap();
        // It may come so early that the database says itself that it starts.
        let early =
            matches!(&held, Job::Unanswered(text) if text.contains("the database system is starting up"));
        assert!(held == Job::Done || early, "{held:?}");
        wait_for_verdict(stage, "up");
    }
}

#[test]
fn a_database_that_is_restarted() {
    let postgres = Postgres::start(|_| {});
    let echo = Echo::start();
    let more = format!("{}{}", echo.section("echo", "prod"), probed(&postgres, postgres.port));
    let mut stage = stage(Bastion::start(), echo, &more);
    let stopped = Stopped(postgres);
    for row in [row(&stopped, Carrying, Survive, &[]), row(&stopped, Opening, Survive, &[])] {
        run(&mut stage, &row);
    }
    stage.end();
}

/// The name behind the bastion leads to another server; the one before goes on for those that it has.
struct FailedOver {
    replica: Echo,
}

impl std::fmt::Debug for FailedOver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FailedOver")
    }
}

const NAME: &str = "database.test";

impl Trouble for FailedOver {
    fn begin(&self, stage: &mut Stage) {
        fs::write(stage.prod.path("hosts"), format!("127.0.0.2 {NAME}")).unwrap();
    }

    fn end(&self, stage: &mut Stage) {
        eventually("whoever came meanwhile is with the other server", || {
            (self.replica.open() == 1).then_some(())
        });
        fs::write(stage.prod.path("hosts"), format!("127.0.0.1 {NAME}")).unwrap();
        self.replica.assert_heard_well();
    }
}

#[test]
fn a_database_that_fails_over() {
    let (prod, echo) = (Bastion::that_knows(&[NAME]), Echo::start());
    let replica = Echo::at(SocketAddr::from(([127, 0, 0, 2], echo.address.port())));
    let more = format!(
        "{}{}",
        echo.section_at("echo", "prod", NAME),
        probed(Postgres::shared(), Postgres::shared().port)
    );
    let mut stage = stage(prod, echo, &more);
    run(&mut stage, &row(FailedOver { replica }, Carrying, Survive, &[]));
    stage.end();
}
