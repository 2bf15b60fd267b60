//! Finds the ends of typed messages in a stream of bytes: one type byte, then a length that counts itself.

/// The stream is not one of typed messages, or we have lost our place in it for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfStep;

/// Keeps five bytes, whatever passes by.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    header: [u8; 5],
    header_len: usize,
    remaining: usize,
}

impl Frames {
    /// The longest message PostgreSQL itself accepts or sends, in bytes.
    const MAX_LEN: usize = 0x4000_0000;

    /// Whether the bytes so far end exactly where a message ends.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.header_len == 0 && self.remaining == 0
    }

    /// Takes the next bytes, and calls `message` with the type, the length of the body and as much of the body as
    /// stands in `bytes`, once for each message whose header is complete.
    ///
    /// # Errors
    /// A length that no message can have.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut message: impl FnMut(u8, usize, &[u8]),
    ) -> Result<(), OutOfStep> {
        while !bytes.is_empty() {
            if self.remaining > 0 {
                let skipped = self.remaining.min(bytes.len());
                self.remaining -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            for (slot, byte) in self.header.iter_mut().skip(self.header_len).zip(bytes) {
                *slot = *byte;
            }
            let taken = (self.header.len() - self.header_len).min(bytes.len());
            self.header_len += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.header_len == self.header.len() {
                let [kind, l0, l1, l2, l3] = self.header;
                let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
                if !(4..=Self::MAX_LEN).contains(&len) || !kind.is_ascii_graphic() {
                    return Err(OutOfStep);
                }
                self.header_len = 0;
                self.remaining = len - 4;
                message(kind, self.remaining, bytes.get(..self.remaining).unwrap_or(bytes));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_that_no_message_has() {
        for bad in [[b'Z', 0, 0, 0, 3], [b'Z', 0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 0, 8]] {
            assert_eq!(Frames::default().feed(&bad, |_, _, _| {}), Err(OutOfStep));
        }
    }

    proptest! {
        #[test]
        fn messages_are_found_however_the_bytes_are_cut(
            bodies in prop::collection::vec((b'A'..=b'z', prop::collection::vec(any::<u8>(), 0..40)), 1..20),
            cuts in prop::collection::vec(1usize..30, 1..50),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for (kind, body) in &bodies {
                stream.push(*kind);
                stream.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
                stream.extend(body);
                ends.push(stream.len());
            }
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            let (mut at, mut cut) = (0, 0);
            while at < stream.len() {
                let end = (at + cuts[cut % cuts.len()]).min(stream.len());
                frames.feed(&stream[at..end], |kind, len, _| seen.push((kind, len))).unwrap();
                prop_assert_eq!(frames.at_boundary(), ends.contains(&end));
                (at, cut) = (end, cut + 1);
            }
            let expected: Vec<_> = bodies.iter().map(|(kind, body)| (*kind, body.len())).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frames::default().feed(&bytes, |_, _, _| {});
        }
    }
}
