//! Whether what runs makes progress. Every lane and every tunnel is asked, and has to answer by itself: a timer would go on
//! beside a lane that hangs. What keeps the service manager's watchdog content stands on this.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::ids::Name;
use crate::lanes::Lanes;
use crate::tunnel::Tunnel;

/// What there is to ask.
#[derive(Clone)]
pub struct Pulse {
    lanes: Arc<Lanes>,
    tunnels: Arc<Mutex<BTreeMap<Name, Tunnel>>>,
}

impl Pulse {
    pub(super) fn new(lanes: Arc<Lanes>) -> Self {
        Self { lanes, tunnels: Arc::default() }
    }

    pub(super) fn set_tunnels(&self, tunnels: BTreeMap<Name, Tunnel>) {
        *self.tunnels.lock().unwrap_or_else(PoisonError::into_inner) = tunnels;
    }

    /// Who does not answer within `patience`; nobody, unless something is very wrong.
    pub async fn silent(&self, patience: Duration) -> Vec<String> {
        let tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lanes = self.lanes.handles().enumerate().map(async |(index, lane)| {
            // A runtime that has ended drops the task, and has nothing to answer for.
            let answer = lane.spawn(std::future::ready(()));
            timeout(patience, answer).await.is_err().then(|| format!("lane {index}"))
        });
        let tunnels = tunnels.iter().map(async |(name, tunnel)| {
            timeout(patience, tunnel.pulse()).await.is_err().then(|| format!("tunnel {name}"))
        });
        let (lanes, tunnels) = tokio::join!(join_all(lanes), join_all(tunnels));
        lanes.into_iter().chain(tunnels).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn who_hangs_is_named() {
        let pulse = Pulse::new(Arc::new(Lanes::start(2).unwrap()));
        assert!(pulse.silent(Duration::from_secs(10)).await.is_empty());

        let (free, blocked) = mpsc::channel::<()>();
        let lane = pulse.lanes.handles().nth(1).unwrap();
        lane.spawn(async move { blocked.recv() });
        assert_eq!(pulse.silent(PATIENCE).await, ["lane 1"]);
        drop(free);
        assert!(pulse.silent(Duration::from_secs(10)).await.is_empty());
    }
}
