//! Stands between the database's answers and tokio-postgres: refuses to give a password away in clear, to compute
//! for hours for a hostile server, and to take in more than a probe can want.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use crate::failure::{Cause, Failure};

/// What a login or one query may answer, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Longer than any message of a login, in bytes.
const MAX_LOGIN_MESSAGE: usize = 64 << 10;

/// PostgreSQL's default is 4096; this many take about half a second of computation.
const MAX_SCRAM_ITERATIONS: u64 = 1_000_000;

/// What may still be read.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// A new exchange begins.
    pub(super) fn refill(&self) {
        self.0.store(MAX_ANSWER, Ordering::Relaxed);
    }

    fn spend(&self, bytes: usize) -> Result<(), Failure> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
        if bytes <= left {
            return Ok(());
        }
        let text = format!("the database answered with more than {} MiB", MAX_ANSWER >> 20);
        Err(Failure::new(Cause::DbQueryError, text).with_hint("let `probe.query` return less"))
    }
}

/// A stream whose incoming bytes are watched.
pub(super) struct Guard<W> {
    wire: W,
    budget: Budget,
    clear_text_allowed: bool,
    /// The beginning of a message that is not complete; nothing once the login is over.
    login: Option<Vec<u8>>,
}

impl<W> Guard<W> {
    pub(super) fn new(wire: W, clear_text_allowed: bool) -> (Self, Budget) {
        let budget = Budget(Arc::new(AtomicUsize::new(MAX_ANSWER)));
        (Self { wire, budget: budget.clone(), clear_text_allowed, login: Some(Vec::new()) }, budget)
    }

    fn watch(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.budget.spend(bytes.len())?;
        let Some(mut login) = self.login.take() else { return Ok(()) };
        login.extend_from_slice(bytes);
        let mut rest = login.as_slice();
        while let Some((kind, body, after)) = split_message(rest)? {
            if kind == b'R' && judge(body, self.clear_text_allowed)? {
                return Ok(());
            }
            rest = after;
        }
        self.login = Some(rest.to_vec());
        Ok(())
    }
}

/// A message's type, its body, and the bytes after it.
type Message<'a> = (u8, &'a [u8], &'a [u8]);

/// The first message, if it is complete.
fn split_message(bytes: &[u8]) -> Result<Option<Message<'_>>, Failure> {
    let Some(([kind, l0, l1, l2, l3], rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let len = (u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize).checked_sub(4);
    match len {
        Some(len) if len <= MAX_LOGIN_MESSAGE && kind.is_ascii_alphabetic() => {
            Ok(rest.split_at_checked(len).map(|(body, after)| (*kind, body, after)))
        }
        _ => Err(Failure::new(Cause::DbLoginNotPostgres, "the answer to the login is not PostgreSQL's")),
    }
}

/// Looks at an authentication request; true when the login is over.
fn judge(body: &[u8], clear_text_allowed: bool) -> Result<bool, Failure> {
    let Some((code, data)) = body.split_first_chunk::<4>() else { return Ok(false) };
    let unsupported =
        |what: &str| Err(Failure::new(Cause::DbLoginUnsupportedMethod, format!("the database wants {what}")));
    match u32::from_be_bytes(*code) {
        0 => Ok(true),
        3 if !clear_text_allowed => {
            let what = "the database wants the password in clear text, and its identity is not verified";
            Err(Failure::new(Cause::DbLoginUnsupportedMethod, what)
                .with_hint("verify it with tls.mode \"verify-full\", or write tls.allow_unverified = true"))
        }
        11 if iterations(data).is_some_and(|count| count > MAX_SCRAM_ITERATIONS) => {
            unsupported("more SCRAM iterations than any honest one")
        }
        // Clear text, MD5 and the steps of SCRAM.
        3 | 5 | 10..=12 => Ok(false),
        7..=9 => unsupported("a Kerberos login, which the probe cannot make"),
        other => unsupported(&format!("a login of kind {other}, which the probe cannot make")),
    }
}

/// `i=` of a SCRAM server-first-message (RFC 5802 section 7).
fn iterations(data: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(data).ok()?;
    let number = text.split(',').find_map(|attribute| attribute.strip_prefix("i="))?;
    // A number that does not fit is too large as well.
    Some(number.trim_end_matches('\0').parse().unwrap_or(u64::MAX))
}

impl<W: AsyncRead + Unpin> AsyncRead for Guard<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(context, buffer))?;
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.watch(bytes).map_err(io::Error::other))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Guard<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }
}

impl<W: TlsStream + Unpin> TlsStream for Guard<W> {
    fn channel_binding(&self) -> ChannelBinding {
        self.wire.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(code: u32, data: &[u8]) -> Vec<u8> {
        let mut message = vec![b'R'];
        message.extend(u32::try_from(8 + data.len()).unwrap().to_be_bytes());
        message.extend(code.to_be_bytes());
        message.extend(data);
        message
    }

    /// Byte by byte, as bad luck may cut it.
    fn watch(bytes: &[u8], clear_text_allowed: bool) -> Result<(), Cause> {
        let (mut guard, _) = Guard::new((), clear_text_allowed);
        bytes.iter().try_for_each(|byte| guard.watch(&[*byte])).map_err(|failure| failure.cause)
    }

    #[test]
    fn logins_are_judged() {
        let unsupported = Err(Cause::DbLoginUnsupportedMethod);
        for (message, clear_text_allowed, expected) in [
            (request(3, b""), false, unsupported),
            (request(3, b""), true, Ok(())),
            (request(5, b"salt"), false, Ok(())),
            (request(7, b""), true, unsupported),
            (request(10, b"SCRAM-SHA-256\0\0"), false, Ok(())),
            (request(11, b"r=abc,s=def,i=4096"), false, Ok(())),
            (request(11, b"r=abc,s=def,i=4294967295"), false, unsupported),
            (request(11, b"r=abc,s=def,i=99999999999999999999999"), false, unsupported),
            ([request(0, b""), request(3, b"")].concat(), false, Ok(())),
            ([b"N\0\0\0\x05\0".to_vec(), request(3, b"")].concat(), false, unsupported),
            (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), false, Err(Cause::DbLoginNotPostgres)),
            (b"R\0\0\0\x01".to_vec(), false, Err(Cause::DbLoginNotPostgres)),
        ] {
            assert_eq!(watch(&message, clear_text_allowed), expected, "{message:?}");
        }
    }

    #[test]
    fn a_flood_is_cut_off() {
        let (mut guard, budget) = Guard::new((), false);
        guard.watch(&request(0, b"")).unwrap();
        let block = vec![0; 1 << 20];
        let taken = (0..100).take_while(|_| guard.watch(&block).is_ok()).count();
        assert_eq!(taken, 15);
        budget.refill();
        assert!(guard.watch(&block).is_ok());
    }
}
