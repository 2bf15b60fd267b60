//! One SSH connection from dial to exit: prepares keys and trust, connects, logs in, and keeps it alive.
//!
//! It never retries: it returns how it ended, and [`crate::tunnel`] decides what follows. Everything runs on the
//! session's lane.

mod identities;
pub mod next_key;
pub mod trust;
mod visit;
mod way;

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::clock::now;
use crate::failure::{Cause, Failure};
use crate::idle_cut::pauses::LastPause;
use crate::ids::Name;
use crate::keepalive::{Keepalive, SUSPECT_AFTER, Sign};
use crate::metrics::BastionMetrics;
use crate::settings::plan::BastionPlan;
use crate::settings::show_duration;
use crate::ssh::{BufferMemory, Connection, Gate};
use crate::state::{CertificateTerm, SessionLoad, SessionPhase, SessionState};
pub use visit::Visit;
pub use way::Hop;
use way::{Owned, Reached, Unreached, Way, reach};

/// The longest time between two looks at a session.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// And while its gate is shut, when nothing else tells that it has ended.
const LOOK_IN_EVERY: Duration = Duration::from_secs(1);

/// When a new session's round trip is measured first.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What the tunnel may ask of a session.
#[derive(Clone, Debug)]
pub enum Command {
    /// Something that went through it failed: does it live?
    Ping,
    /// Go on with other bounds on silence.
    Keepalive {
        /// Ping after so long a silence.
        interval: Duration,
        /// So long a silence ends the session.
        timeout: Duration,
    },
    /// End in good order. Clients that are still there are lost.
    Close,
}

/// How a session ended.
#[derive(Debug)]
pub enum Exit {
    /// It never served.
    NotEstablished {
        /// Why.
        failure: Failure,
        /// The daemon's own public key, where it was rejected.
        public_key: Option<String>,
        /// The certificate that it was to be shown.
        certificate: Option<CertificateTerm>,
        /// The jump that was not reached; none = the bastion itself.
        jump: Option<Name>,
    },
    /// It served and was lost.
    Lost {
        /// Why.
        failure: Failure,
        /// How long it had served.
        lived: Duration,
        /// How its connection paused before.
        pause: LastPause,
        /// How many clients it had.
        clients: usize,
        /// The jump that was lost with it.
        jump: Option<Name>,
    },
    /// We ended it.
    Closed,
}

/// What a session is made with.
pub struct Parts {
    /// Its number within its bastion.
    pub id: u64,
    /// The bastion.
    pub plan: Arc<BastionPlan>,
    /// The bastions that it goes through, outermost first.
    pub jumps: Arc<[Hop]>,
    /// The memory it shares with all sessions.
    pub memory: Arc<BufferMemory>,
    /// The bastion's series.
    pub metrics: Arc<BastionMetrics>,
    /// Told whenever the state has changed.
    pub changed: Arc<Notify>,
}

/// A session, from outside.
pub struct Handle {
    /// Its state.
    pub state: watch::Receiver<SessionState>,
    /// What is asked of it.
    pub commands: mpsc::UnboundedSender<Command>,
    connection: Arc<OnceLock<Connection>>,
}

impl Handle {
    /// The connection, once it is established.
    #[must_use]
    pub fn connection(&self) -> Option<&Connection> {
        self.connection.get()
    }
}

struct Session {
    parts: Parts,
    load: Arc<SessionLoad>,
    state: watch::Sender<SessionState>,
    connection: Arc<OnceLock<Connection>>,
}

/// A session's handle at once, and the future that is its life.
pub fn new(parts: Parts) -> (Handle, impl Future<Output = Exit> + Send + use<>) {
    let load = Arc::new(SessionLoad::default());
    let (state, receiver) = watch::channel(SessionState {
        id: parts.id,
        phase: SessionPhase::Connecting,
        since: now(),
        address: None,
        certificate: None,
        load: Arc::clone(&load),
        jumps: Vec::new(),
    });
    let (send, commands) = mpsc::unbounded_channel();
    let connection = Arc::new(OnceLock::new());
    let handle = Handle { state: receiver, commands: send, connection: Arc::clone(&connection) };
    (handle, Session { parts, load, state, connection }.run(commands))
}

