//! Finds the keys to sign with: those of the configuration, or AWS's default chain.
//!
//! Nothing is kept. AWS's chain reads each file of keys once in its life and remembers a failure for ever, so that a new
//! one is made for each login: then keys can be renewed without a reload, and who has no database at AWS pays nothing.

use std::time::{Duration, SystemTime};

use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use tokio::time::timeout;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;

use super::refusal;
use crate::clock;
use crate::credentials::fetch as fetch_secret;
use crate::credentials::web::with_causes;
use crate::failure::{Cause, Failure};
use crate::secret::{Secret, SecretSource};
use crate::settings::plan::AwsKeysPlan;

/// How long the chain may look: a machine's metadata and a token service may each be tried several times.
const DEADLINE: Duration = Duration::from_secs(30);
/// Sign-on is for people at a browser, and would bring a second crypto provider; AWS's own command line can stand between.
const SIGN_ON_HINT: &str = "sign-on needs AWS's command line: name a profile that has `credential_process = aws configure \
                            export-credentials --profile YOURS`, or keys of another kind";

/// Fetches keys, within 30 s. The region is where AWS's token service is asked if a role is to be assumed.
///
/// # Errors
/// `missing` if there are none, or if they are no keys; else why those who give them do not.
pub(super) async fn fetch(plan: &AwsKeysPlan, region: &str) -> Result<Credentials, Failure> {
    match plan {
        AwsKeysPlan::Keys { id, secret, session_token } => {
            let id = read("access_key_id", id).await?;
            let secret = read("secret_access_key", secret).await?;
            let token = match session_token {
                Some(source) => Some(read("session_token", source).await?.expose().to_owned()),
                None => None,
            };
            Ok(Credentials::new(id.expose(), secret.expose(), token, None, "tunnelkeeper"))
        }
        // What it logs of requests holds tokens, and its failures are told by us.
        AwsKeysPlan::Chain { profile } => {
            Box::pin(search(profile.as_deref(), region)).with_subscriber(Dispatch::none()).await
        }
    }
}

async fn read(key: &str, source: &SecretSource) -> Result<Secret, Failure> {
    let missing = |text: String| Failure::new(Cause::CredentialsMissing, format!("{key}: {text}"));
    let secret = fetch_secret(source).await.map_err(missing)?;
    if secret.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(secret)
    } else {
        Err(missing(format!("{source} holds a blank or another character that no key of AWS has")))
    }
}

/// A profile that is named is meant: AWS's other tools look nowhere else then either, the Rust one would.
async fn search(profile: Option<&str>, region: &str) -> Result<Credentials, Failure> {
    let region = Region::new(region.to_owned());
    let look = async {
        match profile {
            Some(profile) => {
                let config = ProviderConfig::without_region().with_region(Some(region));
                let provider =
                    ProfileFileCredentialsProvider::builder().configure(&config).profile_name(profile);
                provider.build().provide_credentials().await
            }
            None => {
                DefaultCredentialsChain::builder().region(region).build().await.provide_credentials().await
            }
        }
    };
    let place = match profile {
        Some(profile) => format!("the profile {profile} of AWS's shared files"),
        None => "AWS's default chain".to_owned(),
    };
    match timeout(DEADLINE, look).await {
        Ok(Ok(keys)) => check_expiry(keys, &place),
        Ok(Err(error)) => Err(explain(&error, profile, &place)),
        Err(_) => Err(Failure::new(
            Cause::CredentialsUnreachable,
            format!("{place} gave no keys within {} s", DEADLINE.as_secs()),
        )),
    }
}

fn check_expiry(keys: Credentials, place: &str) -> Result<Credentials, Failure> {
    match keys.expiry().filter(|expiry| *expiry <= clock::now().wall) {
        Some(expiry) => Err(Failure::new(
            Cause::CredentialsExpired,
            format!("{place} gave keys that expired at {}", show(expiry)),
        )),
        None => Ok(keys),
    }
}

fn show(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn explain(error: &CredentialsError, profile: Option<&str>, place: &str) -> Failure {
    let text = with_causes(error);
    // What a command says on its error output is nobody's business but the command's.
    let text = text.split(". Stderr:").next().unwrap_or_default();
    match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            Failure::new(Cause::CredentialsMissing, nothing_found(profile))
        }
        CredentialsError::InvalidConfiguration(_) => {
            let failure = Failure::new(Cause::CredentialsMissing, format!("{place} cannot be used: {text}"));
            if text.contains("sso") { failure.with_hint(SIGN_ON_HINT) } else { failure }
        }
        _ => Failure::new(refusal::cause_in(text), format!("{place} gave no keys: {text}")),
    }
}

fn nothing_found(profile: Option<&str>) -> String {
    match profile {
        Some(profile) => format!("AWS's shared files have no profile {profile}, or no keys in it"),
        None => "AWS's default chain found no keys: looked in the environment, the shared files, web identity, the \
                 container's and the machine's metadata"
            .to_owned(),
    }
}
