//! A TCP relay that stands before a server and plays a bad network.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::handshake::{Handshake, Point};

/// What the relay does to its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Takes everything and passes nothing on, in either direction, and new connections too: half open.
    Silence,
    /// Like silence, for the connections that exist; new ones pass.
    SilenceOld,
    /// Silence towards the server; what the server says passes.
    SilenceUp,
    /// Silence of the server; what it is told passes.
    SilenceDown,
    /// Passes nothing on and loses nothing: once it is over, everything goes on.
    Pause,
    /// Passes so many bytes more of the server on and then ends the connection, of those that exist; new ones pass.
    CutIn(usize),
    /// Passes one byte of the server a second.
    Trickle,
    /// Passes nothing of the server on from there.
    StallAt(Point),
    /// Passes the server's bytes up to there and then ends the connection.
    CutAt(Point),
    /// Resets every connection, new ones at once.
    Reset,
    /// Passes bytes on so much later, in each direction.
    Delay(Duration),
    /// Passes so many bytes of the server on and then ends the connection.
    CutAfter(usize),
    /// Ends whatever has passed nothing in either direction for so long, as a load balancer does.
    CutIdle(Duration),
    /// Forgets it without a word, and resets it when the client goes on.
    ForgetIdle(Duration),
    /// Ends every connection so long after its beginning.
    CutOld(Duration),
    /// Passes nothing of the client on, in connections that exist.
    DeafOld,
}

pub struct Relay {
    pub port: u16,
    fault: Arc<watch::Sender<(Fault, u64)>>,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    pub fn before(server: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(watch::Sender::new((Fault::None, 0)));
        let (accepted, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (faults, count, now_open) = (Arc::clone(&fault), Arc::clone(&accepted), Arc::clone(&open));
        runtime.spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                now_open.fetch_add(1, Ordering::SeqCst);
                let (faults, now_open) = (Arc::clone(&faults), Arc::clone(&now_open));
                tokio::spawn(async move {
                    connection(near, server, faults).await;
                    now_open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, fault, accepted, open, _runtime: runtime }
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_modify(|(current, age)| (*current, *age) = (fault, *age + 1));
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Those that have not ended.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

async fn connection(near: TcpStream, server: u16, faults: Arc<watch::Sender<(Fault, u64)>>) {
    let born = faults.borrow().1;
    let mut faults = faults.subscribe();
    if faults.borrow().0 == Fault::Reset {
        return reset(&near);
    }
    let Ok(far) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server))).await else { return };
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let (began, touched) = (Instant::now(), Arc::new(Mutex::new(Instant::now())));
    let up = pass(near_read, far_write, faults.clone(), born, &touched, false);
    let down = pass(far_read, near_write, faults.clone(), born, &touched, true);
    let overdue = overdue(faults.clone(), began, &touched);
    let cut = async { faults.wait_for(|(fault, _)| *fault == Fault::Reset).await.map(drop) };
    tokio::select! {
        ended = async { tokio::try_join!(up, down) } => drop(ended),
        Ok(()) = cut => {}
        () = overdue => {}
    }
}

/// Waits until the connection has been idle, or there, for too long.
async fn overdue(mut faults: watch::Receiver<(Fault, u64)>, began: Instant, touched: &Mutex<Instant>) {
    loop {
        let end = match faults.borrow_and_update().0 {
            Fault::CutIdle(time) => Some(*touched.lock().unwrap() + time),
            Fault::CutOld(time) => Some(began + time),
            _ => None,
        };
        match end {
            Some(end) if Instant::now() >= end => return,
            Some(end) => drop(tokio::time::timeout_at(end.into(), faults.changed()).await),
            None => drop(faults.changed().await),
        }
    }
}

/// Copies one direction. An error is the end of both.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut faults: watch::Receiver<(Fault, u64)>,
    born: u64,
    touched: &Mutex<Instant>,
    from_server: bool,
) -> std::io::Result<()> {
    let mut block = vec![0; 64 << 10];
    let (mut passed, mut handshake, mut ends_at) = (0, Handshake::default(), None);
    loop {
        let read = from.read(&mut block).await?;
        let silent = |(fault, age): &(Fault, u64)| match fault {
            Fault::Silence => true,
            Fault::SilenceUp => !from_server,
            Fault::SilenceDown => from_server,
            Fault::SilenceOld => born < *age,
            _ => false,
        };
        // Bytes that meet silence are lost on the way; the connection is not known to be dead by either side.
        if silent(&faults.borrow()) {
            let _ = faults.wait_for(|state| !silent(state)).await;
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        let _ = faults.wait_for(|(fault, _)| *fault != Fault::Pause).await;
        let (fault, age) = *faults.borrow();
        if fault == Fault::DeafOld && born < age && !from_server && read > 0 {
            continue;
        }
        let idle = std::mem::replace(&mut *touched.lock().unwrap(), Instant::now()).elapsed();
        if matches!(fault, Fault::ForgetIdle(time) if idle >= time) && !from_server {
            reset(from.as_ref());
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        handshake.heard(&block[..read]);
        if let Fault::Delay(delay) = fault {
            tokio::time::sleep(delay).await;
        }
        // How many bytes of the server pass, where not all do.
        let limit = match fault {
            Fault::CutAfter(limit) => Some(limit),
            Fault::CutIn(bytes) if born < age => Some(*ends_at.get_or_insert(passed + bytes)),
            Fault::CutAt(point) | Fault::StallAt(point) => handshake.position(point),
            _ => None,
        };
        let limit = limit.filter(|_| from_server);
        let len = limit.map_or(read, |limit| read.min(limit.saturating_sub(passed)));
        let drops = if from_server { trickle(&mut to, &block[..len], &mut faults).await? } else { 0 };
        to.write_all(&block[drops..len]).await?;
        passed += len;
        if limit.is_some_and(|limit| passed >= limit) {
            if matches!(fault, Fault::StallAt(_)) {
                let _ = faults.wait_for(|(now, _)| *now != fault).await;
            }
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
    }
}

/// Writes byte by byte for as long as it is to. Returns how many.
async fn trickle(
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    block: &[u8],
    faults: &mut watch::Receiver<(Fault, u64)>,
) -> std::io::Result<usize> {
    let mut drops = 0;
    while drops < block.len() && faults.borrow().0 == Fault::Trickle {
        to.write_all(&block[drops..=drops]).await?;
        drops += 1;
        let over = faults.wait_for(|(fault, _)| *fault != Fault::Trickle);
        let _ = tokio::time::timeout(Duration::from_secs(1), over).await;
    }
    Ok(drops)
}

fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
