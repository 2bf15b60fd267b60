//! Stands between the database's answers and tokio-postgres: refuses to give a password away in clear, to compute
//! for hours for a hostile server, and to take in more than a probe can want.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use crate::failure::{Cause, Failure};

/// What a login may answer, in bytes. tokio-postgres keeps parameters and notices, each at many times its size.
const MAX_LOGIN: usize = 256 << 10;

/// What one query may answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Longer than any message of a login, in bytes.
const MAX_LOGIN_MESSAGE: usize = 64 << 10;

/// PostgreSQL's default is 4096; tokio-postgres computes no more than this many either.
const MAX_SCRAM_ITERATIONS: u64 = 100_000;

/// Whether the server may have the password as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClearText {
    Allowed,
    /// Nobody knows who reads it.
    Unverified,
    /// Everybody may read it.
    Unencrypted,
}

/// What may still be read.
#[derive(Clone)]
pub(super) struct Budget(Arc<Mutex<Exchange>>);

#[derive(Clone, Copy)]
enum Exchange {
    Login { left: usize },
    Query { left: usize },
}

impl Budget {
    /// A query begins.
    pub(super) fn refill(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Exchange::Query { left: MAX_ANSWER };
    }

    fn spend(&self, bytes: usize) -> Result<(), Failure> {
        let mut exchange = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Exchange::Login { left } | Exchange::Query { left }) = &mut *exchange;
        if let Some(rest) = left.checked_sub(bytes) {
            *left = rest;
            return Ok(());
        }
        Err(match *exchange {
            Exchange::Login { .. } => {
                let text = format!("the answer to the login is longer than {} KiB", MAX_LOGIN >> 10);
                Failure::new(Cause::DbLoginNotPostgres, text)
            }
            Exchange::Query { .. } => {
                let text = format!("the database answered the query with more than {} MiB", MAX_ANSWER >> 20);
                Failure::new(Cause::DbQueryError, text).with_hint("let `probe.query` return less")
            }
        })
    }
}

/// A stream whose incoming bytes are watched.
pub(super) struct Guard<W> {
    wire: W,
    budget: Budget,
    clear_text: ClearText,
    /// The beginning of a message that is not complete; nothing once the login is over.
    login: Option<Vec<u8>>,
}

impl<W> Guard<W> {
    pub(super) fn new(wire: W, clear_text: ClearText) -> (Self, Budget) {
        let budget = Budget(Arc::new(Mutex::new(Exchange::Login { left: MAX_LOGIN })));
        (Self { wire, budget: budget.clone(), clear_text, login: Some(Vec::new()) }, budget)
    }

    fn watch(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.budget.spend(bytes.len())?;
        let Some(mut login) = self.login.take() else { return Ok(()) };
        login.extend_from_slice(bytes);
        let mut rest = login.as_slice();
        while let Some((kind, body, after)) = split_message(rest)? {
            if kind == b'R' && judge(body, self.clear_text)? {
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
fn judge(body: &[u8], clear_text: ClearText) -> Result<bool, Failure> {
    let Some((code, data)) = body.split_first_chunk::<4>() else { return Ok(false) };
    let unsupported =
        |what: &str| Err(Failure::new(Cause::DbLoginUnsupportedMethod, format!("the database wants {what}")));
    let redshifts_own = |what: &str| {
        unsupported(what).map_err(|failure: Failure| {
            failure.with_hint("use method = \"iam\", or a user whose password is stored as MD5")
        })
    };
    match u32::from_be_bytes(*code) {
        0 => Ok(true),
        3 if clear_text == ClearText::Unverified => {
            let what = "the database wants the password in clear text, and its identity is not verified";
            Err(Failure::new(Cause::DbLoginUnsupportedMethod, what)
                .with_hint("verify it with tls.mode \"verify-full\", or write tls.allow_unverified = true"))
        }
        3 if clear_text == ClearText::Unencrypted => {
            let what = "the database wants the password in clear text, and nothing encrypts it";
            Err(Failure::new(Cause::DbLoginUnsupportedMethod, what).with_hint(
                "let the probe's user log in by scram-sha-256, or encrypt with tls.mode \"verify-full\"",
            ))
        }
        11 if iterations(data).is_some_and(|count| count > MAX_SCRAM_ITERATIONS) => {
            unsupported("more SCRAM iterations than any honest one")
        }
        // Clear text, MD5 and the steps of SCRAM.
        3 | 5 | 10..=12 => Ok(false),
        2 => unsupported("a login by Kerberos V5, which the probe cannot make"),
        7 | 8 => unsupported("a login by GSSAPI (Kerberos), which the probe cannot make"),
        9 => unsupported("a login by SSPI (Windows), which the probe cannot make"),
        // These two are Redshift's own, as its driver redshift_connector has them.
        13 => redshifts_own("the password in Redshift's own SHA-256 form, which only its own drivers know"),
        14 => redshifts_own("a token of an identity provider, which the probe has not"),
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
    fn watch(bytes: &[u8], clear_text: ClearText) -> Result<(), Cause> {
        let (mut guard, _) = Guard::new((), clear_text);
        bytes.iter().try_for_each(|byte| guard.watch(&[*byte])).map_err(|failure| failure.cause)
    }

    #[test]
    fn logins_are_judged() {
        let unsupported = Err(Cause::DbLoginUnsupportedMethod);
        for (message, clear_text, expected) in [
            (request(3, b""), ClearText::Unverified, unsupported),
            (request(3, b""), ClearText::Allowed, Ok(())),
            (request(3, b""), ClearText::Unencrypted, unsupported),
            (request(5, b"salt"), ClearText::Unverified, Ok(())),
            (request(7, b""), ClearText::Allowed, unsupported),
            (request(10, b"SCRAM-SHA-256\0\0"), ClearText::Unverified, Ok(())),
            (request(11, b"r=abc,s=def,i=100000"), ClearText::Unverified, Ok(())),
            (request(11, b"r=abc,s=def,i=100001"), ClearText::Unverified, unsupported),
            (request(11, b"r=abc,s=def,i=4294967295"), ClearText::Unverified, unsupported),
            (request(11, b"r=abc,s=def,i=99999999999999999999999"), ClearText::Unverified, unsupported),
            ([request(0, b""), request(3, b"")].concat(), ClearText::Unverified, Ok(())),
            ([b"N\0\0\0\x05\0".to_vec(), request(3, b"")].concat(), ClearText::Unverified, unsupported),
            (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), ClearText::Unverified, Err(Cause::DbLoginNotPostgres)),
            (b"R\0\0\0\x01".to_vec(), ClearText::Unverified, Err(Cause::DbLoginNotPostgres)),
        ] {
            assert_eq!(watch(&message, clear_text), expected, "{message:?}");
        }
    }

    #[test]
    fn floods_are_cut_off() {
        let block = vec![0; 16 << 10];
        let taken = |guard: &mut Guard<()>| {
            let mut blocks = 0;
            loop {
                match guard.watch(&block) {
                    Ok(()) => blocks += 1,
                    Err(failure) => return (blocks * block.len(), failure.cause),
                }
            }
        };
        let (mut guard, budget) = Guard::new((), ClearText::Unverified);
        guard.watch(&request(0, b"")).unwrap();
        let (bytes, cause) = taken(&mut guard);
        assert!(bytes <= MAX_LOGIN && cause == Cause::DbLoginNotPostgres, "{bytes} {cause:?}");
        budget.refill();
        assert_eq!(taken(&mut guard), (MAX_ANSWER, Cause::DbQueryError));
    }
}
