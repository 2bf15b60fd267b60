//! A command of the user's with all that it starts, ended together.

use std::io;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// A running command. Dropping it before it has been waited for ends it and everything it has started.
#[derive(Debug)]
pub struct ProcessGroup(pub Child);

impl ProcessGroup {
    /// Starts a command, without a shell, as the leader of a group of its own. Its output can be read; what becomes of
    /// its input and its errors, the caller says.
    ///
    /// # Errors
    /// When the system refuses, or there is no command.
    pub fn start(argv: &[String], input: Stdio, errors: Stdio) -> io::Result<Self> {
        let (program, arguments) = argv
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no program"))?;
        let mut command = Command::new(program);
        // They are about descriptors that it does not get, and a service manager that it has nothing to say to.
        for variable in
            ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"]
        {
            command.env_remove(variable);
        }
        command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(errors);
        command.process_group(0).kill_on_drop(true).spawn().map(Self)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // There is no id once it has been waited for.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}
