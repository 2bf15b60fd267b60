//! The algorithms that we offer, in order of preference.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, cipher, compression, kex, mac};

const HOST_KEY_ALGORITHMS: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// What `legacy_algorithms` adds: SHA-1, which RFC 9142 and OpenSSH have given up.
const LEGACY_HOST_KEY: Algorithm = Algorithm::Rsa { hash: None };
const LEGACY_KEX: kex::Name = kex::DH_G14_SHA1;
const LEGACY_MACS: [mac::Name; 2] = [mac::HMAC_SHA1_ETM, mac::HMAC_SHA1];

/// Our algorithms in order of preference. AES-GCM comes first since every machine of the last decade computes it
/// in hardware; the key types that known_hosts has for this bastion come first since it may have others too. Of each
/// kind the legacy ones come last, where they are allowed.
pub(super) fn preferred(known_key_types: &[&str], legacy: bool) -> Preferred {
    let mut host_keys = HOST_KEY_ALGORITHMS.to_vec();
    let mut macs: Vec<mac::Name> = Preferred::DEFAULT.mac.to_vec();
    if legacy {
        host_keys.push(LEGACY_HOST_KEY);
        macs.extend(LEGACY_MACS);
    }
    host_keys.sort_by_key(|algorithm| {
        let key_type = match algorithm {
            Algorithm::Rsa { .. } => "ssh-rsa",
            other => other.as_str(),
        };
        !known_key_types.contains(&key_type)
    });
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

/// Whether what a bastion offers would do with `legacy_algorithms`.
pub(super) fn would_do_with_legacy(theirs: &[String]) -> bool {
    let macs = LEGACY_MACS.iter().map(AsRef::as_ref);
    let mut legacy = macs.chain([LEGACY_HOST_KEY.as_str(), LEGACY_KEX.as_ref()]);
    legacy.any(|name: &str| theirs.iter().any(|offered| offered == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_key_types_are_asked_for_first() {
        let first = |types: &[&str]| preferred(types, false).key.first().cloned().unwrap();
        assert_eq!(first(&[]), Algorithm::Ed25519);
        assert_eq!(first(&["ssh-rsa"]), Algorithm::Rsa { hash: Some(HashAlg::Sha512) });
        assert_eq!(first(&["ecdsa-sha2-nistp384"]), Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 });
        assert_eq!(preferred(&["ssh-rsa"], false).key.len(), HOST_KEY_ALGORITHMS.len());
    }

    #[test]
    fn sha1_is_offered_only_where_it_is_allowed_and_none_never() {
        let names = |legacy: bool| -> Vec<String> {
            let Preferred { key, kex, mac, .. } = preferred(&["ssh-rsa"], legacy);
            let names = kex.iter().map(AsRef::<str>::as_ref).chain(mac.iter().map(AsRef::as_ref));
            names.chain(key.iter().map(Algorithm::as_str)).map(str::to_owned).collect()
        };
        let is_legacy = |name: &String| would_do_with_legacy(std::slice::from_ref(name));
        assert!(!names(false).iter().any(|name| is_legacy(name) || name.contains("sha1") || name == "none"));
        assert_eq!(names(true).iter().filter(|name| is_legacy(name)).count(), 4);
        assert_eq!(names(true).iter().filter(|name| !is_legacy(name)).count(), names(false).len());
        let preferred = preferred(&["ssh-rsa"], true);
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
