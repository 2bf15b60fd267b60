//! The state of everything at one moment: what `/api/v1/status` answers, the status page and the `status` command
//! show, health checks look at and the gauges in `/metrics` are set from.
//!
//! These are the shapes of the JSON: a field may be added, none renamed or removed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::HostPort;
use crate::state::Incident;

/// A wall-clock time, RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub SystemTime);

impl Stamp {
    /// Seconds since the epoch, as Prometheus counts.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// How long ago it was, as seen at `now`.
    #[must_use]
    pub fn age(self, now: SystemTime) -> Duration {
        now.duration_since(self.0).unwrap_or_default()
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.0))
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Stamp,
    /// The daemon itself.
    pub daemon: Daemon,
    /// Every bastion, in the order of their names.
    pub bastions: Vec<Bastion>,
    /// Every database, in the order of their names.
    pub databases: Vec<Database>,
}

impl Snapshot {
    /// Every client, with the database whose forward it uses.
    pub fn clients(&self) -> impl Iterator<Item = (&Database, &Client)> {
        self.databases
            .iter()
            .flat_map(|database| database.clients.iter().map(move |client| (database, client)))
    }

    /// How long ago something was, for people.
    #[must_use]
    pub fn age(&self, stamp: Stamp) -> String {
        humantime::format_duration(Duration::from_secs(stamp.age(self.at.0).as_secs())).to_string()
    }
}

/// A short time, for people.
#[must_use]
pub fn show_millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
}

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Daemon {
    pub version: String,
    pub pid: u32,
    pub started: Stamp,
    /// The configuration is applied, all listeners are bound, and it is not draining.
    pub ready: bool,
    /// What keeps it from being ready, a line each.
    pub not_ready_because: Vec<String>,
    /// The configuration that is applied.
    #[serde(default)]
    pub configuration: Configuration,
}

/// The configuration that is applied, and why a newer one is not.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Configuration {
    /// When it was read.
    pub loaded: Option<Stamp>,
    /// When a newer one was refused, if that is so.
    pub refused: Option<Stamp>,
    /// What is wrong with the newer one, a line each.
    pub problems: Vec<String>,
}

impl Configuration {
    /// One sentence, where a newer one was refused.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let (refused, first) = (self.refused?, self.problems.first()?);
        let more = match self.problems.len() {
            0 | 1 => String::new(),
            many => format!(" (and {} more)", many - 1),
        };
        Some(format!("the configuration was not reloaded at {refused}, and is as it was: {first}{more}"))
    }
}

/// A bastion and the tunnel to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Bastion {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub user: String,
    /// The bastion that it is reached through.
    #[serde(default)]
    pub jump: Option<String>,
    pub up: bool,
    pub up_since: Option<Stamp>,
    pub down_since: Option<Stamp>,
    /// How long it has been up since the daemon started, in total.
    pub uptime_seconds: f64,
    /// How long gates of its sessions were shut, in total.
    pub stalled_seconds: f64,
    /// It refuses us and is asked only every few minutes; a person is needed.
    pub refusing: bool,
    pub next_attempt: Option<Stamp>,
    pub last_failure: Option<Trouble>,
    /// The key that it has to be told, while it rejects it.
    pub public_key: Option<String>,
    /// The key that takes the place of the one in use once the bastion accepts it.
    #[serde(default)]
    pub next_key: Option<NextKey>,
    /// The certificate that it is shown, if that ends.
    #[serde(default)]
    pub certificate: Option<Certificate>,
    /// What cuts its sessions again and again.
    #[serde(default)]
    pub session_cut: Option<Cut>,
    pub sessions: Vec<Session>,
}

/// A key that waits for its bastion to accept it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct NextKey {
    pub public_key: String,
    pub since: Stamp,
    /// When the bastion was asked about it last.
    pub last_asked: Option<Stamp>,
}

/// What sessions were cut by several times in succession.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Cut {
    /// What the time is counted from: `idle` (the last byte), `age` (the session's beginning) or `client_alive` (the last
    /// time the bastion asked).
    pub after: String,
    pub seconds: u64,
    /// It showed itself only when we asked, so that the cut may have come earlier.
    pub at_most: bool,
    pub losses: u32,
    pub detail: String,
    pub hint: String,
}

/// A user certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Certificate {
    /// None if an agent has it.
    pub file: Option<String>,
    pub valid_from: Stamp,
    pub expires: Stamp,
    /// It should have been renewed by now, or has expired.
    pub ending: bool,
}

