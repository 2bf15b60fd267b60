//! Signals as events: for the daemon a stream, registered once before anything starts, and for a command that leaves things
//! behind the first that ends it. The only module that names signal-hook.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use tokio::sync::{mpsc, oneshot};

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

/// A signal that ends a command.
#[derive(Clone, Copy, Debug)]
pub struct End(i32);

impl End {
    /// Ends the process as the signal would have done.
    pub fn obey(self) {
        let _ = emulate_default_handler(self.0);
    }
}

/// Has the first SIGTERM or SIGINT heard, for as long as somebody waits for it. Any other ends the process at once.
///
/// # Errors
/// When the system refuses.
pub fn first_end() -> io::Result<oneshot::Receiver<End>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (send, receive) = oneshot::channel();
    let mut send = Some(send);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for end in signals.forever().map(End) {
            let is_heard = send.take().is_some_and(|send| send.send(end).is_ok());
            if !is_heard {
                end.obey();
            }
        }
    })?;
    Ok(receive)
}
