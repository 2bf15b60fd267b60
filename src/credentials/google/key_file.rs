//! Google's files of credentials: what kinds there are, and how each comes to a token.
//!
//! Of other clouds' identities (`external_account`) those are understood that stand in a file or are had from an address.
//! No program that a file names is run.
//!
//! Source: <https://google.aip.dev/auth/4110> and the pages it names.

use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::federation::{ExternalAccount, Impersonated};
use super::service_account::ServiceAccount;
use crate::credentials::oauth::{self, Granted, Service, Token};
use crate::credentials::web;
use crate::failure::Failure;

const KINDS: &str = "service_account, authorized_user, external_account, impersonated_service_account";

/// Where tokens are given, unless a file names another place.
pub(super) const TOKEN_ADDRESS: &str = "https://oauth2.googleapis.com/token";

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum KeyFile {
    ServiceAccount(ServiceAccount),
    AuthorizedUser(AuthorizedUser),
    ExternalAccount(ExternalAccount),
    ImpersonatedServiceAccount(Impersonated),
}

/// What `gcloud auth application-default login` leaves.
#[derive(Deserialize)]
pub(super) struct AuthorizedUser {
    client_id: String,
    client_secret: Zeroizing<String>,
    refresh_token: Zeroizing<String>,
    #[serde(default = "token_address")]
    token_uri: String,
}

pub(super) fn token_address() -> String {
    TOKEN_ADDRESS.to_owned()
}

impl KeyFile {
    /// One sentence says what is wrong with it, and repeats nothing of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| {
            let text = error.to_string();
            // These name a field; all others could repeat what stands in it.
            match text.split(" at line ").next().and_then(|text| text.strip_prefix("missing ")) {
                Some(field) => format!("lacks the {field}"),
                None if text.starts_with("unknown variant") => format!("is of none of the types {KINDS}"),
                None => "is not as Google writes files of credentials".to_owned(),
            }
        })
    }

    /// `path` is where it stands.
    pub(super) async fn token(&self, scope: &str, path: &Path) -> Result<Token, Failure> {
        match self {
            Self::ServiceAccount(account) => account.token(scope, path).await,
            Self::AuthorizedUser(user) => user.token(path).await,
            Self::ExternalAccount(account) => account.token(scope, path).await,
            Self::ImpersonatedServiceAccount(account) => account.token(scope, path).await,
        }
    }
}

impl AuthorizedUser {
    /// RFC 6749, section 6. No scope is asked for: Google refuses one that the person did not name at the login, where
    /// gcloud asks for `cloud-platform` and not for AlloyDB's, which is within it.
    async fn token(&self, path: &Path) -> Result<Token, Failure> {
        oauth::must_be_private("`token_uri`", &self.token_uri)?;
        let body = oauth::form(&[
            ("grant_type", "refresh_token"),
            ("client_id", &self.client_id),
            ("client_secret", &self.client_secret),
            ("refresh_token", &self.refresh_token),
        ]);
        let asked = SystemTime::now();
        let answer = web::post(&self.token_uri, &[oauth::FORM], body).await?;
        let service = Service {
            name: "Google's token endpoint",
            signed: false,
            secrets: &[&self.client_secret, &self.refresh_token],
            hint: format!("run `gcloud auth application-default login` again: it writes {}", path.display()),
        };
        Ok(service.read::<Granted>(&answer)?.token(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_named_and_what_stands_in_it_is_not() {
        for (text, expected) in [
            ("hunter2", "is not as Google writes"),
            ("\"hunter2\"", "is not as Google writes"),
            (r#"{"private_key":"hunter2"}"#, "lacks the field `type`"),
            (r#"{"type":"service_account","private_key":"hunter2"}"#, "lacks the field `client_email`"),
            (r#"{"type":"service_account","client_email":["hunter2"]}"#, "is not as Google writes"),
            (r#"{"type":"gdch_service_account","private_key":"hunter2"}"#, "is of none of the types"),
        ] {
            let found = KeyFile::parse(text.as_bytes()).err().unwrap();
            assert!(found.contains(expected), "{text}: {found}");
            assert!(!found.contains("hunter2"), "{text}: {found}");
        }
    }
}
