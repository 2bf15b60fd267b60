//! The data plane's threads. Each lane is a thread with a single-threaded runtime; a session and all its clients
//! live on one lane, so that no packet has to wake another thread. Everything else runs on the main runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

struct Lane {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// All lanes. Dropping them drops every task on them and waits for the threads.
pub struct Lanes {
    lanes: Vec<Lane>,
    stop: CancellationToken,
}

/// A session's place on a lane, given back when dropped.
#[derive(Debug)]
pub struct LaneLease {
    /// Where to spawn.
    pub handle: Handle,
    sessions: Arc<AtomicUsize>,
}

impl Lanes {
    /// Starts `count` lanes, at least one.
    ///
    /// # Errors
    /// When the system refuses a thread or a descriptor.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let lanes =
            (0..count.max(1)).map(|index| Lane::start(index, stop.clone())).collect::<Result<_, _>>()?;
        Ok(Self { lanes, stop })
    }

    /// Where to spawn on each lane.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.lanes.iter().map(|lane| &lane.handle)
    }

    /// A place on the lane with the fewest sessions.
    #[must_use]
    pub fn lease(&self) -> Option<LaneLease> {
        let lane = self.lanes.iter().min_by_key(|lane| lane.sessions.load(Ordering::Relaxed))?;
        lane.sessions.fetch_add(1, Ordering::Relaxed);
        Some(LaneLease { handle: lane.handle.clone(), sessions: Arc::clone(&lane.sessions) })
    }
}

impl Lane {
    fn start(index: usize, stop: CancellationToken) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name(format!("lane-{index}")).spawn(move || {
            runtime.block_on(stop.cancelled());
            // What still blocks (a look-up, a file system that hangs) does not keep the daemon from ending.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, sessions: Arc::default(), thread: Some(thread) })
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.lanes.iter_mut().filter_map(|lane| lane.thread.take()) {
            // A lane that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Drop for LaneLease {
    fn drop(&mut self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_spread_over_the_lanes() {
        let lanes = Lanes::start(2).unwrap();
        let first = lanes.lease().unwrap();
        let second = lanes.lease().unwrap();
        assert!(!Arc::ptr_eq(&first.sessions, &second.sessions));
        let freed = Arc::clone(&first.sessions);
        drop(first);
        assert!(Arc::ptr_eq(&lanes.lease().unwrap().sessions, &freed));
    }

    #[test]
    fn a_lane_runs_its_tasks_on_one_thread_and_drops_them_in_the_end() {
        let lanes = Lanes::start(1).unwrap();
        let handle = lanes.lease().unwrap().handle.clone();
        let name = futures_join(&handle, async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.as_deref(), Some("lane-0"));
        let (alive, dropped) = std::sync::mpsc::channel::<()>();
        handle.spawn(async move {
            std::future::pending::<()>().await;
            drop(alive);
        });
        drop(lanes);
        assert_eq!(dropped.recv(), Err(std::sync::mpsc::RecvError));
    }

    #[test]
    fn what_blocks_a_lane_does_not_keep_it_from_ending() {
        let lanes = Lanes::start(1).unwrap();
        let (still_blocked, free) = std::sync::mpsc::channel::<()>();
        let lane = lanes.lease().unwrap();
        lane.handle.spawn_blocking(move || free.recv());
        drop((lane, lanes));
        drop(still_blocked);
    }

    fn futures_join<T: Send + 'static>(lane: &Handle, future: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        lane.spawn(async move { done.send(future.await) });
        result.recv().unwrap()
    }
}
