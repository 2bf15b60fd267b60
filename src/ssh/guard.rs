//! What a bastion may do to us: show its host key, which is judged, say why it ends, and nothing else.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::UNIX_EPOCH;

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, ChannelOpenFailure, Names};
use tokio::sync::watch;

use super::algorithms::describe;
use super::gate::Gate;
use super::host_key::{self, Announced, Seen};
use crate::clock::now;
use crate::failure::{Cause, Failure, one_line, plain};
use crate::host_keys::{HostKey, Trust, Trusted};
use crate::ids::HostPort;
use crate::milestones::{Milestone, Milestones};
use crate::state::SessionLoad;

/// What ends russh's task.
#[derive(Debug)]
pub(super) enum HandlerError {
    /// russh's own verdict.
    Ssh(russh::Error),
    /// Ours.
    Refused(Failure),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

/// Why a session ended, and how many clients it had then; nothing while it lives.
#[derive(Debug)]
pub(super) struct Obituary {
    news: watch::Sender<Option<(Failure, usize)>>,
    load: Arc<SessionLoad>,
}

impl Obituary {
    fn new(load: Arc<SessionLoad>) -> Arc<Self> {
        Arc::new(Self { news: watch::Sender::new(None), load })
    }

    /// The first word stands.
    pub(super) fn announce(&self, failure: Failure) {
        self.news.send_if_modified(|news| {
            let first = news.is_none();
            news.get_or_insert_with(|| (failure, self.load.clients()));
            first
        });
    }

    pub(super) fn read(&self) -> Option<Failure> {
        self.news.borrow().as_ref().map(|(failure, _)| failure.clone())
    }

    /// How many clients the session had when it ended.
    pub(super) fn clients(&self) -> Option<usize> {
        self.news.borrow().as_ref().map(|(_, clients)| *clients)
    }

    pub(super) async fn wait(&self) -> Failure {
        let mut news = self.news.subscribe();
        match news.wait_for(Option::is_some).await.ok().and_then(|news| news.clone()) {
            Some((failure, _)) => failure,
            // The sender is ours, so the news cannot end before they come.
            None => std::future::pending().await,
        }
    }
}

/// What is done with the host key that a bastion shows.
pub(super) enum Scrutiny {
    /// It has to be trusted. One that is not is left here.
    Judge(Arc<Trust>, Arc<OnceLock<HostKey>>),
    /// It is only looked at: nobody may log in over this connection.
    Look,
}

/// russh's handler. It is owned by the session's task and dropped with it on every path, also where russh skips
/// `disconnected`: dropping it is the news of the end.
pub(super) struct Guard {
    bastion: HostPort,
    scrutiny: Scrutiny,
    seen: Arc<OnceLock<Seen>>,
    announced: watch::Sender<Option<Vec<HostKey>>>,
    gate: Arc<Gate>,
    obituary: Arc<Obituary>,
    refusal: Arc<Mutex<Option<String>>>,
    milestones: Milestones,
}

impl Guard {
    pub(super) fn new(
        bastion: HostPort,
        scrutiny: Scrutiny,
        gate: Arc<Gate>,
        milestones: Milestones,
    ) -> Self {
        let obituary = Obituary::new(Arc::clone(gate.load()));
        let (seen, announced, refusal) = (Arc::default(), watch::Sender::new(None), Arc::default());
        Self { bastion, scrutiny, seen, announced, gate, obituary, refusal, milestones }
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    pub(super) fn milestones(&self) -> Milestones {
        self.milestones.clone()
    }

    /// Where the host key is left, once it has been shown and was not refused.
    pub(super) fn seen(&self) -> Arc<OnceLock<Seen>> {
        Arc::clone(&self.seen)
    }

    /// Where the host keys are left that the bastion announces.
    pub(super) fn announced(&self) -> Announced {
        Announced(self.announced.subscribe())
    }

    pub(super) fn obituary(&self) -> Arc<Obituary> {
        Arc::clone(&self.obituary)
    }

    /// Where the bastion's words about the last refused channel are left.
    pub(super) fn refusal(&self) -> Arc<Mutex<Option<String>>> {
        Arc::clone(&self.refusal)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let bastion = &self.bastion;
        let unexplained = format!("the session to {bastion} ended unexpectedly");
        self.obituary.announce(Failure::new(Cause::SessionProtocol, unexplained));
        // Whatever still waits behind the gate has to learn that there is nothing more to wait for.
        self.gate.condemn();
    }
}

impl Handler for Guard {
    type Error = HandlerError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, HandlerError> {
        let shown = host_key::read(shown).map_err(|error| HandlerError::Ssh(error.into()))?;
        let trusted = match &self.scrutiny {
            Scrutiny::Judge(trust, refused) => {
                let seconds = now().wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                trust.judge(&self.bastion, &shown, seconds).map_err(|failure| {
                    let _ = refused.set(shown.key().clone());
                    HandlerError::Refused(failure)
                })?
            }
            Scrutiny::Look => Trusted::FirstSight,
        };
        // It is shown once, before anything else; later exchanges of keys do not ask.
        let _ = self.seen.set(Seen { key: shown.key().clone(), trusted });
        Ok(true)
    }

