//! The command line, and what follows from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::cases::{self, Case};
use crate::peers::Peer;

/// Compares tunnelkeeper with ssh and autossh.
#[derive(Parser)]
pub struct Arguments {
    /// Only these cases, or those whose names contain one of these words.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    /// Name the cases and stop.
    #[arg(long)]
    pub list: bool,
    /// How often each forwarder has its turn.
    #[arg(long)]
    runs: Option<usize>,
    /// Bytes of an upload or a download; over a long link an eighth.
    #[arg(long)]
    size: Option<u64>,
    /// Only see whether every case works.
    #[arg(long)]
    quick: bool,
    /// Who takes part; the first one is compared with each of the others.
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// The tunnelkeeper to measure, if not the one just built.
    #[arg(long, value_name = "BINARY")]
    ours: Option<PathBuf>,
    /// Another tunnelkeeper to compare it with: the peer `other`.
    #[arg(long, value_name = "BINARY")]
    other: Option<PathBuf>,
    /// Where the figures go.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is to be measured, and how much of it.
pub struct Plan {
    pub cases: Vec<Case>,
    pub peers: Vec<Peer>,
    pub ours: PathBuf,
    pub other: PathBuf,
    pub json: PathBuf,
    pub runs: usize,
    /// Outages take long, and their figures differ by far more than they spread.
    pub outages: usize,
    pub size: u64,
    pub size_over_long_link: u64,
    /// Rows of 60 bytes.
    pub rows: u64,
    /// Connections one after another.
    pub connections: usize,
    /// Connections at the same time.
    pub clients: usize,
    /// Of a load that has no end of its own.
    pub window: Duration,
    pub idle_window: Duration,
    pub outage: Duration,
}

impl Arguments {
    pub fn plan(self) -> Plan {
        let cases = cases::matching(&self.cases);
        assert!(!cases.is_empty(), "there is no such case; --list names them");
        let default_size = if self.quick { 200_000_000 } else { 2_000_000_000 };
        let size = self.size.unwrap_or(default_size);
        let seconds = |quick: u64, full: u64| Duration::from_secs(if self.quick { quick } else { full });
        let mut peers = self.peers;
        if peers.is_empty() {
            peers = vec![Peer::Ours, Peer::SameCipher, Peer::Defaults];
            peers.extend(self.other.is_some().then_some(Peer::Other));
        }
        assert!(self.other.is_some() || !peers.contains(&Peer::Other), "--other says which binary");
        Plan {
            cases,
            peers,
            ours: self.ours.unwrap_or_else(|| env!("CARGO_BIN_EXE_tunnelkeeper").into()),
            other: self.other.unwrap_or_default(),
            json: self.json.unwrap_or_else(default_json),
            runs: self.runs.unwrap_or(if self.quick { 1 } else { 5 }),
            outages: self.runs.unwrap_or(3).min(if self.quick { 1 } else { 3 }),
            size,
            size_over_long_link: size / 8,
            rows: size / 240,
            connections: if self.quick { 200 } else { 2000 },
            clients: if self.quick { 200 } else { 2000 },
            window: seconds(1, 4),
            idle_window: seconds(2, 15),
            outage: seconds(2, 5),
        }
    }
}

fn default_json() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench/against_openssh.json")
}
