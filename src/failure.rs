//! The one vocabulary of failures: a closed set of causes, each a phase and a reason with a one-line hint.
//!
//! Logs, metrics, the status page and the errors that clients see all show the same words, so that a person who
//! searches for what one of them printed finds it in all others. The phase decides what happens next
//! ([`crate::retry`]), the reason is the metric label, the detail and the hint are for people.

use std::fmt;

use serde::Serialize;

macro_rules! vocabulary {
    ($($phase:ident $phase_text:literal { $($cause:ident $reason:literal $hint:literal)* })*) => {
        /// The stage at which something failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "SPEC section 5 lists them; the text form says what each one is")]
        pub enum Phase { $($phase),* }

        impl Phase {
            /// The word used in logs, metric labels and messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$phase => $phase_text),* }
            }
        }

        /// A phase together with one of its reasons: only pairs that can occur exist.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "the reason and the hint beside each one in the table say what it is")]
        pub enum Cause { $($($cause),*),* }

        impl Cause {
            /// Every cause, in the order of the stages.
            pub const ALL: &[Self] = &[$($(Self::$cause),*),*];

            /// The stage at which it failed.
            #[must_use]
            pub const fn phase(self) -> Phase {
                match self { $($(Self::$cause => Phase::$phase),*),* }
            }

            /// The reason: unique within its phase.
            #[must_use]
            pub const fn reason(self) -> &'static str {
                match self { $($(Self::$cause => $reason),*),* }
            }

            /// What to do about it, in general; a [`Failure`] may know better.
            #[must_use]
            pub const fn hint(self) -> &'static str {
                match self { $($(Self::$cause => $hint),*),* }
            }
        }
    };
}