    async fn kex_done(
        &mut self,
        _: Option<&[u8]>,
        names: &Names,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        self.milestones.tell(|| Milestone::Agreed(describe(names)));
        Ok(())
    }

    async fn openssh_ext_host_keys_announced(
        &mut self,
        keys: Vec<PublicKey>,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        // Once is enough: OpenSSH's own client takes a second time for an attack.
        self.announced.send_if_modified(|announced| {
            let first = announced.is_none();
            announced.get_or_insert_with(|| host_key::announced(&keys));
            first
        });
        Ok(())
    }

    async fn channel_open_failure(
        &mut self,
        _: ChannelId,
        _: ChannelOpenFailure,
        description: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(one_line(description, 200));
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<HandlerError>) -> Result<(), HandlerError> {
        let failure = match reason {
            DisconnectReason::ReceivedDisconnect(client::RemoteDisconnectInfo { message, .. }) => {
                Failure::new(Cause::SessionClosed, format!("{} disconnected: \"{message}\"", self.bastion))
            }
            DisconnectReason::Error(HandlerError::Refused(failure)) => failure,
            DisconnectReason::Error(HandlerError::Ssh(error)) => loss(&self.bastion, &error),
        };
        self.obituary.announce(failure);
        Ok(())
    }

    // russh accepts every channel by default. We ask for none, so each is refused by dropping its reply.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn should_accept_unknown_server_channel(&mut self, _: ChannelId, _: &str) -> bool {
        false
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// Why an established session ended, from what russh says of it.
fn loss(bastion: &HostPort, error: &russh::Error) -> Failure {
    if let russh::Error::IO(error) = error
        && let Some(failure) = of_jump(error)
    {
        return failure;
    }
    match error {
        // Of the outer session, where it goes through one.
        russh::Error::IO(error) => match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Failure::new(Cause::SessionClosed, format!("{bastion} closed the connection without a word"))
            }
            io::ErrorKind::TimedOut => Failure::new(
                Cause::SessionKeepaliveTimeout,
                format!("{bastion} acknowledged nothing for so long that the kernel gave up"),
            ),
            _ => Failure::new(
                Cause::SessionReset,
                format!("the connection to {bastion} broke: {}", plain(error)),
            ),
        },
        russh::Error::Disconnect => {
            Failure::new(Cause::SessionClosed, format!("the connection to {bastion} was ended"))
        }
        other => Failure::new(Cause::SessionProtocol, format!("the session to {bastion} broke: {other}")),
    }
}

/// Why the outer session ended that the connection went through, if that is what the error says.
pub(super) fn of_jump(error: &io::Error) -> Option<Failure> {
    error.get_ref()?.downcast_ref::<Failure>().cloned()
}
