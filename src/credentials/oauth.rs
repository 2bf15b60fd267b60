//! What services that give OAuth tokens have in common: forms, tokens, and what a refusal means (RFC 6749, section 5).
//! For the clouds beside it, which know where to ask and what for.

use std::time::{Duration, SystemTime};

use form_urlencoded::{Serializer, byte_serialize};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Minted;
use super::web::{self, Answer};
use crate::failure::{Cause, Failure};
use crate::secret::{Login, Secret};

/// For a whole login, however many requests it takes.
const DEADLINE: Duration = Duration::from_secs(15);

/// How services complain about the time in what was signed here.
const CLOCK_WORDS: [&str; 5] = ["iat and exp", "timeframe", "short-lived", "too early", "in the future"];

/// A header that says that a form follows.
pub(super) const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// A header that says that JSON follows.
pub(super) const JSON: (&str, &str) = ("content-type", "application/json");

/// What a database takes for a password.
pub(super) struct Token {
    pub secret: Secret,
    /// It does not expire if none.
    pub expires: Option<SystemTime>,
}

impl Token {
    /// A token with its end, which comes as RFC 3339 in UTC.
    ///
    /// # Errors
    /// `credentials` `invalid_answer`.
    pub(super) fn until(token: &mut String, end: &str, service: &str) -> Result<Self, Failure> {
        let expires = humantime::parse_rfc3339(end).map_err(|_| {
            let text = format!("{service} does not say in its answer when the token expires");
            Failure::new(Cause::CredentialsInvalidAnswer, text)
        })?;
        Ok(Self { secret: Secret::new(std::mem::take(token)), expires: Some(expires) })
    }

    pub(super) fn login(self, user: String) -> Minted {
        Minted { login: Login { user, password: Some(self.secret) }, expires: self.expires }
    }
}

/// A token as services give it (RFC 6749, section 5.1).
#[derive(Deserialize)]
pub(super) struct Granted {
    access_token: Zeroizing<String>,
    /// Seconds.
    expires_in: u64,
}

impl Granted {
    /// `asked` is when it was asked for: its life begins no sooner.
    pub(super) fn token(mut self, asked: SystemTime) -> Token {
        let expires = asked.checked_add(self.life());
        Token { secret: Secret::new(std::mem::take(&mut *self.access_token)), expires }
    }

    pub(super) fn life(&self) -> Duration {
        Duration::from_secs(self.expires_in)
    }
}

/// A service that was asked for a token.
pub(super) struct Service<'a> {
    /// As failures name it.
    pub name: &'a str,
    /// Whether this machine's clock is in what was sent.
    pub signed: bool,
    /// What was sent and shall be in no text, even where the service repeats it.
    pub secrets: &'a [&'a str],
    /// What to do if it refuses.
    pub hint: String,
}

impl Service<'_> {
    /// What it gave.
    ///
    /// # Errors
    /// `credentials` failures.
    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Failure> {
        match answer.status {
            // The parser's own words could repeat a token.
            200..=299 => serde_json::from_slice(&answer.body).map_err(|_| {
                let text = format!("{} gives no token in its answer", self.name);
                Failure::new(Cause::CredentialsInvalidAnswer, text)
            }),
            status => Err(self.refused(status, &said(&answer.body))),
        }
    }

    fn refused(&self, status: u16, said: &str) -> Failure {
        let cause = self.cause(status, said);
        let text = format!("{} answers with status {status} {}", self.name, self.without_secrets(said));
        let failure = Failure::new(cause, text);
        match cause {
            Cause::CredentialsDenied | Cause::CredentialsExpired => failure.with_hint(self.hint.clone()),
            Cause::CredentialsUnreachable => failure
                .with_hint("the cloud's service is overloaded or in trouble: wait, it will be asked again"),
            _ => failure,
        }
    }

    fn cause(&self, status: u16, said: &str) -> Cause {
        let said = said.to_lowercase();
        match status {
            408 | 429 | 500..=599 => Cause::CredentialsUnreachable,
            400..=499 if CLOCK_WORDS.iter().any(|word| said.contains(word)) => Cause::CredentialsClockSkew,
            400..=499 if said.contains("expired") && self.signed => Cause::CredentialsClockSkew,
            400..=499 if said.contains("expired") => Cause::CredentialsExpired,
            401 | 403 => Cause::CredentialsDenied,
            400..=499 if !said.is_empty() => Cause::CredentialsDenied,
            _ => Cause::CredentialsInvalidAnswer,
        }
    }

    fn without_secrets(&self, said: &str) -> String {
        self.secrets.iter().filter(|secret| !secret.is_empty()).fold(said.to_owned(), |said, secret| {
            let in_a_form: String = byte_serialize(secret.as_bytes()).collect();
            said.replace(secret, "(hidden)").replace(&in_a_form, "(hidden)")
        })
    }
}

/// What the body of a refusal says; empty if it is none of those that these services give.
fn said(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return String::new() };
    // OAuth's own, then Google's (google.rpc.Status), then Databricks'.
    let paths =
        ["/error", "/error_description", "/error/status", "/error/message", "/error_code", "/message"];
    let texts = paths.iter().filter_map(|path| body.pointer(path).and_then(Value::as_str));
    texts.collect::<Vec<_>>().join(": ")
}

/// A form's body.
pub(super) fn form(fields: &[(&str, &str)]) -> Vec<u8> {
    Serializer::new(String::new()).extend_pairs(fields).finish().into_bytes()
}

