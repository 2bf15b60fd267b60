//! What the daemon shall do, in checked and typed form. Each unit gets its slice of it, never the whole.

mod database;
mod kind;
mod login;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::LogFilter;
use crate::backoff::Bounds;
use crate::host_keys::{Fingerprint, HostKeyPolicy};
use crate::ids::{HostPort, Name};
use crate::placement::PoolBounds;
use crate::secret::SecretSource;

pub use database::{
    DatabasePlan, ForwardPlan, ListenAt, ListenPlan, ProbeLevel, ProbePlan, ProbeWhen, TlsMode, TlsPlan,
};
pub use kind::{Kind, RDS_BUNDLE};
pub use login::{AwsKeysPlan, CredentialsPlan, LakebaseResource, LoginPlan};

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
