//! Reads `[databases.NAME]`: what it is, and how clients are served.

use std::sync::Arc;
use std::time::Duration;

use super::bastion::read_positive;
use super::kind::{Inferred, Rest, infer};
use super::plan::{DatabasePlan, ForwardPlan, Kind};
use super::reader::{Report, Section};
use super::values::{BastionName, HostOrSocket, Port, Whole};
use super::{listen, login, probe, tls};
use crate::ids::{HostPort, Name, POSTGRES_SOCKET, Target};

/// Where AlloyDB's instances take Google's connectors (AlloyDB, "About the AlloyDB Auth Proxy").
const CONNECTORS_PORT: u16 = 5433;

pub(super) fn read(
    name: Name,
    mut section: Section,
    bastions: &[Name],
    report: &mut Report,
) -> Option<Arc<DatabasePlan>> {
    let ways = read_bastions(&mut section, bastions, report);
    let host: Option<HostOrSocket> = section.require("host", report);
    let inferred = host.as_ref().map(|HostOrSocket(host)| infer(host));
    let kind = read_kind(&mut section, inferred.as_ref(), report);
    let target = read_target(host.as_ref(), kind, &mut section, report);
    let forward = read_forward(&mut section, report);
    let name_of_host = host.as_ref().map_or_else(String::new, |HostOrSocket(host)| host.to_ascii_lowercase());
    let login = login::read(kind, inferred.as_ref(), &name_of_host, &mut section, report);
    let tls = tls::read(kind, login.method, target.as_ref(), &mut section, report);
    let probe = probe::read(rest(kind, inferred.as_ref()), login, tls, &mut section, report);
    section.finish(report);
    Some(Arc::new(DatabasePlan {
        name,
        bastions: ways?,
        kind: kind?,
        target: target?,
        forward: forward?,
        probe,
    }))
}

fn read_bastions(section: &mut Section, known: &[Name], report: &mut Report) -> Option<Vec<Name>> {
    let named: Vec<BastionName> = section.require("bastion", report)?;
    let named: Vec<Name> = named.into_iter().map(|BastionName(name)| name).collect();
    for (index, name) in named.iter().enumerate() {
        if !known.contains(name) {
            report.problem(section, "bastion", no_such_bastion(name, known));
        } else if named.iter().take(index).any(|earlier| earlier == name) {
            report.problem(section, "bastion", format!("\"{name}\" stands twice in this list"));
        }
    }
    Some(named)
}

/// Says that a name is none of the bastions'.
pub(super) fn no_such_bastion(name: &Name, known: &[Name]) -> String {
    let names: Vec<&str> = known.iter().map(Name::as_str).collect();
    let known =
        if names.is_empty() { "there is none".to_owned() } else { format!("known are {}", names.join(", ")) };
    format!("there is no [bastions.{name}]: {known}")
}

/// None where neither of the two keys says it.
fn read_kind(section: &mut Section, inferred: Option<&Inferred>, report: &mut Report) -> Option<Kind> {
    match inferred.filter(|_| !section.has("kind")) {
        Some(inferred) => Some(section.get_or("kind", inferred.kind, report)),
        None => section.get("kind", report),
    }
}

/// What follows from the kind that is written, or from the name: a name that stands for money is not overruled.
fn rest(kind: Option<Kind>, inferred: Option<&Inferred>) -> Rest {
    let by_name = inferred.map_or(Rest::Never, |inferred| inferred.rest);
    let is_inferred = kind == inferred.map(|inferred| inferred.kind);
    match kind {
        Some(Kind::RedshiftServerless) => Rest::Billed,
        Some(Kind::Lakebase) if !is_inferred => Rest::Sleeps,
        _ => by_name,
    }
}

fn read_target(
    host: Option<&HostOrSocket>,
    kind: Option<Kind>,
    section: &mut Section,
    report: &mut Report,
) -> Option<Target> {
    let Some(HostOrSocket(path)) = host.filter(|host| host.is_socket()) else {
        let default = kind.unwrap_or(Kind::Postgres).default_port();
        let port: Port = section.get_or("port", Whole(default.into()), report);
        if kind == Some(Kind::Alloydb) && port.port() == CONNECTORS_PORT {
            let text = "is the port of Google's own connectors, which speak another protocol: AlloyDB answers clients on 5432";
            report.note(section, "port", text);
        }
        return host.map(|HostOrSocket(name)| Target::Tcp(HostPort::new(name, port.port())));
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    if let Some(port) = section.get::<Port>("port", report) {
        // libpq takes a directory and a port; the file's name is the same everywhere.
        let advice = if name.starts_with(POSTGRES_SOCKET) {
            "leave it out".to_owned()
        } else {
            format!("write host = \"{path}/{POSTGRES_SOCKET}{}\" alone", port.port())
        };
        report.problem(section, "port", format!("is of no use with a Unix socket as `host`: {advice}"));
    } else if !name.starts_with(POSTGRES_SOCKET) {
        let text = format!(
            "\"{path}\" is taken for the socket itself: PostgreSQL's is named {POSTGRES_SOCKET}5432 in its directory"
        );
        report.note(section, "host", text);
    }
    Some(Target::Unix(path.as_str().into()))
}

fn read_forward(section: &mut Section, report: &mut Report) -> Option<ForwardPlan> {
    let listen = listen::read(section, report);
    let mut hold = section.section("hold", "hold = { timeout = \"30s\" }", report);
    let hold_timeout = hold.get_or("timeout", Duration::from_secs(30), report);
    let hold_max: Whole<0, 1_000_000> = hold.get_or("max", Whole(500), report);
    hold.finish(report);
    let max_clients: Whole<1, 1_000_000> = section.get_or("max_clients", Whole(1000), report);
    let idle_timeout: Option<Duration> = section.get("idle_timeout", report);
    if idle_timeout == Some(Duration::ZERO) {
        report.problem(section, "idle_timeout", "must be longer than nothing: leave it out for no limit");
    }
    let stall_timeout = read_positive(section, "stall_timeout", Duration::from_secs(60), report);
    Some(ForwardPlan {
        listen: listen?,
        hold_timeout,
        hold_max: hold_max.size(),
        max_clients: max_clients.size(),
        idle_timeout,
        stall_timeout,
    })
}

#[cfg(test)]
mod tests;
