//! A logged-in connection, and the channels through it.
//!
//! russh's channel types need care on five points. An open whose future is dropped leaks the channel on both
//! sides, so each runs in a task of its own and a channel that opens too late is closed. A writer that waits for
//! window is not woken when the channel or session ends, so whoever sends must watch the receiving half as well.
//! The end of the session looks like an orderly end of data, so the receiving half asks why. A channel that we
//! close first, and an open that is refused, leave a remnant in russh until the session ends, so these are counted
//! ([`Connection::remnants`]). And `Handle::data` can stop a whole session, so it is never used.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use russh::client::{Handle, Msg};
use russh::keys::PublicKey;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::connect::Connected;
use super::gate::{Gate, OwnGate};
use super::guard::{Guard, Obituary};
use super::host_key::Announced;
use super::refusal::refused;
use crate::dial::{self, Arrival, Gone};
use crate::failure::{Cause, Failure};
use crate::host_keys::HostKey;
use crate::ids::{HostPort, Target};
use crate::settings::show_duration;
use crate::state::CertificateTerm;

/// Measured: what russh 0.65 keeps of a channel that was closed by us first, in bytes.
const CLOSED_REMNANT: usize = 3300;
/// Estimated from the size of what russh queues and nobody reads, in bytes.
const REFUSED_REMNANT: usize = 400;
/// How long a polite goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A logged-in connection. Clones share it; it lives on the lane on which it was made.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

pub(super) struct Shared {
    gate: OwnGate,
    handle: Handle<Guard>,
    bastion: HostPort,
    obituary: Arc<Obituary>,
    /// Why the last open was refused, in the bastion's words.
    refusal: Arc<Mutex<Option<String>>>,
    announced: Announced,
    certificate: Option<CertificateTerm>,
    opening: AtomicUsize,
    remnants: AtomicUsize,
    lane: runtime::Handle,
}

impl Connection {
    /// `certificate` is the one that the bastion accepted.
    pub(super) fn new(connected: Connected, certificate: Option<CertificateTerm>) -> Self {
        let Connected { gate, handle, bastion, obituary, refusal, announced, .. } = connected;
        Self(Arc::new(Shared {
            gate,
            handle,
            bastion,
            obituary,
            refusal,
            announced,
            certificate,
            opening: AtomicUsize::new(0),
            remnants: AtomicUsize::new(0),
            lane: runtime::Handle::current(),
        }))
    }

    /// The runtime on which the session lives.
    #[must_use]
    pub fn lane(&self) -> &runtime::Handle {
        &self.0.lane
    }

