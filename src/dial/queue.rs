//! What has come through a link and waits to be passed on: bytes in order, taken many pieces at a time.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces smaller than this are copied together, so that a flood of tiny ones costs no more memory than their
/// bytes.
const SMALL: usize = 4 << 10;

/// Pieces handed out at a time.
const SLICES: usize = 32;

/// Bytes in order. It costs little more memory than they are, however small the pieces are in which they come.
#[derive(Debug, Default)]
pub struct Queue {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Queue {
    /// Adds a piece; an empty one is nothing.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if bytes.len() < SMALL && !self.is_empty() {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= 8 * SMALL {
                self.close_tail();
            }
        } else {
            self.close_tail();
            self.pieces.push_back(bytes);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// The next bytes to pass on; at least one piece, unless it is empty.
    pub fn with_slices<R>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let pieces = self.pieces.iter().map(|piece| &piece[..]).chain(tail);
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            used += 1;
        }
        write(slices.get(..used).unwrap_or_default())
    }

    /// So many of the next bytes were passed on.
    pub fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
        self.tail.advance(written.min(self.tail.len()));
        if self.tail.is_empty() {
            // Where nothing waits, no memory of a burst is kept.
            self.tail = BytesMut::new();
            self.pieces.shrink_to(SLICES);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn bytes_come_out_as_they_went_in(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6000), 1..20),
            takes in prop::collection::vec(1usize..20_000, 1..20),
        ) {
            let mut queue = Queue::default();
            let (mut taken, mut turn) = (Vec::new(), 0);
            let mut take = |queue: &mut Queue| {
                let want = takes[turn % takes.len()];
                turn += 1;
                let bytes: Vec<u8> = queue.with_slices(|slices| {
                    slices.iter().flat_map(|slice| slice.iter().copied()).take(want).collect()
                });
                queue.advance(bytes.len());
                taken.extend(bytes);
            };
            for (index, piece) in pieces.iter().enumerate() {
                queue.push(Bytes::from(piece.clone()));
                if index % 3 == 0 {
                    take(&mut queue);
                }
            }
            while !queue.is_empty() {
                take(&mut queue);
            }
            prop_assert_eq!(taken, pieces.concat());
        }
    }

    #[test]
    fn an_empty_piece_is_nothing() {
        let mut queue = Queue::default();
        queue.push(Bytes::new());
        assert!(queue.is_empty());
        queue.push(Bytes::from_static(b"x"));
        queue.push(Bytes::new());
        queue.with_slices(|slices| assert_eq!(slices.len(), 1));
    }

    #[test]
    fn a_burst_that_was_passed_on_takes_no_memory() {
        let mut queue = Queue::default();
        for _ in 0..1000 {
            queue.push(Bytes::from(vec![0; SMALL]));
        }
        queue.push(Bytes::from_static(b"x"));
        queue.advance(1000 * SMALL + 1);
        assert!(queue.is_empty());
        assert!(queue.pieces.capacity() <= 2 * SLICES && queue.tail.capacity() == 0);
    }

    #[test]
    fn a_flood_of_tiny_pieces_is_packed() {
        let mut queue = Queue::default();
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert!(queue.pieces.len() < 10, "{} pieces", queue.pieces.len());
    }
}
