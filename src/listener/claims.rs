//! Addresses that are ours: bound and listening, whoever accepts.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use socket2::{Domain, Socket};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::unix::SocketFile;
use super::{BindError, Inherited, Listener, is_of_one_connection, tcp, unix};
use crate::local::{LocalAddress, Peer};
use crate::settings::plan::{ListenAt, ListenPlan};
use crate::socket;

/// An address that is ours. Clients that connect wait in the kernel until somebody accepts; it is given up when nobody
/// holds it any more.
#[derive(Debug)]
pub struct Claim {
    /// Of a socket of our own. It goes first: while the listener is open, no other file can be taken for it.
    file: Option<SocketFile>,
    socket: Socket,
    address: LocalAddress,
    /// systemd has it too, and keeps those who wait for whoever comes after us.
    lent: bool,
}

impl Claim {
    /// A socket that listens.
    pub(super) fn new(socket: Socket, address: LocalAddress, file: Option<SocketFile>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        if matches!(address, LocalAddress::Tcp(_)) {
            tcp::tune(&socket);
        }
        Ok(Self { file, socket, address, lent: false })
    }

    /// The same of a socket that is systemd's.
    pub(super) fn lent(socket: Socket, address: LocalAddress) -> io::Result<Self> {
        Ok(Self { lent: true, ..Self::new(socket, address, None)? })
    }

    /// Where it is, with the real port where the configuration said 0.
    #[must_use]
    pub fn address(&self) -> &LocalAddress {
        &self.address
    }

    /// Lets those connect to a socket of our own whom the plan lets.
    ///
    /// # Errors
    /// One sentence, when the system refuses.
    pub fn set_access(&self, plan: &ListenPlan) -> Result<(), String> {
        self.file.as_ref().map_or(Ok(()), |file| file.set_access(plan))
    }

    /// A descriptor of its own for whoever accepts.
    pub(super) fn listener(&self) -> io::Result<Listener> {
        let socket = self.socket.try_clone()?;
        if socket.domain()? == Domain::UNIX {
            UnixListener::from_std(socket.into()).map(Listener::Unix)
        } else {
            TcpListener::from_std(socket.into()).map(Listener::Tcp)
        }
    }

    /// Gives the address up. Returns those who wait there.
    pub(super) fn end(mut self) -> Vec<(socket::Socket, Peer)> {
        if self.lent {
            return Vec::new();
        }
        self.file = None;
        let mut waiting = Vec::new();
        loop {
            match self.accept() {
                Ok(accepted) => waiting.push(accepted),
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => return waiting,
            }
        }
    }

    fn accept(&self) -> io::Result<(socket::Socket, Peer)> {
        let (socket, from) = self.socket.accept()?;
        socket.set_nonblocking(true)?;
        if let Some(from) = from.as_socket() {
            return Ok((TcpStream::from_std(socket.into())?.into(), Peer::Tcp(from)));
        }
        let stream = UnixStream::from_std(socket.into())?;
        let peer = unix::peer(&stream);
        Ok((stream.into(), peer))
    }
}

/// An address as the configuration says it, and what it has become.
type Staked = (ListenAt, Vec<Weak<Claim>>);

/// What is ours at the moment. It keeps nothing open but what systemd has handed over.
#[derive(Default)]
pub struct Claims {
    inherited: Inherited,
    staked: Mutex<Vec<Staked>>,
}

impl Claims {
    /// Nothing is claimed yet.
    #[must_use]
    pub fn new(inherited: Inherited) -> Self {
        Self { inherited, staked: Mutex::default() }
    }

    /// What systemd has handed over.
    #[must_use]
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// Claims all that a plan names, or none. What is ours already is the same claim.
    ///
    /// # Errors
    /// The first that cannot be bound.
    pub fn stake(&self, plan: &ListenPlan) -> Result<Vec<Arc<Claim>>, BindError> {
        let mut claims = Vec::new();
        for at in &plan.at {
            let staked = self.stake_at(at, plan);
            claims.extend(staked.map_err(|why| BindError { at: at.clone(), why })?);
        }
        Ok(claims)
    }

    fn stake_at(&self, at: &ListenAt, plan: &ListenPlan) -> Result<Vec<Arc<Claim>>, String> {
        let mut staked = self.staked.lock().unwrap_or_else(PoisonError::into_inner);
        staked.retain(|(_, claims)| claims.iter().all(|claim| claim.strong_count() > 0));
        if let Some((_, claims)) = staked.iter().find(|(known, _)| may_share(known, at))
            // Its last holder may let go at this moment.
            && let Some(claims) = claims.iter().map(Weak::upgrade).collect::<Option<Vec<_>>>()
        {
            if matches!(at, ListenAt::Address(LocalAddress::Unix(_))) {
                // What it is given to when the plan is applied.
                unix::find_group(plan)?;
            }
            return Ok(claims);
        }
        let claims = match at {
            ListenAt::Address(LocalAddress::Tcp(address)) => {
                vec![tcp::bind(*address).map_err(|error| explain(&error, at, &staked))?]
            }
            ListenAt::Address(LocalAddress::Unix(path)) => vec![unix::bind(path, plan)?],
            ListenAt::Systemd(name) => self.inherited.named(name, plan.allow_remote_clients)?,
        };
        let claims: Vec<Arc<Claim>> = claims.into_iter().map(Arc::new).collect();
        staked.push((at.clone(), claims.iter().map(Arc::downgrade).collect()));
        Ok(claims)
    }
}

/// No plan has two addresses that clash, so what is in the way and ours is given up by the plan that is prepared.
fn explain(error: &io::Error, at: &ListenAt, staked: &[Staked]) -> String {
    let ours = staked.iter().filter(|(known, _)| matches!(known, ListenAt::Address(_)));
    let mut held = ours.flat_map(|(_, claims)| claims).filter_map(Weak::upgrade);
    match held.find(|claim| ListenAt::Address(claim.address.clone()).clashes(at)) {
        Some(claim) if error.kind() == io::ErrorKind::AddrInUse => format!(
            "is still held as {} until this is applied: restart the daemon, or take that out in a reload of its own first",
            claim.address
        ),
        _ => tcp::explain(error),
    }
}

/// Port 0 is another one each time.
fn may_share(known: &ListenAt, at: &ListenAt) -> bool {
    let any_port = matches!(at, ListenAt::Address(LocalAddress::Tcp(address)) if address.port() == 0);
    known == at && !any_port
}
