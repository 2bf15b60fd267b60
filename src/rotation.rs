//! Changes a bastion's key for the next one once the bastion accepts that: one loop for each bastion.
//!
//! It asks on connections of its own and seldom, so that an answer has no part in how tunnels are dialled: sessions go on
//! with the key they began with, and the next dial finds the new key in the old one's place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::now;
use crate::files;
use crate::session::next_key::accepts_next;
use crate::settings::plan::{BastionPlan, IdentityPlan};
use crate::ssh::{NextKey, find_next_key, take_over_next_key};
use crate::state::{TunnelState, WaitingKey};

/// How often the state directory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often the bastion is asked; up to a fifth more, so that not all daemons ask at once.
const ASK_EVERY: Duration = Duration::from_secs(300);

/// And how soon when there is a reason to. sshd's PerSourcePenalties turn an address away at 15 s of them, of which a
/// refused login costs 5 and each second takes one off (sshd_config(5)).
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

const NEXT_HINT: &str = "make it anew with `tunnelkeeper keygen BASTION --next --force`";

/// What a rotation is about. It may change with the configuration.
#[derive(Clone)]
pub struct Parts {
    /// The bastion.
    pub plan: Arc<BastionPlan>,
    /// The bastions that it is reached through, outermost first.
    pub jumps: Vec<Arc<BastionPlan>>,
}

impl Parts {
    /// The daemon's own key, where the bastion is shown that.
    fn key(&self) -> Option<PathBuf> {
        match &self.plan.identity {
            IdentityPlan::Own { path, .. } => Some(path.clone()),
            IdentityPlan::Files(_) | IdentityPlan::Agent => None,
        }
    }
}

/// A rotation, from outside.
pub struct Rotation {
    parts: watch::Sender<Parts>,
    hurry: Arc<Notify>,
    waiting: watch::Receiver<Option<WaitingKey>>,
    stop: CancellationToken,
}

impl Rotation {
    /// The key that waits for the bastion to accept it.
    #[must_use]
    pub fn waiting(&self) -> watch::Receiver<Option<WaitingKey>> {
        self.waiting.clone()
    }

    /// The configuration has changed.
    pub fn change(&self, parts: Parts) {
        self.parts.send_replace(parts);
    }

    /// Whoever has told the bastion of the key need not wait.
    pub fn ask_now(&self) {
        self.hurry.notify_one();
    }

    /// The bastion is not wanted any more.
    pub fn leave(&self) {
        self.stop.cancel();
    }
}

/// The rotation itself.
pub struct Unit {
    parts: watch::Receiver<Parts>,
    /// Of the tunnel, which knows when the bastion rejects the key in use.
    tunnel: watch::Receiver<Arc<TunnelState>>,
    hurry: Arc<Notify>,
    publish: watch::Sender<Option<WaitingKey>>,
    stop: CancellationToken,
}

/// A rotation's handle, and the unit that gives it life until `stop`.
#[must_use]
pub fn new(
    parts: Parts,
    tunnel: watch::Receiver<Arc<TunnelState>>,
    stop: CancellationToken,
) -> (Rotation, Unit) {
    let (send, parts) = watch::channel(parts);
    let (publish, waiting) = watch::channel(None);
    let hurry = Arc::new(Notify::new());
    let unit = Unit { parts, tunnel, hurry: Arc::clone(&hurry), publish, stop: stop.clone() };
    (Rotation { parts: send, hurry, waiting, stop }, unit)
}

/// When the bastion is asked again about the next key.
struct Pace {
    next: Instant,
    soonest: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { next: Instant::now(), soonest: Instant::now() }
    }

    fn asked(&mut self) {
        let now = Instant::now();
        (self.next, self.soonest) =
            (now + ASK_EVERY.mul_f64(1.0 + 0.2 * rand::random::<f64>()), now + ASK_AGAIN_AFTER);
    }

    fn hurry(&mut self) {
        self.next = self.next.min(self.soonest);
    }
}

