//! A forward's clients: who each one is, where it sits, and what it is about.
//!
//! A client's own task writes, everybody reads; nothing here is waited for longer than a word takes to copy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Moment;
use crate::ids::Name;
use crate::local::Peer;

macro_rules! activities {
    ($($(#[$meta:meta])* $activity:ident $words:literal)*) => {
        /// What a client is about, as far as its connection shows.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Activity { $($(#[$meta])* $activity),* }

        impl Activity {
            const ALL: &[Self] = &[$(Self::$activity),*];

            /// The words for people.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$activity => $words),* }
            }
        }
    };
}

activities! {
    /// It has not begun a session, or the session does not take queries yet.
    #[default]
    Starting "starting"
    /// It has asked, and waits for the end of the answer.
    InQuery "in a query"
    /// It sends or receives the rows of a COPY.
    Copying "copying"
    /// It streams a replication, which has no end.
    Replicating "replicating"
    /// The server waits for it.
    Idle "idle"
    /// The server waits for it, and so does whoever wants what its transaction has locked.
    InTransaction "idle in transaction"
    /// The server waits for it to roll back.
    InFailedTransaction "idle in failed transaction"
    /// The server has ended the session.
    Dismissed "ended by the server"
    /// It asks the server to cancel another connection's query.
    Cancelling "cancelling a query"
    /// TLS or GSSAPI hides it.
    Encrypted "encrypted"
    /// It is not PostgreSQL, or nothing that we follow.
    Unknown "unknown"
}

/// What a client is about, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// What.
    pub activity: Activity,
    /// None where its first bytes are still on their way.
    pub since: Option<Instant>,
}

/// What a client says of itself as it begins a session without encryption (PostgreSQL documentation, `StartupMessage`). It
/// can say what it likes: the names are short and have no control characters, and mean nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupParameters {
    /// Whom it logs in as.
    pub user: String,
    /// The database, which is named as the user unless it says otherwise.
    pub database: String,
    /// The program, where it names itself.
    pub application_name: Option<String>,
}

/// The clients of a forward, by the number each one got.
#[derive(Debug, Default)]
pub struct ClientRoll {
    clients: Mutex<BTreeMap<u64, Arc<ClientState>>>,
    held: AtomicUsize,
}

impl ClientRoll {
    /// Clients carried and held.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is no client.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Clients held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Every client at this moment, oldest first.
    pub fn list(&self) -> Vec<Arc<ClientState>> {
        self.lock().values().cloned().collect()
    }

    /// Puts a client on the roll until the returned entry is dropped.
    pub fn enter(self: &Arc<Self>, client: Arc<ClientState>) -> ClientEntry {
        self.lock().insert(client.id, Arc::clone(&client));
        ClientEntry { roll: Arc::clone(self), client }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ClientState>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place on the roll; leaving it is dropping this.
#[derive(Debug)]
pub struct ClientEntry {
    roll: Arc<ClientRoll>,
    /// The client's live state.
    pub client: Arc<ClientState>,
}

impl ClientEntry {
    /// Notes whether the client is held. Noting the same twice changes nothing.
    pub fn set_held(&self, held: bool) {
        if self.client.held.swap(held, Ordering::Relaxed) != held {
            if held {
                self.roll.held.fetch_add(1, Ordering::Relaxed);
            } else {
                self.roll.held.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for ClientEntry {
    fn drop(&mut self) {
        self.set_held(false);
        self.roll.lock().remove(&self.client.id);
    }
}

/// One client's live state.
#[derive(Debug)]
pub struct ClientState {
    /// Counts up from 1 for each database and is not used again.
    pub id: u64,
    /// Who it is.
    pub peer: Peer,
    /// When it was accepted.
    pub since: Moment,
    /// It waits for a session; otherwise it is carried or being placed.
    pub held: AtomicBool,
    /// The bastion and the session that carry it.
    seat: Mutex<Option<(Name, u64)>>,
    /// Bytes from the client that were handed to the bastion.
    pub to_database: AtomicU64,
    /// Bytes from the database that the client has taken.
    pub from_database: AtomicU64,
    /// What it said of itself.
    pub startup: OnceLock<StartupParameters>,
    /// The activity in the topmost byte, and below it since when: milliseconds after it was accepted, and one more; 0 =
    /// not known.
    doing: AtomicU64,
}

impl ClientState {
    /// A client that was just accepted.
    #[must_use]
    pub fn new(id: u64, peer: Peer, now: Moment) -> Self {
        Self {
            id,
            peer,
            since: now,
            held: AtomicBool::new(false),
            seat: Mutex::default(),
            to_database: AtomicU64::new(0),
            from_database: AtomicU64::new(0),
            startup: OnceLock::new(),
            doing: AtomicU64::new(1),
        }
    }

    /// The bastion and the session that carry it, if any do.
    #[must_use]
    pub fn seat(&self) -> Option<(Name, u64)> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes where it sits.
    pub fn set_seat(&self, seat: Option<(Name, u64)>) {
        *self.seat.lock().unwrap_or_else(PoisonError::into_inner) = seat;
    }

    /// Notes what it is about.
    pub fn set_doing(&self, doing: Doing) {
        let millis = doing.since.map_or(0, |since| {
            let after = since.saturating_duration_since(self.since.instant).as_millis();
            u64::try_from(after).unwrap_or(SINCE).saturating_add(1).min(SINCE)
        });
        self.doing.store((doing.activity as u64) << SINCE_BITS | millis, Ordering::Relaxed);
    }

    /// What it is about.
    #[must_use]
    pub fn doing(&self) -> Doing {
        let packed = self.doing.load(Ordering::Relaxed);
        let activity = usize::try_from(packed >> SINCE_BITS).ok().and_then(|index| Activity::ALL.get(index));
        let since =
            (packed & SINCE).checked_sub(1).map(|millis| self.since.instant + Duration::from_millis(millis));
        Doing { activity: activity.copied().unwrap_or(Activity::Unknown), since }
    }
}

/// The bits below an activity.
const SINCE_BITS: u32 = 56;
const SINCE: u64 = (1 << SINCE_BITS) - 1;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use super::*;

    fn client() -> (ClientState, Instant) {
        let now = Moment { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        (ClientState::new(1, Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))), now), now.instant)
    }

    #[test]
    fn a_client_is_counted_while_it_is_there() {
        let roll = Arc::new(ClientRoll::default());
        let entry = roll.enter(Arc::new(client().0));
        entry.set_held(true);
        entry.set_held(true);
        assert_eq!((roll.len(), roll.held()), (1, 1));
        drop(entry);
        assert_eq!((roll.len(), roll.held()), (0, 0));
    }

    #[test]
    fn what_a_client_is_about_is_remembered_to_the_millisecond() {
        let (client, accepted) = client();
        assert_eq!(client.doing(), Doing { activity: Activity::Starting, since: Some(accepted) });
        for activity in Activity::ALL {
            for millis in [0, 1, 90 * 24 * 3_600_000] {
                let since = Some(accepted + Duration::from_millis(millis));
                client.set_doing(Doing { activity: *activity, since });
                assert_eq!(client.doing(), Doing { activity: *activity, since });
            }
            client.set_doing(Doing { activity: *activity, since: None });
            assert_eq!(client.doing(), Doing { activity: *activity, since: None });
        }
    }
}
