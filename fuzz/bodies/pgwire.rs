//! Both directions of a connection, whatever is said in them: the observer never panics, never keeps more than it may, and
//! sees the same however the bytes are cut.
//!
//! An input is a list of blocks: one byte whose highest bit says who speaks and whose others say how many pieces the block
//! comes in, two bytes with its length, and as many bytes as that, or as are left.

use std::time::{Duration, Instant};

use tunnelkeeper::pgwire::{Encryption, Event, Observer};
use tunnelkeeper::state::{Activity, StartupParameters};

/// What one observer may keep, in bytes: a startup message, while its buffer grows into a larger one, and its queue.
const MAX_KEPT: usize = 64 << 10;

struct Block<'a> {
    from_client: bool,
    pieces: usize,
    bytes: &'a [u8],
}

fn blocks(mut input: &[u8]) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    while let Some(([who, high, low], rest)) = input.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        blocks.push(Block { from_client: who & 0x80 != 0, pieces: usize::from(who & 0x7f) + 1, bytes });
        input = rest;
    }
    blocks
}

#[derive(Debug, PartialEq)]
struct Seen {
    events: Vec<Event>,
    activity: Activity,
    at_boundary: bool,
    encryption: Option<Encryption>,
    startup: Option<StartupParameters>,
}

fn watch(blocks: &[Block<'_>], in_pieces: bool, start: Instant, allocated: impl Fn() -> usize) -> Seen {
    let mut events = Vec::with_capacity(blocks.iter().map(|block| block.bytes.len()).sum());
    let before = allocated();
    let mut observer = Observer::new(start);
    for (second, block) in (1..).zip(blocks) {
        let now = start + Duration::from_secs(second);
        let len = if in_pieces { block.bytes.len().div_ceil(block.pieces) } else { block.bytes.len() };
        for piece in block.bytes.chunks(len.max(1)) {
            if block.from_client {
                observer.client_sends(piece);
            } else {
                observer.server_sends(piece, || now, |event| events.push(event));
            }
            let kept = allocated().saturating_sub(before);
            assert!(kept <= MAX_KEPT, "{kept} bytes are kept");
        }
        if block.from_client {
            observer.forwarded(now);
        }
    }
    Seen {
        events,
        activity: observer.doing().activity,
        at_boundary: observer.at_boundary(),
        encryption: observer.encryption(),
        startup: observer.take_startup(),
    }
}

/// `allocated` is how many bytes are in use; whoever cannot tell says 0.
pub fn check(input: &[u8], allocated: impl Fn() -> usize) {
    let (blocks, start) = (blocks(input), Instant::now());
    assert_eq!(watch(&blocks, true, start, &allocated), watch(&blocks, false, start, &allocated));
}
