//! The seam between those who need a way to a database and the tunnel that gives it: neither knows the other.
//!
//! [`crate::tunnel`] implements these traits over SSH channels; [`crate::forward`] and [`crate::probe`] use them
//! through the [`Ways`] of their database, and are tested over streams in memory.

mod queue;
mod ways;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::ids::Target;
use crate::settings::plan::DatabasePlan;
use crate::state::TunnelState;
pub use queue::Queue;
pub use ways::{Avoid, Ways};

/// A database, and the ways to it. It changes when the configuration does.
#[derive(Clone)]
pub struct Route<D> {
    /// The database.
    pub plan: Arc<DatabasePlan>,
    /// Its bastions' tunnels.
    pub ways: Ways<D>,
}

/// A tunnel, as those see it who want to go through.
pub trait Dial: Clone + Send + Sync + 'static {
    /// A place on one of its sessions.
    type Seat: Seat;

    /// A place on a session that can take one more client now, if there is one and nobody waits for it. `avoid` is as
    /// for [`seat`](Self::seat).
    fn seat_now(&self, avoid: Option<u64>) -> Option<Self::Seat>;

    /// The runtimes on which its sessions live, if it has any.
    fn lanes(&self) -> Vec<tokio::runtime::Handle>;

    /// Waits until a session can take one more client, for as long as the caller likes. `avoid` is a session on
    /// which the client has just failed. The future may be dropped at any time.
    fn seat(&self, avoid: Option<u64>) -> impl Future<Output = Self::Seat> + Send;

    /// Waits until whoever has asked for a seat before has one, or it is certain that there is none now. The future may be
    /// dropped at any time.
    fn settled(&self) -> impl Future<Output = ()> + Send;

    /// A place for a probe on a session whose gate is open, if there is one now. It does not count as a client.
    fn probe_seat(&self) -> impl Future<Output = Option<Self::Seat>> + Send;

    /// The tunnel's state, for those who have to explain why there is no seat.
    fn state(&self) -> watch::Receiver<Arc<TunnelState>>;

    /// Something that goes through this tunnel failed: its sessions are asked at once whether they live.
    fn doubt(&self);
}

/// A place on a session; dropping it gives the place back.
pub trait Seat: Send + Sync + 'static {
    /// The database's half of a link.
    type Inbound: Inbound;
    /// The client's half of a link.
    type Outbound: Outbound;

    /// The session's number within its bastion.
    fn session(&self) -> u64;

    /// The runtime on which the session lives; a client is cheapest there.
    fn lane(&self) -> &tokio::runtime::Handle;

    /// Connects to a database through the session.
    ///
    /// # Errors
    /// `channel` failures. The future may be dropped: a channel that opens too late is closed.
    fn open(
        &self,
        target: &Target,
    ) -> impl Future<Output = Result<(Self::Inbound, Self::Outbound), Failure>> + Send;

    /// The client has gone, and only its link is still to be closed: the place is free for another, and the session stays
    /// until this is dropped.
    fn free(&mut self);

    /// Whether the session takes anything from the bastion at the moment; if not, silence says nothing about it.
    fn is_open(&self) -> bool;

    /// Since when the session takes nothing more from the bastion while clients share it: a client that does not
    /// read is to blame.
    fn blocked_since(&self) -> Option<Instant>;
}

/// What comes from the database's side of a link.
#[derive(Debug)]
pub enum Arrival {
    /// Bytes, in order.
    Data(Bytes),
    /// The database sends no more; it may still read.
    End,
    /// The link is closed in both directions, in good order.
    Closed,
    /// The session was lost: whatever has not arrived never will.
    Lost(Failure),
}

/// The receiving half of a link.
pub trait Inbound: Send + 'static {
    /// Waits for the next arrival. `Closed` and `Lost` come again whenever it is asked again.
    fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<Arrival>;

    /// So many of the arrived bytes have been passed on, and no longer occupy memory.
    fn passed_on(&mut self, bytes: usize);

    /// None of the arrived bytes will be passed on any more.
    fn forget(&mut self);
}

/// The link is gone; why, the receiving half says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The sending half of a link. Dropping it closes the link in good time, also if it was not closed before.
pub trait Outbound: Send + 'static {
    /// Sends bytes, in order; waits while the bastion takes no more. A dropped future may have sent a part, so
    /// the link must be closed then.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Says that no more will be sent; receiving goes on. Saying it again changes nothing.
    fn end(&mut self) -> impl Future<Output = Result<(), Gone>> + Send;
}

#[cfg(test)]
pub(crate) mod fake;
