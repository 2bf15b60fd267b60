//! A bastion that is only gone through: nobody dials it but the bastions behind it, each for itself, and its tunnel is
//! up while one of theirs is. This unit does nothing but tell.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::certificate::Certificate;
use crate::clock::now;
use crate::failure::Failure;
use crate::ids::Name;
use crate::state::{Incident, SessionLoad, SessionPhase, SessionState, TunnelState};

/// The tunnel of a bastion that goes through it.
#[derive(Clone)]
pub struct Behind {
    /// Its name.
    pub bastion: Name,
    /// Its tunnel's state.
    pub state: watch::Receiver<Arc<TunnelState>>,
    /// It makes no more sessions this way; those it has count until they have ended.
    pub former: bool,
}

impl Behind {
    /// Whether the tunnel still says something.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.state.has_changed().is_ok()
    }
}

/// What tells of the bastion.
pub struct Unit {
    bastion: Name,
    behind: watch::Receiver<Vec<Behind>>,
    publish: watch::Sender<Arc<TunnelState>>,
    stop: CancellationToken,
}

/// The bastion's state, and the unit that keeps it. `behind` may change with the configuration.
#[must_use]
pub fn new(
    bastion: Name,
    behind: watch::Receiver<Vec<Behind>>,
    stop: CancellationToken,
) -> (watch::Receiver<Arc<TunnelState>>, Unit) {
    let (publish, state) = watch::channel(Arc::default());
    (state, Unit { bastion, behind, publish, stop })
}

