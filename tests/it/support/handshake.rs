//! How far a server has come with the beginning of an SSH connection, as somebody on the way can tell.

/// What the server is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Banner,
    KeyExchange,
    /// Everything from the first encrypted byte on.
    Login,
}

/// A byte of what the server says: so many after the beginning of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub stage: Stage,
    pub bytes: usize,
}

/// SSH_MSG_NEWKEYS (RFC 4253 section 12): what follows it is encrypted.
const NEW_KEYS: u8 = 21;

/// What the server has said in clear.
#[derive(Default)]
pub struct Handshake(Vec<u8>);

impl Handshake {
    pub fn heard(&mut self, bytes: &[u8]) {
        if self.begins(Stage::Login).is_none() {
            self.0.extend(bytes);
        }
    }

    /// Where the point is in all that the server says, as soon as that can be known.
    pub fn position(&self, point: Point) -> Option<usize> {
        Some(self.begins(point.stage)? + point.bytes)
    }

    fn begins(&self, stage: Stage) -> Option<usize> {
        let banner = || self.0.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        match stage {
            Stage::Banner => Some(0),
            Stage::KeyExchange => banner(),
            Stage::Login => self.encrypted_from(banner()?),
        }
    }

    /// Walks through the packets: a length, the length of the padding, and the kind (RFC 4253 section 6).
    fn encrypted_from(&self, mut packet: usize) -> Option<usize> {
        loop {
            let &[l0, l1, l2, l3, _, kind] = self.0.get(packet..packet + 6)? else { unreachable!() };
            packet += 4 + u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            if kind == NEW_KEYS {
                return (packet <= self.0.len()).then_some(packet);
            }
        }
    }
}
