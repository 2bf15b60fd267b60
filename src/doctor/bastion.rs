//! One bastion, from its key files to a ping.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::advice::{RunsAs, of_identity, without_making_a_key};
use super::progress::Record;
use super::{Arrived, Check, Kind, Outcome, Selection, Stage, Subject};
use crate::failure::{Cause, Failure, Phase};
use crate::host_keys::HostKeyPolicy;
use crate::milestones::{Milestone, Milestones};
use crate::session::Visit;
use crate::session::next_key::accepts_next_through;
use crate::settings::Plan;
use crate::settings::plan::{BastionPlan, IdentityPlan, TrustPlan};
use crate::ssh::{NextKey, find_next_key};

/// What is to be found out of a bastion.
pub(super) fn check(plan: &Plan, selection: &Selection, bastion: &Arc<BastionPlan>) -> Check {
    let has_name = bastion.at.host.parse::<IpAddr>().is_err();
    let is_looked_up = has_name && bastion.jump.is_none() && bastion.proxy_command.is_none();
    let kinds = [
        Kind::Identity,
        Kind::Name,
        Kind::Connection,
        Kind::Greeting,
        Kind::Algorithms,
        Kind::HostKey,
        Kind::Login,
        Kind::Ping,
    ];
    let kinds = kinds.into_iter().filter(|kind| *kind != Kind::Name || is_looked_up);
    let mut stages: Vec<Stage> = kinds.map(|kind| Stage::new(kind, Outcome::Awaited)).collect();
    if next_key(bastion).is_some() {
        stages.push(Stage::new(Kind::NextKey, Outcome::Awaited));
    }
    let is_used = selection.ways.iter().any(|way| way.bastion == bastion.name)
        || selection.bastions.iter().any(|other| other.jump.as_ref() == Some(&bastion.name));
    if !is_used {
        let reason = match plan.is_only_jump(&bastion.name) {
            true => "only bastions are behind it: name one of these to have it tried",
            false => "no database is behind it",
        };
        stages.push(Stage::new(Kind::Forwarding, Outcome::NotAsked(reason.to_owned())));
    }
    Check { subject: Subject::Bastion(Arc::clone(bastion)), source: None, own_key: None, stages }
}

/// Logs in, and returns where we are then.
pub(super) async fn examine(
    plan: &Arc<BastionPlan>,
    outer: Option<Arc<Arrived>>,
    record: &Record,
    runs_as: &RunsAs,
) -> Option<Arc<Arrived>> {
    let turn = match &outer {
        Some(outer) => Some(Arc::clone(&outer.turn).lock_owned().await),
        None => None,
    };
    record.begin();
    let resolved = Resolved::default();
    let milestones = note(plan, record, runs_as, turn, &resolved);
    let plan = Arc::new(without_making_a_key(plan));
    let visited = async {
        let through = outer.as_ref().map(|outer| outer.visit());
        let visit = Visit::make(&plan, through, &milestones).await?;
        let round_trip = visit.ping().await?;
        milestones.tell(|| Milestone::Answered(round_trip));
        Ok::<_, Failure>(visit)
    };
    match visited.await {
        Ok(visit) => {
            show_next_key(&plan, outer.as_deref(), record).await;
            let visit = Mutex::new(Arc::new(visit));
            Some(Arc::new(Arrived { plan, outer, visit, turn: Arc::default() }))
        }
        Err(failure) => {
            let (phase, cause) = (failure.cause.phase(), failure.cause);
            record.fail(runs_as.explain(failure));
            // Nothing was connected that could tell where we come from.
            let source = resolved.first().filter(|_| phase == Phase::Tcp).and_then(source_towards);
            source.into_iter().for_each(|source| record.set_source(source));
            if let (Cause::ChannelTimeout, Some(outer)) = (cause, &outer) {
                outer.renew().await;
            }
            None
        }
    }
}

/// The key that is to take the place of the one in use, if there is one.
fn next_key(plan: &BastionPlan) -> Option<NextKey> {
    match &plan.identity {
        IdentityPlan::Own { path, .. } => find_next_key(path).ok().flatten(),
        IdentityPlan::Files(_) | IdentityPlan::Agent => None,
    }
}

