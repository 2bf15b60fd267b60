//! The way to a bastion's port.

use std::time::Duration;

use socket2::SockRef;

use super::{Filtered, bastion_fails, says, server};
use crate::support::{Bastion, Daemon, eventually};

super::cases! {
    packets_that_are_dropped: [TcpTimeout] => {
        let (bastion, filtered) = (Bastion::start(), Filtered::start());
        let section = format!("{}connect_timeout = \"1s\"\n", bastion.section("prod", filtered.port));
        [says(bastion_fails(&section), "answered in time", "security group")]
    }

    a_network_without_a_route: [TcpUnreachable] => {
        let bastion = Bastion::start();
        // No connection can be made to a group of hosts (RFC 1112), and the kernel says so as it does of a missing
        // route.
        let section = bastion.section("prod", bastion.port);
        let section = section.replace("host = \"127.0.0.1\"", "host = \"224.0.0.1\"");
        [says(bastion_fails(&section), "Network is unreachable", "VPN")]
    }

    a_connection_that_is_reset_as_it_is_made: [TcpReset] => {
        let bastion = Bastion::start();
        let port = server(|socket| SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap());
        let section = bastion.section("prod", port);
        let daemon = Daemon::start(&crate::agents::unused_database(&format!(
            "{section}reconnect = {{ min = \"1ms\", max = \"5ms\" }}\n"
        )));
        // Mostly it is made first, and then closed without a greeting; it has to come in between.
        let failure = eventually("it is reset in between", || {
            let failure = daemon.bastion("prod")["last_failure"].take();
            (failure["phase"] == "tcp").then_some(failure)
        });
        [says(failure, "Connection reset by peer", "load balancer")]
    }
}
