//! What stands behind the bastion beside PostgreSQL: servers of bytes. Threads and large blocks, since they share
//! the cores with what is measured.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::support::PATIENCE;

pub const BLOCK: usize = 256 << 10;
static BYTES: [u8; BLOCK] = [b'x'; BLOCK];

pub struct Servers {
    /// Sends as many bytes as it is asked for.
    pub source: u16,
    /// Says how many bytes it got, when no more come.
    pub sink: u16,
    /// Says everything again.
    pub echo: u16,
    /// Says one byte unasked.
    pub greeter: u16,
}

impl Servers {
    pub fn start() -> Self {
        Self { source: serve(send_bytes), sink: serve(count_bytes), echo: serve(echo), greeter: serve(greet) }
    }
}

/// A thread for each connection; an error is the end of it, since the client has its own view of that.
fn serve(answer: fn(TcpStream) -> io::Result<()>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let socket = socket.unwrap();
            socket.set_nodelay(true).unwrap();
            let connection = thread::Builder::new().stack_size(64 << 10);
            connection.spawn(move || answer(socket)).unwrap();
        }
    });
    port
}

fn send_bytes(mut socket: TcpStream) -> io::Result<()> {
    let mut asked = [0; 8];
    socket.read_exact(&mut asked)?;
    send(&mut socket, u64::from_be_bytes(asked))
}

fn count_bytes(mut socket: TcpStream) -> io::Result<()> {
    let count = drain(&mut socket)?;
    socket.write_all(&count.to_be_bytes())
}

fn echo(mut socket: TcpStream) -> io::Result<()> {
    let mut heard = [0; 512];
    loop {
        match socket.read(&mut heard)? {
            0 => return Ok(()),
            said => socket.write_all(&heard[..said])?,
        }
    }
}

fn greet(mut socket: TcpStream) -> io::Result<()> {
    socket.write_all(b"x")?;
    drain(&mut socket).map(drop)
}

/// A client's connection, which does not wait for ever.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks a source for bytes.
pub fn ask(address: SocketAddr, bytes: u64) -> io::Result<TcpStream> {
    let mut socket = connect(address)?;
    socket.write_all(&bytes.to_be_bytes())?;
    Ok(socket)
}

pub fn send(socket: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let len = left.min(BLOCK as u64);
        socket.write_all(&BYTES[..usize::try_from(len).unwrap()])?;
        left -= len;
    }
    Ok(())
}

/// Reads to the end; how many bytes came.
pub fn drain(socket: &mut TcpStream) -> io::Result<u64> {
    let (mut block, mut count) = (vec![0; BLOCK], 0);
    loop {
        match socket.read(&mut block)? {
            0 => return Ok(count),
            read => count += read as u64,
        }
    }
}

/// One question and its echo.
pub fn exchange(socket: &mut TcpStream) -> io::Result<()> {
    let mut heard = [0; 64];
    socket.write_all(&BYTES[..heard.len()])?;
    socket.read_exact(&mut heard)
}

/// A connection to an echo server that has answered.
pub fn answered(address: SocketAddr) -> io::Result<TcpStream> {
    let mut socket = connect(address)?;
    exchange(&mut socket)?;
    Ok(socket)
}
