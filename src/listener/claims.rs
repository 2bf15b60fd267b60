//! Addresses that are ours: bound and listening, whoever accepts.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use socket2::{Domain, Socket};
use tokio::net::{TcpListener, UnixListener};

use super::unix::SocketFile;
use super::{BindError, Inherited, Listener, tcp, unix};
use crate::local::LocalAddress;
use crate::settings::plan::{ListenAt, ListenPlan};

/// An address that is ours. Clients that connect wait in the kernel until somebody accepts; it is given up when nobody
/// holds it any more.
#[derive(Debug)]
pub struct Claim {
    /// Of a socket of our own. It goes first: while the listener is open, no other file can be taken for it.
    file: Option<SocketFile>,
    socket: Socket,
    address: LocalAddress,
}

impl Claim {
    /// A socket that listens.
    pub(super) fn new(socket: Socket, address: LocalAddress, file: Option<SocketFile>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { file, socket, address })
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
        match (&self.file, &self.address) {
            (Some(_), LocalAddress::Unix(path)) => unix::set_access(path, plan),
            _ => Ok(()),
        }
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
}

/// What is ours at the moment. It keeps nothing open but what systemd has handed over.
#[derive(Default)]
pub struct Claims {
    inherited: Inherited,
    staked: Mutex<Vec<(ListenAt, Vec<Weak<Claim>>)>>,
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
        if let Some((_, claims)) = staked.iter().find(|(known, _)| may_share(known, at)) {
            return Ok(claims.iter().filter_map(Weak::upgrade).collect());
        }
        let claims = match at {
            ListenAt::Address(LocalAddress::Tcp(address)) => vec![tcp::bind(*address)?],
            ListenAt::Address(LocalAddress::Unix(path)) => vec![unix::bind(path, plan)?],
            ListenAt::Systemd(name) => self.inherited.named(name, plan.allow_remote_clients)?,
        };
        let claims: Vec<Arc<Claim>> = claims.into_iter().map(Arc::new).collect();
        staked.push((at.clone(), claims.iter().map(Arc::downgrade).collect()));
        Ok(claims)
    }
}

/// Port 0 is another one each time.
fn may_share(known: &ListenAt, at: &ListenAt) -> bool {
    let any_port = matches!(at, ListenAt::Address(LocalAddress::Tcp(address)) if address.port() == 0);
    known == at && !any_port
}
