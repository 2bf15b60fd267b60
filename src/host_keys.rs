//! Whether a bastion's host key may be trusted: the rules of OpenSSH's known_hosts files, as a pure function.
//!
//! Trust comes either from pinned fingerprints or from known_hosts files, never from a first sight. A revoked key
//! is refused whatever else is said of it. Host certificates (`@cert-authority`) vouch for nothing here: such
//! lines are passed over. [`crate::ssh`] reads the files and asks.

mod known_hosts;

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::BASE64_NOPAD;

use crate::failure::{Cause, Failure};
use crate::ids::HostPort;
use known_hosts::Marker;
pub use known_hosts::{Entry, KnownHosts};

/// The SHA-256 fingerprint of a public key, in OpenSSH's spelling: `SHA256:` and 43 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a key in its wire form (RFC 4253 section 6.6).
    #[must_use]
    pub fn of(blob: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, blob).as_ref());
        Self(bytes)
    }

    /// Reads `SHA256:...`.
    ///
    /// # Errors
    /// Says in one sentence what a fingerprint looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.strip_prefix("SHA256:")
            .and_then(|base64| BASE64_NOPAD.decode(base64.trim_end_matches('=').as_bytes()).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "\"{}\" is not a fingerprint: write SHA256: and 43 characters, as ssh-keygen -lf prints it",
                    text.escape_debug()
                )
            })
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", BASE64_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A host key as the bastion shows it.
#[derive(Clone, Copy, Debug)]
pub struct OfferedKey<'a> {
    /// The key's type, such as `ssh-ed25519`; `ssh-rsa` for RSA whatever the signature's hash.
    pub key_type: &'a str,
    /// The key in its wire form.
    pub blob: &'a [u8],
}

/// Where trust in a bastion's host key comes from.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Only keys with one of these fingerprints.
    Pins(Vec<Fingerprint>),
    /// Only keys that these files know.
    Files(KnownHosts),
}

impl Trust {
    /// Decides whether `key` may be the key of the bastion at `bastion`.
    ///
    /// # Errors
    /// `host_key` `unknown`, `changed` or `revoked`, naming the key's fingerprint and the line that decided.
    pub fn judge(&self, bastion: &HostPort, key: OfferedKey<'_>) -> Result<(), Failure> {
        match self {
            Self::Pins(pins) => judge_by_pins(pins, bastion, key),
            Self::Files(known) => judge_by_files(known, bastion, key),
        }
    }

    /// The key types known for this bastion, without repetition: a bastion that has several keys has to be asked
    /// for one of these, or it may show one that nobody knows. Empty where any type will do.
    #[must_use]
    pub fn known_key_types(&self, bastion: &HostPort) -> Vec<&str> {
        let Self::Files(known) = self else { return Vec::new() };
        let mut types: Vec<&str> = Vec::new();
        for name in names(bastion) {
            for entry in known.entries_for(&name, Marker::None) {
                if !types.contains(&entry.key_type.as_str()) {
                    types.push(&entry.key_type);
                }
            }
            if !types.is_empty() {
                break;
            }
        }
        types
    }
}

/// The names under which a bastion may stand in a known_hosts file, the exact one first. OpenSSH too accepts a
/// line without the port where none names it.
fn names(bastion: &HostPort) -> Vec<String> {
    let host = bastion.host.trim_end_matches('.').to_ascii_lowercase();
    if bastion.port == 22 { vec![host] } else { vec![format!("[{host}]:{}", bastion.port), host] }
}

fn judge_by_pins(pins: &[Fingerprint], bastion: &HostPort, key: OfferedKey<'_>) -> Result<(), Failure> {
    let shown = Fingerprint::of(key.blob);
    if pins.contains(&shown) {
        return Ok(());
    }
    let pins: Vec<String> = pins.iter().map(ToString::to_string).collect();
    Err(Failure::new(
        Cause::HostKeyChanged,
        format!(
            "{bastion} shows the {} key {shown}, but `host_key` pins {}",
            key.key_type,
            pins.join(" and ")
        ),
    )
    .with_hint("if the bastion was rebuilt, pin its new key; if not, somebody may be in between"))
}

