//! What a client that waited in vain is told: which bastion, phase, reason, and since when.

use std::time::Duration;

use crate::dial::{Dial, Ways};
use crate::failure::Failure;
use crate::ids::Name;
use crate::metrics::Outcome;
use crate::settings::show_duration;
use crate::state::TunnelState;

/// A bastion that did not connect a client to the database.
pub(super) struct FailedOpen {
    /// Its name, where it was this client that failed.
    pub(super) bastion: Option<Name>,
    pub(super) failure: Failure,
}

/// Why a client is not served, in one sentence.
pub(super) fn explain<D: Dial>(database: &Name, ways: &Ways<D>, last_open: Option<&FailedOpen>) -> String {
    let head = format!("tunnelkeeper: database \"{database}\" cannot be reached");
    let up: Vec<&Name> = ways.states().filter(|(_, state)| state.is_up()).map(|(name, _)| name).collect();
    if up.is_empty() {
        let down: Vec<String> = ways.states().map(|(bastion, state)| explain_down(bastion, &state)).collect();
        return format!("{head}: {}", down.join("; "));
    }
    match last_open {
        Some(FailedOpen { bastion, failure }) => {
            let through = bastion.as_ref().map_or_else(|| list(&up), |bastion| list(&[bastion]));
            format!("{head} through {through}: {failure}; {}", failure.hint())
        }
        None => format!("{head}: all sessions of {} wait for clients that do not read", list(&up)),
    }
}

fn list(bastions: &[&Name]) -> String {
    let names: Vec<String> = bastions.iter().map(|bastion| format!("bastion \"{bastion}\"")).collect();
    names.join(" and ")
}

fn explain_down(bastion: &Name, tunnel: &TunnelState) -> String {
    let since = match tunnel.down_since {
        Some(since) => format!(
            "since {} ({} ago)",
            humantime::format_rfc3339_seconds(since.wall),
            show_duration(Duration::from_secs(since.instant.elapsed().as_secs()))
        ),
        None => "now".to_owned(),
    };
    match &tunnel.last_failure {
        Some(incident) => {
            let failure = &incident.failure;
            format!("bastion \"{bastion}\" is down {since}: {failure}; {}", failure.hint())
        }
        None => format!("bastion \"{bastion}\" is down {since}: it is being connected to"),
    }
}

/// What a client that waited in vain is counted as.
pub(super) fn outcome_of<D: Dial>(ways: &Ways<D>, last_open: Option<&FailedOpen>) -> Outcome {
    use crate::failure::Cause::ChannelProhibited;
    match last_open.map(|open| open.failure.cause) {
        Some(ChannelProhibited) => Outcome::Refused,
        Some(_) => Outcome::OpenFailed,
        None if ways.all_refuse() => Outcome::Refused,
        None => Outcome::HoldTimeout,
    }
}
