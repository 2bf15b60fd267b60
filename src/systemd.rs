//! What the service manager hears of the daemon, where one has started it (sd_notify(3)): that it is ready, reloads,
//! stops, lives, and how its tunnels are; and whether its journal has our log. The only module that names sd-notify. Without `$NOTIFY_SOCKET` it does nothing.
//!
//! A message that cannot be sent changes nothing for the clients: it is dropped, and systemd acts on its absence.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Longer than a service manager that is well takes to read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether anybody hears what is said here.
#[must_use]
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// How long systemd waits for the next [`alive`], if it does (`WatchdogSec=`).
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Whether what is written to standard error goes straight to systemd's journal (systemd.exec(5), `$JOURNAL_STREAM`).
#[must_use]
pub fn keeps_log() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let is_it = |stat: nix::sys::stat::FileStat| stream == Some(format!("{}:{}", stat.st_dev, stat.st_ino));
    nix::sys::stat::fstat(std::io::stderr()).is_ok_and(is_it)
}

/// All listeners are bound and the configuration is applied; or a reload has come to its end, whichever that was.
pub async fn ready() {
    tell(|| sd_notify::notify(&[NotifyState::Ready])).await;
}

/// The configuration is being read anew.
pub async fn reloading() {
    tell(|| {
        // Both in one message, as systemd wants it: by the time it knows which of two reloads this is.
        let since = NotifyState::monotonic_usec_now()?;
        sd_notify::notify(&[NotifyState::Reloading, since])
    })
    .await;
}

/// The daemon takes no new clients, and ends once those that it has are done.
pub async fn stopping() {
    tell(|| sd_notify::notify(&[NotifyState::Stopping])).await;
}

/// One line for `systemctl status`.
pub async fn status(line: String) {
    tell(move || sd_notify::notify(&[NotifyState::Status(&line)])).await;
}

/// The daemon makes progress; to be said more often than [`watchdog`] asks for.
pub async fn alive() {
    tell(|| sd_notify::notify(&[NotifyState::Watchdog])).await;
}

/// Sends aside, one message after another, and does not wait for long: a service manager that does not read would keep us
/// from ending.
async fn tell(message: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    static SENDING: Mutex<()> = Mutex::const_new(());
    let send = async {
        let turn = SENDING.lock().await;
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            message()
        })
        .await
    };
    let _ = timeout(PATIENCE, send).await;
}
