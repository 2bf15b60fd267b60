//! The forwards that clients use, and which faults can be felt through them.

use std::net::SocketAddr;

/// The bastions by number; `INNER` is reached through `EDGE`.
pub const BASTIONS: [&str; 4] = ["edge", "backup", "inner", "far"];
pub const EDGE: usize = 0;
pub const INNER: usize = 2;

/// The bastions of each database, the preferred first. The last ones lead to the PostgreSQL that is restarted.
pub const DATABASES: [&[usize]; 12] =
    [&[0], &[1], &[2], &[3], &[0, 1], &[1, 3], &[2, 1], &[3, 0], &[0], &[2], &[1, 3], &[3]];
pub const FIRST_SHAKY: usize = 8;
/// Those of each server of bytes.
pub const STREAMS: [&[usize]; 4] = [&[0], &[2], &[3], &[1, 3]];

/// What stands behind a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    Postgres,
    /// A PostgreSQL that is restarted, and whose sessions are ended.
    ShakyPostgres,
    Bytes,
}

#[derive(Clone, Debug)]
pub struct Forward {
    pub name: String,
    pub address: SocketAddr,
    pub bastions: &'static [usize],
    pub behind: Behind,
}

/// What a fault can be felt by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hit {
    pub bastions: [bool; BASTIONS.len()],
    pub shaky: bool,
}

impl Hit {
    pub fn bastion(index: usize) -> Self {
        let mut hit = Self::default();
        hit.bastions[index] = true;
        hit
    }

    pub fn and(mut self, other: Self) -> Self {
        for (one, other) in self.bastions.iter_mut().zip(other.bastions) {
            *one |= other;
        }
        self.shaky |= other.shaky;
        self
    }

    /// A jump's faults are those of whoever is behind it.
    pub fn reaches_bastion(&self, index: usize) -> bool {
        self.bastions[index] || (index == INNER && self.bastions[EDGE])
    }

    pub fn reaches(&self, forward: &Forward) -> bool {
        self.shakes(forward) || forward.bastions.iter().any(|bastion| self.reaches_bastion(*bastion))
    }

    /// The database itself is meant.
    pub fn shakes(&self, forward: &Forward) -> bool {
        self.shaky && forward.behind == Behind::ShakyPostgres
    }
}