impl Unit {
    /// Tells of the bastion until it is told to stop. May be called again after it broke.
    pub async fn run(&self) {
        tokio::select! {
            () = self.tell() => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn tell(&self) {
        let mut changes = self.behind.clone();
        let mut known = Known::default();
        loop {
            let mut behind = changes.borrow_and_update().clone();
            // A tunnel that is gone has no sessions, whatever it said last.
            behind.retain(Behind::lives);
            let mut state = known.view(&self.bastion, &self.publish.borrow(), &said(&mut behind));
            let look_at = known.certificate.look(&self.bastion);
            state.certificate = known.certificate.term().cloned();
            self.publish.send_replace(Arc::new(state));
            tokio::select! {
                () = news(&mut behind) => {}
                () = change(&mut changes) => {}
                () = at(look_at) => {}
            }
        }
    }
}

/// What a tunnel has said.
struct Said {
    bastion: Name,
    tunnel: Arc<TunnelState>,
    former: bool,
}

fn said(behind: &mut [Behind]) -> Vec<Said> {
    let said = |Behind { bastion, state, former }: &mut Behind| Said {
        bastion: bastion.clone(),
        tunnel: Arc::clone(&state.borrow_and_update()),
        former: *former,
    };
    behind.iter_mut().map(said).collect()
}

/// Waits until a tunnel says something or is gone, for ever if there is none.
async fn news(behind: &mut [Behind]) {
    if behind.is_empty() {
        return std::future::pending().await;
    }
    // Either way everything is looked at anew.
    let _ = select_all(behind.iter_mut().map(|tunnel| Box::pin(tunnel.state.changed()))).await;
}

/// Waits until then, for ever if that is never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits for a change, for ever where none can come.
async fn change<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The sessions to the bastion seen so far, by the numbers they got, and what it was shown.
#[derive(Default)]
struct Known {
    certificate: Certificate,
    sessions: Vec<(u64, Arc<SessionLoad>)>,
    next_id: u64,
    /// Stalled time of those that have ended.
    stalled_before: Duration,
}

impl Known {
    /// What the tunnels behind say of the bastion.
    fn view(&mut self, bastion: &Name, before: &TunnelState, behind: &[Said]) -> TunnelState {
        let at = now();
        let sessions = self.sessions(bastion, behind);
        let mut state = TunnelState {
            sessions,
            stalled_before: self.stalled_before,
            uptime: before.uptime,
            down_since: before.down_since,
            ..TunnelState::default()
        };
        // One that only finishes its clients still goes through.
        let serves = [SessionPhase::Established, SessionPhase::Retiring];
        let up = state.sessions.iter().any(|session| serves.contains(&session.phase));
        state.uptime.set(up, at);
        state.down_since = if up { None } else { Some(before.down_since.unwrap_or(at)) };
        if let Some(newest) = state.sessions.iter().max_by_key(|session| session.id) {
            self.certificate.note(newest.certificate.clone());
        }
        let current = || behind.iter().filter(|said| !said.former);
        let cuts = current().filter_map(|said| Some((&said.bastion, said.tunnel.cuts.get(bastion)?)));
        if let Some((behind, cut)) = cuts.max_by_key(|(_, cut)| cut.losses) {
            state.cuts.insert(bastion.clone(), *cut);
            state.pinged_by = Some(behind.clone());
        }
        let troubles = current().filter_map(|said| Some((&said.tunnel, said.tunnel.jumps.get(bastion)?)));
        let own = troubles.max_by_key(|(_, trouble)| trouble.incident.last.instant);
        if let Some((tunnel, trouble)) = own {
            state.last_failure = Some(trouble.incident.clone());
            state.public_key.clone_from(&trouble.public_key);
            if trouble.certificate.is_some() {
                self.certificate.note(trouble.certificate.clone());
            }
            (state.refusing, state.next_attempt) = (tunnel.refusing, tunnel.next_attempt);
        } else {
            state.last_failure = of_those_behind(current()).or_else(|| before.last_failure.clone());
        }
        state
    }

    fn sessions(&mut self, bastion: &Name, behind: &[Said]) -> Vec<SessionState> {
        let inner = behind.iter().flat_map(|said| &said.tunnel.sessions);
        let through = inner.flat_map(|session| session.jumps.iter().map(move |jump| (session.phase, jump)));
        let ours = through.filter(|(_, jump)| jump.bastion == *bastion);
        let sessions = ours.map(|(phase, jump)| SessionState {
            id: self.number(&jump.load),
            phase,
            since: jump.since,
            address: jump.address,
            certificate: jump.certificate.clone(),
            load: Arc::clone(&jump.load),
            jumps: Vec::new(),
        });
        let sessions: Vec<SessionState> = sessions.collect();
        let lives = |load: &Arc<SessionLoad>| sessions.iter().any(|session| Arc::ptr_eq(&session.load, load));
        for (_, ended) in self.sessions.extract_if(.., |(_, load)| !lives(load)) {
            self.stalled_before += ended.stalled(Instant::now().into_std());
        }
        sessions
    }

    fn number(&mut self, load: &Arc<SessionLoad>) -> u64 {
        let seen = self.sessions.iter().find(|(_, seen)| Arc::ptr_eq(seen, load));
        if let Some((id, _)) = seen {
            return *id;
        }
        self.next_id += 1;
        self.sessions.push((self.next_id, Arc::clone(load)));
        self.next_id
    }
}

/// Where the bastion itself did not fail anybody, it is down since those behind it are.
fn of_those_behind<'a>(behind: impl Iterator<Item = &'a Said>) -> Option<Incident> {
    let failures = behind.filter_map(|said| Some((&said.bastion, said.tunnel.last_failure.as_ref()?)));
    let (name, incident) = failures.max_by_key(|(_, incident)| incident.last.instant)?;
    let failure: Failure = incident.failure.clone().at(&format!("behind it, at bastion \"{name}\""));
    Some(Incident { failure, ..incident.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Cause;
    use crate::state::{JumpState, JumpTrouble, Moment};

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn session(phase: SessionPhase, through: &[&str]) -> SessionState {
        let jump = |text: &&str| JumpState {
            bastion: name(text),
            since: now(),
            address: None,
            certificate: None,
            load: Arc::default(),
        };
        let jumps = through.iter().map(jump).collect();
        let load = Arc::default();
        SessionState { id: 7, phase, since: now(), address: None, certificate: None, load, jumps }
    }

    #[tokio::test]
    async fn it_is_up_while_one_of_those_behind_it_is() {
        let (tell, inner) = watch::channel(Arc::<TunnelState>::default());
        let (behind, changes) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let (mut state, unit) = new(name("outer"), changes, stop.clone());
        let life = tokio::spawn(async move { unit.run().await });
        // At first nobody is behind it.
        state.changed().await.unwrap();
        assert!(!state.borrow_and_update().is_up() && !life.is_finished());
        behind.send_replace(vec![Behind { bastion: name("inner"), state: inner, former: false }]);
        let established = session(SessionPhase::Established, &["outermost", "outer"]);
        let load = Arc::clone(&established.jumps[1].load);
        tell.send_replace(Arc::new(TunnelState { sessions: vec![established], ..TunnelState::default() }));
        let seen = state.wait_for(|state| state.is_up()).await.unwrap().clone();
        assert!(Arc::ptr_eq(&seen.sessions[0].load, &load) && seen.sessions.len() == 1);
        assert_eq!((seen.sessions[0].id, seen.down_since), (1, None));

        let mut incident = None;
        Incident::record(&mut incident, Failure::new(Cause::TcpRefused, "nobody listens"), now());
        let trouble = JumpTrouble {
            incident: incident.clone().unwrap(),
            public_key: Some("key".to_owned()),
            certificate: None,
        };
        let jumps = [(name("outer"), trouble)].into();
        tell.send_replace(Arc::new(TunnelState {
            jumps,
            last_failure: incident.clone(),
            refusing: true,
            ..TunnelState::default()
        }));
        let seen = state.wait_for(|state| !state.is_up()).await.unwrap().clone();
        assert_eq!(seen.last_failure, incident);
        assert!(seen.refusing && seen.public_key.is_some() && seen.down_since.is_some());

        tell.send_replace(Arc::new(TunnelState { last_failure: incident, ..TunnelState::default() }));
        let seen = state.wait_for(|state| !state.refusing).await.unwrap().clone();
        let detail = seen.last_failure.as_ref().unwrap().failure.detail().to_owned();
        assert_eq!(detail, "behind it, at bastion \"inner\": nobody listens");
        stop.cancel();
        life.await.unwrap();
    }

    #[test]
    fn the_stalled_time_of_a_session_that_has_ended_still_counts() {
        let stalled = session(SessionPhase::Established, &["outer"]);
        let load = Arc::clone(&stalled.jumps[0].load);
        let began = now();
        load.set_gate(false, began);
        load.set_gate(true, Moment { instant: began.instant + Duration::from_secs(7), ..began });
        let other = session(SessionPhase::Established, &["outer"]);
        let mut known = Known::default();
        let mut view = |sessions: &[&SessionState]| {
            let sessions = sessions.iter().copied().cloned().collect();
            let tunnel = Arc::new(TunnelState { sessions, ..TunnelState::default() });
            let said = Said { bastion: name("inner"), tunnel, former: false };
            let state = known.view(&name("outer"), &TunnelState::default(), &[said]);
            (state.stalled_before, state.sessions.len())
        };
        assert_eq!(view(&[&stalled, &other]), (Duration::ZERO, 2));
        for _ in 0..2 {
            assert_eq!(view(&[&other]), (Duration::from_secs(7), 1));
        }
    }

    #[tokio::test]
    async fn one_that_was_behind_it_counts_until_its_last_session_has_ended() {
        let (tell, leaving) = watch::channel(Arc::<TunnelState>::default());
        let state = TunnelState {
            sessions: vec![session(SessionPhase::Retiring, &["outer"])],
            ..TunnelState::default()
        };
        let mut incident = None;
        Incident::record(&mut incident, Failure::new(Cause::TcpRefused, "long ago"), now());
        tell.send_replace(Arc::new(TunnelState { last_failure: incident, ..state }));
        let former = Behind { bastion: name("leaving"), state: leaving, former: true };
        let (_behind, changes) = watch::channel(vec![former]);
        let stop = CancellationToken::new();
        let (mut state, unit) = new(name("outer"), changes, stop.clone());
        let life = tokio::spawn(async move { unit.run().await });
        let seen = state.wait_for(|state| state.is_up()).await.unwrap().clone();
        assert_eq!((seen.sessions.len(), &seen.last_failure), (1, &None));
        drop(tell);
        let seen = state.wait_for(|state| !state.is_up()).await.unwrap().clone();
        assert!(seen.sessions.is_empty());
        stop.cancel();
        life.await.unwrap();
    }
}