impl Session {
    async fn run(self, mut commands: mpsc::UnboundedReceiver<Command>) -> Exit {
        let started = Instant::now();
        let established = tokio::select! {
            established = self.establish() => established,
            () = closed_early(&mut commands) => Err(Exit::Closed),
        };
        let (way, connection) = match established {
            Ok(established) => established,
            Err(exit) => return exit,
        };
        let took = started.elapsed();
        self.parts.metrics.establish.observe(took);
        info!(
            bastion = %self.parts.plan.name,
            session = self.parts.id,
            address = self.state.borrow().address.map(tracing::field::display),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "session established"
        );
        // A connection is set once, so this cannot fail.
        let _ = self.connection.set(Connection::clone(&connection));
        self.publish(SessionPhase::Established);
        self.keep_alive(&way, &connection, commands).await
    }

    async fn establish(&self) -> Result<(Way, Owned), Exit> {
        let way = Way::open(&self.parts, |jump| self.state.send_modify(|state| state.jumps.push(jump))).await;
        let way = way.map_err(not_established)?;
        let gate = Gate::new(&self.parts.memory, Arc::clone(&self.load));
        let reached = match reach(&self.parts.plan, way.innermost(), gate).await {
            Ok(reached) => reached,
            Err(unreached) => return Err(not_established(way.blame(None, unreached).await)),
        };
        let Reached { connection, address, certificate } = reached;
        self.state.send_modify(|state| (state.address, state.certificate) = (address, certificate));
        if let Err(failure) = first_ping(&self.parts.plan, &connection).await {
            return Err(not_established(way.blame(None, failure.into()).await));
        }
        connection.renounce_shells().await;
        Ok((way, connection))
    }

    async fn keep_alive(
        self,
        way: &Way,
        connection: &Connection,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) -> Exit {
        let plan = Arc::clone(&self.parts.plan);
        let started = Instant::now();
        let lost = |failure, silent: Option<&Name>| {
            let clients = connection.clients_at_end().unwrap_or_else(|| self.load.clients());
            let (jump, failure) = match way.lost() {
                Some((jump, failure)) => (Some(jump), failure),
                None => (silent.cloned(), failure),
            };
            let pause = jump.as_ref().and_then(|jump| way.last_pause(jump));
            let pause = pause.unwrap_or_else(|| connection.gate().last_pause());
            Exit::Lost { failure, lived: started.elapsed(), pause, clients, jump }
        };
        let mut keepalive =
            Keepalive::new(plan.keepalive_interval, plan.keepalive_timeout, started.into_std());
        let mut pings = JoinSet::new();
        // The first pings come while the bastion still has other things to say, and Nagle's algorithm delays their
        // answers: their time says little.
        let mut first_sample = pin!(sleep(SETTLED_AFTER));
        let mut sampled = false;
        loop {
            let now = Instant::now();
            let gate = connection.gate();
            let sign = Sign { received: gate.received(), gate_open: self.load.gate_open() };
            let finding = keepalive.check(sign, now.into_std());
            self.load.unanswered.store(keepalive.unanswered(), Ordering::Relaxed);
            if finding.lost {
                let silence = keepalive.silence(now.into_std());
                let silent = way.silent(silence);
                let failure = Failure::new(
                    Cause::SessionKeepaliveTimeout,
                    format!(
                        "nothing came from {} for {} ({} pings unanswered){}",
                        plan.at,
                        show_duration(Duration::from_secs(silence.as_secs())),
                        keepalive.unanswered(),
                        silent.map_or(String::new(), |jump| format!(", nor from its jump \"{jump}\""))
                    ),
                );
                connection.condemn(failure.clone());
                return lost(failure, silent);
            }
            self.publish(if finding.suspect { SessionPhase::Suspect } else { SessionPhase::Established });
            if finding.ping {
                ping(&mut pings, connection);
                way.ask();
            }
            let look_again = if sign.gate_open { LOOK_EVERY } else { LOOK_IN_EVERY };
            let next = Instant::from_std(finding.next).min(now + look_again);
            tokio::select! {
                failure = connection.ended() => return lost(failure, None),
                Some(answer) = pings.join_next() => {
                    if let Ok(Some(round_trip)) = answer {
                        self.note_round_trip(round_trip);
                    }
                }
                command = commands.recv() => match command {
                    Some(Command::Ping) => {
                        if keepalive.ask(Instant::now().into_std()) {
                            ping(&mut pings, connection);
                            way.ask();
                        }
                    }
                    Some(Command::Keepalive { interval, timeout }) => keepalive.set_bounds(interval, timeout),
                    Some(Command::Close) | None => {
                        connection.close().await;
                        way.close().await;
                        return Exit::Closed;
                    }
                },
                () = &mut first_sample, if !sampled => {
                    sampled = true;
                    ping(&mut pings, connection);
                }
                () = sleep_until(next) => {}
            }
            if !self.load.gate_open() {
                gate.look_in();
            }
        }
    }

