//! A service account's key: signs who asks, and exchanges that for a token.
//!
//! Source: <https://developers.google.com/identity/protocols/oauth2/service-account#httprest>, RFC 7523.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::json;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use super::key_file::token_address;
use crate::credentials::oauth::{self, Granted, Service, Token};
use crate::credentials::web;
use crate::failure::{Cause, Failure};

/// The longest life that Google accepts for what is signed, in seconds.
const LIFE: u64 = 3600;

/// How far behind Google's clock may be, in seconds.
const CLOCK_MARGIN: u64 = 10;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

#[derive(Deserialize)]
pub(super) struct ServiceAccount {
    client_email: String,
    /// PKCS #8, as PEM.
    private_key: Zeroizing<String>,
    private_key_id: Option<String>,
    #[serde(default = "token_address")]
    token_uri: String,
}

impl ServiceAccount {
    pub(super) async fn token(&self, scope: &str, path: &Path) -> Result<Token, Failure> {
        oauth::must_be_private("`token_uri`", &self.token_uri)?;
        let asked = SystemTime::now();
        let assertion = self.assertion(scope, asked).ok_or_else(|| {
            let text = format!("`private_key` in {} is no RSA key in PKCS #8", path.display());
            Failure::new(Cause::CredentialsMissing, text)
                .with_hint("let Google make a new key of the service account, of type JSON")
        })?;
        let body = oauth::form(&[("grant_type", GRANT), ("assertion", &assertion)]);
        let answer = web::post(&self.token_uri, &[oauth::FORM], body).await?;
        let service = Service {
            name: "Google's token endpoint",
            signed: true,
            secrets: &[&assertion],
            hint: format!(
                "check that {} and its key in {} (`credentials_file`) still exist and are enabled",
                self.client_email,
                path.display()
            ),
        };
        Ok(service.read::<Granted>(&answer)?.token(asked))
    }

    /// A JSON Web Token (RFC 7519), signed with RS256 (RFC 7518, section 3.3).
    fn assertion(&self, scope: &str, now: SystemTime) -> Option<Zeroizing<String>> {
        let issued = now.duration_since(UNIX_EPOCH).ok()?.as_secs().saturating_sub(CLOCK_MARGIN);
        let mut header = json!({ "alg": "RS256", "typ": "JWT" });
        if let (Some(header), Some(id)) = (header.as_object_mut(), &self.private_key_id) {
            header.insert("kid".to_owned(), json!(id));
        }
        let claims = json!({
            "iss": self.client_email,
            "scope": scope,
            "aud": self.token_uri,
            "iat": issued,
            "exp": issued + LIFE,
        });
        let encode = |part: String| BASE64URL_NOPAD.encode(part.as_bytes());
        let mut token =
            Zeroizing::new(format!("{}.{}", encode(header.to_string()), encode(claims.to_string())));
        let signature = self.sign(token.as_bytes())?;
        token.push('.');
        token.push_str(&BASE64URL_NOPAD.encode(&signature));
        Some(token)
    }

    fn sign(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(self.private_key.as_bytes()).ok()?;
        let key = KeyPair::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        let key = key.ok()?;
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).ok()?;
        Some(signature)
    }
}
