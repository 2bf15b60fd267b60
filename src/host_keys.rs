//! Whether a bastion's host key may be trusted: the rules of OpenSSH's known_hosts files, as pure functions.
//!
//! Trust comes either from pinned fingerprints or from known_hosts files: from a line that has the key, or from one
//! that has the authority whose certificate the bastion shows. A first key is taken for the right one only where the
//! plan says so, and nothing else is known of the bastion. A revoked key is refused whatever else is said of it.
//! [`crate::session`] reads the files, [`crate::ssh`] asks.

mod certificate;
mod fingerprint;
mod known_hosts;
mod renewal;

use std::fmt;

use crate::failure::{Cause, Failure};
use crate::ids::HostPort;
pub use certificate::HostCertificate;
pub use fingerprint::Fingerprint;
pub use known_hosts::{Entry, KnownHosts, Standing, line};
pub use renewal::Renewal;

/// A host key.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    /// Its type, such as `ssh-ed25519`; `ssh-rsa` for RSA whatever the signature's hash.
    pub key_type: String,
    /// Its wire form (RFC 4253 section 6.6).
    pub blob: Vec<u8>,
}

impl HostKey {
    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.blob)
    }

    /// How its fingerprint is had from the bastion itself, where sshd keeps it under the usual name.
    #[must_use]
    pub fn comparison(&self) -> String {
        let family = match self.key_type.as_str() {
            "ssh-rsa" => "rsa",
            name if name.starts_with("ecdsa-") => "ecdsa",
            _ => "ed25519",
        };
        format!("ssh-keygen -lf /etc/ssh/ssh_host_{family}_key.pub")
    }
}

/// `ssh-ed25519 key SHA256:...`.
impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} key {}", self.key_type, self.fingerprint())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a bastion shows of itself. That it has the private half is proved.
#[derive(Clone, Debug)]
pub enum Shown {
    /// A key.
    Key(HostKey),
    /// A key with a certificate. Bastions are asked for one only where [`Trust::wants_certificate`] says so.
    Certificate(HostCertificate),
}

impl Shown {
    /// The key, with or without a certificate.
    #[must_use]
    pub fn key(&self) -> &HostKey {
        match self {
            Self::Key(key) => key,
            Self::Certificate(certificate) => &certificate.key,
        }
    }
}

/// What becomes of a bastion of which nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKeyPolicy {
    /// Its key is refused.
    Strict,
    /// Its key is learnt, and asked for from then on.
    AcceptNew,
}

/// Why a key is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// It is known.
    Known,
    /// Nothing is known of the bastion: the key has to be learnt before anything is told to it.
    FirstSight,
}

/// Where trust in a bastion's host key comes from.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Only keys with one of these fingerprints, with or without a certificate.
    Pins(Vec<Fingerprint>),
    /// Keys that these files know or vouch for.
    Files {
        /// Their lines.
        known: KnownHosts,
        /// What if they have none for the bastion.
        policy: HostKeyPolicy,
    },
}

impl Trust {
    /// Decides whether what the bastion at `bastion` shows may be its own, at the time `now` (in seconds since 1970).
    ///
    /// # Errors
    /// `host_key` `unknown`, `changed`, `revoked` or `certificate_invalid`, naming the key's fingerprint and the line
    /// that decided.
    pub fn judge(&self, bastion: &HostPort, shown: &Shown, now: u64) -> Result<Trusted, Failure> {
        match (self, shown) {
            (Self::Pins(pins), _) => judge_by_pins(pins, bastion, shown.key()),
            (Self::Files { known, policy }, Shown::Key(key)) => judge_by_lines(known, *policy, bastion, key),
            (Self::Files { known, .. }, Shown::Certificate(certificate)) => {
                certificate::judge(known, bastion, certificate, now)
            }
        }
    }

    /// What makes a key that was trusted the bastion's own, for people.
    #[must_use]
    pub fn grounds(&self, bastion: &HostPort, key: &HostKey) -> String {
        let known = match self {
            Self::Pins(_) => return "pinned by `host_key`".to_owned(),
            Self::Files { known, .. } => known,
        };
        match (known.standing(bastion, key), known.authorities(bastion).next()) {
            (Standing::Known(entry), _) => format!("known by {}", entry.place()),
            (_, Some(authority)) => format!("vouched for by the authority of {}", authority.place()),
            _ => "seen for the first time".to_owned(),
        }
    }

