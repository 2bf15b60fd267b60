//! Whether a host certificate vouches for a bastion: the rules of OpenSSH's client (PROTOCOL.certkeys in its source, and
//! "CERTIFICATES" in ssh-keygen(1)).

use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use super::{HostKey, HostKeyPolicy, KnownHosts, Trusted, host_name, judge_by_lines, revoked};
use crate::failure::{Cause, Failure};
use crate::ids::HostPort;

/// A host key with an authority's word for it.
#[derive(Clone, Debug)]
pub struct HostCertificate {
    /// The key it is for.
    pub key: HostKey,
    /// Who signed it, as it says itself.
    pub authority: HostKey,
    /// Why the signature is not the authority's, if it is not.
    pub signature_fault: Option<String>,
    /// It is a host's certificate, not a user's.
    pub is_for_host: bool,
    /// When it holds, in seconds since 1970.
    pub validity: Range<u64>,
    /// The names of the hosts it is for, without ports, in lower case and literally; all hosts if there are none.
    pub principals: Vec<String>,
    /// The names of its critical options. For hosts none is defined.
    pub critical_options: Vec<String>,
}

impl HostCertificate {
    /// What is wrong with it as the certificate of `host`, as the rest of a sentence about it, and what mends that.
    fn fault(&self, host: &str, now: u64) -> Option<(String, String)> {
        const ANEW: &str = "have the bastion's host certificate signed anew";
        let time = || format!("{ANEW}, and check this machine's clock");
        if let Some(fault) = &self.signature_fault {
            let text = format!("is not signed as it should be: {fault}");
            return Some((
                text,
                format!("{ANEW}, by an authority's key of today: Ed25519, or RSA with SHA-2"),
            ));
        }
        if !self.is_for_host {
            let text = "is a user's, not a host's".to_owned();
            return Some((text, format!("{ANEW}, as a host's: `ssh-keygen -h -s`")));
        }
        if now < self.validity.start {
            return Some((format!("is not valid before {}", date(self.validity.start)), time()));
        }
        if now >= self.validity.end {
            return Some((format!("expired at {}", date(self.validity.end)), time()));
        }
        if !self.principals.is_empty() && self.principals.iter().all(|principal| principal != host) {
            let text = format!("is for {}, not for {host}", self.principals.join(" and "));
            let hint = format!(
                "write one of these names as `host`, or {ANEW} for {host}: `ssh-keygen -h -n {host}`"
            );
            return Some((text, hint));
        }
        let option = self.critical_options.first()?;
        let text = format!("has the unknown critical option \"{option}\"");
        Some((text, format!("{ANEW}, without that option")))
    }
}

/// A time of a certificate. Authorities write times that no calendar has.
fn date(seconds: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))).to_string()
}

/// As OpenSSH does it, a certificate that is worth nothing leaves the key inside, which may be known by itself. Such a
/// key is never a first one: what an authority does not vouch for may be anybody's.
pub(super) fn judge(
    known: &KnownHosts,
    bastion: &HostPort,
    certificate: &HostCertificate,
    now: u64,
) -> Result<Trusted, Failure> {
    for key in [&certificate.key, &certificate.authority] {
        if let Some(entry) = known.revocation(bastion, key) {
            return Err(revoked(bastion, key, entry));
        }
    }
    let authority = known.authorities(bastion).find(|entry| entry.key == certificate.authority);
    let fault = match authority {
        Some(_) => certificate.fault(&host_name(bastion), now),
        None => {
            let text = format!(
                "is signed by {}, and {} another authority for it",
                certificate.authority.fingerprint(),
                known.describe_files()
            );
            let hint =
                "if that authority is the right one, write its key on a @cert-authority line of known_hosts";
            Some((text, hint.to_owned()))
        }
    };
    let Some((fault, hint)) = fault else { return Ok(Trusted::Known) };
    match judge_by_lines(known, HostKeyPolicy::Strict, bastion, &certificate.key) {
        Err(failure) if failure.cause == Cause::HostKeyUnknown => Err(Failure::new(
            Cause::HostKeyCertificateInvalid,
            format!("the certificate that {bastion} shows for its {} {fault}", certificate.key),
        )
        .with_hint(hint)),
        judged => judged,
    }
}