impl Bastion {
    /// The sessions that have been established.
    pub fn established(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(|session| session.state != "connecting")
    }

    /// What there is to say of its certificate, when it should have been renewed by `now`.
    #[must_use]
    pub fn certificate_warning(&self, now: Stamp) -> Option<String> {
        let certificate = self.certificate.as_ref().filter(|certificate| certificate.ending)?;
        let name = certificate.file.as_deref().unwrap_or("in the agent");
        let expires = certificate.expires;
        let what = if expires <= now { "has expired:" } else { "expires at" };
        Some(format!("the certificate {name} {what} {}", humantime::format_rfc3339_seconds(expires.0)))
    }

    /// The longest round trip of its sessions, in seconds.
    #[must_use]
    pub fn worst_round_trip(&self) -> Option<f64> {
        self.sessions.iter().filter_map(|session| session.round_trip_seconds).reduce(f64::max)
    }

    /// Clients on all its sessions.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.sessions.iter().map(|session| session.clients).sum()
    }
}

/// One SSH session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Session {
    pub id: u64,
    /// `connecting`, `established`, `suspect` or `retiring`.
    pub state: String,
    pub since: Stamp,
    pub address: Option<String>,
    pub clients: usize,
    pub round_trip_seconds: Option<f64>,
    pub keepalives_unanswered: u32,
    pub gate_open: bool,
    pub backlog_bytes: usize,
}

/// A database and its forward.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Database {
    pub name: String,
    pub kind: String,
    /// A name, an address, or the path of a Unix socket on the bastion.
    pub host: String,
    /// 0 where there is none.
    pub port: u16,
    /// In order of preference.
    pub bastions: Vec<String>,
    pub listen: Vec<String>,
    /// A tunnel for it is up.
    pub up: bool,
    /// It takes new clients. It does not once it is removed, while the clients that it has finish.
    #[serde(default = "yes")]
    pub accepting: bool,
    pub uptime_seconds: f64,
    pub clients_active: usize,
    pub clients_held: usize,
    /// The last time a client could not be connected though the tunnel was up.
    pub last_failure: Option<Trouble>,
    pub probe: Probe,
    pub clients: Vec<Client>,
    /// The database that the probe logs in to, if the configuration names one.
    pub database: Option<String>,
    /// How the probe encrypts, as libpq says it: `disable`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub sslmode: Option<String>,
    /// The roots that it verifies with, as libpq says it: a file, or `system`. None where it does not verify.
    pub sslrootcert: Option<String>,
}

/// What earlier versions did not say was so.
fn yes() -> bool {
    true
}

impl Database {
    /// What its bastion connects to, for people.
    #[must_use]
    pub fn target(&self) -> String {
        if self.port == 0 { self.host.clone() } else { HostPort::new(&self.host, self.port).to_string() }
    }
}

/// What is known of a database's health.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Probe {
    /// `off`, `connect`, `tls`, `login` or `query`.
    pub level: String,
    /// `up`, `down`, `unknown` or `not probed`.
    pub verdict: String,
    pub since: Option<Stamp>,
    pub latency_seconds: Option<f64>,
    pub last_success: Option<Stamp>,
    pub last_failure: Option<Trouble>,
    /// The end of the certificate that the database showed last.
    #[serde(default)]
    pub certificate_expires: Option<Stamp>,
    /// The end of the temporary login that the probe has.
    #[serde(default)]
    pub credential_expires: Option<Stamp>,
}

/// One client of a forward.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Client {
    pub id: u64,
    pub peer: String,
    pub since: Stamp,
    pub held: bool,
    #[serde(default)]
    pub bastion: Option<String>,
    pub session: Option<u64>,
    pub to_database_bytes: u64,
    pub from_database_bytes: u64,
    /// `starting`, `in a query`, `copying`, `replicating`, `idle`, `idle in transaction`, `idle in failed transaction`,
    /// `ended by the server`, `cancelling a query`, `encrypted` or `unknown`.
    #[serde(default = "unknown")]
    pub activity: String,
    /// None for what has only just begun.
    #[serde(default)]
    pub activity_since: Option<Stamp>,
    /// What it said as it began a session without encryption; nobody has verified it.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub database: Option<String>,
    #[serde(default)]
    pub application_name: Option<String>,
}

impl Client {
    /// What it is about, and for how long, for people.
    #[must_use]
    pub fn show_activity(&self, snapshot: &Snapshot) -> String {
        match (self.held, self.activity_since) {
            (true, _) => "held".to_owned(),
            (false, Some(since)) => format!("{} for {}", self.activity, snapshot.age(since)),
            (false, None) => self.activity.clone(),
        }
    }

