//! How much a database's certificate must prove. It is always verified against the database's own name, never against
//! the local end of a forward.
//!
//! Self-signed certificates are common in databases and seldom made as RFC 5280 wants them. libpq connects to them, so
//! the probe does too, as far as its mode lets it.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::time::Time;

use super::shown::Shown;
use crate::failure::{Cause, Failure, plain};
use crate::files;
use crate::settings::plan::{TlsMode, TlsPlan};

/// Larger than any bundle of roots, in bytes.
const MAX_ROOTS: usize = 16 << 20;

/// The certificates are read anew each time, so that a renewed file needs no restart. What the database shows of its own is
/// put into `shown`.
pub(super) async fn client_config(plan: &TlsPlan, shown: &Shown) -> Result<ClientConfig, Failure> {
    let (mode, ca, shown) = (plan.mode, plan.ca.clone(), shown.clone());
    let built = files::read_aside(move || build_config(mode, ca.as_deref(), shown)).await;
    built.and_then(|built| built).map_err(|text| {
        let failure = Failure::new(Cause::DbTlsFailed, text);
        if plan.ca.is_some() { failure.with_hint("check the file that tls.ca names") } else { failure }
    })
}

fn build_config(mode: TlsMode, ca: Option<&Path>, shown: Shown) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let issuer = match mode {
        TlsMode::VerifyCa | TlsMode::VerifyFull => {
            let Roots { store, named } = roots(ca)?;
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
            Some(Issuer { chain: chain.build().map_err(|error| error.to_string())?, named })
        }
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => None,
    };
    let verifier = Arc::new(Verifier { issuer, name: mode == TlsMode::VerifyFull, provider, shown });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

struct Roots {
    store: RootCertStore,
    /// Those of the file that the configuration names.
    named: Vec<CertificateDer<'static>>,
}

/// The roots in `ca`, or this machine's own.
fn roots(ca: Option<&Path>) -> Result<Roots, String> {
    let (mut store, mut named) = (RootCertStore::empty(), Vec::new());
    let place = match ca {
        Some(path) => {
            let place = format!("tls.ca {}", path.display());
            let text = files::read(path, MAX_ROOTS)
                .map_err(|error| format!("{place} cannot be read: {}", plain(&error)))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| format!("{place} is not PEM: {error}"))?;
                store
                    .add(certificate.clone())
                    .map_err(|error| format!("{place} has an unusable certificate: {error}"))?;
                named.push(certificate);
            }
            place
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            "this machine's certificate store".to_owned()
        }
    };
    if store.is_empty() { Err(format!("{place} has no certificate")) } else { Ok(Roots { store, named }) }
}

/// Judges the certificate of a database. The server must in any case prove that it holds the certificate's key.
#[derive(Debug)]
struct Verifier {
    /// Who must have issued it; nobody where it proves nothing.
    issuer: Option<Issuer>,
    /// It must be for the database's name.
    name: bool,
    provider: Arc<CryptoProvider>,
    shown: Shown,
}