    fn note_round_trip(&self, round_trip: Duration) {
        let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).max(1);
        self.load.round_trip_micros.store(micros, Ordering::Relaxed);
        self.parts.metrics.round_trip.observe(round_trip);
    }

    /// Publishes a phase if it is a new one.
    fn publish(&self, phase: SessionPhase) {
        let changed = self.state.send_if_modified(|state| {
            let changed = state.phase != phase;
            if changed {
                (state.phase, state.since) = (phase, now());
            }
            changed
        });
        if changed {
            let (bastion, session) = (&self.parts.plan.name, self.parts.id);
            match phase {
                SessionPhase::Suspect => {
                    warn!(%bastion, session, "session suspect: a ping was not answered for 10 s, so it takes no new clients");
                }
                _ => debug!(%bastion, session, state = phase.as_str(), "session state"),
            }
            self.parts.changed.notify_one();
        }
    }
}

/// The answer that makes a session an established one. Returns its round trip.
async fn first_ping(plan: &BastionPlan, connection: &Connection) -> Result<Duration, Failure> {
    match timeout(SUSPECT_AFTER, connection.ping()).await {
        Ok(Ok(round_trip)) => Ok(round_trip),
        Ok(Err(end)) => {
            let text = format!("the bastion ended the session before it answered a ping: {}", end.detail());
            Err(Failure::new(Cause::SessionNotEstablished, text))
        }
        Err(_) => {
            let text = format!("{} let us in and then answered no ping", plan.at);
            let failure = Failure::new(Cause::SessionNotEstablished, text);
            connection.condemn(failure.clone());
            Err(failure)
        }
    }
}

/// Sends a ping. An answer that waited before a shut gate says nothing of the round trip.
fn ping(pings: &mut JoinSet<Option<Duration>>, connection: &Connection) {
    let connection = connection.clone();
    pings.spawn(async move {
        let stalled = || connection.gate().load().stalled(now().instant);
        let before = stalled();
        let round_trip = connection.ping().await.ok()?;
        (stalled() == before).then_some(round_trip)
    });
}

fn not_established(Unreached { failure, public_key, certificate, jump }: Unreached) -> Exit {
    Exit::NotEstablished { failure, public_key, certificate, jump }
}

/// Returns when the session shall end before it has begun.
async fn closed_early(commands: &mut mpsc::UnboundedReceiver<Command>) {
    while let Some(Command::Ping | Command::Keepalive { .. }) = commands.recv().await {}
}
