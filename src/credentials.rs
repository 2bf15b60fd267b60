//! Logins of databases and secrets of bastions, fetched from where the configuration says they come from.
//!
//! A secret is fetched anew at each login, so that rotating one needs no reload. A temporary login is used until shortly
//! before it expires, and only one is asked for at a time. Nothing here is ever printed.

mod aws;
mod secrets;
mod web;

use std::time::SystemTime;

use crate::failure::{Cause, Failure};
use crate::ids::Target;
use crate::secret::Login;
use crate::settings::plan::{CredentialsPlan, LoginPlan};
pub use secrets::fetch;

/// A login, and until when the database takes it.
#[derive(Clone, Debug)]
pub struct Minted {
    /// User and password.
    pub login: Login,
    /// It does not expire if none.
    pub expires: Option<SystemTime>,
}

/// Fetches a database's login as the configuration says; `target` is where it really is, which some logins are signed for.
///
/// # Errors
/// `credentials` failures.
pub async fn mint(plan: &LoginPlan, target: &Target) -> Result<Minted, Failure> {
    let database = plan.database.as_deref();
    match &plan.credentials {
        CredentialsPlan::Password { user, password } => {
            let password = match password {
                Some(source) => Some(fetch(source).await.map_err(|text| {
                    Failure::new(Cause::CredentialsMissing, format!("the password: {text}"))
                })?),
                None => None,
            };
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
        _ => unreachable!(),
    }
}