impl Unit {
    /// Follows the next key until it is told to stop. May be called again after it broke.
    pub async fn run(&self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.stop.cancelled() => {}
        }
        self.publish.send_replace(None);
    }

    async fn follow(&self) {
        let mut pace = Pace::new();
        let mut known: Option<NextKey> = None;
        let (mut was_rejected, mut complaint) = (false, None);
        loop {
            let parts = self.parts.borrow().clone();
            let found = match parts.key() {
                Some(key) => files::read_aside(move || find_next_key(&key)).await.and_then(|found| found),
                None => Ok(None),
            };
            let found = found.unwrap_or_else(|reason| {
                if complaint.as_ref() != Some(&reason) {
                    warn!(bastion = %parts.plan.name, reason, hint = NEXT_HINT, "the next key cannot be used");
                }
                complaint = Some(reason);
                None
            });
            let is_rejected = self.tunnel.borrow().public_key.is_some();
            if found != known || is_rejected && !was_rejected {
                pace.hurry();
            }
            if found != known {
                self.say(found.as_ref());
            }
            (known, was_rejected) = (found, is_rejected);
            if let Some(next) = known.as_ref().filter(|_| Instant::now() >= pace.next) {
                pace.asked();
                self.ask(&parts, next).await;
                continue;
            }
            tokio::select! {
                () = sleep_until(Instant::now() + LOOK_EVERY) => {}
                () = self.hurry.notified() => pace.hurry(),
            }
        }
    }

    fn say(&self, found: Option<&NextKey>) {
        let bastion = &self.parts.borrow().plan.name;
        if let Some(NextKey { public_key, .. }) = found {
            info!(%bastion, public_key, "a next key waits for the bastion to accept it");
        }
        let waiting = |next: &NextKey| WaitingKey {
            public_key: next.public_key.clone(),
            since: next.since,
            asked: None,
        };
        self.publish.send_replace(found.map(waiting));
    }

    async fn ask(&self, Parts { plan, jumps }: &Parts, next: &NextKey) {
        let bastion = &plan.name;
        let accepted = accepts_next(plan, jumps).await;
        self.publish.send_modify(|waiting| {
            if let Some(waiting) = waiting {
                waiting.asked = Some(now().wall);
            }
        });
        match accepted {
            Ok(true) => self.take_over(plan, next).await,
            Ok(false) => debug!(%bastion, "the bastion does not accept the next key yet"),
            Err(failure) => {
                debug!(%bastion, reason = %failure, "the bastion was not asked about the next key");
            }
        }
    }

    async fn take_over(&self, plan: &BastionPlan, next: &NextKey) {
        let IdentityPlan::Own { path, .. } = &plan.identity else { return };
        let (key, accepted) = (path.clone(), next.clone());
        let taken = files::read_aside(move || take_over_next_key(&key, &accepted)).await;
        let bastion = &plan.name;
        match taken.and_then(|taken| taken.map_err(|error| error.to_string())) {
            Ok(retired) => info!(
                %bastion,
                public_key = next.public_key,
                retired,
                hint = "remove the line of the retired key from authorized_keys; sessions that began with it go on",
                "the bastion accepts the next key: it is used from now on"
            ),
            Err(reason) => warn!(
                %bastion,
                reason,
                hint = format!("let the daemon's user write to {}", directory(path).display()),
                "the bastion accepts the next key, but it cannot take its place"
            ),
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bastion_is_asked_seldom_and_never_twice_within_ten_seconds() {
        let mut pace = Pace::new();
        let start = Instant::now();
        assert!(pace.next <= start);
        pace.asked();
        assert!((300..=360).contains(&(pace.next - start).as_secs()));
        pace.hurry();
        assert_eq!(pace.next - start, ASK_AGAIN_AFTER);
        tokio::time::advance(Duration::from_secs(60)).await;
        pace.hurry();
        assert_eq!(pace.next - start, ASK_AGAIN_AFTER, "what is due is not put off");
        pace.asked();
        pace.hurry();
        assert_eq!(pace.next - start, Duration::from_secs(70));
    }
}
