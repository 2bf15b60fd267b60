//! What sessions to a bastion are cut by again and again, in the words of every surface.

use std::time::Duration;

use humantime::format_duration;

use crate::ids::Name;

/// What the time is counted from after which sessions are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutAfter {
    /// The last byte, in either direction.
    Idle {
        /// The end showed itself only when we asked: the cut may have come any time before.
        at_most: bool,
    },
    /// The session's beginning.
    Age,
    /// The last time the bastion asked whether we live.
    ClientAlive,
}

impl CutAfter {
    /// The word in metric labels and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Age => "age",
            Self::ClientAlive => "client_alive",
        }
    }
}

/// A cut that has shown itself in several sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCut {
    /// Since what.
    pub after: CutAfter,
    /// How long.
    pub time: Duration,
    /// The sessions that were lost in this way, without one in between that came through more.
    pub losses: u32,
}

/// The default of `keepalive_interval`, below which there is no need to go.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

impl SessionCut {
    /// The time as people say it, in seconds.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.time.as_secs_f64().round() as u64
    }

    /// What was found: a sentence without a full stop.
    #[must_use]
    pub fn detail(&self) -> String {
        let (losses, time) = (self.losses, format_duration(Duration::from_secs(self.seconds())));
        match self.after {
            CutAfter::Idle { at_most: false } => {
                format!("{losses} sessions were cut after about {time} idle")
            }
            CutAfter::Idle { at_most: true } => {
                format!("{losses} sessions were found cut after {time} idle")
            }
            CutAfter::Age => format!("{losses} sessions were cut at the age of about {time}"),
            CutAfter::ClientAlive => format!(
                "the bastion asks every {time} whether we live, and closed {losses} sessions for want of an answer"
            ),
        }
    }

    /// What to do about it. `bastion` is the one whose keepalives pass there: at a jump, the bastion behind it.
    #[must_use]
    pub fn hint(&self, bastion: &Name) -> String {
        match self.after {
            CutAfter::Idle { .. } => {
                let interval = KEEPALIVE_INTERVAL.min(self.time / 2).as_secs().max(1);
                format!(
                    "a load balancer, NAT or sshd's ClientAliveInterval ends what is idle for so long: write \
                     `keepalive_interval = \"{interval}s\"` into [bastions.{bastion}], or raise that time"
                )
            }
            CutAfter::Age => "something on the way bounds how long a connection may last (a proxy's or load balancer's \
                              maximum session time, a restart on schedule), which no keepalive helps against: raise that \
                              bound above the longest job"
                .to_owned(),
            CutAfter::ClientAlive => "our answers do not reach the bastion: check for packets lost on the way to it, and \
                                      write `ClientAliveInterval 30` and `ClientAliveCountMax 10` into its sshd_config"
                .to_owned(),
        }
    }
}
