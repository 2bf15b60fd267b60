//! The algorithms that we offer, in order of preference.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Names, Preferred, cipher, compression, kex, mac};

use crate::host_keys::{HostKey, Trust};
use crate::ids::HostPort;

const HOST_KEY_ALGORITHMS: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// An RSA key is one key, whichever hash it signs with.
pub(super) fn key_type(algorithm: &Algorithm) -> &str {
    match algorithm {
        Algorithm::Rsa { .. } => "ssh-rsa",
        other => other.as_str(),
    }
}

/// What `legacy_algorithms` adds: SHA-1, which RFC 9142 and OpenSSH have given up.
const LEGACY_HOST_KEY: Algorithm = Algorithm::Rsa { hash: None };
const LEGACY_KEX: kex::Name = kex::DH_G14_SHA1;
const LEGACY_MACS: [mac::Name; 2] = [mac::HMAC_SHA1_ETM, mac::HMAC_SHA1];

/// Our algorithms for a bastion that is to prove itself to `trust`. The key types that known_hosts has for it come
/// first, since it may have others too; certificates are asked for where an authority may vouch for it.
pub(super) fn preferred(trust: &Trust, bastion: &HostPort, legacy: bool) -> Preferred {
    let known_key_types = trust.known_key_types(bastion);
    let mut host_keys = HOST_KEY_ALGORITHMS.to_vec();
    host_keys.extend(legacy.then_some(LEGACY_HOST_KEY));
    host_keys.sort_by_key(|algorithm| !known_key_types.contains(&key_type(algorithm)));
    let certificates = match trust.wants_certificate(bastion) {
        true => HOST_KEY_ALGORITHMS.to_vec(),
        false => Vec::new(),
    };
    Preferred { host_key_certificates: certificates.into(), ..with_host_keys(host_keys, legacy) }
}

/// Our algorithms for all of a bastion's host keys, one after the other: for each family of keys those that have it show one.
pub(super) fn by_family(legacy: bool) -> [Preferred; 3] {
    let family = |is_of_it: fn(&str) -> bool| {
        let all = HOST_KEY_ALGORITHMS.into_iter().chain(legacy.then_some(LEGACY_HOST_KEY));
        with_host_keys(all.filter(|algorithm| is_of_it(key_type(algorithm))).collect(), legacy)
    };
    [
        family(|name| name == "ssh-ed25519"),
        family(|name| name.starts_with("ecdsa-")),
        family(|name| name == "ssh-rsa"),
    ]
}

/// Whether a bastion that has a key like this one shows it when it is asked for these.
pub(super) fn asks_for(preferred: &Preferred, key: &HostKey) -> bool {
    preferred.key.iter().any(|algorithm| key_type(algorithm) == key.key_type)
}

/// Whether we can verify what such a key signs.
pub(super) fn is_host_key(algorithm: &Algorithm) -> bool {
    HOST_KEY_ALGORITHMS.iter().any(|ours| key_type(ours) == key_type(algorithm))
}

