//! What becomes of clients. It is their end and no state, so the log has it and the client is told.

use std::net::TcpStream;

use super::saying;
use crate::support::client::run_psql;
use crate::support::postgres::TRUSTED;
use crate::support::{Bastion, Daemon, Postgres, eventually, free_port, tunnel};

/// What psql is told.
fn told(daemon: &Daemon) -> String {
    run_psql(daemon.address("analytics"), &format!("user={TRUSTED}"), "SELECT 1").unwrap_err()
}

super::cases! {
    one_that_is_silent: [ClientIdle] => {
        let silent = Postgres::shared().unprobed_section("analytics", "prod");
        let port = format!("port = {}\n", Postgres::shared().port);
        let silent = silent.replace(&port, &format!("port = {}\nidle_timeout = \"200ms\"\n", saying(b"")));
        let (_bastion, daemon) = tunnel("", &silent);
        let _client = TcpStream::connect(daemon.address("analytics")).unwrap();
        [daemon.wait_event("client cut")]
    }

    one_too_many: [ClientLimit] => {
        let one = format!("{}max_clients = 1\n", Postgres::shared().unprobed_section("analytics", "prod"));
        let (_bastion, daemon) = tunnel("", &one);
        let _client = TcpStream::connect(daemon.address("analytics")).unwrap();
        let active = "clients_active{database=\"analytics\"}";
        eventually("the place is taken", || (daemon.metric(active) == 1.0).then_some(()));
        let told = told(&daemon);
        assert!(told.contains("has 1 clients already (max_clients); raise the limit"), "{told}");
        [daemon.wait_event("clients are turned away: a limit is reached")]
    }

    one_that_waited_in_vain: [ClientHoldTimeout] => {
        let bastion = Bastion::start();
        let held = format!(
            "{}hold = {{ timeout = \"200ms\" }}\n",
            Postgres::shared().unprobed_section("analytics", "prod")
        );
        let daemon = Daemon::start(&format!("{}{held}", bastion.section("prod", free_port())));
        let told = told(&daemon);
        assert!(told.contains("bastion \"prod\" is down since"), "{told}");
        [daemon.wait_event("client answered")]
    }
}
