//! OpenSSH user certificates (PROTOCOL.certkeys in OpenSSH's source): reads them, and tells before the bastion is asked
//! which of them it cannot accept.
//!
//! Only what is certain is judged here: the key, the kind and the times. Whom the bastion lets in with which principal
//! is its own affair.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, HashAlg};

use crate::failure::{Cause, Failure, plain};
use crate::files;
use crate::state::CertificateTerm;

/// Larger than any certificate, in bytes.
const MAX_FILE: usize = 64 << 10;

/// The name of every certificate's type ends so.
const TYPE_SUFFIX: &[u8] = b"-cert-v01@openssh.com";

/// An authority's key may not be a certificate, so there is one type's name in a certificate, and room for some more in
/// its free text. What nests deeper would overflow the stack of whoever decodes it.
const MAX_NESTING: usize = 4;

/// So much may our clock be behind that of whoever has just made the certificate; the bastion has the last word.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The end of the year 9999, in seconds since 1970: what ends later does not end.
const END_OF_TIME: u64 = 253_402_300_799;

/// Whether a public key in wire format is a certificate.
pub(super) fn is_certificate(blob: &[u8]) -> bool {
    let name = blob
        .split_first_chunk::<4>()
        .and_then(|(len, rest)| rest.get(..usize::try_from(u32::from_be_bytes(*len)).ok()?));
    name.is_some_and(|name| name.ends_with(TYPE_SUFFIX))
}

/// A certificate from its wire format.
pub(super) fn decode(blob: &[u8]) -> Option<Certificate> {
    let nesting = blob.windows(TYPE_SUFFIX.len()).filter(|window| *window == TYPE_SUFFIX).count();
    if nesting > MAX_NESTING { None } else { Certificate::from_bytes(blob).ok() }
}

/// Reads a certificate's file; nothing if there is none.
///
/// # Errors
/// `auth` `identity_unreadable`, naming the file.
pub(super) fn read(path: &Path) -> Result<Option<Certificate>, Failure> {
    let unreadable = |found: &str| {
        Failure::new(Cause::AuthIdentityUnreadable, format!("the certificate {} {found}", path.display()))
            .with_hint("check the path, and that the file is what `ssh-keygen -s` made: KEY-cert.pub")
    };
    let bytes = match files::read(path, MAX_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(unreadable(&format!("cannot be read: {}", plain(&error))).from_system(&error));
        }
    };
    let text = String::from_utf8_lossy(&bytes);
    let blob = text.split_ascii_whitespace().nth(1).and_then(|word| BASE64.decode(word.as_bytes()).ok());
    match blob.as_deref().and_then(decode) {
        Some(certificate) => Ok(Some(certificate)),
        None => Err(unreadable("is not an OpenSSH certificate")),
    }
}

/// `"id" for alice, bob`: what its authority says of a certificate.
pub(super) fn describe(certificate: &Certificate) -> String {
    let fingerprint = certificate.public_key().fingerprint(HashAlg::Sha256);
    let principals = match certificate.valid_principals() {
        [] => "anybody".to_owned(),
        principals => principals.join(", "),
    };
    format!("the certificate \"{}\" for {principals} of the key {fingerprint}", certificate.key_id())
}

/// The time for which a certificate is good, unless that is for ever.
pub(super) fn term(certificate: &Certificate, file: Option<PathBuf>) -> Option<CertificateTerm> {
    let moment = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds.min(END_OF_TIME));
    (certificate.valid_before() <= END_OF_TIME).then(|| CertificateTerm {
        file,
        from: moment(certificate.valid_after()),
        until: moment(certificate.valid_before()),
    })
}

/// Finds what no bastion can accept. `name` is the certificate's.
///
/// # Errors
/// `auth` `certificate_expired`, also for one that is not valid yet, and `identity_unreadable` for one of a host.
pub(super) fn check(certificate: &Certificate, name: &str, now: SystemTime) -> Result<(), Failure> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let date = |seconds: u64| {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds.min(END_OF_TIME)))
    };
    let (after, before) = (certificate.valid_after(), certificate.valid_before());
    let failure = |cause, found: String| Err(Failure::new(cause, format!("the certificate {name} {found}")));
    if certificate.cert_type() != CertType::User {
        let text = "is a host's: a login needs one of a user (`ssh-keygen -s` without -h)";
        failure(Cause::AuthIdentityUnreadable, text.to_owned())
    } else if before <= seconds(now) {
        let text = format!("expired at {} (it was valid from {})", date(before), date(after));
        failure(Cause::AuthCertificateExpired, text)
    } else if after > seconds(now + CLOCK_SKEW) {
        let text = format!("is not valid before {} (it is {} now)", date(after), date(seconds(now)));
        failure(Cause::AuthCertificateExpired, text)
    } else {
        Ok(())
    }
}

/// When the certificate in a file ends, read anew; nothing where that cannot be told.
#[must_use]
pub fn read_certificate_term(path: &Path) -> Option<CertificateTerm> {
    let certificate = read(path).ok().flatten()?;
    term(&certificate, Some(path.to_owned()))
}
