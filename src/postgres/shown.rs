//! The certificates that a database shows in a handshake: what a person has to know of them when they do not do, and until
//! when they are good.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// More names than a person wants to read.
const MAX_NAMES: usize = 4;

/// The chain of one handshake, once it has been shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Arc<Mutex<Option<Chain>>>);

#[derive(Debug)]
struct Chain {
    leaf: CertificateDer<'static>,
    /// The certificate nearest to the root.
    last: CertificateDer<'static>,
}

impl Shown {
    pub(super) fn set(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) {
        let chain = Chain {
            leaf: leaf.clone().into_owned(),
            last: others.last().unwrap_or(leaf).clone().into_owned(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain);
    }

    /// The last moment at which the database's own certificate is good.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        let leaf = self.parse(|chain| &chain.leaf)?;
        Some(UNIX_EPOCH + leaf.tbs_certificate.validity.not_after.to_unix_duration())
    }

    /// Whom the certificate is for, as a client looks at it: the common name does not count (RFC 9525 section 2).
    pub(super) fn names(&self) -> Option<String> {
        let leaf = self.parse(|chain| &chain.leaf)?;
        let names = leaf.tbs_certificate.get::<SubjectAltName>().ok()?.map(|(_, names)| names.0);
        let names: Vec<String> = names.iter().flatten().filter_map(name).collect();
        let shown = names.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", ");
        Some(match names.len() {
            0 => format!("nobody by a subjectAltName ({})", leaf.tbs_certificate.subject),
            many if many > MAX_NAMES => format!("{shown} and {} more", many - MAX_NAMES),
            _ => shown,
        })
    }

    /// The authority that a client would have to know.
    pub(super) fn issuer(&self) -> Option<String> {
        let issuer = self.parse(|chain| &chain.last)?.tbs_certificate.issuer.to_string();
        Some(if issuer.is_empty() {
            "an authority without a name".to_owned()
        } else {
            format!("\"{issuer}\"")
        })
    }

    fn parse(&self, which: impl Fn(&Chain) -> &CertificateDer<'static>) -> Option<Certificate> {
        let chain = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Certificate::from_der(which(chain.as_ref()?)).ok()
    }
}

fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(address) => {
            let bytes = address.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
                .ok()
                .map(|address| address.to_string())
        }
        _ => None,
    }
}

/// A moment of a certificate, for people.
pub(super) fn show_time(seconds: u64) -> String {
    // Certificates may live until the year 9999, which is as far as this can be shown.
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    humantime::format_rfc3339_seconds(time).to_string()
}