    /// Who it says it is: the database's user, and the database where that is another word.
    #[must_use]
    pub fn show_login(&self) -> String {
        match (&self.user, &self.database) {
            (Some(user), Some(database)) if user != database => format!("{user} in {database}"),
            (Some(user), _) => user.clone(),
            (None, _) => "-".to_owned(),
        }
    }
}

/// What earlier versions did not know.
fn unknown() -> String {
    "unknown".to_owned()
}

/// A failure, since when, and what to do about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Trouble {
    pub phase: String,
    pub reason: String,
    pub detail: String,
    pub hint: String,
    pub since: Stamp,
    pub last: Stamp,
    /// It lasts: what failed has not gone well since.
    #[serde(default)]
    pub current: bool,
}

impl Trouble {
    /// An incident, and whether it lasts.
    #[must_use]
    pub fn new(incident: &Incident, current: bool) -> Self {
        Self {
            phase: incident.failure.cause.phase().as_str().to_owned(),
            reason: incident.failure.cause.reason().to_owned(),
            detail: incident.failure.detail().to_owned(),
            hint: incident.failure.hint().to_owned(),
            since: Stamp(incident.since.wall),
            last: Stamp(incident.last.wall),
            current,
        }
    }

    /// The one that lasts.
    #[must_use]
    pub fn lasting(trouble: Option<&Self>) -> Option<&Self> {
        trouble.filter(|trouble| trouble.current)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.phase, self.reason, self.detail)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A bastion that refuses the key, and one that is up while the database behind it cannot be reached.
    pub(crate) fn troubled() -> Snapshot {
        let trouble = |phase: &str, reason: &str, current: bool| {
            json!({
                "phase": phase, "reason": reason, "detail": "the \u{1b}[2Jdetail", "hint": format!("heal {reason}"),
                "since": "2024-01-01T00:00:00Z", "last": "2024-01-01T00:00:09Z", "current": current,
            })
        };
        let bastion = |name: &str, up: bool, key: Option<&str>| {
            json!({
                "name": name, "host": "bastion.example.com", "port": 22, "user": "keeper", "up": up, "up_since": null,
                "down_since": null, "uptime_seconds": 0.0, "stalled_seconds": 0.0, "refusing": !up, "next_attempt": null,
                "last_failure": trouble("auth", "rejected", !up), "public_key": key, "sessions": [],
            })
        };
        let database = |name: &str, bastion: &str, up: bool| {
            json!({
                "name": name, "kind": "postgres", "host": "d", "port": 5432, "bastions": [bastion],
                "listen": ["127.0.0.1:15432"], "up": up, "uptime_seconds": 0.0, "clients_active": 0, "clients_held": 1,
                "last_failure": trouble("channel", "prohibited", up),
                "clients": [
                    {
                        "id": 1, "peer": "127.0.0.1:5", "since": "2024-01-01T00:00:00Z", "held": false, "session": 1,
                        "to_database_bytes": 3, "from_database_bytes": 4, "activity": "in a query",
                        "activity_since": "2024-01-01T00:00:03Z", "user": "me", "database": "d",
                        "application_name": "<b>\u{1b}[2J",
                    },
                    // As a daemon of an earlier version shows it.
                    {
                        "id": 2, "peer": "pid 4711 (psql)", "since": "2024-01-01T00:00:00Z", "held": true,
                        "session": null, "to_database_bytes": 0, "from_database_bytes": 0,
                    },
                ],
                "probe": {
                    "level": "query", "verdict": "down", "since": null, "latency_seconds": null, "last_success": null,
                    "last_failure": trouble("db_login", "rejected", true),
                },
            })
        };
        serde_json::from_value(json!({
            "at": "2024-01-01T00:00:10Z",
            "daemon": {
                "version": "1", "pid": 1, "started": "2024-01-01T00:00:00Z", "ready": false,
                "not_ready_because": ["draining: the daemon was told to stop"],
            },
            "bastions": [bastion("gone", false, Some("ssh-ed25519 AAAA")), bastion("prod", true, None)],
            "databases": [database("analytics", "prod", true), database("lost", "gone", false)],
        }))
        .unwrap()
    }

    #[test]
    fn stamps_survive_the_wire() {
        let stamp = Stamp(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
        let json = serde_json::to_string(&stamp).unwrap();
        assert_eq!(json, "\"2023-11-14T22:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Stamp>(&json).unwrap(), stamp);
    }
}