fn judge_by_files(known: &KnownHosts, bastion: &HostPort, key: OfferedKey<'_>) -> Result<(), Failure> {
    let shown = Fingerprint::of(key.blob);
    let names = names(bastion);
    let revoked = names.iter().flat_map(|name| known.entries_for(name, Marker::Revoked));
    if let Some(entry) = revoked.into_iter().find(|entry| entry.blob == key.blob) {
        return Err(Failure::new(
            Cause::HostKeyRevoked,
            format!("{bastion} shows the {} key {shown}, which {} revokes", key.key_type, entry.place()),
        ));
    }
    let mut other_types: Vec<&str> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let entries: Vec<&Entry> = known.entries_for(name, Marker::None).collect();
        if entries.iter().any(|entry| entry.blob == key.blob) {
            return Ok(());
        }
        let exact = index == 0;
        if let Some(entry) = entries.iter().find(|entry| entry.key_type == key.key_type)
            && exact
        {
            return Err(Failure::new(
                Cause::HostKeyChanged,
                format!(
                    "{bastion} shows the {} key {shown}, but {} has {}",
                    key.key_type,
                    entry.place(),
                    Fingerprint::of(&entry.blob)
                ),
            ));
        }
        other_types.extend(entries.iter().map(|entry| entry.key_type.as_str()));
    }
    let found = if other_types.is_empty() {
        format!("no line for {}", names.join(" or "))
    } else {
        other_types.sort_unstable();
        other_types.dedup();
        format!("only {} keys for it", other_types.join(" and "))
    };
    Err(Failure::new(
        Cause::HostKeyUnknown,
        format!("{bastion} shows the {} key {shown}; {} {found}", key.key_type, known.describe_files()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    const KEY_B: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIIkVG9hkskjWA8J4Fsq4AQMenqqLe6WNWIWnd7xa/7ek";
    const RSA: &str = "AAAAB3NzaC1yc2EAAAADAQABAAAAgQDyruSU9mzMkiFl7MzHIoX49EDzBiRXw2eSRHisCBHDBPMBREDN+6Ttanyv5trp5MbO\
                       Chu3l/SOMJieQSLcjIDQ2w1iV+52lq/fdmUfB92bysuzgRBxRwoJyWjeydlx2frFQqtj3aXX/mGfkE3oH+2q6x+P\
                       iSSeu+OHAvradAIpeQ==";

    fn blob(base64: &str) -> Vec<u8> {
        data_encoding::BASE64.decode(base64.as_bytes()).unwrap()
    }

    fn judge(text: &str, host: &str, port: u16, base64: &str) -> Result<(), Cause> {
        let mut known = KnownHosts::default();
        known.read("known_hosts", text);
        let key_type = if base64 == RSA { "ssh-rsa" } else { "ssh-ed25519" };
        Trust::Files(known)
            .judge(&HostPort::new(host, port), OfferedKey { key_type, blob: &blob(base64) })
            .map_err(|failure| failure.cause)
    }

    #[test]
    fn names_ports_and_patterns() {
        let unknown = Err(Cause::HostKeyUnknown);
        let changed = Err(Cause::HostKeyChanged);
        for (line, host, port, expected) in [
            (format!("bastion ssh-ed25519 {KEY_A}"), "bastion", 22, Ok(())),
            (format!("BASTION ssh-ed25519 {KEY_A} comment"), "Bastion", 22, Ok(())),
            (format!("other,bastion\tssh-ed25519  {KEY_A}"), "bastion", 22, Ok(())),
            (format!("bastion ssh-ed25519 {KEY_B}"), "bastion", 22, changed),
            (format!("bastion ssh-ed25519 {KEY_B}\nbastion ssh-ed25519 {KEY_A}"), "bastion", 22, Ok(())),
            (format!("bastion ssh-rsa {RSA}"), "bastion", 22, unknown),
            (format!("[bastion]:2222 ssh-ed25519 {KEY_A}"), "bastion", 2222, Ok(())),
            (format!("[bastion]:2222 ssh-ed25519 {KEY_A}"), "bastion", 22, unknown),
            (format!("bastion ssh-ed25519 {KEY_A}"), "bastion", 2222, Ok(())),
            (format!("bastion ssh-ed25519 {KEY_B}"), "bastion", 2222, unknown),
            (format!("*.example.com ssh-ed25519 {KEY_A}"), "b1.example.com", 22, Ok(())),
            (format!("b?.example.com ssh-ed25519 {KEY_A}"), "b12.example.com", 22, unknown),
            (format!("*.example.com,!b1.example.com ssh-ed25519 {KEY_A}"), "b1.example.com", 22, unknown),
            (format!("!b1.example.com,*.example.com ssh-ed25519 {KEY_A}"), "b2.example.com", 22, Ok(())),
            (format!("10.0.0.* ssh-ed25519 {KEY_A}"), "10.0.0.7", 22, Ok(())),
            (format!("[::1]:2222 ssh-ed25519 {KEY_A}"), "::1", 2222, Ok(())),
            (format!("bastion. ssh-ed25519 {KEY_A}\nbastion ssh-ed25519 {KEY_A}"), "bastion.", 22, Ok(())),
            (format!("# bastion ssh-ed25519 {KEY_A}"), "bastion", 22, unknown),
            (format!("@cert-authority bastion ssh-ed25519 {KEY_A}"), "bastion", 22, unknown),
            (format!("bastion ssh-ed25519 not-base64!\nbastion ssh-ed25519 {KEY_A}"), "bastion", 22, Ok(())),
        ] {
            assert_eq!(judge(&line, host, port, KEY_A), expected, "{line} for {host}:{port}");
        }
    }

    #[test]
    fn revocation_beats_trust_wherever_it_stands() {
        for line in [
            format!("@revoked * ssh-ed25519 {KEY_A}\nbastion ssh-ed25519 {KEY_A}"),
            format!("bastion ssh-ed25519 {KEY_A}\n@revoked bastion ssh-ed25519 {KEY_A}"),
            format!("[bastion]:22 ssh-ed25519 {KEY_A}\n@revoked bastion ssh-ed25519 {KEY_A}"),
        ] {
            assert_eq!(judge(&line, "bastion", 22, KEY_A), Err(Cause::HostKeyRevoked), "{line}");
        }
        let line = format!("[bastion]:2222 ssh-ed25519 {KEY_A}\n@revoked bastion ssh-ed25519 {KEY_A}");
        assert_eq!(judge(&line, "bastion", 2222, KEY_A), Err(Cause::HostKeyRevoked));
        let other = format!("@revoked bastion ssh-ed25519 {KEY_B}\nbastion ssh-ed25519 {KEY_A}");
        assert_eq!(judge(&other, "bastion", 22, KEY_A), Ok(()));
    }

    #[test]
    fn hashed_names() {
        // Printed by `ssh-keygen -H` (OpenSSH 9.2) for `bastion` and `[bastion]:2222`.
        let lines = format!(
            "|1|l4mBkPwIfE1FfhCD+BiUwb0mXWg=|REzCfK2aQr5CRFXoKbuybOfk8ms= ssh-ed25519 {KEY_A}\n\
             |1|y+7j450pLmvj9am6++t7fp2aAyE=|pAObCskSh8gOjeSjpklcdI78VaY= ssh-ed25519 {KEY_B}"
        );
        assert_eq!(judge(&lines, "bastion", 22, KEY_A), Ok(()));
        assert_eq!(judge(&lines, "bastion", 2222, KEY_B), Ok(()));
        assert_eq!(judge(&lines, "bastion", 2222, KEY_A), Err(Cause::HostKeyChanged));
        assert_eq!(judge(&lines, "bastion2", 22, KEY_A), Err(Cause::HostKeyUnknown));
    }

    #[test]
    fn pins_replace_files() {
        let key = blob(KEY_A);
        let trust = Trust::Pins(vec![Fingerprint::of(&blob(KEY_B)), Fingerprint::of(&key)]);
        let bastion = HostPort::new("bastion", 22);
        assert!(trust.judge(&bastion, OfferedKey { key_type: "ssh-ed25519", blob: &key }).is_ok());
        let refused =
            trust.judge(&bastion, OfferedKey { key_type: "ssh-rsa", blob: &blob(RSA) }).unwrap_err();
        assert_eq!(refused.cause, Cause::HostKeyChanged);
    }

    #[test]
    fn known_types_come_from_the_exact_name_first() {
        let mut known = KnownHosts::default();
        known
            .read("f", &format!("[b]:2222 ssh-rsa {RSA}\nb ssh-ed25519 {KEY_A}\n@revoked b ssh-dss {KEY_B}"));
        let trust = Trust::Files(known);
        assert_eq!(trust.known_key_types(&HostPort::new("b", 2222)), ["ssh-rsa"]);
        assert_eq!(trust.known_key_types(&HostPort::new("b", 22)), ["ssh-ed25519"]);
        assert!(trust.known_key_types(&HostPort::new("c", 22)).is_empty());
    }

    #[test]
    fn fingerprints_are_spelled_as_openssh_does() {
        let fingerprint = Fingerprint::of(b"");
        assert_eq!(fingerprint.to_string(), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Ok(fingerprint));
        for bad in ["", "SHA256:", "MD5:00:11", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "SHA256:AAAA"]
        {
            assert!(Fingerprint::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_files_never_panic(text in "\\PC*", host in "[a-z.\\[\\]:*!|]{0,20}") {
            let _ = judge(&text, &host, 22, KEY_A);
        }
    }
}
