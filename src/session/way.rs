//! The way to a bastion, hop by hop: each jump is logged in to as itself, and the next hop is reached through it.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use tokio::time::{Duration, Instant, timeout};

use super::identities::{fetch_password, load_identities};
use super::{Parts, trust};
use crate::clock::now;
use crate::failure::{Cause, Failure};
use crate::idle_cut::pauses::LastPause;
use crate::ids::Name;
use crate::keepalive::SUSPECT_AFTER;
use crate::metrics::BastionMetrics;
use crate::milestones::Milestones;
use crate::settings::plan::BastionPlan;
use crate::ssh::{self, Connection, Gate};
use crate::state::{CertificateTerm, JumpState, SessionLoad};

/// How long the goodbye of a hop may take to pass the one before it.
const GOODBYE: Duration = Duration::from_secs(1);

/// A bastion on the way to another one.
#[derive(Clone)]
pub struct Hop {
    /// How it is reached from the hop before.
    pub plan: Arc<BastionPlan>,
    /// Its series.
    pub metrics: Arc<BastionMetrics>,
}

/// A session that exists only for another one to go through. Its owner has it to itself.
pub(super) struct Jump {
    hop: Hop,
    connection: Owned,
}

/// A connection that ends with its owner, also where others still hold it: an open that is never answered would hold it
/// for ever.
pub(super) struct Owned(pub(super) Connection);

impl Deref for Owned {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// A hop that was not reached.
pub(super) struct Unreached {
    pub(super) failure: Failure,
    /// The daemon's own public key, where the hop rejected that.
    pub(super) public_key: Option<String>,
    /// The certificate that the hop was to be shown.
    pub(super) certificate: Option<CertificateTerm>,
    /// The jump that it was; none = the bastion itself.
    pub(super) jump: Option<Name>,
}

impl From<Failure> for Unreached {
    fn from(failure: Failure) -> Self {
        Self { failure, public_key: None, certificate: None, jump: None }
    }
}

/// The jumps of a session, outermost first.
#[derive(Default)]
pub(super) struct Way(Vec<Jump>);

impl Way {
    /// Logs in to all jumps, one through the other. `tell` hears of each that is reached.
    pub(super) async fn open(parts: &Parts, mut tell: impl FnMut(JumpState)) -> Result<Self, Unreached> {
        let mut way = Self::default();
        for hop in parts.jumps.iter() {
            let load: Arc<SessionLoad> = Arc::default();
            let gate = Gate::new(&parts.memory, Arc::clone(&load));
            // The hop behind is its one client.
            gate.seat();
            let started = Instant::now();
            let reached = match reach(&hop.plan, way.innermost(), gate).await {
                Ok(reached) => reached,
                Err(unreached) => return Err(way.blame(Some(hop), unreached).await),
            };
            let Reached { connection, address, certificate } = reached;
            hop.metrics.establish.observe(started.elapsed());
            connection.renounce_shells().await;
            tell(JumpState { bastion: hop.plan.name.clone(), since: now(), address, certificate, load });
            way.0.push(Jump { hop: hop.clone(), connection });
        }
        Ok(way)
    }

    /// What the bastion itself is reached through.
    pub(super) fn innermost(&self) -> Option<&Connection> {
        self.0.last().map(|jump| &*jump.connection)
    }

    /// Asks the jumps whether they live: the answers show which hop is to blame for a silence.
    pub(super) fn ask(&self) {
        for Jump { connection, .. } in &self.0 {
            let connection = connection.0.clone();
            // It ends with the session, which ends with the way.
            tokio::spawn(async move { connection.ping().await.map(drop) });
        }
    }

    /// The jump that is to blame when the session falls silent for so long: the first that is silent as well.
    pub(super) fn silent(&self, silence: Duration) -> Option<&Name> {
        let silent = |jump: &&Jump| jump.connection.gate().received().elapsed() >= silence / 2;
        self.0.iter().find(silent).map(|jump| &jump.hop.plan.name)
    }

    /// The outermost jump that has ended, and why it did.
    fn ended(&self) -> Option<(&Hop, Failure)> {
        self.0.iter().find_map(|jump| Some((&jump.hop, jump.connection.end()?)))
    }

    /// The jump whose end ended the session that was established through it, and why it did. It is counted, so this is
    /// to be asked once.
    pub(super) fn lost(&self) -> Option<(Name, Failure)> {
        let (hop, failure) = self.ended()?;
        hop.metrics.lost(failure.cause);
        Some((hop.plan.name.clone(), failure.at(&place(&hop.plan))))
    }

