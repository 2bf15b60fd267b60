//! Logins of databases and secrets of bastions, fetched from where the configuration says they come from.
//!
//! A secret is fetched anew at each login, so that rotating one needs no reload. A temporary login is used until shortly
//! before it expires, and only one is asked for at a time. Nothing here is ever printed.

mod databricks;
mod google;
mod oauth;
mod secrets;
mod web;

use std::time::SystemTime;

use crate::failure::{Cause, Failure};
use crate::ids::Target;
use crate::secret::Login;
use crate::settings::plan::CredentialsPlan;
pub use secrets::fetch;

/// A login, and until when the database takes it.
#[derive(Clone, Debug)]
pub struct Minted {
    /// User and password.
    pub login: Login,
    /// It does not expire if none.
    pub expires: Option<SystemTime>,
}

/// Fetches a database's login as the configuration says; `database` is where it really is, which some logins are signed for.
///
/// # Errors
/// `credentials` failures.
pub async fn mint(plan: &CredentialsPlan, database: &Target) -> Result<Minted, Failure> {
    let _ = database;
    match plan {
        CredentialsPlan::Password { user, password } => {
            let password = match password {
                Some(source) => Some(fetch(source).await.map_err(|text| {
                    Failure::new(Cause::CredentialsMissing, format!("the password: {text}"))
                })?),
                None => None,
            };
            Ok(Minted { login: Login { user: user.clone(), password }, expires: None })
        }
        CredentialsPlan::AlloydbIam { user, credentials_file } => {
            google::mint(user, credentials_file.as_deref()).await
        }
        CredentialsPlan::LakebaseOauth { user, workspace, client_id, client_secret, resource } => {
            let principal = databricks::Principal { workspace, client_id, client_secret };
            databricks::Lakebase::default().mint(&principal, user.as_deref(), resource).await
        }
        _ => unreachable!(),
    }
}
