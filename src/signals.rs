//! Signals as a stream of events, registered once before anything starts. The only module that names signal-hook.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: end, and let clients finish. A second one ends at once.
    Stop,
    /// SIGHUP: read the configuration anew.
    Reload,
}

/// Begins to listen for signals. The returned stream never ends before the process does.
///
/// # Errors
/// When the system refuses.
pub fn listen() -> io::Result<mpsc::UnboundedReceiver<Request>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (send, receive) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let request = if signal == SIGHUP { Request::Reload } else { Request::Stop };
            if send.send(request).is_err() {
                return;
            }
        }
    })?;
    Ok(receive)
}
