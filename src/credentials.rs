//! Logins of databases and secrets of bastions, fetched from where the configuration says they come from.
//!
//! A secret is fetched anew at each login, so that rotating one needs no reload. A temporary login is kept by [`Logins`]
//! until shortly before it expires. Nothing here is ever printed.

mod aws;
mod databricks;
mod google;
mod logins;
mod oauth;
mod secrets;
mod web;

use std::time::SystemTime;

use crate::failure::{Cause, Failure};
use crate::ids::Target;
use crate::secret::{Login, Secret, SecretSource};
use crate::settings::plan::{CredentialsPlan, LoginPlan};
use databricks::{Lakebase, Principal};
pub use logins::{Asked, Logins};
pub use secrets::fetch;

/// A login, and until when the database takes it.
#[derive(Clone, Debug)]
pub struct Minted {
    /// User and password.
    pub login: Login,
    /// It does not expire if none.
    pub expires: Option<SystemTime>,
}

/// Makes one login as the configuration says; `target` is where the database really is, which some logins are signed for.
async fn mint(plan: &LoginPlan, target: &Target, lakebase: &Lakebase) -> Result<Minted, Failure> {
    let database = plan.database.as_deref();
    match &plan.credentials {
        CredentialsPlan::Password { user, password } => {
            let password = fetch_password(password.as_ref()).await?;
            Ok(Minted { login: Login { user: user.clone(), password }, expires: None })
        }
        CredentialsPlan::RdsIam { user, region, keys } => aws::rds::sign(user, region, keys, target).await,
        CredentialsPlan::RedshiftIam { user, cluster_id, region, keys, endpoint_url } => {
            let asker = aws::Asker { region, keys, endpoint_url: endpoint_url.as_deref() };
            aws::redshift::ask(&asker, user, cluster_id, database).await
        }
        CredentialsPlan::RedshiftServerlessIam { workgroup, region, keys, endpoint_url } => {
            let asker = aws::Asker { region, keys, endpoint_url: endpoint_url.as_deref() };
            aws::redshift_serverless::ask(&asker, workgroup, database).await
        }
        CredentialsPlan::AlloydbIam { user, credentials_file } => {
            google::mint(user, credentials_file.as_deref()).await
        }
        CredentialsPlan::LakebaseOauth { user, workspace, client_id, client_secret, resource } => {
            let principal = Principal { workspace, client_id, client_secret };
            lakebase.mint(&principal, user.as_deref(), resource).await
        }
    }
}

async fn fetch_password(source: Option<&SecretSource>) -> Result<Option<Secret>, Failure> {
    let Some(source) = source else { return Ok(None) };
    let fetched = fetch(source).await;
    let fetched =
        fetched.map_err(|text| Failure::new(Cause::CredentialsMissing, format!("the password: {text}")));
    fetched.map(Some)
}
