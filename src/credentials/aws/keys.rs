//! Finds the keys to sign with: those of the configuration, or AWS's default chain.
//!
//! Nothing is kept. AWS's chain reads each file of keys once in its life and remembers a failure for ever, so that a new
//! one is made for each search: then keys can be renewed without a reload, and who has no database at AWS pays nothing.

use std::time::{Duration, SystemTime};

use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
#[expect(deprecated, reason = "the other name of it would need one more crate")]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::profile::{self, ProfileFileCredentialsProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use futures_util::FutureExt;
use tokio::time::timeout;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;

use super::command::Command;
use super::refusal;
use crate::clock;
use crate::credentials::fetch as fetch_secret;
use crate::credentials::web::with_causes;
use crate::failure::{Cause, Failure};
use crate::secret::{Secret, SecretSource};
use crate::settings::plan::AwsKeysPlan;

/// How long the chain may look: a machine's metadata and a token service may each be tried several times.
const DEADLINE: Duration = Duration::from_secs(30);
/// Stands in for a profile that has a command.
const OUR_PROFILE: &str = "tunnelkeeper-command";
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
    let place = match profile {
        Some(profile) => format!("the profile {profile} of AWS's shared files"),
        None => "AWS's default chain".to_owned(),
    };
    match timeout(DEADLINE, look(profile, region, &place)).await {
        Ok(keys) => keys.and_then(|keys| check_expiry(keys, &place)),
        Err(_) => Err(Failure::new(
            Cause::CredentialsUnreachable,
            format!("{place} gave no keys within {} s", DEADLINE.as_secs()),
        )),
    }
}

/// The environment comes before the shared files, and they before all else (AWS SDKs and Tools Reference Guide, "Understand
/// the credential provider chain").
async fn look(profile: Option<&str>, region: &str, place: &str) -> Result<Credentials, Failure> {
    let region = Region::new(region.to_owned());
    let is_in_environment = || {
        let found = EnvironmentVariableCredentialsProvider::new().provide_credentials().now_or_never();
        profile.is_none() && !matches!(found, Some(Err(CredentialsError::CredentialsNotLoaded(_))))
    };
    let command = if is_in_environment() { None } else { Command::find(profile).await };
    let keys = match (command, profile) {
        (Some(command), _) => {
            let keys = command.run().await?;
            match &command.role_of {
                None => return Ok(keys),
                Some(role_of) => {
                    check_expiry(keys.clone(), place)?;
                    of_profile(profile, region)
                        .profile_files(with_source(role_of, &keys))
                        .build()
                        .provide_credentials()
                        .await
                }
            }
        }
        (None, Some(_)) => of_profile(profile, region).build().provide_credentials().await,
        (None, None) => {
            DefaultCredentialsChain::builder().region(region).build().await.provide_credentials().await
        }
    };
    keys.map_err(|error| explain(&error, profile, place))
}

fn of_profile(profile: Option<&str>, region: Region) -> profile::credentials::Builder {
    let config = ProviderConfig::without_region().with_region(Some(region));
    let provider = ProfileFileCredentialsProvider::builder().configure(&config);
    match profile {
        Some(profile) => provider.profile_name(profile),
        None => provider,
    }
}

/// The shared files, where the profile `role_of` has these keys as its source.
#[expect(deprecated, reason = "the other name of it would need one more crate")]
fn with_source(role_of: &str, keys: &Credentials) -> ProfileFiles {
    let mut text = format!(
        "[{role_of}]\nsource_profile = {OUR_PROFILE}\n[{OUR_PROFILE}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key_id(),
        keys.secret_access_key()
    );
    if let Some(token) = keys.session_token() {
        text.extend(["aws_session_token = ", token, "\n"]);
    }
    let files =
        ProfileFiles::builder().include_default_config_file(true).include_default_credentials_file(true);
    files.with_contents(ProfileFileKind::Credentials, text).build()
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
    let text = &with_causes(error);
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
