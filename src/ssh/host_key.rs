//! A bastion's host keys: the one that it shows, those that it announces, and all that it has, for those who only look.

use std::sync::Arc;

use russh::Preferred;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};
use tokio::sync::watch;
use tokio::time::Instant;

use super::algorithms::{by_family, is_host_key, key_type};
use super::channel::Connection;
use super::connect::meet;
use super::gate::{BufferMemory, Gate};
use super::guard::Scrutiny;
use crate::failure::{Cause, Failure};
use crate::host_keys::{HostCertificate, HostKey, Shown, Trusted};
use crate::milestones::Milestones;
use crate::settings::plan::BastionPlan;

/// The most keys that are taken note of where a bastion announces its own, and the largest one in bytes (RSA has 2 KiB
/// with 16384 bits). No sshd comes near either.
const MAX_ANNOUNCED: usize = 32;
const MAX_KEY: usize = 4 << 10;

/// A host key that a bastion has shown and proved to have.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The key.
    pub key: HostKey,
    /// Why it is trusted.
    pub trusted: Trusted,
}

/// Where the host keys arrive that a bastion announces after the login (`hostkeys-00@openssh.com` in OpenSSH's PROTOCOL).
#[derive(Clone)]
pub(super) struct Announced(pub(super) watch::Receiver<Option<Vec<HostKey>>>);

impl Announced {
    /// Waits for them, until the session's end.
    pub(super) async fn wait(mut self) -> Option<Vec<HostKey>> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// The announced keys that we can verify. None if there are more, or larger ones, than any bastion has: part of them
/// would be no announcement.
pub(super) fn announced(keys: &[PublicKey]) -> Vec<HostKey> {
    let mut usable: Vec<HostKey> = Vec::new();
    for key in keys.iter().filter(|key| is_host_key(&key.algorithm())) {
        match host_key(key.key_data()) {
            Ok(key) if key.blob.len() <= MAX_KEY && usable.len() < MAX_ANNOUNCED => {
                if !usable.contains(&key) {
                    usable.push(key);
                }
            }
            _ => return Vec::new(),
        }
    }
    usable
}

fn host_key(key: &KeyData) -> Result<HostKey, russh::keys::ssh_key::Error> {
    let blob = PublicKey::from(key.clone()).to_bytes()?;
    Ok(HostKey { key_type: key_type(&key.algorithm()).to_owned(), blob })
}

/// What russh says a bastion shows.
pub(super) fn read(shown: &PublicKeyOrCertificate) -> Result<Shown, russh::keys::ssh_key::Error> {
    match shown {
        PublicKeyOrCertificate::PublicKey { key, .. } => host_key(key.key_data()).map(Shown::Key),
        PublicKeyOrCertificate::Certificate(certificate) => {
            read_certificate(certificate).map(Shown::Certificate)
        }
    }
}

fn read_certificate(certificate: &Certificate) -> Result<HostCertificate, russh::keys::ssh_key::Error> {
    Ok(HostCertificate {
        key: host_key(certificate.public_key())?,
        authority: host_key(certificate.signature_key())?,
        signature_fault: signature_fault(certificate),
        is_for_host: certificate.cert_type() == CertType::Host,
        validity: certificate.valid_after()..certificate.valid_before(),
        principals: certificate.valid_principals().to_vec(),
        critical_options: certificate.critical_options().keys().cloned().collect(),
    })
}

fn signature_fault(certificate: &Certificate) -> Option<String> {
    match certificate.signature().algorithm() {
        // As OpenSSH's CASignatureAlgorithms.
        Algorithm::Rsa { hash: None } | Algorithm::Dsa => {
            return Some("SHA-1 proves nothing any more".to_owned());
        }
        _ => {}
    }
    // Which of the authorities may sign, and when, is judged elsewhere: here it is only whether this one has.
    let itself = certificate.signature_key().fingerprint(HashAlg::Sha256);
    let signed = certificate.validate_at(certificate.valid_after(), [&itself]);
    signed.err().map(|_| "the signature is not that authority's".to_owned())
}

/// Fetches the host keys of a bastion without a login, through its jump where it has one: one of each family (Ed25519,
/// ECDSA, RSA) that it has, in this order, each over a connection of its own. It has proved to have them; whether it is
/// the bastion nobody has judged. `connect_timeout` bounds each connection.
///
/// # Errors
/// `dns`, `tcp`, `banner` and `kex` failures, and `channel` failures of the jump, where no key could be had.
pub async fn look_at_host_keys(
    plan: &BastionPlan,
    through: Option<&Connection>,
) -> Result<Vec<HostKey>, Failure> {
    let mut found = Vec::new();
    let mut first_failure = None;
    for preferred in by_family(plan.legacy_algorithms) {
        match look(plan, through, preferred).await {
            Ok(key) => found.push(key),
            Err(failure) => {
                let lacks_it = failure.cause == Cause::KexNoCommonAlgorithm;
                first_failure.get_or_insert(failure);
                // What goes wrong for another reason does so for all.
                if !lacks_it {
                    break;
                }
            }
        }
    }
    match first_failure {
        Some(failure) if found.is_empty() => Err(failure),
        _ => Ok(found),
    }
}

async fn look(
    plan: &BastionPlan,
    through: Option<&Connection>,
    preferred: Preferred,
) -> Result<HostKey, Failure> {
    let gate = Gate::new(&BufferMemory::new(usize::MAX), Arc::default());
    let deadline = Instant::now() + plan.connect_timeout;
    let nobody = Milestones::default();
    let met = meet(plan, through, preferred, Scrutiny::Look, gate, deadline, &nobody).await;
    met.map(|connected| connected.seen.key)
}

#[cfg(test)]
mod tests {
    use russh::keys::PrivateKey;
    use russh::keys::key::safe_rng;

    use super::*;

    #[test]
    fn a_flood_of_announced_keys_is_no_announcement() {
        let key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap().public_key().clone();
        let few: Vec<PublicKey> = (0..MAX_ANNOUNCED).map(|_| key()).collect();
        assert_eq!(announced(&few).len(), MAX_ANNOUNCED);
        assert_eq!(announced(&[&few[..], &few[..1]].concat()).len(), 0);
        assert_eq!(announced(&[few[0].clone(), few[1].clone(), few[0].clone()]).len(), 2);
    }
}