    /// The key types known for this bastion, without repetition: a bastion that has several keys has to be asked
    /// for one of these, or it may show one that nobody knows. Empty where any type will do.
    #[must_use]
    pub fn known_key_types(&self, bastion: &HostPort) -> Vec<&str> {
        match self {
            Self::Pins(_) => Vec::new(),
            Self::Files { known, .. } => known.key_types(bastion),
        }
    }

    /// Whether the bastion is to be asked for a certificate: where an authority may vouch for it. A pin is for the key
    /// itself, so a certificate is of no use to it.
    #[must_use]
    pub fn wants_certificate(&self, bastion: &HostPort) -> bool {
        match self {
            Self::Pins(_) => false,
            Self::Files { known, .. } => known.authorities(bastion).next().is_some(),
        }
    }
}

/// A bastion's host as known_hosts files and certificates name it.
fn host_name(bastion: &HostPort) -> String {
    bastion.host.trim_end_matches('.').to_ascii_lowercase()
}

/// The names under which a bastion may stand in a known_hosts file, the exact one first. OpenSSH too accepts a
/// line without the port where none names it.
fn names(bastion: &HostPort) -> Vec<String> {
    let host = host_name(bastion);
    if bastion.port == 22 { vec![host] } else { vec![format!("[{host}]:{}", bastion.port), host] }
}

fn judge_by_pins(pins: &[Fingerprint], bastion: &HostPort, key: &HostKey) -> Result<Trusted, Failure> {
    if pins.contains(&key.fingerprint()) {
        return Ok(Trusted::Known);
    }
    Err(not_pinned(pins, bastion, std::slice::from_ref(key)))
}

/// The failure of a bastion that shows these keys, where others are pinned.
#[must_use]
pub fn not_pinned(pins: &[Fingerprint], bastion: &HostPort, keys: &[HostKey]) -> Failure {
    let pins: Vec<String> = pins.iter().map(ToString::to_string).collect();
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    Failure::new(
        Cause::HostKeyChanged,
        format!("{bastion} shows the {}, but `host_key` pins {}", keys.join(", the "), pins.join(" and ")),
    )
    .with_hint("if the bastion was rebuilt, pin its new key; if not, somebody may be in between")
}

fn judge_by_lines(
    known: &KnownHosts,
    policy: HostKeyPolicy,
    bastion: &HostPort,
    key: &HostKey,
) -> Result<Trusted, Failure> {
    let other_types = match known.standing(bastion, key) {
        Standing::Known(_) => return Ok(Trusted::Known),
        Standing::Revoked(entry) => return Err(revoked(bastion, key, entry)),
        Standing::Changed(entry) => {
            return Err(Failure::new(
                Cause::HostKeyChanged,
                format!("{bastion} shows the {key}, but {} has {}", entry.place(), entry.key.fingerprint()),
            )
            .with_hint(format!(
                "if the bastion was rebuilt, remove {} and store its new key with `tunnelkeeper trust`; if not, somebody may \
                 be in between",
                entry.place()
            )));
        }
        Standing::Unknown(other_types) => other_types,
    };
    let found = match known.authorities(bastion).next() {
        _ if !other_types.is_empty() => format!("only {} keys for it", other_types.join(" and ")),
        // Whoever trusts an authority for the bastion does not want to trust what comes without its word.
        Some(authority) => {
            format!("only an authority for it ({}), and no certificate came with the key", authority.place())
        }
        None if policy == HostKeyPolicy::AcceptNew => return Ok(Trusted::FirstSight),
        None => format!("no line for {}", names(bastion).first().map_or("it", String::as_str)),
    };
    let compare = format!("compare the fingerprint with the bastion's own ({})", key.comparison());
    let hint = match other_types.is_empty() {
        true => compare,
        false => format!(
            "a bastion that has lost the {} key that is known of it was rebuilt, or somebody is in between: {compare}",
            other_types.join(" and the ")
        ),
    };
    let text = format!("{bastion} shows the {key}; {} {found}", known.describe_files());
    Err(Failure::new(Cause::HostKeyUnknown, text).with_hint(hint))
}

fn revoked(bastion: &HostPort, key: &HostKey, entry: &Entry) -> Failure {
    Failure::new(Cause::HostKeyRevoked, format!("{bastion} shows the {key}, which {} revokes", entry.place()))
}

#[cfg(test)]
mod tests;
