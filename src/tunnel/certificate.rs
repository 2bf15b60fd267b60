//! The certificate that a bastion is shown: when it ends, and a warning in time. A session outlives the certificate that
//! it began with, so what counts is the file as it is now, not as the last login found it.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::warn;

use crate::ids::Name;
use crate::ssh::read_certificate_term;
use crate::stamps::Stamps;
use crate::state::CertificateTerm;

/// How often the file is looked at, while there is one.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often one that ends is warned of.
const REMIND_EVERY: Duration = Duration::from_secs(24 * 3600);

#[derive(Default)]
pub(super) struct Certificate {
    term: Option<CertificateTerm>,
    file: Option<Stamps>,
    due: Option<Instant>,
    warned: Option<Instant>,
    /// What the last login said.
    said: Option<CertificateTerm>,
}

impl Certificate {
    /// The last login has found this.
    pub(super) fn note(&mut self, said: Option<CertificateTerm>) {
        if said == self.said {
            return;
        }
        let path = said.as_ref().and_then(|term| term.file.as_deref());
        self.file = path.map(|path| Stamps::take(vec![path.to_owned()]));
        self.term = path.and_then(read_certificate_term).or_else(|| said.clone());
        self.due = self.term.as_ref().map(|_| Instant::now());
        self.said = said;
    }

    /// Its time, as last seen.
    pub(super) fn term(&self) -> Option<&CertificateTerm> {
        self.term.as_ref()
    }

    /// Looks at it and warns where that is due. Returns when to look again.
    pub(super) fn look(&mut self, bastion: &Name) -> Option<Instant> {
        let (due, now) = (self.due?, Instant::now());
        if now < due {
            return Some(due);
        }
        self.reread();
        if let Some(term) = self.term.as_ref().filter(|term| term.is_ending(SystemTime::now()))
            && self.warned.is_none_or(|at| now.duration_since(at) >= REMIND_EVERY)
        {
            self.warned = Some(now);
            warn!(
                %bastion,
                certificate = term.file.as_ref().map_or("in the agent".to_owned(), |file| file.display().to_string()),
                expires = %humantime::format_rfc3339_seconds(term.until),
                hint = "renew it: it is read anew at each login",
                "certificate expires soon, or has expired"
            );
        }
        self.due = Some(now + LOOK_EVERY);
        self.due
    }

    fn reread(&mut self) {
        let Some(before) = &self.file else { return };
        let stamps = before.retake();
        if stamps != *before {
            let path = self.term.as_ref().and_then(|term| term.file.as_ref());
            // What cannot be read is not renewed yet.
            self.term = path.and_then(|path| read_certificate_term(path)).or_else(|| self.term.take());
            self.file = Some(stamps);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use russh::keys::ssh_key::certificate::Builder;
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Writes a certificate of a year that has so many days left.
    fn write(path: &Path, days: u32) -> SystemTime {
        let mut rng = russh::keys::key::safe_rng();
        let key = PrivateKey::random(&mut rng, Algorithm::Ed25519).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let until = now + DAY.as_secs() * u64::from(days);
        let from = until - DAY.as_secs() * 365;
        let mut builder = Builder::new_with_random_nonce(&mut rng, key.public_key(), from, until).unwrap();
        builder.valid_principal("me").unwrap();
        std::fs::write(path, builder.sign(&key).unwrap().to_openssh().unwrap()).unwrap();
        SystemTime::UNIX_EPOCH + Duration::from_secs(until)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_renewed_while_a_session_lives_is_noticed() {
        let (dir, name) = (tempfile::tempdir().unwrap(), Name::parse("prod").unwrap());
        let path = dir.path().join("key-cert.pub");
        let mut certificate = Certificate::default();
        assert_eq!(certificate.look(&name), None);
        let before = write(&path, 3);
        certificate.note(read_certificate_term(&path));
        let said = certificate.term().cloned();
        assert_eq!(said.as_ref().unwrap().until, before);
        assert!(certificate.look(&name).is_some() && certificate.warned.is_some());
        let until = write(&path, 300);
        certificate.look(&name);
        assert_ne!(certificate.term().unwrap().until, until, "it is not looked at all the time");
        tokio::time::advance(LOOK_EVERY).await;
        certificate.look(&name);
        assert_eq!(certificate.term().unwrap().until, until);
        // What the session began with is of no account by now.
        certificate.note(said);
        assert_eq!(certificate.term().unwrap().until, until);
        std::fs::write(&path, "half a certif").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        certificate.look(&name);
        assert_eq!(certificate.term().unwrap().until, until);
        certificate.note(None);
        assert_eq!(certificate.term(), None);
        assert_eq!(certificate.look(&name), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_warned_of_once_a_day() {
        let name = Name::parse("prod").unwrap();
        let now = SystemTime::now();
        let mut certificate = Certificate::default();
        certificate.note(Some(CertificateTerm { file: None, from: now - 90 * DAY, until: now + 6 * DAY }));
        let mut warned = Vec::new();
        for _ in 0..3 * 24 * 60 {
            certificate.look(&name);
            warned.extend(certificate.warned.filter(|at| !warned.contains(at)));
            tokio::time::advance(LOOK_EVERY).await;
        }
        assert_eq!(warned.len(), 3);
    }
}
