//! Logins for Lakebase, Databricks' PostgreSQL: a token for the workspace, and with it one for the database.
//!
//! Only OAuth secrets of Databricks' own service principals; a principal of another directory cannot ask here.
//!
//! Sources: <https://docs.databricks.com/aws/en/dev-tools/auth/oauth-m2m> for the first step,
//! <https://docs.databricks.com/api/workspace/database/generatedatabasecredential> and
//! <https://docs.databricks.com/api/postgres/v1/generate-database-credential> for the second.

use std::time::SystemTime;

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::oauth::{self, Granted, Service, Token};
use super::{Minted, fetch, web};
use crate::failure::{Cause, Failure};
use crate::secret::{Secret, SecretSource};
use crate::settings::plan::LakebaseResource;

/// Who asks, and where.
pub(super) struct Principal<'a> {
    /// Without a slash at the end.
    pub workspace: &'a str,
    pub client_id: &'a SecretSource,
    pub client_secret: &'a SecretSource,
}

/// Makes logins, and keeps the workspace's token for the next one.
#[derive(Default)]
pub(super) struct Lakebase {
    kept: Mutex<Option<WorkspaceToken>>,
}

struct WorkspaceToken {
    secret: Secret,
    /// Whose it is.
    client_id: Secret,
    /// A fifth of its life is left then.
    fresh_until: Instant,
}

struct Client {
    id: Secret,
    secret: Secret,
}

/// What the two APIs give; they name the time differently.
#[derive(Deserialize)]
struct Credential {
    token: Zeroizing<String>,
    /// RFC 3339, in UTC.
    #[serde(alias = "expiration_time")]
    expire_time: String,
}

impl Lakebase {
    /// Makes a login; the client's id is the user if none is given.
    ///
    /// # Errors
    /// `credentials` failures.
    pub(super) async fn mint(
        &self,
        principal: &Principal<'_>,
        user: Option<&str>,
        resource: &LakebaseResource,
    ) -> Result<Minted, Failure> {
        oauth::must_be_private("`workspace`", principal.workspace)?;
        let client = Client {
            id: secret("client_id", principal.client_id).await?,
            secret: secret("client_secret", principal.client_secret).await?,
        };
        let asked = self.token(principal.workspace, &client, resource);
        let token = oauth::in_time("the workspace", asked).await?;
        Ok(token.login(user.unwrap_or_else(|| client.id.expose()).to_owned()))
    }

    async fn token(
        &self,
        workspace: &str,
        client: &Client,
        resource: &LakebaseResource,
    ) -> Result<Token, Failure> {
        let mut kept = self.kept.lock().await;
        if let Some(token) = kept.take_if(|token| token.is_for(client, Instant::now())) {
            let given = credential(workspace, &token.secret, resource).await;
            // It may have been revoked meanwhile; a new one tells.
            if !given.as_ref().is_err_and(|failure| is_refusal(failure.cause)) {
                *kept = Some(token);
                return given;
            }
        }
        let token = workspace_token(workspace, client).await?;
        let given = credential(workspace, &token.secret, resource).await?;
        *kept = Some(token);
        Ok(given)
    }
}

impl WorkspaceToken {
    fn is_for(&self, client: &Client, now: Instant) -> bool {
        now < self.fresh_until && self.client_id == client.id
    }
}

fn is_refusal(cause: Cause) -> bool {
    matches!(cause, Cause::CredentialsDenied | Cause::CredentialsExpired)
}

async fn secret(key: &str, source: &SecretSource) -> Result<Secret, Failure> {
    let fetched = fetch(source).await;
    fetched.map_err(|text| Failure::new(Cause::CredentialsMissing, format!("`{key}`: {text}")))
}

async fn workspace_token(workspace: &str, client: &Client) -> Result<WorkspaceToken, Failure> {
    let pair = Zeroizing::new(format!("{}:{}", client.id.expose(), client.secret.expose()));
    let basic = Zeroizing::new(BASE64.encode(pair.as_bytes()));
    let header = Zeroizing::new(format!("Basic {}", *basic));
    let form = oauth::form(&[("grant_type", "client_credentials"), ("scope", "all-apis")]);
    let url = format!("{workspace}/oidc/v1/token");
    let asked = Instant::now();
    let answer = web::post(&url, &[("authorization", &header), oauth::FORM], form).await?;
    let service = Service {
        name: "the workspace",
        signed: false,
        secrets: &[client.secret.expose(), &basic],
        hint:
            "check `client_id` and `client_secret`, and that the service principal belongs to the workspace"
                .to_owned(),
    };
    let granted: Granted = service.read(&answer)?;
    let life = granted.life();
    Ok(WorkspaceToken {
        secret: granted.token(SystemTime::now()).secret,
        client_id: client.id.clone(),
        fresh_until: asked.checked_add(life - life / 5).unwrap_or(asked),
    })
}

async fn credential(workspace: &str, token: &Secret, resource: &LakebaseResource) -> Result<Token, Failure> {
    let (path, key, body) = match resource {
        LakebaseResource::Instance(name) => (
            "/api/2.0/database/credentials",
            "instance",
            json!({ "instance_names": [name], "request_id": request_id() }),
        ),
        LakebaseResource::Endpoint(name) => {
            ("/api/2.0/postgres/credentials", "endpoint", json!({ "endpoint": name, "ttl": "3600s" }))
        }
    };
    let header = Zeroizing::new(format!("Bearer {}", token.expose()));
    let url = format!("{workspace}{path}");
    let headers = [("authorization", header.as_str()), oauth::JSON];
    let answer = web::post(&url, &headers, body.to_string().into_bytes()).await?;
    let service = Service {
        name: "the workspace",
        signed: false,
        secrets: &[token.expose()],
        hint: format!("check `{key}`, and that the service principal may use it"),
    };
    let mut given: Credential = service.read(&answer)?;
    Token::until(&mut given.token, &given.expire_time, service.name)
}

/// A UUID of version 4 (RFC 9562, section 5.4): the service gives the same answer to the same one.
fn request_id() -> String {
    let random = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (4 << 76) | (2 << 62);
    let hex = format!("{random:032x}");
    let (first, rest) = hex.split_at(8);
    let (second, rest) = rest.split_at(4);
    let (third, rest) = rest.split_at(4);
    let (fourth, fifth) = rest.split_at(4);
    format!("{first}-{second}-{third}-{fourth}-{fifth}")
}

#[cfg(test)]
mod tests;
