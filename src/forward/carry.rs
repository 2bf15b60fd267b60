//! One attempt of a client on the lane of its session: opens the link, watching the client meanwhile, carries it, and
//! ends it if it has to be ended.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{Shared, answer};
use crate::dial::{Dial, Seat};
use crate::failure::{Cause, Failure};
use crate::ids::Name;
use crate::metrics::Outcome;
use crate::pgwire::SqlState;
use crate::pump::{self, Ending, FirstBytes, MAX_FIRST_BYTES, Meter, pump};
use crate::settings::plan::DatabasePlan;
use crate::socket::Socket;
use crate::state::{ClientEntry, Doing};

/// Why a client that is not connected is not served any more.
pub(super) enum Unserved {
    /// It left.
    Gone,
    /// Its time is over, or nobody can help it.
    InVain,
    /// So many wait already that it may not.
    HoldFull(usize),
    /// The daemon ends.
    Stopping,
}

/// What came of a seat.
pub(super) enum Carried {
    /// The client is done with, or was ended.
    Over,
    /// It has to wait for another seat: the session was lost, or the database not reached.
    Again(Socket, FirstBytes, Failure),
    /// It is told why not.
    Unserved(Socket, FirstBytes, Unserved),
}

/// Reads what a client sends that is not connected yet.
pub(super) async fn read_more(socket: &mut Socket, first: &mut FirstBytes) -> io::Result<usize> {
    let room = MAX_FIRST_BYTES - first.bytes.len().min(MAX_FIRST_BYTES);
    socket.take(room as u64).read_buf(&mut first.bytes).await
}

/// One attempt to connect a client.
pub(super) struct Trial {
    pub(super) plan: Arc<DatabasePlan>,
    pub(super) bastion: Name,
    pub(super) give_up_at: Option<Instant>,
    pub(super) first_time: bool,
}

/// Connects a client through its seat and carries it. Runs on the session's lane.
pub(super) async fn carry<D: Dial>(
    shared: &Arc<Shared<D>>,
    mut seat: D::Seat,
    socket: Socket,
    mut first: FirstBytes,
    entry: &ClientEntry,
    trial: &Trial,
    permit: Option<OwnedSemaphorePermit>,
) -> Carried {
    let metrics = &shared.metrics;
    let Ok(mut socket) = socket.move_here() else {
        if trial.first_time {
            metrics.connection(Outcome::OpenFailed);
        }
        return Carried::Over;
    };
    let asked = Instant::now();
    let opened = Box::pin(open(shared, trial, &seat, &mut socket, &mut first)).await;
    drop(permit);
    let (mut inbound, mut outbound) = match opened {
        Ok(Ok(link)) => link,
        Ok(Err(failure)) => {
            shared.reach.failed(&trial.bastion, &failure);
            return Carried::Again(socket, first, failure);
        }
        Err(unserved) => return Carried::Unserved(socket, first, unserved),
    };
    metrics.open.observe(asked.elapsed());
    shared.reach.succeeded(&trial.bastion);
    entry.set_held(false);
    if trial.first_time {
        metrics.connection(Outcome::Carried);
    }
    let meter = Meter::new(&entry.client, metrics, &first);
    let bounds = pump::Bounds { limits: shared.limits.subscribe(), stop: shared.cut.clone() };
    let ending = pump(&mut socket, &seat, &mut inbound, &mut outbound, first, &meter, bounds).await;
    if let Ending::Again(first, failure) = ending {
        return Carried::Again(socket, first, failure);
    }
    // The client is done with; its channel is not yet, but the next one need not look elsewhere for that.
    seat.free();
    tokio::spawn(async move {
        pump::abandon(inbound, outbound).await;
        drop(seat);
    });
    if ending == Ending::Done {
        Box::pin(answer::finish(&mut socket)).await;
        return Carried::Over;
    }
    if let Ending::Cut { failure, at_boundary, doing } = ending {
        Box::pin(cut(shared, entry, socket, &failure, at_boundary, doing)).await;
    }
    Carried::Over
}

type Link<S> = (<S as Seat>::Inbound, <S as Seat>::Outbound);

/// Connects to the database, and watches the client meanwhile.
async fn open<D: Dial>(
    shared: &Shared<D>,
    trial: &Trial,
    seat: &D::Seat,
    socket: &mut Socket,
    first: &mut FirstBytes,
) -> Result<Result<Link<D::Seat>, Failure>, Unserved> {
    let mut opening = pin!(seat.open(&trial.plan.target));
    let give_up = async {
        match trial.give_up_at {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    };
    let mut give_up = pin!(give_up);
    loop {
        let listen = !first.ended && first.bytes.len() < MAX_FIRST_BYTES;
        tokio::select! {
            biased;
            link = &mut opening => return Ok(link),
            read = read_more(socket, first), if listen => match read {
                // It may have said all it wants to say, and wait for the answer.
                Ok(0) => first.ended = true,
                Ok(_) => {}
                Err(_) => return Err(Unserved::Gone),
            },
            () = &mut give_up => return Err(Unserved::InVain),
            () = shared.cut.cancelled() => return Err(Unserved::Stopping),
        }
    }
}

/// Ends a client that was not done: with words where the protocol allows it, else by a reset, where there is one.
async fn cut<D>(
    shared: &Shared<D>,
    entry: &ClientEntry,
    mut socket: Socket,
    failure: &Failure,
    at_boundary: bool,
    doing: Doing,
) {
    let client = &entry.client;
    let doing_for = doing.since.map(|since| Instant::now().into_std().saturating_duration_since(since));
    let startup = client.startup.get();
    let user = shared.sockets.look_up(&client.peer, socket.local_address()).await;
    shared.metrics.cut(failure.cause);
    warn!(
        database = %shared.database,
        peer = %client.peer,
        user,
        phase = failure.cause.phase().as_str(),
        reason = failure.cause.reason(),
        detail = failure.detail(),
        hint = failure.hint(),
        age_s = client.since.instant.elapsed().as_secs(),
        to_database_bytes = client.to_database.load(Ordering::Relaxed),
        from_database_bytes = client.from_database.load(Ordering::Relaxed),
        activity = doing.activity.as_str(),
        activity_s = doing_for.map(|time| time.as_secs()),
        database_user = startup.map(|startup| startup.user.as_str()),
        application_name = startup.and_then(|startup| startup.application_name.as_deref()),
        told = at_boundary,
        "client cut"
    );
    if at_boundary {
        let code = match failure.cause {
            Cause::ClientIdle => SqlState::IdleSessionTimeout,
            _ => SqlState::AdminShutdown,
        };
        let text = format!(
            "tunnelkeeper: the connection to database \"{}\" was cut: {failure}; {}",
            shared.database,
            failure.hint()
        );
        answer::say(&mut socket, code, &text).await;
        answer::finish(&mut socket).await;
    } else {
        // Over TCP a reset. A Unix socket can only be closed, and the client finds half a conversation.
        drop(socket);
    }
}
