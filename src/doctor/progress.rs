//! The checks while they are made: each is written to by the one that makes it, and anybody may look.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Check, Kind, Outcome, Stage};
use crate::failure::{Cause, Failure, Phase, one_line};

/// Longer than anything that a stage has to say, in characters: peers may put arbitrary text into it.
const MAX_TEXT: usize = 500;

/// All checks.
pub struct Progress {
    checks: Mutex<Vec<Check>>,
    changed: Notify,
}

impl Progress {
    pub(super) fn new(checks: Vec<Check>) -> Arc<Self> {
        Arc::new(Self { checks: Mutex::new(checks), changed: Notify::new() })
    }

    /// How they stand.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        self.lock().clone()
    }

    /// Waits until they stand otherwise than at the last look. For one who looks.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn records(self: &Arc<Self>) -> impl Iterator<Item = Record> + use<> {
        let progress = Arc::clone(self);
        let count = self.lock().len();
        (0..count).map(move |index| Record {
            progress: Arc::clone(&progress),
            index,
            since: Arc::new(Mutex::new(Instant::now())),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Check>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One check, for the one that makes it. Each stage is timed from the end of the one before.
#[derive(Clone)]
pub(super) struct Record {
    progress: Arc<Progress>,
    index: usize,
    since: Arc<Mutex<Instant>>,
}

impl Record {
    /// What comes next is timed from now on.
    pub(super) fn begin(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// A stage went well. One that is gone through again stays as it was.
    pub(super) fn pass(&self, kind: Kind, text: &str) {
        self.pass_in(kind, self.elapsed(), text);
    }

    /// A stage went well in so long a time.
    pub(super) fn pass_in(&self, kind: Kind, took: Duration, text: &str) {
        if self.mark(kind, Some(took), text) {
            self.begin();
        }
    }

    /// A stage is known to have gone well, since a later one has an outcome: its time is that one's.
    pub(super) fn pass_over(&self, kind: Kind) {
        self.mark(kind, None, "");
    }

    fn mark(&self, kind: Kind, took: Option<Duration>, text: &str) -> bool {
        let passed = self.change(|check| {
            let awaited = |stage: &&mut Stage| stage.kind == kind && stage.outcome == Outcome::Awaited;
            let stage = check.stages.iter_mut().find(awaited)?;
            (stage.took, stage.outcome) = (took, Outcome::Passed(one_line(text, MAX_TEXT)));
            Some(())
        });
        passed.is_some()
    }

    /// A stage went wrong, and others may still go well.
    pub(super) fn fail_at(&self, kind: Kind, failure: Failure) {
        let took = self.elapsed();
        self.change(|check| {
            if let Some(stage) = check.stages.iter_mut().find(|stage| stage.kind == kind) {
                (stage.took, stage.outcome) = (Some(took), Outcome::Failed(failure));
            }
        });
        self.begin();
    }

    /// The stage that was under way went wrong, unless that has been told.
    pub(super) fn fail(&self, failure: Failure) {
        let told = self.change(|check| check.failures().any(|known| known.detail() == failure.detail()));
        if told {
            return;
        }
        let is_of_the_key = failure.cause.phase() == Phase::HostKey;
        if is_of_the_key && failure.cause != Cause::HostKeyUnreadable {
            // It comes inside the key exchange, in which the algorithms have done their work.
            self.pass_over(Kind::Algorithms);
        }
        let current = self.change(|check| {
            let awaited = |stage: &&Stage| stage.outcome == Outcome::Awaited;
            check.stages.iter().find(awaited).map(|stage| stage.kind)
        });
        match current {
            Some(_) if is_of_the_key => self.fail_at(Kind::HostKey, failure),
            Some(kind) => self.fail_at(kind, failure),
            None => {}
        }
    }

    /// Whatever has not been gone through by now is not reached.
    pub(super) fn close(&self) {
        self.change(|check| {
            for stage in check.stages.iter_mut().filter(|stage| stage.outcome == Outcome::Awaited) {
                stage.outcome = Outcome::NotReached;
            }
        });
    }

    pub(super) fn set_source(&self, source: IpAddr) {
        self.change(|check| check.source = Some(source));
    }

    pub(super) fn set_own_key(&self, line: String) {
        self.change(|check| check.own_key = Some(line));
    }

    fn elapsed(&self) -> Duration {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn change<T: Default>(&self, change: impl FnOnce(&mut Check) -> T) -> T {
        let done = self.progress.lock().get_mut(self.index).map(change).unwrap_or_default();
        self.progress.changed.notify_one();
        done
    }
}