    /// The time of the certificate that it logged in with, where that ends.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateTerm> {
        self.0.certificate.as_ref()
    }

    /// Its gate.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.0.gate
    }

    /// Waits for the session's end and says why it ended.
    pub async fn ended(&self) -> Failure {
        self.0.obituary.wait().await
    }

    /// Why the session ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<Failure> {
        self.0.obituary.read()
    }

    /// How many clients it had when it ended, if it has.
    #[must_use]
    pub fn clients_at_end(&self) -> Option<usize> {
        self.0.obituary.clients()
    }

    /// Asks the bastion for an answer and waits for it, for as long as the session lives. Returns the round trip.
    ///
    /// # Errors
    /// Why the session ended instead.
    pub async fn ping(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        let answered = tokio::select! {
            answered = self.0.handle.send_ping() => answered.is_ok(),
            failure = self.ended() => return Err(failure),
        };
        // russh also returns in good order when the session ends meanwhile.
        if answered && !self.0.handle.is_closed() { Ok(started.elapsed()) } else { Err(self.ended().await) }
    }

    /// Tells the bastion that nobody will ever want to run anything over this connection.
    pub async fn renounce_shells(&self) {
        // Asking for an answer keeps russh's queue of awaited answers in step. A session that has ended needs no
        // telling.
        let _ = self.0.handle.no_more_sessions(true).await;
    }

    /// Waits until the bastion announces its host keys, without keeping the session for it.
    pub fn announced_host_keys(&self) -> impl Future<Output = Option<(Self, Vec<HostKey>)>> + Send + use<> {
        let (announced, shared) = (self.0.announced.clone(), Arc::downgrade(&self.0));
        async move {
            let keys = announced.wait().await?;
            Some((Self(shared.upgrade()?), keys))
        }
    }

    /// Has the bastion prove that it has these host keys.
    ///
    /// # Errors
    /// Why it has not.
    pub async fn prove_host_keys(&self, keys: &[HostKey]) -> Result<(), String> {
        let keys: Result<Vec<PublicKey>, _> =
            keys.iter().map(|key| PublicKey::from_bytes(&key.blob)).collect();
        let keys = keys.map_err(|error| error.to_string())?;
        tokio::select! {
            proved = self.0.handle.hostkeys_prove(keys) => proved.map_err(|error| error.to_string()),
            failure = self.ended() => Err(failure.detail().to_owned()),
        }
    }

    /// Connects to `target` through the bastion.
    ///
    /// # Errors
    /// `channel` failures. The future may be dropped: a channel that opens too late is closed.
    pub async fn open(&self, target: &Target, limit: Duration) -> Result<(Inbound, Outbound), Failure> {
        let (give, mut take) = oneshot::channel();
        let (shared, to) = (Arc::clone(&self.0), target.clone());
        self.0.lane.spawn(async move {
            // A channel that nobody takes any more is dropped here, and so closed.
            drop(give.send(open(&shared, &to).await));
        });
        loop {
            match timeout(limit, &mut take).await {
                Ok(Ok(result)) => return result,
                Ok(Err(_)) => return Err(session_lost(&self.0, target)),
                // The answer may be there, and wait before our own gate.
                Err(_) if !self.0.gate.load().gate_open() => {}
                Err(_) => {
                    // The bastion may never answer it.
                    self.0.remnants.fetch_add(REFUSED_REMNANT, Ordering::Relaxed);
                    let (bastion, limit) = (&self.0.bastion, show_duration(limit));
                    let text = format!("{bastion} did not connect to {target} within {limit}");
                    return Err(Failure::new(Cause::ChannelTimeout, text));
                }
            }
        }
    }

    /// How much memory russh keeps for channels that are gone, estimated in bytes.
    #[must_use]
    pub fn remnants(&self) -> usize {
        self.0.remnants.load(Ordering::Relaxed)
    }

    /// Ends the session at once, for the given reason, unless it has ended for another.
    pub fn condemn(&self, failure: Failure) {
        self.0.obituary.announce(failure);
        self.0.gate.condemn();
    }

    /// Ends the session at once, since nobody needs it any more.
    pub fn abandon(&self) {
        let text = format!("we closed the session to {}", self.0.bastion);
        self.condemn(Failure::new(Cause::SessionClosed, text));
    }

    /// Says goodbye, and ends the session.
    pub async fn close(&self) {
        let words = "tunnelkeeper has no more use for this session";
        let goodbye = async {
            let said = self.0.handle.disconnect(Disconnect::ByApplication, words, "").await;
            if said.is_ok() {
                self.ended().await;
            }
        };
        let _ = timeout(GOODBYE, goodbye).await;
        self.abandon();
    }
}

fn session_lost(shared: &Shared, target: &Target) -> Failure {
    Failure::new(
        Cause::ChannelSessionLost,
        format!("the session to {} ended while it connected to {target}", shared.bastion),
    )
}

async fn open(shared: &Arc<Shared>, target: &Target) -> Result<(Inbound, Outbound), Failure> {
    let opening = Opening::begin(shared);
    let result = match target {
        Target::Tcp(HostPort { host, port }) => {
            shared.handle.channel_open_direct_tcpip(&**host, (*port).into(), "127.0.0.1", 0).await
        }
        Target::Unix(path) => shared.handle.channel_open_direct_streamlocal(&**path).await,
    };
    match result {
        Ok(channel) => Ok(halves(shared, channel)),
        Err(russh::Error::ChannelOpenFailure(reason)) => {
            shared.remnants.fetch_add(REFUSED_REMNANT, Ordering::Relaxed);
            Err(refused(&shared.bastion, target, &reason, opening.words().as_deref()))
        }
        Err(_) => {
            // Whoever asks why finds it said.
            let _ = timeout(GOODBYE, shared.obituary.wait()).await;
            Err(session_lost(shared, target))
        }
    }
}