#[derive(Debug)]
struct Issuer {
    chain: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        self.shown.set(end_entity, intermediates);
        let Some(Issuer { chain, named }) = &self.issuer else { return Ok(ServerCertVerified::assertion()) };
        if named.iter().any(|root| root == end_entity) {
            return self.verify_root(end_entity, server_name, now);
        }
        // webpki judges the name last, so a certificate that only has the wrong name has passed all else.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) if !self.name => {
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
        let algorithms = &self.provider.signature_verification_algorithms;
        if self.issuer.is_some() {
            return verify_tls13_signature(message, certificate, signature, algorithms);
        }
        // Where the certificate proves nothing its form does not matter, and its key is enough.
        let key =
            parse(certificate)?.tbs_certificate.subject_public_key_info.to_der().map_err(bad_encoding)?;
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key),
            signature,
            algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Verifier {
    /// The server shows a certificate that the configuration itself trusts: there is no chain, and webpki would refuse
    /// the certificate of an issuer.
    fn verify_root(
        &self,
        certificate: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let validity = parse(certificate)?.tbs_certificate.validity;
        let at = |time: Time| UnixTime::since_unix_epoch(time.to_unix_duration());
        let (not_before, not_after) = (at(validity.not_before), at(validity.not_after));
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        if self.name {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate).map_err(bad_encoding)
}

fn bad_encoding(_: x509_cert::der::Error) -> Error {
    CertificateError::BadEncoding.into()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SigningKey};
    use tokio::io::{AsyncReadExt, duplex};
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
    use tokio_rustls::rustls::sign::CertifiedKey;
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    use x509_cert::Version;
    use x509_cert::der::asn1::BitString;

    use super::*;

    /// Shows this certificate to everybody; rustls by itself would refuse to show some of them.
    #[derive(Debug)]
    struct Show(Arc<CertifiedKey>);

    impl ResolvesServerCert for Show {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn self_signed(is_ca: IsCa) -> (KeyPair, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["db.internal".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).unwrap();
        (key, certificate.into())
    }

    /// The same certificate without extensions, as version 1 has it.
    fn version_1(key: &KeyPair, certificate: &CertificateDer<'_>) -> CertificateDer<'static> {
        let mut certificate = Certificate::from_der(certificate).unwrap();
        certificate.tbs_certificate.version = Version::V1;
        certificate.tbs_certificate.extensions = None;
        let signature = key.sign(&certificate.tbs_certificate.to_der().unwrap()).unwrap();
        certificate.signature = BitString::from_bytes(&signature).unwrap();
        certificate.to_der().unwrap().into()
    }

    async fn shake(
        (mode, name): (TlsMode, &str),
        ca: Option<&CertificateDer<'_>>,
        key: &KeyPair,
        certificate: &CertificateDer<'static>,
    ) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        if let Some(ca) = ca {
            let body = data_encoding::BASE64.encode(ca);
            let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
            std::fs::write(file.path(), text).unwrap();
        }
        let client = build_config(mode, ca.map(|_| file.path()), Shown::default())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let signing =
            provider.key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        let shown = CertifiedKey::new(vec![certificate.clone()], signing.unwrap());
        let server =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_cert_resolver(Arc::new(Show(Arc::new(shown))));
        let (near, far) = duplex(1 << 16);
        tokio::spawn(async move {
            if let Ok(mut tls) = TlsAcceptor::from(Arc::new(server)).accept(far).await {
                let _ = tls.read_u8().await;
            }
        });
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let shaken = TlsConnector::from(Arc::new(client)).connect(name, near).await;
        shaken.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn certificates_that_libpq_accepts() {
        use TlsMode::{Prefer, Require, VerifyCa, VerifyFull};
        let (key, plain) = self_signed(IsCa::NoCa);
        let (ca_key, ca) = self_signed(IsCa::Ca(BasicConstraints::Unconstrained));
        let old = version_1(&key, &plain);
        let (right, wrong) = ("db.internal", "other.internal");
        for (label, mode, name, roots, key, shown, expected) in [
            ("v1", Prefer, wrong, None, &key, &old, Ok(())),
            ("v1", Require, wrong, None, &key, &old, Ok(())),
            ("v1", VerifyCa, right, Some(&ca), &key, &old, Err("UnsupportedCertVersion")),
            ("self-signed CA", VerifyFull, right, Some(&ca), &ca_key, &ca, Ok(())),
            ("self-signed CA", VerifyFull, wrong, Some(&ca), &ca_key, &ca, Err("not valid for name")),
            ("self-signed CA", VerifyCa, wrong, Some(&ca), &ca_key, &ca, Ok(())),
            ("self-signed", VerifyFull, right, Some(&plain), &key, &plain, Ok(())),
            ("a dot at the end", VerifyFull, "db.internal.", Some(&plain), &key, &plain, Ok(())),
            // Its issuer has the name of the root, and another key.
            ("self-signed", VerifyFull, right, Some(&ca), &key, &plain, Err("BadSignature")),
            ("somebody else's key", Require, right, None, &ca_key, &plain, Err("BadSignature")),
            ("somebody else's key", Prefer, right, None, &ca_key, &old, Err("BadSignature")),
            ("somebody else's key", VerifyFull, right, Some(&ca), &key, &ca, Err("BadSignature")),
        ] {
            let found = shake((mode, name), roots, key, shown).await;
            match expected {
                Ok(()) => assert_eq!(found, Ok(()), "{label} {mode:?} {name}"),
                Err(words) => {
                    let error = found.expect_err(label);
                    assert!(error.contains(words), "{label} {mode:?} {name}: {error}");
                }
            }
        }
    }
}
