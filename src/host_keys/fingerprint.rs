//! Fingerprints of public keys, as OpenSSH spells them.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::BASE64_NOPAD;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_spelled_as_openssh_does() {
        let fingerprint = Fingerprint::of(b"");
        assert_eq!(fingerprint.to_string(), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Ok(fingerprint));
        for bad in ["", "SHA256:", "MD5:00:11", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "SHA256:AAAA"]
        {
            assert!(Fingerprint::parse(bad).is_err(), "{bad}");
        }
    }
}