/// Counts the opens under way: the bastion's words about a refusal come without saying which open they are about,
/// so they are believed only while there is just one.
struct Opening<'a>(&'a Shared);

impl<'a> Opening<'a> {
    fn begin(shared: &'a Shared) -> Self {
        if shared.opening.fetch_add(1, Ordering::AcqRel) == 0 {
            shared.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        Self(shared)
    }

    fn words(&self) -> Option<String> {
        let alone = self.0.opening.load(Ordering::Acquire) == 1;
        self.0.refusal.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| alone)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::AcqRel);
    }
}

fn halves(shared: &Arc<Shared>, channel: Channel<Msg>) -> (Inbound, Outbound) {
    let (read, write) = channel.split();
    let closed = Arc::new(AtomicBool::new(false));
    let obituary = Arc::clone(&shared.obituary);
    let inbound = Inbound {
        read,
        gate: Arc::clone(&shared.gate),
        held: 0,
        end: Box::pin(async move { obituary.wait().await }),
        lost: None,
        closed: Arc::clone(&closed),
    };
    (inbound, Outbound { write: Some(write), ended: false, shared: Arc::clone(shared), closed })
}

/// The receiving half of a channel.
pub struct Inbound {
    read: ChannelReadHalf,
    gate: Arc<Gate>,
    /// Bytes handed out and not yet passed on.
    held: usize,
    end: Pin<Box<dyn Future<Output = Failure> + Send>>,
    /// What `end` has come to.
    lost: Option<Failure>,
    closed: Arc<AtomicBool>,
}

impl dial::Inbound for Inbound {
    fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Poll::Ready(Arrival::Closed);
            }
            if let Some(failure) = &self.lost {
                return Poll::Ready(Arrival::Lost(failure.clone()));
            }
            let message = std::pin::pin!(self.read.wait()).poll(context);
            let arrival = match message {
                Poll::Ready(Some(ChannelMsg::Data { data })) => {
                    self.gate.hold(data.len());
                    self.held += data.len();
                    Arrival::Data(data)
                }
                Poll::Ready(Some(ChannelMsg::Eof)) => Arrival::End,
                Poll::Ready(Some(ChannelMsg::Close)) => {
                    self.closed.store(true, Ordering::Release);
                    Arrival::Closed
                }
                Poll::Ready(Some(_)) => continue,
                // Data that came before the end is delivered before it.
                Poll::Ready(None) | Poll::Pending => {
                    self.lost = Some(ready!(self.end.as_mut().poll(context)));
                    continue;
                }
            };
            return Poll::Ready(arrival);
        }
    }

    fn passed_on(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
        self.gate.release(bytes);
    }

    fn forget(&mut self) {
        self.passed_on(self.held);
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.gate.release(self.held);
    }
}

/// The sending half of a channel.
pub struct Outbound {
    write: Option<ChannelWriteHalf<Msg>>,
    ended: bool,
    shared: Arc<Shared>,
    closed: Arc<AtomicBool>,
}

// russh's futures are boxed: they are more than a kilobyte each, and a client that is idle sends nothing.
impl dial::Outbound for Outbound {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        match &self.write {
            Some(write) => Box::pin(write.data_bytes(bytes)).await.map_err(|_| Gone),
            None => Err(Gone),
        }
    }

    async fn end(&mut self) -> Result<(), Gone> {
        if self.ended {
            return Ok(());
        }
        let write = self.write.as_ref().ok_or(Gone)?;
        Box::pin(write.eof()).await.map_err(|_| Gone)?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        let Some(write) = self.write.take() else { return };
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        self.shared.remnants.fetch_add(CLOSED_REMNANT, Ordering::Relaxed);
        self.shared.lane.spawn(async move {
            // A session that is gone has closed it already.
            let _ = write.close().await;
        });
    }
}
