//! Sockets that systemd made before it started the daemon (sd_listen_fds(3)): connections wait in them while the
//! daemon is restarted, and it needs no rights to make them. They are systemd's: they are never removed.

use std::os::fd::IntoRawFd;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::Claim;
use crate::failure::plain;
use crate::local::LocalAddress;

/// Where they begin.
const FIRST_DESCRIPTOR: u32 = 3;

/// What systemd calls a socket that has no name.
const UNNAMED: &str = "unknown";

/// The sockets of one start, with their names. They stay open as long as this: systemd keeps them open anyway, and a
/// database that goes and comes back finds its own again.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(String, Socket)>,
}

impl Inherited {
    /// Takes what this process was given. To be called once, before anything else is opened.
    ///
    /// # Errors
    /// One sentence, where the environment says what is not so.
    pub fn take() -> Result<Self, String> {
        let given = sd_listen_fds::get().map_err(|_| {
            "the environment variables LISTEN_PID and LISTEN_FDS, which systemd sets, are no numbers"
                .to_owned()
        })?;
        let (mut sockets, mut missing) = (Vec::new(), None);
        for (descriptor, (name, socket)) in (FIRST_DESCRIPTOR..).zip(given) {
            let socket = Socket::from(socket.into_std());
            // systemd leaves it open for commands that we start.
            if socket.set_cloexec(true).is_ok() {
                sockets.push((name.unwrap_or_else(|| UNNAMED.to_owned()), socket));
            } else {
                // What is not open must not be closed either.
                let _ = socket.into_raw_fd();
                missing.get_or_insert(descriptor);
            }
        }
        match missing {
            None => Ok(Self { sockets }),
            Some(descriptor) => {
                Err(format!("LISTEN_FDS promises a socket as descriptor {descriptor}, which is not open"))
            }
        }
    }

    /// The names of the sockets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(name, _)| name.as_str())
    }

    /// The sockets of this name: a socket unit may have several.
    pub(super) fn named(&self, name: &str, allow_remote_clients: bool) -> Result<Vec<Claim>, String> {
        let mut sockets = self.sockets.iter().filter(|(known, _)| known == name).peekable();
        if sockets.peek().is_none() {
            return Err(self.explain_missing(name));
        }
        sockets.map(|(_, socket)| claim(socket, allow_remote_clients)).collect()
    }

    fn explain_missing(&self, name: &str) -> String {
        let names: Vec<&str> = self.names().collect();
        if names.is_empty() {
            let unit = "its socket unit";
            return format!("was not handed over: start the daemon by {unit} (FileDescriptorName={name})");
        }
        format!("was not handed over by systemd, but {}: correct the one or the other name", names.join(", "))
    }
}

fn claim(socket: &Socket, allow_remote_clients: bool) -> Result<Claim, String> {
    let is_listener =
        socket.is_listener().unwrap_or(false) && socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    if !is_listener {
        return Err(
            "is not a listening stream socket: write ListenStream= and Accept=no in its unit".to_owned()
        );
    }
    let cannot = |error: std::io::Error| format!("cannot be used: {}", plain(&error));
    let address = socket.local_addr().map_err(cannot)?;
    let bound = if address.domain() == Domain::UNIX {
        // One in the abstract name space has no path.
        LocalAddress::Unix(address.as_pathname().unwrap_or(Path::new("@")).to_owned())
    } else {
        let tcp = address.as_socket();
        LocalAddress::Tcp(tcp.ok_or("is neither TCP nor a Unix socket: use another ListenStream=")?)
    };
    if !bound.is_local() && !allow_remote_clients {
        return Err(format!(
            "is {bound}, which can be reached from other machines: write 127.0.0.1 and the port in its unit, or \
             allow_remote_clients = true"
        ));
    }
    let socket = socket.try_clone().map_err(cannot)?;
    Claim::lent(socket, bound).map_err(cannot)
}