vocabulary! {
    Dns "dns" {
        DnsNotFound "not_found" "check the bastion's `host`, and this machine's resolver"
        DnsTimeout "timeout" "this machine's name server does not answer; check /etc/resolv.conf and the network"
        DnsFailed "failed" "this machine's name server cannot answer right now; check /etc/resolv.conf"
    }
    Tcp "tcp" {
        TcpRefused "refused" "nothing listens there: check the bastion's `host` and `port`, and that sshd runs"
        TcpUnreachable "unreachable" "there is no route to it: check the VPN, the routes and the firewall"
        TcpTimeout "timeout" "packets are dropped on the way: check the security group and the allow list of the bastion"
        TcpReset "reset" "something on the way cut the connection: check the load balancer in front of the bastion"
        TcpProxyCommandFailed "proxy_command_failed" "run `proxy_command` by hand as the daemon's user: it has to connect its input and output to the bastion's sshd"
    }
    Banner "banner" {
        BannerTimeout "timeout" "connected, but no SSH greeting came: the bastion is overloaded, or this port is not SSH"
        BannerClosed "closed_before_banner" "a load balancer without a healthy bastion behind it, an allow list, or a port that is not sshd's (PostgreSQL closes like this): check the targets, sshd's log, and `port`"
        BannerBusy "bastion_busy" "sshd turns new connections away: raise MaxStartups or PerSourcePenalties in its sshd_config"
        BannerNotSsh "not_ssh" "this port does not speak SSH: check the bastion's `port`"
    }
    Kex "kex" {
        KexNoCommonAlgorithm "no_common_algorithm" "update sshd, or allow one of our algorithms in its sshd_config"
        KexTimeout "timeout" "the key exchange did not finish: check for packet loss or a too large MTU on the path"
        KexClosed "closed" "the bastion closed during the key exchange: its log says why"
        KexProtocol "protocol" "the bastion broke the protocol: check its sshd, and what stands between"
    }
    HostKey "host_key" {
        HostKeyUnknown "unknown" "compare the fingerprint with the bastion's own (ssh-keygen -lf with each /etc/ssh/ssh_host_*_key.pub there), then store the key with `tunnelkeeper trust`, or pin it as `host_key`"
        HostKeyChanged "changed" "if the bastion was rebuilt, replace its line in known_hosts; if not, somebody may be in between"
        HostKeyRevoked "revoked" "the bastion shows a key that was revoked: it must not be trusted until it has a new one"
        HostKeyCertificateInvalid "certificate_invalid" "have the bastion's host certificate signed anew, for the name in the bastion's `host`, by an authority that known_hosts has for it; and check this machine's clock"
        HostKeyUnreadable "unreadable" "let the daemon's user read the known_hosts file"
    }
    Auth "auth" {
        AuthRejected "rejected" "put the public key into the account's authorized_keys on the bastion (for a key of the daemon's own, `tunnelkeeper keygen` prints the line), and check `user`: an unknown one looks just like this; the bastion's log (journalctl -u ssh) says why it refused"
        AuthNoIdentity "no_identity" "name a private key with `identity`, or let the daemon make one (daemon.generate_keys)"
        AuthIdentityUnreadable "identity_unreadable" "check the path, the owner and the mode (0600) of the private key"
        AuthPassphrase "passphrase" "check `identity_passphrase`"
        AuthAgent "agent" "check that the agent runs, that the daemon's user may use its socket, and what keys it has (ssh-add -l)"
        AuthCertificateExpired "certificate_expired" "renew the certificate, and check this machine's clock"
        AuthPasswordExpired "password_expired" "log in by hand and choose a new password, then write it where `password` points"
        AuthTooManyFailures "too_many_failures" "name the right key with `identity` and no others: sshd's MaxAuthTries counts each one that is offered"
        AuthSecret "secret" "check where the secret comes from"
        AuthTimeout "timeout" "the bastion does not decide about the login: check its directory service (LDAP, PAM)"
        AuthClosed "closed" "the bastion closed during the login: its log says why"
    }
    Session "session" {
        SessionKeepaliveTimeout "keepalive_timeout" "the bastion or the path to it went silent: check its load, the load balancer's idle time and the network"
        SessionClosed "closed_by_bastion" "sshd was restarted or ended the session: check its log, ClientAliveInterval and ClientAliveCountMax"
        SessionReset "reset" "the connection was reset: check for a restarted load balancer, NAT or firewall"
        SessionProtocol "protocol" "the bastion broke the protocol: check its sshd, and what stands between"
        SessionNotEstablished "not_established" "logged in, but the bastion hung up or did not answer a ping: check its log and its load"
    }
    Channel "channel" {
        ChannelProhibited "prohibited" "the bastion forbids this forward: check AllowTcpForwarding, PermitOpen and DisableForwarding in sshd_config, permitopen and restrict in authorized_keys, and whether the account's password has expired"
        ChannelConnectFailed "connect_failed" "the bastion cannot reach it: check `host` and `port`, its DNS, and the security group of what it connects to"
        ChannelResourceShortage "resource_shortage" "the bastion is out of resources: check its memory and its limits"
        ChannelTimeout "timeout" "the bastion did not answer: packets to the database may be dropped, check its security group"
        ChannelSessionLost "session_lost" "the SSH session ended meanwhile; see the bastion's last failure"
    }
    Credentials "credentials" {
        CredentialsMissing "missing" "check where the secret comes from"
        CredentialsDenied "denied" "the cloud refuses these credentials: check that they are the right ones, and their rights to make logins for this database"
        CredentialsUnreachable "unreachable" "the cloud's service that makes the login does not answer: check this machine's way to it, which does not go through the bastion"
        CredentialsExpired "expired" "the credentials that the login is made with have expired: renew them"
        CredentialsClockSkew "clock_skew" "set this machine's clock: the cloud takes no signature that is minutes off"
        CredentialsInvalidAnswer "invalid_answer" "what answers is not the cloud's service: check the endpoint, and a proxy on the way to it"
    }
    DbTls "db_tls" {
        DbTlsRefused "refused" "the database has TLS switched off: switch it on, or set tls.mode to \"prefer\" or \"disable\""
        DbTlsNameMismatch "name_mismatch" "write the name that stands in the certificate as `host`, or use tls.mode \"verify-ca\" with tls.ca"
        DbTlsUnknownIssuer "unknown_issuer" "name the file with the issuer's certificate as tls.ca"
        DbTlsExpired "expired" "renew the database's certificate, and check this machine's clock"
        DbTlsTimeout "timeout" "the database does not answer the TLS request: check its load, and whether `port` is PostgreSQL's"
        DbTlsFailed "failed" "check the TLS settings of the database and of tls.mode"
    }
    DbLogin "db_login" {
        DbLoginRejected "rejected" "check the probe's `user` and `password`"
        DbLoginNoHbaEntry "no_hba_entry" "allow the probe's user, database and the bastion's address in pg_hba.conf"
        DbLoginUnknownDatabase "unknown_database" "check the key `database`"
        DbLoginTooManyConnections "too_many_connections" "the database has no free connection: raise max_connections or use fewer"
        DbLoginStarting "starting" "the database is starting up or shutting down; wait for it"
        DbLoginUnsupportedMethod "unsupported_method" "let the probe's user log in by scram-sha-256 or md5"
        DbLoginNotPostgres "not_postgres" "what answers there is not PostgreSQL: check `host` and `port`"
        DbLoginTimeout "timeout" "the database does not finish the login: check its load"
        DbLoginClosed "closed" "the database closed during the login: its log says why"
        DbLoginOther "other" "the database's own message says more"
    }
    DbQuery "db_query" {
        DbQueryTimeout "timeout" "the database does not answer the probe's query: check its load and its locks"
        DbQueryError "error" "check `probe.query`, and the rights of the probe's user"
        DbQueryClosed "closed" "the database closed the connection: its log says why"
    }
    Client "client" {
        ClientStalled "stalled" "the client did not read its results while it blocked others; raise `stall_timeout` or sessions.max"
        ClientIdle "idle" "the client was silent for longer than `idle_timeout`"
        ClientDrained "drained" "the daemon was stopped or the database removed; `daemon.drain_timeout` bounds how long clients may finish"
        ClientLimit "limit" "raise the limit (`max_clients`, `hold.max` or LimitNOFILE), or start fewer jobs at a time"
        ClientHoldTimeout "hold_timeout" "the tunnel did not come back within `hold.timeout`; see the bastion's last failure"
    }
}

