//! Both directions of a connection, whatever is said in them: the observer never panics, never keeps more than it may, and
//! sees the same however the bytes are cut. `make fuzz` runs it.
//!
//! An input is a list of blocks: one byte whose highest bit says who speaks and whose others say how many pieces the block
//! comes in, two bytes with its length, and as many bytes as that, or as are left.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tunnelkeeper::pgwire::{Encryption, Event, Observer};
use tunnelkeeper::state::{Activity, StartupParameters};

/// What one observer may keep, in bytes: a startup message, while its buffer grows into a larger one, and its queue.
const MAX_KEPT: usize = 64 << 10;

struct Counted;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counted = Counted;

// SAFETY: everything is done by the system's allocator.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

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

fn watch(blocks: &[Block<'_>], in_pieces: bool, start: Instant) -> Seen {
    let mut events = Vec::with_capacity(blocks.iter().map(|block| block.bytes.len()).sum());
    let before = ALLOCATED.load(Ordering::Relaxed);
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
            let kept = ALLOCATED.load(Ordering::Relaxed).saturating_sub(before);
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

fuzz_target!(|input: &[u8]| {
    let (blocks, start) = (blocks(input), Instant::now());
    assert_eq!(watch(&blocks, true, start), watch(&blocks, false, start));
});
