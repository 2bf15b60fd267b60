//! Checks what no section can check by itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::plan::{BastionPlan, ListenAt, Plan};
use super::reader::{Listener, Report};
use super::{Note, Problem};
use crate::ids::Name;
use crate::local::LocalAddress;

/// Two listeners of ours cannot have one address.
pub(super) fn refuse_shared_addresses(report: &mut Report) {
    let listeners = std::mem::take(&mut report.listeners);
    for (index, Listener { at, source, key }) in listeners.iter().enumerate() {
        let mut earlier = listeners.iter().take(index);
        let Some(other) = earlier.find(|other| other.at.clashes(at)) else { continue };
        let advice = match at {
            ListenAt::Address(LocalAddress::Tcp(_)) => "choose another port",
            ListenAt::Address(LocalAddress::Unix(_)) => "choose another path",
            ListenAt::Systemd(_) => "give each database a socket of its own",
        };
        let text = if other.at != *at {
            format!("{at} is taken by {} already ({}): {advice}", other.key, other.at)
        } else if other.key != *key {
            format!("{at} is taken by {} already: {advice}", other.key)
        } else {
            format!("{at} stands twice in this list")
        };
        report.problem_at(source.clone(), key.clone(), text);
    }
}

impl ListenAt {
    /// Whether only one of them can be listened on at a time.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(LocalAddress::Tcp(one)), Self::Address(LocalAddress::Tcp(other))) => {
                ports_clash(*one, *other)
            }
            (one, other) => one == other,
        }
    }
}

/// IPv6 listeners take no IPv4 clients, and port 0 is another one each time.
fn ports_clash(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |address: SocketAddr| address.ip().is_unspecified();
    one.port() != 0
        && one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || all(one) || all(other))
}

/// A bastion that is reached through itself is never reached.
pub(super) fn refuse_circles<'a>(bastions: impl Iterator<Item = &'a Arc<BastionPlan>>, report: &mut Report) {
    let jumps: BTreeMap<&Name, &Name> =
        bastions.filter_map(|bastion| Some((&bastion.name, bastion.jump.as_ref()?))).collect();
    for first in jumps.keys() {
        let mut way = vec![*first];
        while let Some(next) = way.last().and_then(|last| jumps.get(last))
            && !way.contains(next)
        {
            way.push(next);
        }
        let closes = way.last().and_then(|last| jumps.get(last)) == Some(first);
        // A circle is told of once, at the first of its names.
        if closes && way.iter().min() == Some(first) {
            way.push(first);
            let circle: Vec<&str> = way.into_iter().map(Name::as_str).collect();
            let text = format!("goes in a circle: {}", circle.join(" through "));
            report.problem_at(String::new(), format!("bastions.{first}.jump"), text);
        }
    }
}

/// Says what there is nothing to do for.
pub(super) fn look_for_work(plan: &Plan, report: &mut Report) {
    // Whatever else is wrong may well be the reason.
    if plan.databases.is_empty() && report.problems.is_empty() {
        let text = "there is nothing to do: describe at least one bastion as [bastions.NAME] and one database as \
                    [databases.NAME]";
        let (source, key) = (String::new(), "databases".to_owned());
        report.problems.push(Problem { source, key, text: text.to_owned() });
    }
    for bastion in &plan.bastions {
        let is_jump = plan.bastions.iter().any(|other| other.jump.as_ref() == Some(&bastion.name));
        if !is_jump && !plan.databases.iter().any(|database| database.bastions.contains(&bastion.name)) {
            report.notes.push(Note {
                key: format!("bastions.{}", bastion.name),
                text: "no database is behind this bastion".to_owned(),
            });
        }
    }
}
