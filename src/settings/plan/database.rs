//! A database as the configuration describes it: its forward, its probe and its TLS.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::kind::Kind;
use super::login::LoginPlan;
use crate::ids::{Name, Target};
use crate::local::LocalAddress;

/// A database and its forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabasePlan {
    /// Its name in the configuration.
    pub name: Name,
    /// The bastions it is reached through, best first, at least one.
    pub bastions: Vec<Name>,
    /// Its kind.
    pub kind: Kind,
    /// Where it is, as its bastion sees it.
    pub target: Target,
    /// How clients are served.
    pub forward: ForwardPlan,
    /// How its health is checked.
    pub probe: ProbePlan,
}

/// Where clients connect, and who may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenPlan {
    /// At least one.
    pub at: Vec<ListenAt>,
    /// The mode of the Unix sockets made for it.
    pub socket_mode: u32,
    /// Their group; the daemon's own if none.
    pub socket_group: Option<String>,
    /// Listeners may be reached from other machines.
    pub allow_remote_clients: bool,
}

/// A listener: one that is made, or one that is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// One of our own.
    Address(LocalAddress),
    /// Those that systemd hands over under this name.
    Systemd(String),
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// How clients of a database are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardPlan {
    /// Where clients connect.
    pub listen: ListenPlan,
    /// How long a client is held; zero = it is answered at once.
    pub hold_timeout: Duration,
    /// How many are held at a time.
    pub hold_max: usize,
    /// How many clients at a time, held ones included.
    pub max_clients: usize,
    /// End a client without traffic.
    pub idle_timeout: Option<Duration>,
    /// End a client that has not read for so long while it blocks others.
    pub stall_timeout: Duration,
}

/// How far a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeLevel {
    /// No probe.
    Off,
    /// The bastion connects to the database.
    Connect,
    /// And TLS is agreed on.
    Tls,
    /// And the probe's user logs in.
    Login,
    /// And a query is answered.
    Query,
}

crate::settings::values::words!(ProbeLevel {
    "off" => Self::Off,
    "connect" => Self::Connect,
    "tls" => Self::Tls,
    "login" => Self::Login,
    "query" => Self::Query,
});

impl ProbeLevel {
    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Login => "login",
            Self::Query => "query",
        }
    }
}

/// When a probe is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeWhen {
    /// At every interval.
    Always,
    /// Only while clients move bytes: the database is awake then anyway.
    Active,
}

crate::settings::values::words!(ProbeWhen { "always" => Self::Always, "active" => Self::Active });

/// How a database's health is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// How far it goes.
    pub level: ProbeLevel,
    /// When it is made.
    pub when: ProbeWhen,
    /// The time between probes.
    pub interval: Duration,
    /// The bound on each phase.
    pub timeout: Duration,
    /// Failures in a row for the verdict "down".
    pub failures: u32,
    /// How often it logs in anew, since a kept connection does not notice what only logins meet.
    pub fresh_login: Duration,
    /// What it asks.
    pub query: String,
    /// Who it logs in as; needed for the levels above `tls`.
    pub login: Option<LoginPlan>,
    /// How it encrypts.
    pub tls: TlsPlan,
}

/// How much TLS proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it, unverified; a password is never sent in clear.
    Prefer,
    /// TLS, unverified.
    Require,
    /// The certificate's issuer is verified.
    VerifyCa,
    /// Issuer and name are verified.
    VerifyFull,
}

crate::settings::values::words!(TlsMode {
    "disable" => Self::Disable,
    "prefer" => Self::Prefer,
    "require" => Self::Require,
    "verify-ca" => Self::VerifyCa,
    "verify-full" => Self::VerifyFull,
});

impl TlsMode {
    /// The word used in the configuration, and by libpq.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Whether the server's certificate is verified.
    #[must_use]
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// How the probe encrypts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPlan {
    /// How much is proved.
    pub mode: TlsMode,
    /// The roots to verify with; this machine's own if none.
    pub ca: Option<PathBuf>,
    /// Send a clear-text password or a token though the server's identity is not proved.
    pub allow_unverified: bool,
}

impl TlsPlan {
    /// Whether nobody else than the server could pass for it. An issuer alone proves nothing where any public authority is
    /// one: each of them vouches for everybody.
    #[must_use]
    pub fn proves_identity(&self) -> bool {
        match self.mode {
            TlsMode::VerifyFull => true,
            TlsMode::VerifyCa => self.ca.is_some(),
            TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => false,
        }
    }
}