/// What failed, at which stage and why, with a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Phase and reason.
    pub cause: Cause,
    detail: String,
    hint: Option<String>,
    shortage: bool,
}

/// ENFILE and EMFILE, as errno(3) of Linux numbers them: there are no descriptors left.
const NO_DESCRIPTORS: [i32; 2] = [23, 24];

impl Failure {
    /// The longest detail, in characters: peers may put arbitrary text into it.
    const MAX_DETAIL: usize = 500;

    /// Names a cause and says what was found. Text of a peer may be passed as it came: control characters are
    /// replaced, so that it cannot forge a line of the log, and its length is bounded.
    #[must_use]
    pub fn new(cause: Cause, detail: impl AsRef<str>) -> Self {
        Self { cause, detail: one_line(detail.as_ref(), Self::MAX_DETAIL), hint: None, shortage: false }
    }

    /// Replaces the cause's general hint by one that knows the circumstances.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what of the system is to blame, if it is neither the file nor the other side.
    #[must_use]
    pub fn from_system(self, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            _ if error.raw_os_error().is_some_and(|number| NO_DESCRIPTORS.contains(&number)) => {
                "raise the daemon's limits, LimitNOFILE (ulimit -n) above all"
            }
            std::io::ErrorKind::OutOfMemory => "this machine has no memory left: see what takes it",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                return self.with_hint("the file system is full: make room on it");
            }
            _ => return self,
        };
        Self { shortage: true, ..self.with_hint(hint) }
    }

    /// Nobody refused us anything: this machine was short of something, which may pass at any time.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        self.shortage
    }

    /// Says where on the way it was.
    #[must_use]
    pub fn at(self, place: &str) -> Self {
        Self { detail: one_line(&format!("{place}: {}", self.detail), Self::MAX_DETAIL), ..self }
    }

    /// What was found: a sentence without a full stop.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &str {
        self.hint.as_deref().unwrap_or_else(|| self.cause.hint())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.cause.phase().as_str(), self.cause.reason(), self.detail)
    }
}

