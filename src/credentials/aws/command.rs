//! Runs the `credential_process` of a profile, which AWS's own crate would start and never end.
//!
//! It finds the command where AWS's chain would, as the selected profile's own or as the source of the role that the
//! profile assumes. It looks for no other kind of keys, and shows nothing of what the command says.
//!
//! Sources: AWS SDKs and Tools Reference Guide, "Process credential provider" and "Assume role credential provider".

use std::time::{Duration, SystemTime};

use aws_config::profile::{self, Profile, ProfileSet};
use aws_credential_types::Credentials;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::credentials::secrets;
use crate::failure::{Cause, Failure};

/// What comes before a command where a profile has both.
const BEFORE: [&str; 8] = [
    "credential_source",
    "web_identity_token_file",
    "sso_session",
    "sso_start_url",
    "sso_region",
    "sso_account_id",
    "sso_role_name",
    "login_session",
];
/// What comes before a command in the profile that another one names as its source.
const STATIC: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
/// More profiles than any sane chain of roles has.
const MAX_SOURCES: usize = 16;

/// A command that gives keys.
pub(super) struct Command {
    /// A line for the shell.
    line: Zeroizing<String>,
    /// Whose it is.
    profile: String,
    /// The profile that assumes a role with these keys, if they are not the ones to sign with.
    pub role_of: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    version: u32,
    access_key_id: Zeroizing<String>,
    secret_access_key: Zeroizing<String>,
    session_token: Option<Zeroizing<String>>,
    expiration: Option<String>,
}

impl Command {
    /// Finds the command of the profile of this name, or of the one that AWS's variables select. None too if the shared
    /// files cannot be read: AWS's chain knows better what to say of them.
    pub(super) async fn find(profile: Option<&str>) -> Option<Self> {
        let name = profile.map(|name| name.to_owned().into());
        // The defaults are the real files and the real environment.
        let set = profile::load(&Default::default(), &Default::default(), &Default::default(), name).await;
        Self::within(&set.ok()?)
    }

    fn within(set: &ProfileSet) -> Option<Self> {
        let has = |profile: &Profile, keys: &[&str]| keys.iter().any(|key| profile.get(key).is_some());
        let mut profile = set.get_profile(set.selected_profile())?;
        let mut role_of = None;
        for _ in 0..MAX_SOURCES {
            if has(profile, &BEFORE) || role_of.is_some() && has(profile, &STATIC) {
                return None;
            }
            let source = match profile.get("role_arn") {
                Some(_) => Some(profile.get("source_profile")?),
                None => None,
            };
            role_of = source.map(|_| profile.name().to_owned()).or(role_of);
            match source.filter(|source| *source != profile.name()) {
                Some(source) => profile = set.get_profile(source)?,
                None => {
                    let line = Zeroizing::new(profile.get("credential_process")?.to_owned());
                    return Some(Self { line, profile: profile.name().to_owned(), role_of });
                }
            }
        }
        None
    }

    /// Runs it through the shell, within 10 s; it is ended with all that it started if it takes longer, or if nobody waits.
    ///
    /// # Errors
    /// `missing` if it fails; `invalid_answer` if it does not give keys.
    pub(super) async fn run(&self) -> Result<Credentials, Failure> {
        let by = format!("`credential_process` of the profile {} of AWS's shared files", self.profile);
        let argv = ["sh".to_owned(), "-c".to_owned(), self.line.to_string()];
        let output = secrets::run(&argv).await;
        let output =
            output.map_err(|found| Failure::new(Cause::CredentialsMissing, format!("{by} {found}")))?;
        read(&output).ok_or_else(|| {
            Failure::new(
                Cause::CredentialsInvalidAnswer,
                format!("{by} does not print keys as AWS wants them"),
            )
            .with_hint("it has to print JSON with `Version` 1, `AccessKeyId` and `SecretAccessKey`")
        })
    }
}

fn read(output: &str) -> Option<Credentials> {
    let answer: Answer = serde_json::from_str(output).ok()?;
    let token = answer.session_token.as_ref().filter(|token| !token.is_empty());
    let expires = match &answer.expiration {
        Some(time) => Some(time_of(time)?),
        None => None,
    };
    let is_right = answer.version == 1
        && is_key(&answer.access_key_id)
        && is_key(&answer.secret_access_key)
        && token.is_none_or(|token| is_key(token));
    let token = token.map(|token| token.to_string());
    is_right.then(|| {
        Credentials::new(
            answer.access_key_id.as_str(),
            answer.secret_access_key.as_str(),
            token,
            expires,
            "tunnelkeeper",
        )
    })
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// RFC 3339 with any offset: AWS's own command line writes `+00:00`.
fn time_of(text: &str) -> Option<SystemTime> {
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, offset) = offset.split_at_checked(1)?;
    if !matches!(sign, "+" | "-") {
        return humantime::parse_rfc3339(text).ok();
    }
    let (hours, minutes) = offset.split_once(':')?;
    let offset = Duration::from_secs(
        u64::from(hours.parse::<u8>().ok()?) * 3600 + u64::from(minutes.parse::<u8>().ok()?) * 60,
    );
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    if sign == "+" { local.checked_sub(offset) } else { local.checked_add(offset) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_nothing_else_is() {
        let keys = r#"{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"s","SessionToken":"t","Expiration":"2026-01-02T05:04:05+02:00"}"#;
        let read_keys = read(keys).unwrap();
        assert_eq!((read_keys.access_key_id(), read_keys.session_token()), ("AK", Some("t")));
        assert_eq!(read_keys.expiry(), humantime::parse_rfc3339("2026-01-02T03:04:05Z").ok());
        assert_eq!(read(&keys.replace("+02:00", "Z")).unwrap().expiry(), time_of("2026-01-02T05:04:05Z"));
        assert!(
            read(r#"{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"s"}"#).unwrap().expiry().is_none()
        );
        for wrong in [
            "",
            "[]",
            &keys.replace(":1,", ":2,"),
            &keys.replace("AK", ""),
            &keys.replace("\"s\"", r#""s\ncredential_source = x""#),
            &keys.replace("+02:00", ""),
            &keys.replace("AccessKeyId", "Id"),
        ] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn times_have_offsets() {
        for (text, expected) in [
            ("2026-01-02T03:04:05Z", Some("2026-01-02T03:04:05Z")),
            ("2026-01-02T03:04:05.5+00:00", Some("2026-01-02T03:04:05.5Z")),
            ("2026-01-02T03:04:05-01:30", Some("2026-01-02T04:34:05Z")),
            ("2026-01-02", None),
            ("+00:00", None),
            ("é", None),
        ] {
            assert_eq!(
                time_of(text),
                expected.and_then(|time| humantime::parse_rfc3339(time).ok()),
                "{text}"
            );
        }
    }
}
