//! What it means that a bastion does not open a channel: which cause, and what its words say of the reason.
//!
//! sshd connects as a program of its machine does and passes on what the system said, so its text tells a name that it
//! cannot resolve from a port that is closed and a network that it cannot reach (OpenSSH 9.9, channels.c). It is text of
//! the peer: it decides what is shown and advised, and nothing else.

use russh::ChannelOpenFailure;

use crate::failure::{Cause, Failure, one_line};
use crate::ids::{HostPort, Target};

/// sshd has one answer for a socket that is not there, that it may not open, and that it does not allow (OpenSSH 9.2,
/// serverloop.c).
const UNIX_SOCKET_HINT: &str = "see sshd's log on the bastion: the socket may be missing or closed to the account, or \
                                forbidden by AllowStreamLocalForwarding, AllowTcpForwarding or PermitOpen in \
                                sshd_config, or by permitopen or restrict in authorized_keys";

/// The failure of an open that `bastion` has refused for this `reason`, with these `words` where they are known.
pub(super) fn refused(
    bastion: &HostPort,
    target: &Target,
    reason: &ChannelOpenFailure,
    words: Option<&str>,
) -> Failure {
    let words = words.map(|words| one_line(words, 200)).filter(|words| !words.is_empty());
    let said = words.as_ref().map_or(String::new(), |words| format!(": \"{words}\""));
    let failure = match reason {
        ChannelOpenFailure::AdministrativelyProhibited | ChannelOpenFailure::UnknownChannelType => {
            Failure::new(
                Cause::ChannelProhibited,
                format!("{bastion} does not allow a forward to {target}{said}"),
            )
        }
        ChannelOpenFailure::ResourceShortage => Failure::new(
            Cause::ChannelResourceShortage,
            format!("{bastion} is too short of resources to connect to {target}{said}"),
        ),
        ChannelOpenFailure::ConnectFailed | ChannelOpenFailure::Other { .. } => {
            Failure::new(Cause::ChannelConnectFailed, format!("{bastion} cannot connect to {target}{said}"))
        }
    };
    let hint = match (target, failure.cause) {
        (_, Cause::ChannelResourceShortage) => None,
        (Target::Unix(_), _) => Some(UNIX_SOCKET_HINT.to_owned()),
        (Target::Tcp(at), Cause::ChannelConnectFailed) => {
            words.and_then(|words| advice(&bastion.host, at, &words))
        }
        _ => None,
    };
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}

/// What to do about what the bastion's system said of a connection, in the words of glibc and musl.
fn advice(bastion: &str, at: &HostPort, words: &str) -> Option<String> {
    let HostPort { host, port } = at;
    let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
    if says(&["not known", "does not resolve", "No address"]) {
        Some(format!(
            "the DNS of {bastion} does not know \"{host}\": check `host`, and `getent hosts {host}` there"
        ))
    } else if says(&["name resolution", "Try again"]) {
        Some(format!("the name server of {bastion} does not answer it: check /etc/resolv.conf there"))
    } else if says(&["Connection refused"]) {
        Some(format!(
            "{bastion} reaches {host}, and nothing listens at port {port}: check `port`, that the server runs, and that it \
             listens on that address"
        ))
    } else if says(&["timed out"]) {
        Some(format!(
            "packets from {bastion} to {at} are dropped: check the security group or firewall in front of {host}"
        ))
    // sshd itself is at a loss for words where the attempt fails at once.
    } else if says(&["No route to host", "unreachable", "Permission denied", "not permitted", "open failed"])
    {
        Some(format!(
            "a missing route or a firewall keeps {bastion} from {at}: check both, and what sshd's log on {bastion} says"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(target: &Target, reason: &ChannelOpenFailure, words: &str) -> Failure {
        refused(&HostPort::new("b", 22), target, reason, Some(words))
    }

    #[test]
    fn what_the_bastions_system_says_has_a_remedy_of_its_own() {
        let database = Target::Tcp(HostPort::new("db", 5432));
        for (words, remedy) in [
            ("Name or service not known", "DNS of b does not know \"db\""),
            ("Name does not resolve", "DNS of b does not know \"db\""),
            ("Temporary failure in name resolution", "name server of b does not answer"),
            ("Connection refused", "nothing listens at port 5432"),
            ("Connection timed out", "packets from b to db:5432 are dropped"),
            ("No route to host", "keeps b from db:5432"),
            ("Network is unreachable", "keeps b from db:5432"),
            ("open failed", "keeps b from db:5432"),
            ("out of cheese", Cause::ChannelConnectFailed.hint()),
            ("", Cause::ChannelConnectFailed.hint()),
        ] {
            let failure = told(&database, &ChannelOpenFailure::ConnectFailed, words);
            assert_eq!(failure.cause, Cause::ChannelConnectFailed);
            assert!(failure.hint().contains(remedy), "{words}: {}", failure.hint());
            assert_eq!(failure.detail().contains(&format!(": \"{words}\"")), !words.is_empty(), "{failure}");
        }
    }

    #[test]
    fn words_decide_nothing_but_the_hint() {
        let (tcp, unix) = (Target::Tcp(HostPort::new("db", 5432)), Target::Unix("/run/pg".into()));
        for (target, reason, cause, hint) in [
            (
                &tcp,
                ChannelOpenFailure::AdministrativelyProhibited,
                Cause::ChannelProhibited,
                "AllowTcpForwarding",
            ),
            (&tcp, ChannelOpenFailure::UnknownChannelType, Cause::ChannelProhibited, "PermitOpen"),
            (&tcp, ChannelOpenFailure::ResourceShortage, Cause::ChannelResourceShortage, "out of resources"),
            (&unix, ChannelOpenFailure::ConnectFailed, Cause::ChannelConnectFailed, "sshd's log"),
            (&unix, ChannelOpenFailure::AdministrativelyProhibited, Cause::ChannelProhibited, "sshd's log"),
        ] {
            let failure = told(target, &reason, "Connection refused");
            assert_eq!(failure.cause, cause);
            assert!(failure.hint().contains(hint), "{}", failure.hint());
        }
    }
}
