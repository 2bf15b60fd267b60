//! What the daemon shall do, in checked and typed form. Each unit gets its slice of it, never the whole.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::LogFilter;
use crate::backoff::Bounds;
use crate::host_keys::{Fingerprint, HostKeyPolicy};
use crate::ids::{HostPort, Name, Target};
use crate::local::LocalAddress;
use crate::placement::PoolBounds;
use crate::secret::SecretSource;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `[http]`
    pub http: HttpPlan,
    /// `[log]`
    pub log: LogPlan,
    /// `[daemon]`
    pub daemon: DaemonPlan,
    /// `[bastions.*]`, in the order of their names.
    pub bastions: Vec<Arc<BastionPlan>>,
    /// `[databases.*]`, in the order of their names; each one's bastions are among `bastions`.
    pub databases: Vec<Arc<DatabasePlan>>,
}

impl Plan {
    /// The bastions that one is reached through, outermost first.
    #[must_use]
    pub fn jumps(&self, bastion: &BastionPlan) -> Vec<Arc<BastionPlan>> {
        let named = |name: &Name| self.bastions.iter().find(|other| other.name == *name);
        let mut jumps = Vec::new();
        let mut next = bastion.jump.as_ref().and_then(named);
        // Circles are refused when the configuration is read.
        while let Some(jump) = next.filter(|_| jumps.len() < self.bastions.len()) {
            jumps.push(Arc::clone(jump));
            next = jump.jump.as_ref().and_then(named);
        }
        jumps.reverse();
        jumps
    }

    /// Whether others go through a bastion, and no database is directly behind it.
    #[must_use]
    pub fn is_only_jump(&self, bastion: &Name) -> bool {
        self.bastions.iter().any(|other| other.jump.as_ref() == Some(bastion))
            && !self.databases.iter().any(|database| database.bastions.contains(bastion))
    }
}

/// Where the daemon answers HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPlan {
    /// Nowhere if none.
    pub listen: Option<SocketAddr>,
    /// Serve the status page and the API on an address that is not loopback.
    pub allow_remote_status: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

super::values::words!(LogFormat { "auto" => Self::Auto, "text" => Self::Text, "json" => Self::Json });

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPlan {
    /// How lines look.
    pub format: LogFormat,
    /// Whose events are logged, from which level on.
    pub level: LogFilter,
}

/// The daemon's own limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonPlan {
    /// Generated keys.
    pub state_dir: PathBuf,
    /// Make a bastion's missing default key.
    pub generate_keys: bool,
    /// How long clients may finish after SIGTERM.
    pub drain_timeout: Duration,
    /// Data-plane threads, at least 1.
    pub threads: usize,
    /// Bound on all bytes held for clients that do not read.
    pub buffer_memory: usize,
}

/// A bastion and how to keep a tunnel to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BastionPlan {
    /// Its name in the configuration.
    pub name: Name,
    /// Where its sshd listens.
    pub at: HostPort,
    /// The account there.
    pub user: String,
    /// The bastion it is reached through.
    pub jump: Option<Name>,
    /// A command whose input and output are the connection, instead of TCP.
    pub proxy_command: Option<Vec<String>>,
    /// The private keys to log in with.
    pub identity: IdentityPlan,
    /// Opens encrypted private keys.
    pub passphrase: Option<SecretSource>,
    /// User certificates for the keys; if empty, those that lie beside the key files.
    pub certificates: Vec<PathBuf>,
    /// The agent that signs for keys whose private half is not in a file.
    pub agent: Option<AgentPlan>,
    /// Tried when no key is left to try.
    pub password: Option<SecretSource>,
    /// Also offer what only sshd of a decade ago needs: SHA-1, and short groups.
    pub legacy_algorithms: bool,
    /// Where trust in its host key comes from.
    pub trust: TrustPlan,
    /// Ping after so long a silence; shorter than `keepalive_timeout`.
    pub keepalive_interval: Duration,
    /// So long a silence ends a session.
    pub keepalive_timeout: Duration,
    /// Name look-up to authenticated.
    pub connect_timeout: Duration,
    /// The bastion's answer to a channel open.
    pub open_timeout: Duration,
    /// How many sessions.
    pub pool: PoolBounds,
    /// The pace of attempts.
    pub reconnect: Bounds,
}