impl std::error::Error for Failure {}

impl Serialize for Failure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Failure", 4)?;
        fields.serialize_field("phase", self.cause.phase().as_str())?;
        fields.serialize_field("reason", self.cause.reason())?;
        fields.serialize_field("detail", &self.detail)?;
        fields.serialize_field("hint", self.hint())?;
        fields.end()
    }
}

/// The system's word for an error, without its number.
#[must_use]
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Text of a peer as one printable line of at most `max` characters.
#[must_use]
pub fn one_line(text: &str, max: usize) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() || steers_layout(c) { ' ' } else { c })
        .take(max + 1)
        .collect();
    if line.chars().count() > max {
        line.pop();
        line.push('…');
    }
    line
}

/// Line separators, and what turns the direction of the text behind it (Unicode annex 9): with it a name could make a
/// line read as another.
fn steers_layout(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_words_and_pairs_are_unique() {
        let mut pairs = BTreeSet::new();
        for cause in Cause::ALL {
            for word in [cause.phase().as_str(), cause.reason()] {
                assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{word}");
            }
            assert!(pairs.insert((cause.phase().as_str(), cause.reason())), "{cause:?} stands twice");
            assert!(!cause.hint().is_empty() && !cause.hint().ends_with('.'), "{cause:?}");
        }
        assert!(pairs.len() > 50, "only {} causes were checked", pairs.len());
    }

    #[test]
    fn a_peer_cannot_forge_a_line() {
        let failure = Failure::new(Cause::BannerNotSsh, "hello\r\nERROR everything is fine\u{1b}[2J");
        assert_eq!(failure.to_string(), "banner not_ssh: hello  ERROR everything is fine [2J");
        assert_eq!(one_line("pg\u{202e}pmud\u{2066} \u{200f}|", 20), "pg pmud   |");
    }

    #[test]
    fn a_peer_cannot_flood_the_log() {
        let failure = Failure::new(Cause::BannerNotSsh, "x".repeat(10_000));
        assert_eq!(failure.detail().chars().count(), Failure::MAX_DETAIL + 1);
        assert!(failure.detail().ends_with('…'));
    }

    #[test]
    fn what_this_machine_lacks_is_blamed_on_nobody_else() {
        let of = |error: std::io::Error| Failure::new(Cause::HostKeyUnreadable, "x").from_system(&error);
        for number in NO_DESCRIPTORS {
            let failure = of(std::io::Error::from_raw_os_error(number));
            assert!(failure.is_shortage() && failure.hint().contains("LimitNOFILE"), "{failure:?}");
            assert!(failure.clone().at("there").is_shortage());
        }
        let full = of(std::io::ErrorKind::StorageFull.into());
        assert!(!full.is_shortage() && full.hint().contains("full"), "{full:?}");
        let denied = of(std::io::ErrorKind::PermissionDenied.into());
        assert!(!denied.is_shortage() && denied.hint() == Cause::HostKeyUnreadable.hint());
    }

    #[test]
    fn a_better_hint_wins() {
        let failure = Failure::new(Cause::TcpRefused, "x");
        assert_eq!(failure.hint(), Cause::TcpRefused.hint());
        assert_eq!(failure.with_hint("start it").hint(), "start it");
    }
}
