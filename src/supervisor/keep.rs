//! Keeps a unit running, however often it breaks.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::error;

use crate::tunnel::Tunnel;
use crate::{forward, probe, rotation, tunnel};

/// How long a unit that broke stays down.
const START_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A part of the daemon that runs until it is told to stop.
pub(super) trait Unit: Send + Sync + 'static {
    fn run(&self) -> impl Future<Output = ()> + Send;
}

impl Unit for tunnel::Unit {
    async fn run(&self) {
        Self::run(self).await;
    }
}

impl Unit for tunnel::jump::Unit {
    async fn run(&self) {
        Self::run(self).await;
    }
}

impl Unit for rotation::Unit {
    async fn run(&self) {
        Self::run(self).await;
    }
}

impl Unit for forward::Unit<Tunnel> {
    async fn run(&self) {
        Self::run(self).await;
    }
}

impl Unit for probe::Unit<Tunnel> {
    async fn run(&self) {
        Self::run(self).await;
    }
}

/// Runs a unit until it ends by itself, however often it breaks on the way.
pub(super) async fn keep(name: String, unit: impl Unit) {
    let unit = Arc::new(unit);
    loop {
        let runs = Arc::clone(&unit);
        match tokio::spawn(async move { runs.run().await }).await {
            Ok(()) => return,
            Err(broken) => {
                error!(unit = name, %broken, "a unit broke and is started again; please report this");
                sleep(START_AGAIN_AFTER).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Clumsy(Arc<AtomicUsize>);

    impl Unit for Clumsy {
        async fn run(&self) {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) >= 2, "it stumbles twice");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_unit_that_breaks_is_started_again() {
        let runs = Arc::new(AtomicUsize::new(0));
        keep("clumsy".to_owned(), Clumsy(Arc::clone(&runs))).await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }
}