impl BastionPlan {
    /// Where its certificates are, if it has any.
    #[must_use]
    pub fn certificate_files(&self) -> Vec<PathBuf> {
        match &self.identity {
            _ if !self.certificates.is_empty() => self.certificates.clone(),
            IdentityPlan::Files(keys) => keys.iter().map(|key| certificate_beside(key)).collect(),
            IdentityPlan::Own { path, .. } => vec![certificate_beside(path)],
            IdentityPlan::Agent => Vec::new(),
        }
    }
}

/// Where ssh-keygen puts the certificate of a key: `KEY-cert.pub`, also for the public file `KEY.pub`.
#[must_use]
pub fn certificate_beside(key: &Path) -> PathBuf {
    let is_public = key.extension().is_some_and(|extension| extension == "pub");
    let mut name = if is_public { key.with_extension("") } else { key.to_owned() }.into_os_string();
    name.push("-cert.pub");
    name.into()
}

/// The keys to log in to a bastion with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPlan {
    /// The files that the configuration names, at least one.
    Files(Vec<PathBuf>),
    /// All that the agent has.
    Agent,
    /// The daemon's own key for this bastion.
    Own {
        /// Where it is.
        path: PathBuf,
        /// Make it when it is missing.
        generate: bool,
    },
}

/// Where an ssh-agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentPlan {
    /// Where `$SSH_AUTH_SOCK` says.
    Environment,
    /// On this socket.
    Socket(PathBuf),
}

impl AgentPlan {
    /// The socket, if there is one to be known.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::Environment => {
                std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from)
            }
            Self::Socket(path) => Some(path.clone()),
        }
    }
}

/// Where trust in a host key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustPlan {
    /// Only keys with these fingerprints.
    Pins(Vec<Fingerprint>),
    /// known_hosts files.
    Files(KnownHostsPlan),
}

/// Which known_hosts files are read, at each dial, and what is written to the daemon's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHostsPlan {
    /// All, in order.
    pub files: Vec<PathBuf>,
    /// The configuration names them: then they have to exist, but for the daemon's own.
    pub named: bool,
    /// The daemon's own, where keys are stored, if it is among them.
    pub own: Option<PathBuf>,
    /// What becomes of a bastion of which nothing is known; `AcceptNew` only with a file of the daemon's own.
    pub policy: HostKeyPolicy,
    /// Store keys that a bastion announces.
    pub update: bool,
}

impl KnownHostsPlan {
    /// Whether a file has to exist.
    #[must_use]
    pub fn requires(&self, file: &Path) -> bool {
        self.named && self.own.as_deref() != Some(file)
    }
}

/// The kind of a database: it decides defaults only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL anywhere.
    Postgres,
    /// Amazon RDS and Aurora.
    Rds,
}

super::values::words!(Kind { "postgres" => Self::Postgres, "rds" => Self::Rds });

impl Kind {
    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Rds => "rds",
        }
    }
}

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

super::values::words!(ProbeLevel {
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

super::values::words!(ProbeWhen { "always" => Self::Always, "active" => Self::Active });

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

/// The probe's login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPlan {
    /// The database's user.
    pub user: String,
    /// Needed unless the database trusts the bastion.
    pub password: Option<SecretSource>,
    /// The database's own default (the user's name) if none.
    pub database: Option<String>,
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

super::values::words!(TlsMode {
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

    /// Whether the server's identity is proved.
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
    /// Send a clear-text password though the server's identity is not proved.
    pub allow_unverified: bool,
}
