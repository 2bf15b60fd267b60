//! Finds the ends of typed messages in a stream of bytes: one type byte, then a length that counts itself.
//!
//! It keeps one header, whatever passes by, and looks at no body: bodies are shown to the caller as they pass. Every byte
//! of a plain session goes through here, so the way from one header to the next is short.

/// The stream is not one of typed messages, or we have lost our place in it for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

/// As much of one message as one piece of the stream has. A message begins in one part and ends in the same or a later
/// one; parts may have no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// The message's type.
    pub(super) kind: u8,
    /// It is the message's first part.
    pub(super) begins: bool,
    /// Bytes of the body.
    pub(super) body: &'a [u8],
    /// Bytes of the body that are still to come.
    pub(super) left: usize,
}

impl Part<'_> {
    /// Whether it is the message's last part.
    #[must_use]
    pub(super) fn ends(&self) -> bool {
        self.left == 0
    }

    /// The length of the whole body, where the message begins here.
    #[must_use]
    pub(super) fn whole_len(&self) -> Option<usize> {
        self.begins.then_some(self.body.len() + self.left)
    }
}

const HEADER_LEN: usize = 5;

/// Where a stream stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    /// The beginning of a header whose end has not come yet.
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// The type of the message that is passing, and what is left of it.
    kind: u8,
    left: usize,
}

impl Frames {
    /// The longest message PostgreSQL itself accepts or sends, in bytes.
    const MAX_LEN: usize = 0x4000_0000;

    /// Whether the bytes so far end exactly where a message ends.
    #[must_use]
    pub(super) fn at_boundary(&self) -> bool {
        self.header_len == 0 && self.left == 0
    }

    /// Takes the next bytes, and shows each part of a message that they complete or continue; not the messages of a kind
    /// that `is_row` names and that lie whole in them: they are nearly all there is, and nobody wants to see them.
    ///
    /// # Errors
    /// A length that no message can have, or what `show` says.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        is_row: impl Fn(u8) -> bool,
        mut show: impl FnMut(Part<'_>) -> Result<(), OutOfStep>,
    ) -> Result<(), OutOfStep> {
        if self.left > 0 && !bytes.is_empty() {
            bytes = self.pass(bytes, false, &mut show)?;
        }
        while !bytes.is_empty() {
            if self.header_len == 0 {
                bytes = skip_rows(bytes, &is_row);
            }
            let header = match bytes.split_first_chunk() {
                Some((header, rest)) if self.header_len == 0 => {
                    bytes = rest;
                    *header
                }
                _ => match self.collect(&mut bytes) {
                    Some(header) => header,
                    None => return Ok(()),
                },
            };
            let [kind, l0, l1, l2, l3] = header;
            let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            if !(4..=Self::MAX_LEN).contains(&len) {
                return Err(OutOfStep);
            }
            (self.kind, self.left) = (kind, len - 4);
            bytes = self.pass(bytes, true, &mut show)?;
        }
        Ok(())
    }

    /// Shows what `bytes` has of the message that is passing, and returns what comes after it.
    #[inline]
    fn pass<'b>(
        &mut self,
        bytes: &'b [u8],
        begins: bool,
        show: &mut impl FnMut(Part<'_>) -> Result<(), OutOfStep>,
    ) -> Result<&'b [u8], OutOfStep> {
        let (body, rest) = bytes.split_at_checked(self.left).unwrap_or((bytes, &[]));
        self.left -= body.len();
        show(Part { kind: self.kind, begins, body, left: self.left })?;
        Ok(rest)
    }

    /// Takes bytes of a header that comes in pieces; the header, once it is whole.
    #[cold]
    fn collect(&mut self, bytes: &mut &[u8]) -> Option<[u8; HEADER_LEN]> {
        let (taken, rest) = bytes.split_at((HEADER_LEN - self.header_len).min(bytes.len()));
        for (slot, byte) in self.header.iter_mut().skip(self.header_len).zip(taken) {
            *slot = *byte;
        }
        self.header_len += taken.len();
        *bytes = rest;
        let whole = self.header_len == HEADER_LEN;
        whole.then(|| {
            self.header_len = 0;
            self.header
        })
    }
}

/// Passes over the rows that lie whole at the beginning of `bytes`.
#[inline]
fn skip_rows(mut bytes: &[u8], is_row: impl Fn(u8) -> bool) -> &[u8] {
    while let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>()
        && let [kind, l0, l1, l2, l3] = *header
        && is_row(kind)
    {
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        match len.checked_sub(4).and_then(|len| body.get(len..)) {
            Some(rest) => bytes = skip_alike(rest, header, len + 1),
            None => break,
        }
    }
    bytes
}

/// Passes over whole messages that begin with the same header: where each one ends is known before it is read, so that
/// the processor waits for no length to find the next one. Rows often have the length of the row before.
#[inline]
fn skip_alike<'b>(mut bytes: &'b [u8], header: &[u8; HEADER_LEN], len: usize) -> &'b [u8] {
    while bytes.first_chunk() == Some(header)
        && let Some(rest) = bytes.get(len..)
    {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_that_no_message_has() {
        for bad in [[b'Z', 0, 0, 0, 3], [b'Z', 0x7f, 0xff, 0xff, 0xff]] {
            assert_eq!(Frames::default().feed(&bad, |_| true, |_| Ok(())), Err(OutOfStep));
        }
    }

    #[test]
    fn whoever_is_shown_a_part_may_stop_it_all() {
        assert_eq!(Frames::default().feed(b"Z\0\0\0\x05I", |_| false, |_| Err(OutOfStep)), Err(OutOfStep));
    }

    proptest! {
        #[test]
        fn messages_are_found_however_the_bytes_are_cut(
            bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 1..20),
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
            let (mut frames, mut skipping, mut shown) = (Frames::default(), Frames::default(), 0);
            let mut seen: Vec<(u8, Vec<u8>)> = Vec::new();
            let mut ended = 0;
            let (mut at, mut cut) = (0, 0);
            while at < stream.len() {
                let end = (at + cuts[cut % cuts.len()]).min(stream.len());
                frames.feed(&stream[at..end], |_| false, |part| {
                    if part.begins {
                        seen.push((part.kind, Vec::new()));
                        assert_eq!(part.whole_len(), Some(bodies[ended].1.len()));
                    }
                    let (kind, body) = seen.last_mut().unwrap();
                    assert_eq!(*kind, part.kind);
                    body.extend(part.body);
                    ended += usize::from(part.ends());
                    Ok(())
                }).unwrap();
                prop_assert_eq!(frames.at_boundary(), ends.contains(&end));
                skipping.feed(&stream[at..end], |kind| kind > 99, |part| {
                    shown += usize::from(part.kind <= 99 && part.ends());
                    Ok(())
                }).unwrap();
                prop_assert_eq!(skipping.at_boundary(), ends.contains(&end));
                (at, cut) = (end, cut + 1);
            }
            prop_assert_eq!(ended, bodies.len());
            prop_assert_eq!(shown, bodies.iter().filter(|(kind, _)| *kind <= 99).count());
            prop_assert_eq!(seen, bodies);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frames::default().feed(&bytes, |kind| kind > 99, |_| Ok(()));
        }
    }
}
