//! What other clients of the same session do.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use socket2::SockRef;

use super::Moment::Carrying;
use super::Newcomer::Served;
use super::Streams::Survive;
use super::stage::Stage;
use super::stream::{self, FOREIGN};
use super::{Row, Trouble, run};
use crate::support::{Bastion, PATIENCE};

#[derive(Debug)]
enum Behaviour {
    NeverReads,
    NeverWrites,
    Resets,
    HalfCloses,
    TalksGarbage,
}

/// How many do so at a time.
const MANY: u64 = 10;

#[derive(Debug)]
struct Clients {
    behave: Behaviour,
    /// Those that stay until it is over.
    there: Mutex<Vec<TcpStream>>,
}

impl Behaviour {
    /// One of them, and whether it stays.
    fn come(&self, stage: &Stage) -> Option<TcpStream> {
        let mut socket = TcpStream::connect(stage.daemon.address("echo")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        match self {
            Self::NeverReads => {
                socket.set_nonblocking(true).unwrap();
                static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| stream::opening(1000));
                let (all, mut said) = (&*ALL, 0);
                // It asks for far more than it reads, as much as anybody takes at once.
                while said < all.len()
                    && let Ok(len) = socket.write(&all[said..])
                {
                    said += len;
                }
                Some(socket)
            }
            Self::NeverWrites => Some(socket),
            Self::Resets => {
                socket.write_all(&stream::opening(1)).unwrap();
                socket.read_exact(&mut [0; 100]).unwrap();
                SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
                None
            }
            Self::HalfCloses => {
                socket.write_all(&stream::opening(3)).unwrap();
                socket.shutdown(Shutdown::Write).unwrap();
                let mut heard = Vec::new();
                socket.read_to_end(&mut heard).unwrap();
                assert_eq!(heard, stream::answers(3));
                None
            }
            Self::TalksGarbage => {
                socket.write_all(&FOREIGN.to_le_bytes()).unwrap();
                let garbage: Vec<u8> =
                    (0..100_000_u32).flat_map(|word| word.wrapping_mul(word).to_be_bytes()).collect();
                socket.write_all(&garbage).unwrap();
                Some(socket)
            }
        }
    }
}

impl Trouble for Clients {
    fn begin(&self, stage: &mut Stage) {
        let staying = (0..MANY).filter_map(|_| self.behave.come(stage));
        self.there.lock().unwrap().extend(staying);
    }

    fn end(&self, _: &mut Stage) {
        for mut socket in self.there.lock().unwrap().drain(..) {
            socket.set_nonblocking(true).unwrap();
            let ended = socket.read(&mut [0; 1]);
            let still_there = match &ended {
                Ok(read) => *read > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
            assert!(still_there, "{:?} was cut: {ended:?}", self.behave);
        }
    }
}

#[test]
fn clients_that_behave_badly() {
    let mut stage = Stage::patient(Bastion::start());
    for behave in [
        Behaviour::NeverReads,
        Behaviour::NeverWrites,
        Behaviour::Resets,
        Behaviour::HalfCloses,
        Behaviour::TalksGarbage,
    ] {
        let fault = Clients { behave, there: Mutex::default() };
        let row = Row { fault, when: Carrying, streams: Survive, lost: &[], then: &[], newcomer: Served };
        run(&mut stage, &row);
    }
    stage.end();
}
