//! Agreeing on TLS with a database: the request, the handshake, and what its failures mean.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error};

use super::certificates::client_config;
use super::shown::{Shown, show_time};
use super::{answered, login_answer};
use crate::failure::{Cause, Failure, one_line, plain};
use crate::ids::Target;
use crate::pgwire::SSL_REQUEST;
use crate::settings::plan::{RDS_BUNDLE, TlsMode, TlsPlan};

/// The longest error that a server sends instead of an answer to the request for TLS, in bytes.
const MAX_ERROR: usize = 4 << 10;

/// How long the rest of a foreign answer is waited for.
const REST: Duration = Duration::from_millis(200);

/// What a connection to a database can be made over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

type Tls<S> = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;

/// A stream to a database, encrypted or not.
#[allow(clippy::large_enum_variant, reason = "there is one for each probe")]
pub enum Wire<S: Stream> {
    /// Not encrypted.
    Plain(S),
    /// Inside TLS.
    Tls(Tls<S>),
}

/// What came of agreeing on TLS.
pub struct Agreement<S: Stream> {
    /// What to speak over.
    pub wire: Wire<S>,
    /// The last moment at which the database's certificate is good, where it showed one.
    pub certificate_expires: Option<SystemTime>,
}

/// Agrees on TLS as `plan` says. The name that is asked for (SNI, RFC 6066 section 3) and verified is the database's own.
///
/// # Errors
/// `db_tls` failures, and `db_login` `not_postgres` where the answer is none of PostgreSQL's.
pub async fn negotiate<S: Stream>(
    stream: S,
    database: &Target,
    plan: &TlsPlan,
    limit: Duration,
) -> Result<Agreement<S>, Failure> {
    if plan.mode == TlsMode::Disable {
        return Ok(Agreement { wire: Wire::Plain(stream), certificate_expires: None });
    }
    let shown = Shown::default();
    let config = client_config(plan, &shown).await?;
    match timeout(limit, ask_and_shake(stream, database, plan, config, &shown)).await {
        Ok(result) => result.map(|wire| Agreement { wire, certificate_expires: shown.expires() }),
        Err(_) => Err(Failure::new(Cause::DbTlsTimeout, format!("{database} did not agree on TLS in time"))),
    }
}

async fn ask_and_shake<S: Stream>(
    mut stream: S,
    database: &Target,
    plan: &TlsPlan,
    config: ClientConfig,
    shown: &Shown,
) -> Result<Wire<S>, Failure> {
    let ask = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_u8().await
    };
    let answer = ask.await.map_err(|error| {
        let text = format!("{database} closed the connection when it was asked for TLS: {}", plain(&error));
        Failure::new(Cause::DbTlsFailed, text)
    })?;
    match answer {
        b'S' => {}
        b'N' if plan.mode == TlsMode::Prefer => return Ok(Wire::Plain(stream)),
        b'N' => return Err(Failure::new(Cause::DbTlsRefused, format!("{database} refuses TLS"))),
        // A server that cannot even begin a session says so here (PostgreSQL 17, "Message Flow", SSL encryption).
        b'E' => return Err(refusal(stream, database).await),
        first => return Err(foreign(stream, first, database).await),
    }
    let mut connector = MakeRustlsConnect::new(config);
    let name = match database {
        Target::Tcp(at) => &at.host,
        // Nothing is verified there, and a name has to be given.
        Target::Unix(_) => "localhost",
    };
    let Ok(connect) = MakeTlsConnect::<S>::make_tls_connect(&mut connector, name);
    let shaken = connect.connect(stream).await.map(Wire::Tls);
    shaken.map_err(|error| handshake_failure(database, plan, shown, &error))
}

/// What somebody says who is not PostgreSQL.
async fn foreign<S: Stream>(mut stream: S, first: u8, database: &Target) -> Failure {
    let mut words = [first; 80];
    // What follows mostly comes along with the first byte.
    let rest = words.get_mut(1..).unwrap_or_default();
    let read = timeout(REST, stream.read(rest)).await;
    let len = read.ok().and_then(Result::ok).map_or(1, |read| read + 1);
    let words = one_line(&String::from_utf8_lossy(words.get(..len).unwrap_or_default()), words.len());
    let text = format!("{database} answers a request for TLS with \"{words}\", as PostgreSQL never does");
    Failure::new(Cause::DbLoginNotPostgres, text)
}

