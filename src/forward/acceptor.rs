//! Accepts a forward's clients on the lane where they will find their session: such a client is served by one thread from
//! its first moment on, and nobody has to be woken for it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::client::Client;
use super::{Shared, answer, report_panic};
use crate::clock::now;
use crate::dial::Dial;
use crate::failure::{Cause, plain};
use crate::listener::{Bound, Claim};
use crate::local::Peer;
use crate::metrics::Outcome;
use crate::pgwire::SqlState;
use crate::socket::Socket;
use crate::state::ClientState;

/// How long to wait when the system has no descriptors left for a listener.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Accepts from what is claimed until it is stopped, or claimed by somebody else. Returns the clients that it has
/// accepted and that are still there.
pub(super) async fn accept<D: Dial>(
    shared: Arc<Shared<D>>,
    mut claims: watch::Receiver<Vec<Arc<Claim>>>,
    stop: CancellationToken,
) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    let claimed = claims.borrow_and_update().clone();
    let Some(mut bound) = stop.run_until_cancelled(bind(&shared, &claimed)).await else { return clients };
    // Whoever holds a claim keeps it from being given up.
    drop(claimed);
    let mut stopped = pin!(stop.cancelled());
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            Ok(()) = claims.changed() => break,
            Some(ended) = clients.join_next() => report_panic(&shared, ended),
            (socket, peer) = bound.accept() => admit(&shared, &mut clients, socket, peer),
        }
    }
    for (socket, peer) in bound.end() {
        admit(&shared, &mut clients, socket, peer);
    }
    clients
}

async fn bind<D>(shared: &Shared<D>, claims: &[Arc<Claim>]) -> Bound {
    loop {
        match Bound::new(claims.to_vec()) {
            Ok(bound) => return bound,
            Err(error) => {
                let (database, hint) = (&shared.database, Cause::ClientLimit.hint());
                error!(%database, error = plain(&error), hint, "the forward cannot accept clients yet");
                sleep(LISTEN_AGAIN_AFTER).await;
            }
        }
    }
}

fn admit<D: Dial>(shared: &Arc<Shared<D>>, clients: &mut JoinSet<()>, socket: Socket, peer: Peer) {
    // Only a good end is shown as one (`answer::finish`).
    socket.reset_on_drop(true);
    let roll = &shared.clients;
    if roll.len() >= shared.plan().forward.max_clients {
        return turn_away(shared, clients, socket, "max_clients");
    }
    let Ok(place) = Arc::clone(&shared.room.places).try_acquire_owned() else {
        return turn_away(shared, clients, socket, "the limit of open files, LimitNOFILE");
    };
    let entry = roll.enter(Arc::new(ClientState::new(shared.next_client_id(), peer, now())));
    clients.spawn(Client::new(Arc::clone(shared), socket, entry).serve(place));
}

/// One client too many: it is told so, unless too many are being told already.
fn turn_away<D: Dial>(
    shared: &Arc<Shared<D>>,
    clients: &mut JoinSet<()>,
    mut socket: Socket,
    limit: &'static str,
) {
    shared.metrics.connection(Outcome::Limit);
    let (database, served) = (&shared.database, shared.clients.len());
    if shared.turned_away.is_due() {
        warn!(
            %database,
            phase = Cause::ClientLimit.phase().as_str(),
            reason = Cause::ClientLimit.reason(),
            clients = served,
            limit,
            hint = Cause::ClientLimit.hint(),
            "clients are turned away: a limit is reached"
        );
    }
    let Ok(turn) = Arc::clone(&shared.room.told).try_acquire_owned() else { return };
    let hint = Cause::ClientLimit.hint();
    let text =
        format!("tunnelkeeper: database \"{database}\" has {served} clients already ({limit}); {hint}");
    clients.spawn(async move {
        answer::refuse(&mut socket, Vec::new(), SqlState::TooManyConnections, &text).await;
        drop(turn);
    });
}
