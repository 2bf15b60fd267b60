//! Agreeing on TLS with a database: the request, the handshake, and how much the certificate must prove. It is
//! always verified against the database's own name, never against the local end of a forward.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::failure::{Cause, Failure, plain};
use crate::files;
use crate::ids::HostPort;
use crate::pgwire::SSL_REQUEST;
use crate::settings::plan::{TlsMode, TlsPlan};

/// Larger than any bundle of roots, in bytes.
const MAX_ROOTS: usize = 16 << 20;

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

/// Agrees on TLS as `plan` says.
///
/// # Errors
/// `db_tls` failures, and `db_login` `not_postgres` where the answer is none of PostgreSQL's.
pub async fn negotiate<S: Stream>(
    stream: S,
    database: &HostPort,
    plan: &TlsPlan,
    limit: Duration,
) -> Result<Wire<S>, Failure> {
    if plan.mode == TlsMode::Disable {
        return Ok(Wire::Plain(stream));
    }
    let config = client_config(plan).await?;
    match timeout(limit, ask_and_shake(stream, database, plan.mode, config)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(Cause::DbTlsTimeout, format!("{database} did not agree on TLS in time"))),
    }
}

async fn ask_and_shake<S: Stream>(
    mut stream: S,
    database: &HostPort,
    mode: TlsMode,
    config: ClientConfig,
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
        b'N' if mode == TlsMode::Prefer => return Ok(Wire::Plain(stream)),
        b'N' => return Err(Failure::new(Cause::DbTlsRefused, format!("{database} refuses TLS"))),
        other => {
            let text =
                format!("{database} answers a request for TLS with byte {other}, as PostgreSQL never does");
            return Err(Failure::new(Cause::DbLoginNotPostgres, text));
        }
    }
    let mut connector = MakeRustlsConnect::new(config);
    let Ok(connect) = MakeTlsConnect::<S>::make_tls_connect(&mut connector, &database.host);
    connect.connect(stream).await.map(Wire::Tls).map_err(|error| handshake_failure(database, &error))
}

fn handshake_failure(database: &HostPort, error: &io::Error) -> Failure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let cause = match tls {
        Some(Error::InvalidCertificate(error)) => match error {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Cause::DbTlsNameMismatch
            }
            CertificateError::UnknownIssuer => Cause::DbTlsUnknownIssuer,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Cause::DbTlsExpired,
            _ => Cause::DbTlsFailed,
        },
        _ => Cause::DbTlsFailed,
    };
    Failure::new(cause, format!("the TLS handshake with {database} failed: {error}"))
}

/// The certificates are read anew each time, so that a renewed file needs no restart.
async fn client_config(plan: &TlsPlan) -> Result<ClientConfig, Failure> {
    let (mode, ca) = (plan.mode, plan.ca.clone());
    let built = files::read_aside(move || build_config(mode, ca.as_deref())).await;
    built.and_then(|built| built).map_err(|text| {
        let failure = Failure::new(Cause::DbTlsFailed, text);
        if plan.ca.is_some() { failure.with_hint("check the file that tls.ca names") } else { failure }
    })
}

fn build_config(mode: TlsMode, ca: Option<&Path>) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    if mode == TlsMode::VerifyFull {
        return Ok(builder.with_root_certificates(roots(ca)?).with_no_client_auth());
    }
    let chain = match mode {
        TlsMode::VerifyCa => {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), Arc::clone(&provider));
            Some(verifier.build().map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    let verifier = Arc::new(AnyName { chain, provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// The roots in `ca`, or this machine's own.
fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let place = match ca {
        Some(path) => {
            let place = format!("tls.ca {}", path.display());
            let text = files::read(path, MAX_ROOTS)
                .map_err(|error| format!("{place} cannot be read: {}", plain(&error)))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| format!("{place} is not PEM: {error}"))?;
                store
                    .add(certificate)
                    .map_err(|error| format!("{place} has an unusable certificate: {error}"))?;
            }
            place
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            "this machine's certificate store".to_owned()
        }
    };
    if store.is_empty() { Err(format!("{place} has no certificate")) } else { Ok(store) }
}

/// Accepts a certificate for any name, from any issuer where there is no `chain` to verify. The server must still
/// prove that it holds the certificate's key.
#[derive(Debug)]
struct AnyName {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // webpki judges the name last, so a certificate that only has the wrong name has passed all else.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
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
