//! What a dial tells of its way while it is made, for whoever times its stages. A daemon listens to none of it, and
//! then nothing is put into words.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::failure::Failure;

/// Something that was reached on the way, in the order of the stages. What peers say comes as it came.
#[derive(Clone, Debug)]
pub enum Milestone {
    /// What there is to log in with, each in words, or why there is nothing.
    Identities(Result<Vec<String>, Failure>),
    /// One of them is the daemon's own, with this public line.
    OwnKey(String),
    /// The bastion's name has these addresses.
    Resolved(Vec<SocketAddr>),
    /// Bytes can be exchanged. Where a command leads there this is known only by the greeting, and not told.
    Connected {
        /// The bastion's address, unless another hop leads to it.
        to: Option<SocketAddr>,
        /// Ours.
        from: Option<SocketAddr>,
    },
    /// The server's version line (RFC 4253 section 4.2).
    Greeted(String),
    /// The algorithms that both sides use from now on.
    Agreed(String),
    /// The host key is trusted: which, and why.
    HostKey(String),
    /// We are in: by what.
    LoggedIn(String),
    /// A ping was answered after so long.
    Answered(Duration),
}

/// Somebody who hears of milestones, or nobody. Clones tell the same one.
#[derive(Clone, Default)]
pub struct Milestones(Option<Arc<dyn Fn(Milestone) + Send + Sync>>);

impl Milestones {
    /// `hear` must not take long: the dial waits for it.
    pub fn told_to(hear: impl Fn(Milestone) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }

    /// Tells of one, if anybody listens.
    pub fn tell(&self, milestone: impl FnOnce() -> Milestone) {
        if let Some(hear) = &self.0 {
            hear(milestone());
        }
    }
}

impl fmt::Debug for Milestones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Milestones(heard)" } else { "Milestones" })
    }
}