/// What a server says that answers a request for TLS with an error.
async fn refusal<S: Stream>(stream: S, database: &Target) -> Failure {
    let mut body = Vec::new();
    // What has come until the end is all there is.
    let _ = stream.take(MAX_ERROR as u64).read_to_end(&mut body).await;
    let field = |kind: u8| {
        let fields = body.get(4..).unwrap_or_default().split(|byte| *byte == 0);
        let text = fields.filter_map(|field| field.strip_prefix(&[kind])).next();
        text.map(|text| String::from_utf8_lossy(text).into_owned())
    };
    match (field(b'C'), field(b'M')) {
        (Some(code), Some(message)) => {
            Failure::new(login_answer(&code, &message), answered(&code, &message, None))
        }
        // Before PostgreSQL 14 it is bare text, when the server cannot start a process.
        _ => {
            let text = String::from_utf8_lossy(&body);
            Failure::new(
                Cause::DbLoginOther,
                format!("{database} answers before TLS: {}", text.trim_end_matches('\0')),
            )
        }
    }
}

/// rustls' own error within an error of a stream.
pub(super) fn of_rustls(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>())
}

fn handshake_failure(database: &Target, plan: &TlsPlan, shown: &Shown, error: &io::Error) -> Failure {
    let text = format!("the TLS handshake with {database} failed: {error}");
    let Some(Error::InvalidCertificate(invalid)) = of_rustls(error) else {
        return match of_rustls(error) {
            Some(Error::InvalidMessage(_)) => {
                let text = format!("{database} answers a request for TLS with something else than TLS");
                Failure::new(Cause::DbLoginNotPostgres, text)
            }
            Some(error) => alert(error).unwrap_or_else(|| Failure::new(Cause::DbTlsFailed, text)),
            None => Failure::new(Cause::DbTlsFailed, text),
        };
    };
    let found = |cause, what: &str| Failure::new(cause, format!("{database} shows a certificate {what}"));
    match invalid {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let names = shown.names().unwrap_or_else(|| "other names".to_owned());
            found(Cause::DbTlsNameMismatch, &format!("for {names}, not for {}", database.host()))
        }
        // An issuer that was made anew has the old name and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            unknown_issuer(database, plan, shown)
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            found(Cause::DbTlsExpired, &format!("that expired at {}", show_time(not_after.as_secs())))
        }
        CertificateError::NotValidYetContext { not_before, .. } => found(
            Cause::DbTlsExpired,
            &format!("that is good only from {} on", show_time(not_before.as_secs())),
        ),
        CertificateError::Expired | CertificateError::NotValidYet => Failure::new(Cause::DbTlsExpired, text),
        // webpki's own words, for certificates that other programs accept.
        CertificateError::Other(inner) if inner.to_string().contains("UnsupportedCertVersion") => {
            let text = format!("{database} shows an X.509 version 1 certificate, which cannot be verified");
            Failure::new(Cause::DbTlsFailed, text).with_hint(
                "issue it with a subjectAltName, which makes it version 3, or use tls.mode \"require\"",
            )
        }
        CertificateError::Other(inner) if inner.to_string().contains("CaUsedAsEndEntity") => {
            let text = format!("{database} shows the certificate of an issuer as its own");
            Failure::new(Cause::DbTlsFailed, text)
                .with_hint("name this very certificate as tls.ca, or issue another one for the server")
        }
        _ => Failure::new(Cause::DbTlsFailed, text),
    }
}

fn unknown_issuer(database: &Target, plan: &TlsPlan, shown: &Shown) -> Failure {
    let issuer = shown.issuer().unwrap_or_else(|| "an unknown authority".to_owned());
    let text = match &plan.ca {
        Some(ca) => format!("which tls.ca ({}) does not vouch for", ca.display()),
        None => "which this machine does not know".to_owned(),
    };
    let failure = Failure::new(
        Cause::DbTlsUnknownIssuer,
        format!("{database} shows a certificate of {issuer}, {text}"),
    );
    if issuer.contains("Amazon RDS") {
        return failure.with_hint(format!("fetch {RDS_BUNDLE} and name the file as tls.ca"));
    }
    match &plan.ca {
        Some(_) => {
            failure.with_hint("add the issuer's certificate to the file, or name another one as tls.ca")
        }
        None => failure,
    }
}

/// What a server means that ends TLS with an alert. In TLS 1.3 some come only when the handshake is over for us.
pub(super) fn alert(error: &Error) -> Option<Failure> {
    let Error::AlertReceived(alert) = error else { return None };
    let failure =
        Failure::new(Cause::DbTlsFailed, format!("the database ended TLS with the alert {alert:?}"));
    Some(match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => failure.with_hint(
            "it wants a client's certificate, which the probe has not: let its user log in without one",
        ),
        _ => failure,
    })
}

impl<S: Stream> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: Stream> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl<S: Stream> TlsStream for Wire<S> {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Self::Plain(_) => ChannelBinding::none(),
            Self::Tls(stream) => stream.channel_binding(),
        }
    }
}
