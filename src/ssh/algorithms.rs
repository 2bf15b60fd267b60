//! The algorithms that we offer, in order of preference.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{AlgorithmKind, Names, Preferred, cipher, compression, kex, mac};

use crate::failure::{Cause, Failure};
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

/// Why there is no agreement with a bastion, and the line of its sshd_config that mends it.
pub(super) fn nothing_in_common(
    bastion: &HostPort,
    kind: &AlgorithmKind,
    ours: &[String],
    theirs: &[String],
    legacy: bool,
) -> Failure {
    let (what, keyword) = match kind {
        AlgorithmKind::Kex => ("key exchange", "KexAlgorithms"),
        AlgorithmKind::Key => ("host key", "HostKeyAlgorithms"),
        AlgorithmKind::Cipher => ("cipher", "Ciphers"),
        AlgorithmKind::Compression => ("compression", "Compression"),
        AlgorithmKind::Mac => ("MAC", "MACs"),
    };
    let (ours, theirs) = (algorithms(ours), algorithms(theirs));
    let text = format!("no common {what} algorithm with {bastion}: it offers {}", theirs.join(","));
    // One that every sshd of the last ten years knows.
    let known = ["curve25519-sha256", "rsa-sha2-512"].into_iter().find(|name| ours.contains(name));
    let example = known.or(ours.first().copied()).unwrap_or_default();
    let mut hint = format!(
        "update sshd, or let it have one of {} by a line of its sshd_config such as `{keyword} +{example}`",
        ours.join(",")
    );
    if matches!(kind, AlgorithmKind::Key) {
        hint.push_str(", and make the host keys that it lacks: ssh-keygen -A");
    }
    if would_do_with_legacy(&theirs) && !legacy {
        hint.push_str("; until then, `legacy_algorithms = true` lets this bastion be reached");
    }
    Failure::new(Cause::KexNoCommonAlgorithm, text).with_hint(hint)
}

/// Without the words that are no algorithms and only say what else a side can do (RFC 8308 section 2.1, and OpenSSH's
/// PROTOCOL section 1.10).
fn algorithms(list: &[String]) -> Vec<&str> {
    let is_one = |name: &&str| !name.starts_with("ext-info-") && !name.starts_with("kex-strict-");
    list.iter().map(String::as_str).filter(is_one).collect()
}

/// Whether what a bastion offers would do with `legacy_algorithms`.
fn would_do_with_legacy(theirs: &[&str]) -> bool {
    let macs = LEGACY_MACS.iter().map(AsRef::as_ref);
    let mut legacy = macs.chain([LEGACY_HOST_KEY.as_str(), LEGACY_KEX.as_ref()]);
    legacy.any(|name: &str| theirs.contains(&name))
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
        let is_legacy = |name: &String| would_do_with_legacy(&[name]);
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

    #[test]
    fn the_line_that_mends_it_is_named() {
        let Preferred { kex, key, cipher, mac, .. } = offered("", false);
        fn names<T: AsRef<str>>(list: &[T]) -> Vec<String> {
            list.iter().map(|name| name.as_ref().to_owned()).collect()
        }
        let keys: Vec<&str> = key.iter().map(Algorithm::as_str).collect();
        let legacy = "`legacy_algorithms = true`";
        for (kind, ours, theirs, line, may_be_legacy) in [
            (
                AlgorithmKind::Kex,
                names(&kex),
                "diffie-hellman-group1-sha1",
                "KexAlgorithms +curve25519-sha256",
                false,
            ),
            (AlgorithmKind::Kex, names(&kex), LEGACY_KEX.as_ref(), "KexAlgorithms +curve25519-sha256", true),
            (AlgorithmKind::Cipher, names(&cipher), "aes256-cbc", "Ciphers +aes128-gcm@openssh.com", false),
            (AlgorithmKind::Mac, names(&mac), "hmac-md5", "MACs +hmac-sha2-512-etm@openssh.com", false),
            (
                AlgorithmKind::Key,
                names(&keys),
                "ssh-dss",
                "HostKeyAlgorithms +rsa-sha2-512`, and make",
                false,
            ),
            (AlgorithmKind::Key, names(&keys), "ssh-rsa", "HostKeyAlgorithms +rsa-sha2-512`, and make", true),
        ] {
            let theirs = [theirs.to_owned(), "kex-strict-s-v00@openssh.com".to_owned()];
            for allowed in [false, true] {
                let failure = nothing_in_common(&HostPort::new("b", 22), &kind, &ours, &theirs, allowed);
                assert!(
                    failure.detail().ends_with(&format!("with b:22: it offers {}", theirs[0])),
                    "{failure}"
                );
                assert!(failure.hint().contains(line), "{}", failure.hint());
                assert!(!failure.hint().contains("kex-strict") && !failure.hint().contains("ext-info"));
                assert_eq!(failure.hint().contains(legacy), may_be_legacy && !allowed, "{}", failure.hint());
            }
        }
    }
}
