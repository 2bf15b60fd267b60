//! Checks what no section can check by itself.

use std::net::SocketAddr;

use super::plan::Plan;
use super::reader::{Listener, Report};
use super::{Note, Problem};

/// Two listeners of ours cannot have one address.
pub(super) fn refuse_shared_addresses(report: &mut Report) {
    let listeners = std::mem::take(&mut report.listeners);
    for (index, Listener { address, source, key }) in listeners.iter().enumerate() {
        let mut earlier = listeners.iter().take(index);
        let Some(other) = earlier.find(|other| clash(other.address, *address)) else { continue };
        let text = if other.address != *address {
            format!("{address} is taken by {} already ({}): choose another port", other.key, other.address)
        } else if other.key != *key {
            format!("{address} is taken by {} already: choose another port", other.key)
        } else {
            format!("{address} stands twice in this list")
        };
        report.problem_at(source.clone(), key.clone(), text);
    }
}

/// IPv6 listeners take no IPv4 clients, and port 0 is another one each time.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |address: SocketAddr| address.ip().is_unspecified();
    one.port() != 0
        && one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || all(one) || all(other))
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
        if !plan.databases.iter().any(|database| database.bastions.contains(&bastion.name)) {
            report.notes.push(Note {
                key: format!("bastions.{}", bastion.name),
                text: "no database is behind this bastion".to_owned(),
            });
        }
    }
}
