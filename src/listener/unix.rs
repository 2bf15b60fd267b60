//! Listening on Unix sockets: made so that nobody connects before the mode and the group are right, never in the place
//! of what is not ours, and removed in the end.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::Group;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixStream;

use super::{BACKLOG, Claim};
use crate::failure::{one_line, plain};
use crate::ids::POSTGRES_SOCKET;
use crate::local::{LocalAddress, Peer};
use crate::settings::plan::ListenPlan;

const IN_USE: &str = "is in use by another program: stop it, or listen elsewhere";

/// More than any process's name, in characters.
const MAX_COMMAND: usize = 64;

/// The file of a socket of ours. Dropping this removes it, if it still is ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// The group that it was made with: the process's own, or that of a directory which passes its own on.
    group: u32,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let made = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), identity: identity(&made), group: made.gid() })
    }

    /// Gives it its group and its mode. No link is followed: whoever may write there could have put one in its place.
    pub(super) fn set_access(&self, plan: &ListenPlan) -> Result<(), String> {
        let path = &self.path;
        let cannot = |error: io::Error| explain(&error, path);
        let named = find_group(plan)?;
        let group = named.unwrap_or(self.group);
        if fs::symlink_metadata(path).map_err(cannot)?.gid() != group {
            lchown(path, None, Some(group)).map_err(|error| {
                let own = || "the group that it was made with".to_owned();
                let whom = plan.socket_group.as_ref().map_or_else(own, |name| format!("group \"{name}\""));
                format!("cannot be given to {whom}: {}: make the daemon's user a member of it", plain(&error))
            })?;
        }
        let mode = Mode::from_bits_truncate(plan.socket_mode);
        let set = fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink);
        set.map_err(|error| cannot(error.into()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            // Where it cannot be removed, the next start finds that nobody listens.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

pub(super) fn bind(path: &Path, plan: &ListenPlan) -> Result<Claim, String> {
    make_way(path)?;
    let cannot = |error: io::Error| explain(&error, path);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(cannot)?;
    socket.bind(&SockAddr::unix(path).map_err(cannot)?).map_err(cannot)?;
    let file = SocketFile::new(path).map_err(cannot)?;
    // Until it listens, the kernel refuses every connection.
    file.set_access(plan)?;
    socket.listen(BACKLOG).map_err(cannot)?;
    Claim::new(socket, LocalAddress::Unix(path.to_owned()), Some(file)).map_err(cannot)
}

/// The group that a plan names, if it names one.
pub(super) fn find_group(plan: &ListenPlan) -> Result<Option<u32>, String> {
    let Some(name) = plan.socket_group.as_deref() else { return Ok(None) };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        _ => name.parse().map(Some).map_err(|_| {
            format!(
                "cannot be set up: there is no group \"{name}\": make it (groupadd), or correct `socket_group`"
            )
        }),
    }
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn make_way(path: &Path) -> Result<(), String> {
    // What is wrong with the directory, binding tells.
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if found.is_dir() {
        let name = path.join(format!("{POSTGRES_SOCKET}5432"));
        return Err(format!("is a directory: name the socket in it, such as unix:{}", name.display()));
    }
    if !found.file_type().is_socket() {
        return Err("is the name of a file that is no socket: move it away, or listen elsewhere".to_owned());
    }
    match knock(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| {
                format!("was left behind by another program and cannot be removed: {}", plain(&error))
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("belongs to another program, which lets this user not connect: listen elsewhere".to_owned())
        }
        // One whose queue is full listens as well.
        _ => Err(IN_USE.to_owned()),
    }
}

fn knock(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

pub(super) fn explain(error: &io::Error, path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    match error.kind() {
        io::ErrorKind::AddrInUse => IN_USE.to_owned(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => format!(
            "cannot be made: there is no directory {directory}: make it for the daemon's user (RuntimeDirectory= in a \
             systemd unit)"
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("cannot be made: this user may not write to {directory}: let it, or listen elsewhere")
        }
        _ => format!("cannot be made: {}", plain(error)),
    }
}

/// The process that connected, as the kernel knows it (unix(7), `SO_PEERCRED`).
pub(super) fn peer(socket: &UnixStream) -> Peer {
    let Ok(credentials) = socket.peer_cred() else {
        return Peer::Process { pid: None, command: None, uid: u32::MAX };
    };
    // 0: it is in a namespace of its own.
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let command = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    let command = command.map(|name| one_line(&name, MAX_COMMAND)).filter(|name| !name.is_empty());
    Peer::Process { pid, command, uid: credentials.uid() }
}
