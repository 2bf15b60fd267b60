//! Identities that become a token in a second step: those of other clouds and clusters (workload identity federation), and
//! service accounts that somebody else may act as.
//!
//! What proves another cloud's identity is read from a file or an address; programs are not run, and nothing is signed for AWS.
//!
//! Sources: <https://google.aip.dev/auth/4117>, RFC 8693,
//! <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::key_file::KeyFile;
use super::{read, unusable};
use crate::credentials::oauth::{self, Granted, Service, Token};
use crate::credentials::web;
use crate::failure::{Cause, Failure};

/// What the first step's token is for: the second step.
const CLOUD_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

#[derive(Deserialize)]
pub(super) struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    token_url: String,
    credential_source: Proof,
    service_account_impersonation_url: Option<String>,
}

/// Where that stands which proves the identity.
#[derive(Deserialize)]
struct Proof {
    /// What is signed for AWS has one; its `url` is none of a proof.
    environment_id: Option<IgnoredAny>,
    executable: Option<IgnoredAny>,
    certificate: Option<IgnoredAny>,
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Zeroizing<String>>,
    /// Plain text if none.
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    r#type: String,
    subject_token_field_name: Option<String>,
}

/// What `gcloud auth application-default login --impersonate-service-account` leaves.
#[derive(Deserialize)]
pub(super) struct Impersonated {
    source_credentials: Box<KeyFile>,
    service_account_impersonation_url: String,
    #[serde(default)]
    delegates: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Acting {
    access_token: Zeroizing<String>,
    /// RFC 3339, in UTC.
    expire_time: String,
}

impl ExternalAccount {
    pub(super) async fn token(&self, scope: &str, path: &Path) -> Result<Token, Failure> {
        match &self.service_account_impersonation_url {
            Some(address) => {
                let token = self.exchanged(CLOUD_SCOPE, path).await?;
                act(address, &[], &token, scope).await
            }
            None => self.exchanged(scope, path).await,
        }
    }

    async fn exchanged(&self, scope: &str, path: &Path) -> Result<Token, Failure> {
        oauth::must_be_private("`token_url`", &self.token_url)?;
        let proof = self.credential_source.token(path).await?;
        let body = oauth::form(&[
            ("grant_type", GRANT),
            ("audience", &self.audience),
            ("scope", scope),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token", &proof),
            ("subject_token_type", &self.subject_token_type),
        ]);
        let asked = SystemTime::now();
        let answer = web::post(&self.token_url, &[oauth::FORM], body).await?;
        let service = Service {
            name: "Google's token exchange",
            signed: false,
            secrets: &[&proof],
            hint: format!(
                "check `audience` in {}, and whom that identity pool's provider accepts",
                path.display()
            ),
        };
        Ok(service.read::<Granted>(&answer)?.token(asked))
    }
}

impl Proof {
    async fn token(&self, path: &Path) -> Result<Zeroizing<String>, Failure> {
        if self.environment_id.is_some() || self.executable.is_some() || self.certificate.is_some() {
            let text = "has a `credential_source` that is of a kind that is not supported";
            return Err(unusable(path, text).with_hint(
                "let the `credential_source` be a file or an address that gives the proof, or take a service account's key",
            ));
        }
        let (place, bytes) = match (&self.file, &self.url) {
            (Some(file), _) => {
                (file.display().to_string(), read(file).await.map_err(|text| unusable(file, &text))?)
            }
            (None, Some(url)) => {
                let headers: Vec<_> =
                    self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                let answer = web::get(url, &headers).await?;
                let server = web::server(url);
                if answer.status != 200 {
                    let text = format!("{server} answers with status {}", answer.status);
                    return Err(Failure::new(Cause::CredentialsUnreachable, text));
                }
                (server, answer.body)
            }
            (None, None) => {
                let text = "has a `credential_source` that is neither a file nor an address";
                return Err(unusable(path, text));
            }
        };
        self.taken_from(&bytes).ok_or_else(|| {
            Failure::new(Cause::CredentialsInvalidAnswer, format!("{place} has no token in it"))
                .with_hint(format!("check `credential_source` in {}", path.display()))
        })
    }

    fn taken_from(&self, bytes: &[u8]) -> Option<Zeroizing<String>> {
        let token = match &self.format {
            Some(format) if format.r#type == "json" => {
                let value: Value = serde_json::from_slice(bytes).ok()?;
                value.get(format.subject_token_field_name.as_deref()?)?.as_str()?.to_owned()
            }
            _ => std::str::from_utf8(bytes).ok()?.trim().to_owned(),
        };
        Some(Zeroizing::new(token)).filter(|token| !token.is_empty())
    }
}

impl Impersonated {
    pub(super) async fn token(&self, scope: &str, path: &Path) -> Result<Token, Failure> {
        let token = Box::pin(self.source_credentials.token(CLOUD_SCOPE, path)).await?;
        act(&self.service_account_impersonation_url, &self.delegates, &token, scope).await
    }
}

/// A token of the service account that `address` names, for whom `token` is.
async fn act(address: &str, delegates: &[String], token: &Token, scope: &str) -> Result<Token, Failure> {
    oauth::must_be_private("`service_account_impersonation_url`", address)?;
    let header = Zeroizing::new(format!("Bearer {}", token.secret.expose()));
    let body = json!({ "scope": [scope], "lifetime": "3600s", "delegates": delegates });
    let headers = [("authorization", header.as_str()), oauth::JSON];
    let answer = web::post(address, &headers, body.to_string().into_bytes()).await?;
    let account = address.rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or(address);
    let service = Service {
        name: "Google's IAM",
        signed: false,
        secrets: &[token.secret.expose()],
        hint: format!("give who asks the role iam.serviceAccountTokenCreator on {account}"),
    };
    let mut acting: Acting = service.read(&answer)?;
    Token::until(&mut acting.access_token, &acting.expire_time, service.name)
}
