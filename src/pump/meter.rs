//! Watches and counts what the pump passes on: shows the bytes to the [`Observer`], counts them and what it reports, and keeps
//! the client's first bytes while they may have to be sent again. It changes and delays nothing.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{DatabaseMetrics, Direction};
use crate::pgwire::{Event, Observer};
use crate::state::{ClientState, Doing};

/// What a client may have sent before the database's first byte and still be carried anew, in bytes.
pub const MAX_FIRST_BYTES: usize = 16 << 10;

/// What a client sent before the database answered: enough to begin again on another session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstBytes {
    /// At most [`MAX_FIRST_BYTES`].
    pub bytes: Vec<u8>,
    /// The client sends no more.
    pub ended: bool,
}

/// The watcher of one client on one link.
pub struct Meter<'a> {
    client: &'a ClientState,
    metrics: &'a DatabaseMetrics,
    /// Only this client's task locks it, for a moment each time.
    watched: Mutex<Watched>,
}

struct Watched {
    observer: Observer,
    /// The database's series know of the session's beginning.
    announced: bool,
    /// What the client's state says that it is about.
    published: Option<Doing>,
    /// A byte has come from the database.
    answered: bool,
    /// What would have to be sent again; nothing once that makes no sense any more.
    first: Option<FirstBytes>,
    last_byte: Instant,
}

impl<'a> Meter<'a> {
    /// Starts with what the client has sent already: from now on it would have to be sent again.
    #[must_use]
    pub fn new(client: &'a ClientState, metrics: &'a DatabaseMetrics, first: &FirstBytes) -> Self {
        let now = Instant::now();
        let mut observer = Observer::new(now.into_std());
        observer.client_sends(&first.bytes);
        let watched = Watched {
            observer,
            announced: false,
            published: None,
            answered: false,
            first: Some(first.clone()),
            last_byte: now,
        };
        let meter = Self { client, metrics, watched: Mutex::new(watched) };
        meter.publish(&mut meter.lock());
        meter
    }

    /// Bytes are about to be sent to the database.
    pub(super) fn sending(&self, bytes: &[u8]) {
        let mut watched = self.lock();
        let keep = !watched.answered
            && watched.first.as_ref().is_some_and(|first| first.bytes.len() + bytes.len() <= MAX_FIRST_BYTES);
        match &mut watched.first {
            Some(first) if keep => first.bytes.extend_from_slice(bytes),
            first => *first = None,
        }
        watched.observer.client_sends(bytes);
        self.publish(&mut watched);
    }

    /// They have been taken, so many.
    pub(super) fn sent(&self, bytes: usize) {
        let mut watched = self.lock();
        watched.last_byte = Instant::now();
        let now = watched.last_byte.into_std();
        watched.observer.forwarded(now);
        self.publish(&mut watched);
        self.client.to_database.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.passed(Direction::ToDatabase, bytes);
    }

    pub(super) fn client_ended(&self) {
        if let Some(first) = &mut self.lock().first {
            first.ended = true;
        }
    }

    /// Bytes have come from the database.
    pub(super) fn arrived(&self, bytes: &[u8]) {
        let mut watched = self.lock();
        watched.answered = true;
        watched.first = None;
        let mut read = None;
        let now = || *read.get_or_insert_with(|| Instant::now().into_std());
        watched.observer.server_sends(bytes, now, |event| match event {
            Event::Answered(duration) => self.metrics.query_duration.observe(duration),
            Event::Failed(class) => self.metrics.query_failed(class),
            Event::TurnedAround(duration) => self.metrics.turnaround.observe(duration),
        });
        self.publish(&mut watched);
    }

    /// The client has taken bytes.
    pub(super) fn delivered(&self, bytes: usize) {
        self.lock().last_byte = Instant::now();
        self.client.from_database.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.passed(Direction::FromDatabase, bytes);
    }

    /// Lets others know what the observer has come to know.
    fn publish(&self, watched: &mut Watched) {
        let doing = watched.observer.doing();
        if watched.published != Some(doing) {
            watched.published = Some(doing);
            self.client.set_doing(doing);
        }
        if !watched.announced
            && let Some(encryption) = watched.observer.encryption()
        {
            watched.announced = true;
            self.metrics.startup(encryption);
            if let Some(startup) = watched.observer.take_startup() {
                // One that is carried anew says the same again.
                let _ = self.client.startup.set(startup);
            }
        }
    }

    pub(super) fn idle_at(&self, idle: Option<Duration>) -> Option<Instant> {
        idle.map(|idle| self.lock().last_byte + idle)
    }

    /// What the client would have to send again, if it can.
    pub(super) fn replayable(&self) -> Option<FirstBytes> {
        self.lock().first.take()
    }

    /// Whether a message of ours may follow, and what the client is about.
    pub(super) fn boundary(&self) -> (bool, Doing) {
        let observer = &self.lock().observer;
        (observer.at_boundary(), observer.doing())
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
