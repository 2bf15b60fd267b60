//! What is examined, and what was found: plain data.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::failure::Failure;
use crate::ids::Name;
use crate::settings::plan::{BastionPlan, DatabasePlan};

use super::Way;

/// A stage of a way, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The keys to log in to the bastion with are there.
    Identity,
    /// The bastion's name has addresses.
    Name,
    /// One of them answers, or the jump or the command leads there.
    Connection,
    /// It is SSH.
    Greeting,
    /// Both sides have algorithms in common.
    Algorithms,
    /// It is the bastion.
    HostKey,
    /// It lets us in.
    Login,
    /// And answers.
    Ping,
    /// It accepts the key that is to take the place of the one in use.
    NextKey,
    /// The login to the database can be had.
    Credentials,
    /// The bastion allows the forward.
    Forwarding,
    /// It reaches the database.
    Reach,
    /// TLS is as the configuration wants it.
    Tls,
    /// The database lets us in.
    DatabaseLogin,
    /// And answers.
    Query,
}

impl Kind {
    /// For people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Name => "name",
            Self::Connection => "connection",
            Self::Greeting => "greeting",
            Self::Algorithms => "algorithms",
            Self::HostKey => "host key",
            Self::Login | Self::DatabaseLogin => "login",
            Self::Ping => "ping",
            Self::NextKey => "next key",
            Self::Credentials => "credentials",
            Self::Forwarding => "forwarding",
            Self::Reach => "reach",
            Self::Tls => "TLS",
            Self::Query => "query",
        }
    }

    /// For programs: the phase of its failures, where it has one of its own.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Name => "dns",
            Self::Connection => "tcp",
            Self::Greeting => "banner",
            Self::Algorithms => "kex",
            Self::HostKey => "host_key",
            Self::Login => "auth",
            Self::Ping => "ping",
            Self::NextKey => "next_key",
            Self::Credentials => "credentials",
            Self::Forwarding => "forwarding",
            Self::Reach => "reach",
            Self::Tls => "db_tls",
            Self::DatabaseLogin => "db_login",
            Self::Query => "db_query",
        }
    }
}

/// How a stage went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is not over.
    Awaited,
    /// Well; what was found.
    Passed(String),
    /// Not well.
    Failed(Failure),
    /// The configuration does not want it, or there is nothing to ask: why.
    NotAsked(String),
    /// It did not come to that.
    NotReached,
}

/// One stage of one way.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Which.
    pub kind: Kind,
    /// How long it took, where it was gone through.
    pub took: Option<Duration>,
    /// How it went.
    pub outcome: Outcome,
}

impl Stage {
    pub(super) fn new(kind: Kind, outcome: Outcome) -> Self {
        Self { kind, took: None, outcome }
    }
}

/// What is examined.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A bastion.
    Bastion(Arc<BastionPlan>),
    /// A database through one of its bastions.
    Database(Way),
}

impl Subject {
    /// The names of what it is, as the user wrote them.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Bastion(plan) => format!("bastion {}", plan.name),
            Self::Database(Way { database, bastion, .. }) => {
                format!("database {} through {bastion}", database.name)
            }
        }
    }

    /// The database, if it is one.
    #[must_use]
    pub fn database(&self) -> Option<&DatabasePlan> {
        match self {
            Self::Bastion(_) => None,
            Self::Database(way) => Some(&way.database),
        }
    }

    /// The bastion without which it is not reached.
    #[must_use]
    pub fn behind(&self) -> Option<&str> {
        match self {
            Self::Bastion(plan) => plan.jump.as_ref().map(Name::as_str),
            Self::Database(way) => Some(way.bastion.as_str()),
        }
    }
}

/// The stages of one way.
#[derive(Clone, Debug)]
pub struct Check {
    /// Of what.
    pub subject: Subject,
    /// The address that this machine has towards it, where that is known.
    pub source: Option<IpAddr>,
    /// The public line of the daemon's own key, where that is what it logs in with.
    pub own_key: Option<String>,
    /// In order.
    pub stages: Vec<Stage>,
}

impl Check {
    /// Whether every stage that is asked for went well.
    #[must_use]
    pub fn passed(&self) -> bool {
        let good = |stage: &Stage| matches!(stage.outcome, Outcome::Passed(_) | Outcome::NotAsked(_));
        self.stages.iter().all(good)
    }

    /// Whether what it is behind was not reached: not even its first stage on the way was gone through.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        let first = self.stages.iter().find(|stage| stage.kind != Kind::Credentials);
        first.is_some_and(|stage| stage.outcome == Outcome::NotReached)
    }

    /// What went wrong.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.stages.iter().filter_map(|stage| match &stage.outcome {
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        })
    }
}
