//! From a bastion to the database.

use std::fs;

use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelOpenFailure};

use super::scripted::Scripted;
use super::{
    At, Filtered, LATE, SOON, at_port, at_postgres, database_fails, probed, says, shown, status_shows,
};
use crate::support::bastion::public_line;
use crate::support::{Bastion, Daemon, eventually, free_port};

/// A bastion that has nothing left to give.
struct Exhausted;

impl Handler for Exhausted {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.reject(ChannelOpenFailure::ResourceShortage).await;
        Ok(())
    }
}

/// Whether somebody waits for a connection to this port of ours (proc(5), /proc/net/tcp: state 2 is SYN_SENT).
fn is_connected_to(port: u16) -> bool {
    let waiting = format!("0100007F:{port:04X} 02 ");
    fs::read_to_string("/proc/net/tcp").unwrap().contains(&waiting)
}

super::cases! {
    whatever_forbids_a_forward:
        [ChannelProhibited, ChannelProhibited, ChannelProhibited, ChannelProhibited] =>
    {
        [
            ("DisableForwarding yes", ""),
            ("PermitOpen 127.0.0.1:1", ""),
            ("", "permitopen=\"127.0.0.1:1\" "),
            ("", "restrict "),
        ]
        .map(|(lines, options)| {
            let bastion = Bastion::with(lines);
            bastion.authorize(&format!("{options}{}", public_line(&bastion.path("identity"))));
            let failure = database_fails(&bastion, &at_postgres(LATE));
            for culprit in ["PermitOpen", "DisableForwarding", "permitopen", "restrict"] {
                assert!(failure["hint"].as_str().unwrap().contains(culprit), "{failure}");
            }
            says(failure, "does not allow a forward to 127.0.0.1:", "AllowTcpForwarding")
        })
    }

    what_keeps_the_bastion_from_the_database:
        [ChannelConnectFailed, ChannelConnectFailed, ChannelConnectFailed] =>
    {
        let bastion = Bastion::that_knows(&[]);
        let at = |host: &str| at_port(free_port(), LATE).replace("127.0.0.1", host);
        [
            ("database.invalid", "\"Name or service not known\"", "does not know \"database.invalid\""),
            ("127.0.0.1", "\"Connection refused\"", "nothing listens at port"),
            ("224.0.0.1", "cannot connect to 224.0.0.1:", "a missing route or a firewall"),
        ]
        .map(|(host, detail, hint)| says(database_fails(&bastion, &at(host)), detail, hint))
    }

    a_database_behind_a_filter: [ChannelTimeout] => {
        let (bastion, filtered) = (Bastion::start(), Filtered::start());
        let failure = database_fails(&bastion, &at_port(filtered.port, SOON));
        [says(failure, "did not connect to 127.0.0.1:", "security group")]
    }

    a_session_that_ends_as_the_channel_opens: [ChannelSessionLost] => {
        let (bastion, filtered) = (Bastion::start(), Filtered::start());
        let section = bastion.section("prod", bastion.port);
        let patient = probed(&at_port(filtered.port, LATE));
        let daemon = Daemon::start(&format!("{section}open_timeout = \"60s\"\n{patient}"));
        daemon.wait_up("prod");
        eventually("sshd connects", || is_connected_to(filtered.port).then_some(()));
        bastion.kill_sessions();
        let failure = status_shows(&daemon, &At::Probe("analytics"));
        [says(failure, "ended while it connected", "the bastion's last failure")]
    }

    a_bastion_out_of_resources: [ChannelResourceShortage] => {
        let scripted = Scripted::start(|| Exhausted, |_| {});
        let daemon = Daemon::start(&format!("{}{}", scripted.section, probed(&at_postgres(LATE))));
        [says(shown(&daemon, &At::Probe("analytics")), "is too short of resources", "memory")]
    }
}