/// Says whether the bastion accepts the next key; that it does not yet is nothing to be mended.
async fn show_next_key(plan: &BastionPlan, outer: Option<&Arrived>, record: &Record) {
    if next_key(plan).is_none() {
        return record.pass(Kind::NextKey, "it has taken its place just now");
    }
    let _turn = match outer {
        Some(outer) => Some(outer.turn.lock().await),
        None => None,
    };
    let visit = outer.map(Arrived::visit);
    let text = match accepts_next_through(plan, visit.as_deref()).await {
        Ok(true) => "accepted: a running daemon changes over within minutes".to_owned(),
        Ok(false) => format!("not accepted yet: `tunnelkeeper keygen {} --next` prints its line", plan.name),
        Err(failure) => format!("not asked: {}", failure.detail()),
    };
    record.pass(Kind::NextKey, &text);
}

/// The first address of a name, once it is known.
#[derive(Clone, Default)]
struct Resolved(Arc<OnceLock<SocketAddr>>);

impl Resolved {
    fn first(&self) -> Option<SocketAddr> {
        self.0.get().copied()
    }
}

/// Has every milestone noted. `turn` ends when the bastion is connected to.
fn note(
    plan: &Arc<BastionPlan>,
    record: &Record,
    runs_as: &RunsAs,
    turn: Option<OwnedMutexGuard<()>>,
    resolved: &Resolved,
) -> Milestones {
    let (plan, record, runs_as) = (Arc::clone(plan), record.clone(), runs_as.clone());
    let (turn, resolved) = (Mutex::new(turn), resolved.clone());
    Milestones::told_to(move |milestone| match milestone {
        Milestone::Identities(Err(failure)) => {
            record.fail_at(Kind::Identity, runs_as.explain(of_identity(&plan, failure)));
        }
        Milestone::Identities(Ok(names)) if names.is_empty() => {
            record.pass(Kind::Identity, "no key, but a password");
        }
        Milestone::Identities(Ok(names)) => record.pass(Kind::Identity, &names.join("; ")),
        Milestone::OwnKey(line) => record.set_own_key(line),
        Milestone::Resolved(addresses) => {
            if let Some(first) = addresses.first() {
                // They are the same where the bastion is asked again.
                let _ = resolved.0.set(*first);
            }
            record.pass(Kind::Name, &list(&addresses));
        }
        Milestone::Connected { to, from } => {
            turn.lock().unwrap_or_else(PoisonError::into_inner).take();
            from.into_iter().for_each(|from| record.set_source(from.ip()));
            record.pass(Kind::Connection, &describe_connection(&plan, to, from));
        }
        Milestone::Greeted(line) => {
            if let Some(command) = &plan.proxy_command {
                record.pass(Kind::Connection, &describe_command(command));
            }
            record.pass(Kind::Greeting, &line);
        }
        Milestone::Agreed(names) => record.pass(Kind::Algorithms, &names),
        Milestone::HostKey(text) => record.pass(Kind::HostKey, &describe_host_key(&plan, text)),
        Milestone::LoggedIn(by) => record.pass(Kind::Login, &format!("by {by}")),
        Milestone::Answered(took) => record.pass_in(Kind::Ping, took, ""),
    })
}

fn list(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    addresses.join(", ")
}

fn describe_connection(plan: &BastionPlan, to: Option<SocketAddr>, from: Option<SocketAddr>) -> String {
    match (to, from, &plan.jump) {
        (Some(to), Some(from), _) => format!("{to} from {}", from.ip()),
        (Some(to), None, _) => to.to_string(),
        (None, _, Some(jump)) => format!("{} through {jump}", plan.at),
        (None, _, None) => String::new(),
    }
}

/// Its arguments may have secrets in them.
fn describe_command(argv: &[String]) -> String {
    format!("by the proxy_command {}", argv.first().map_or("", String::as_str))
}

fn describe_host_key(plan: &BastionPlan, text: String) -> String {
    let accepts_new =
        matches!(&plan.trust, TrustPlan::Files(files) if files.policy == HostKeyPolicy::AcceptNew);
    if accepts_new && text.starts_with("seen for the first time") {
        return format!("{text}, which the daemon would store (host_key_policy = \"accept-new\")");
    }
    text
}

/// The address that the kernel would send from. Nothing is sent.
fn source_towards(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