/// Bounds the making of a login in time.
pub(super) async fn in_time<T>(
    service: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| {
        let text = format!("{service} gave no login within {} s", DEADLINE.as_secs());
        Err(Failure::new(Cause::CredentialsUnreachable, text))
    })
}

/// Refuses to send a secret in clear over a network; `key` is where the address stands.
pub(super) fn must_be_private(key: &str, address: &str) -> Result<(), Failure> {
    if web::address(address).is_ok() {
        return Ok(());
    }
    let (reason, hint) = match web::has_userinfo(address) {
        true => ("it has a user or password in it", format!("take what stands before the @ out of {key}")),
        false => {
            ("it would get the secret in clear", format!("let the address in {key} begin with https://"))
        }
    };
    let text = format!("{key} {} is not asked: {reason}", web::server(address));
    Err(Failure::new(Cause::CredentialsMissing, text).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service<'static> =
        Service { name: "it", signed: true, secrets: &["s/cret", ""], hint: String::new() };

    fn read(service: &Service<'_>, status: u16, body: &str) -> Result<Granted, Failure> {
        service.read(&Answer { status, date: None, body: Zeroizing::new(body.as_bytes().to_vec()) })
    }

    #[test]
    fn what_a_refusal_means() {
        let short = r#"{"error":"invalid_grant","error_description":"Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."}"#;
        let old = r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#;
        let renewed = Service { signed: false, hint: "renew".to_owned(), ..SERVICE };
        for (service, status, body, expected) in [
            (&SERVICE, 400, short, Cause::CredentialsClockSkew),
            (&SERVICE, 400, old, Cause::CredentialsClockSkew),
            (&renewed, 400, old, Cause::CredentialsExpired),
            (&SERVICE, 400, r#"{"error":"invalid_client"}"#, Cause::CredentialsDenied),
            (&SERVICE, 401, "", Cause::CredentialsDenied),
            (
                &SERVICE,
                403,
                r#"{"error_code":403,"message":"Invalid access token."}"#,
                Cause::CredentialsDenied,
            ),
            (&SERVICE, 403, r#"{"error":{"status":"PERMISSION_DENIED"}}"#, Cause::CredentialsDenied),
            (&SERVICE, 404, r#"{"error_code":"NOT_FOUND"}"#, Cause::CredentialsDenied),
            (&SERVICE, 404, "<html>", Cause::CredentialsInvalidAnswer),
            (&SERVICE, 302, "", Cause::CredentialsInvalidAnswer),
            (&SERVICE, 429, "{}", Cause::CredentialsUnreachable),
            (&SERVICE, 503, "<html>", Cause::CredentialsUnreachable),
            (&SERVICE, 200, "<html>", Cause::CredentialsInvalidAnswer),
            (&SERVICE, 200, r#"{"expires_in":3}"#, Cause::CredentialsInvalidAnswer),
            (&SERVICE, 200, r#"{"access_token":"t"}"#, Cause::CredentialsInvalidAnswer),
            (&SERVICE, 200, r#"{"access_token":7,"expires_in":3}"#, Cause::CredentialsInvalidAnswer),
        ] {
            let failure = read(service, status, body).err().unwrap();
            assert_eq!(failure.cause, expected, "{status} {body}");
        }
        assert_eq!(read(&renewed, 400, old).err().unwrap().hint(), "renew");
    }

    #[test]
    fn what_was_sent_is_not_repeated() {
        let echo = r#"{"error":"invalid_request","error_description":"no: secret=s%2Fcret, s\/cret"}"#;
        let failure = read(&SERVICE, 400, echo).err().unwrap();
        let expected = "it answers with status 400 invalid_request: no: secret=(hidden), (hidden)";
        assert_eq!(failure.detail(), expected);
    }

    #[test]
    fn a_token_lives_from_when_it_was_asked_for() {
        let (asked, token) = (SystemTime::UNIX_EPOCH, |body| read(&SERVICE, 200, body).unwrap());
        let minute = token(r#"{"access_token":"t","expires_in":60}"#).token(asked);
        assert_eq!(minute.expires, asked.checked_add(Duration::from_secs(60)));
        assert_eq!(minute.secret.expose(), "t");
        let for_ever = token(r#"{"access_token":"t","expires_in":18446744073709551615}"#).token(asked);
        assert_eq!(for_ever.expires, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_is_not_waited_for_without_end() {
        let before = tokio::time::Instant::now();
        let failure = in_time::<()>("it", std::future::pending()).await.unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsUnreachable);
        assert_eq!((failure.detail(), before.elapsed()), ("it gave no login within 15 s", DEADLINE));
    }

    #[test]
    fn secrets_go_in_clear_to_this_machine_only() {
        for address in ["https://x.example", "http://127.0.0.1:80/a", "http://localhost", "http://[::1]:8080"]
        {
            assert!(must_be_private("workspace", address).is_ok(), "{address}");
        }
        let failure = must_be_private("`token_uri`", "https://u:hunter2@x.example/hunter3").unwrap_err();
        assert_eq!(
            failure.detail(),
            "`token_uri` https://x.example is not asked: it has a user or password in it"
        );
        assert!(!failure.hint().contains("hunter") && failure.hint().contains("the @"), "{}", failure.hint());
        for address in ["http://x.example", "ftp://127.0.0.1", "127.0.0.1", "http://127.0.0.1.x.example", ""]
        {
            assert!(must_be_private("workspace", address).is_err(), "{address}");
        }
    }
}