/// AES-GCM comes first since every machine of the last decade computes it in hardware. Of each kind the legacy ones come
/// last, where they are allowed.
fn with_host_keys(host_keys: Vec<Algorithm>, legacy: bool) -> Preferred {
    let mut macs: Vec<mac::Name> = Preferred::DEFAULT.mac.to_vec();
    if legacy {
        macs.extend(LEGACY_MACS);
    }
    let mut kex_list: Vec<kex::Name> = Preferred::DEFAULT.kex.to_vec();
    let nist = [kex::ECDH_SHA2_NISTP256, kex::ECDH_SHA2_NISTP384, kex::ECDH_SHA2_NISTP521];
    let after_curve25519 = kex_list.iter().position(|name| *name == kex::DH_GEX_SHA256).unwrap_or(0);
    kex_list.splice(after_curve25519..after_curve25519, nist);
    kex_list.extend(legacy.then_some(LEGACY_KEX));
    Preferred {
        kex: kex_list.into(),
        key: host_keys.into(),
        cipher: Cow::Borrowed(&[
            cipher::AES_128_GCM,
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]),
        mac: macs.into(),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// What was agreed on, in words. A cipher that authenticates by itself has no MAC beside it.
pub(super) fn describe(names: &Names) -> String {
    let by_itself =
        [cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305].contains(&names.cipher);
    let mac = if by_itself { String::new() } else { format!(", {}", names.client_mac.as_ref()) };
    format!("{}, {}, {}{mac}", names.kex.as_ref(), names.key.as_str(), names.cipher.as_ref())
}

/// Whether what a bastion offers would do with `legacy_algorithms`.
pub(super) fn would_do_with_legacy(theirs: &[String]) -> bool {
    let macs = LEGACY_MACS.iter().map(AsRef::as_ref);
    let mut legacy = macs.chain([LEGACY_HOST_KEY.as_str(), LEGACY_KEX.as_ref()]);
    legacy.any(|name: &str| theirs.iter().any(|offered| offered == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_keys::{HostKeyPolicy, KnownHosts};

    /// What a bastion with these lines in known_hosts is offered.
    fn offered(lines: &str, legacy: bool) -> Preferred {
        let mut known = KnownHosts::default();
        known.read("f", lines);
        preferred(&Trust::Files { known, policy: HostKeyPolicy::Strict }, &HostPort::new("b", 22), legacy)
    }

    #[test]
    fn known_key_types_are_asked_for_first() {
        let first = |lines: &str| offered(lines, false).key.first().cloned().unwrap();
        assert_eq!(first(""), Algorithm::Ed25519);
        assert_eq!(first("b ssh-rsa AAAA"), Algorithm::Rsa { hash: Some(HashAlg::Sha512) });
        assert_eq!(first("b ecdsa-sha2-nistp384 AAAA"), Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 });
        assert_eq!(offered("b ssh-rsa AAAA", false).key.len(), HOST_KEY_ALGORITHMS.len());
    }

    #[test]
    fn certificates_are_asked_for_where_an_authority_vouches() {
        let asked = |lines: &str| offered(lines, true).host_key_certificates.into_owned();
        assert_eq!(asked("b ssh-ed25519 AAAA"), []);
        assert_eq!(asked("@cert-authority b ssh-ed25519 AAAA"), HOST_KEY_ALGORITHMS);
    }

    #[test]
    fn every_host_key_belongs_to_one_family() {
        let families = |legacy| by_family(legacy).map(|preferred| preferred.key.len());
        assert_eq!((families(false), families(true)), ([1, 3, 2], [1, 3, 3]));
    }

    #[test]
    fn sha1_is_offered_only_where_it_is_allowed_and_none_never() {
        let names = |legacy: bool| -> Vec<String> {
            let Preferred { key, kex, mac, .. } = offered("b ssh-rsa AAAA", legacy);
            let names = kex.iter().map(AsRef::<str>::as_ref).chain(mac.iter().map(AsRef::as_ref));
            names.chain(key.iter().map(Algorithm::as_str)).map(str::to_owned).collect()
        };
        let is_legacy = |name: &String| would_do_with_legacy(std::slice::from_ref(name));
        assert!(!names(false).iter().any(|name| is_legacy(name) || name.contains("sha1") || name == "none"));
        assert_eq!(names(true).iter().filter(|name| is_legacy(name)).count(), 4);
        assert_eq!(names(true).iter().filter(|name| !is_legacy(name)).count(), names(false).len());
        let preferred = offered("b ssh-rsa AAAA", true);
        assert_eq!(
            preferred.key.iter().position(|key| *key == LEGACY_HOST_KEY),
            Some(2),
            "after those of SHA-2"
        );
        for strict in [kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT, kex::EXTENSION_SUPPORT_AS_CLIENT] {
            assert!(preferred.kex.contains(&strict), "Terrapin's remedy and rsa-sha2 need {strict:?}");
        }
    }
}