    /// How the connection to a jump paused last.
    pub(super) fn last_pause(&self, jump: &Name) -> Option<LastPause> {
        let jump = self.0.iter().find(|known| known.hop.plan.name == *jump)?;
        Some(jump.connection.gate().last_pause())
    }

    /// Finds out which hop it was that failed when `next` was not reached (none = the bastion itself): that one, or a
    /// jump on the way to it that has ended or fallen silent.
    pub(super) async fn blame(&self, next: Option<&Hop>, unreached: Unreached) -> Unreached {
        if may_be_silence(unreached.failure.cause) {
            self.give_up_the_silent().await;
        }
        match (self.ended(), next) {
            (Some((hop, failure)), _) => at_jump(hop, failure.into()),
            (None, Some(hop)) => at_jump(hop, unreached),
            (None, None) => unreached,
        }
    }

    /// Ends the outermost jump that answers nothing, if one does not.
    async fn give_up_the_silent(&self) {
        for Jump { hop, connection } in &self.0 {
            let patience = hop.plan.connect_timeout.min(SUSPECT_AFTER);
            if timeout(patience, connection.ping()).await.is_err() {
                let text = format!("{} let us in and then answered nothing", hop.plan.at);
                return connection.condemn(Failure::new(Cause::SessionNotEstablished, text));
            }
        }
    }

    /// Says goodbye to all, the innermost first.
    pub(super) async fn close(&self) {
        for jump in self.0.iter().rev() {
            // Its own goodbye would overtake that of the hop behind it, which is on its way when this is answered.
            let _ = timeout(GOODBYE, jump.connection.ping()).await;
            jump.connection.close().await;
        }
    }
}

pub(super) fn place(jump: &BastionPlan) -> String {
    format!("at the jump \"{}\"", jump.name)
}

/// A jump that falls silent looks like this to the hop behind it.
fn may_be_silence(cause: Cause) -> bool {
    use Cause::{AuthTimeout, BannerTimeout, ChannelTimeout, KexTimeout, SessionNotEstablished};
    matches!(cause, ChannelTimeout | BannerTimeout | KexTimeout | AuthTimeout | SessionNotEstablished)
}

fn at_jump(hop: &Hop, unreached: Unreached) -> Unreached {
    hop.metrics.failed(unreached.failure.cause);
    let failure = unreached.failure.at(&place(&hop.plan));
    Unreached { failure, jump: Some(hop.plan.name.clone()), ..unreached }
}

/// A hop that was.
pub(super) struct Reached {
    pub(super) connection: Owned,
    /// Its address, where it is not reached in another way.
    pub(super) address: Option<SocketAddr>,
    /// The certificate that it was shown, or was meant to be.
    pub(super) certificate: Option<CertificateTerm>,
}

/// Connects to a bastion, verifies it and logs in.
pub(super) async fn reach(
    plan: &Arc<BastionPlan>,
    through: Option<&Connection>,
    gate: Arc<Gate>,
) -> Result<Reached, Unreached> {
    let trusted = Arc::new(trust::read(plan).await?);
    let identities = load_identities(plan).await?;
    let deadline = Instant::now() + plan.connect_timeout;
    let connected = ssh::connect(plan, through, trusted, gate, deadline, &Milestones::default()).await;
    let connected = connected.map_err(|failure| trust::advise(plan, failure))?;
    trust::learn(plan, &connected.seen).await?;
    let (address, host_key) = (connected.address, connected.seen.key.clone());
    match connected.login(&plan.user, &identities, fetch_password(plan), deadline).await {
        Ok(connection) => {
            let connection = Owned(connection);
            // It ends with the session.
            tokio::spawn(trust::renew(Arc::clone(plan), connection.announced_host_keys(), host_key));
            // One that is there and not needed is worth a word only where it is meant to be used.
            let meant = identities.certificate.filter(|_| !plan.certificates.is_empty());
            let certificate = connection.certificate().cloned().or(meant);
            Ok(Reached { connection, address, certificate })
        }
        Err(failure) => {
            let rejected = failure.cause == Cause::AuthRejected;
            let public_key = identities.own_public_key.filter(|_| rejected);
            Err(Unreached { failure, public_key, certificate: identities.certificate, jump: None })
        }
    }
}
