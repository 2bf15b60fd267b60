//! Temporary users and passwords for work groups of Amazon Redshift Serverless: `GetCredentials` (Amazon Redshift
//! Serverless API Reference).

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::DURATION;
use super::refusal::Refusal;
use super::service::{Asker, Service};
use crate::credentials::Minted;
use crate::failure::Failure;
use crate::secret::{Login, Secret};

const SERVICE: Service = Service {
    name: "redshift-serverless",
    variable: "AWS_ENDPOINT_URL_REDSHIFT_SERVERLESS",
    refusal: read_refusal,
    unknown_hint: "check `workgroup`, `region`, and whether the keys are of the work group's account",
};
const HEADERS: [(&str, &str); 2] =
    [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", "RedshiftServerless.GetCredentials")];

/// Asks for a user, who is whoever asks, and a password.
///
/// # Errors
/// `credentials` failures.
pub(in crate::credentials) async fn ask(
    asker: &Asker<'_>,
    workgroup: &str,
    database: Option<&str>,
) -> Result<Minted, Failure> {
    asker.ask(&SERVICE, &HEADERS, question(workgroup, database), read).await
}

fn question(workgroup: &str, database: Option<&str>) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let database = database.map_or_else(String::new, |name| format!("\"dbName\":{},", quoted(name)));
    format!("{{\"workgroupName\":{},{database}\"durationSeconds\":{DURATION}}}", quoted(workgroup))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    db_user: String,
    db_password: String,
    /// Seconds since 1970.
    expiration: f64,
}

fn read(answer: &str) -> Option<Minted> {
    let Answer { db_user, db_password, expiration } = serde_json::from_str(answer).ok()?;
    if db_user.is_empty() || db_password.is_empty() {
        return None;
    }
    let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(expiration).ok()?)?;
    let login = Login { user: db_user, password: Some(Secret::new(db_password)) };
    Some(Minted { login, expires: Some(expires) })
}

#[derive(Deserialize)]
struct Refused {
    /// The code, after the name of who defined it and `#`, before `:` and where that is.
    #[serde(rename = "__type")]
    kind: String,
    #[serde(default, alias = "Message")]
    message: String,
}

fn read_refusal(answer: &str) -> Option<Refusal> {
    let Refused { kind, message } = serde_json::from_str(answer).ok()?;
    let code = kind.rsplit('#').next()?.split(':').next()?.to_owned();
    Some(Refusal { code, message })
}

#[cfg(test)]
mod tests {
    use super::super::signature::vectors;
    use super::*;

    #[test]
    fn a_question_is_signed_as_botocore_does() {
        let question = question("wg1", Some("dev"));
        assert_eq!(question, r#"{"workgroupName":"wg1","dbName":"dev","durationSeconds":900}"#);
        let keys = vectors::keys(None);
        let (authorization, added) =
            vectors::authorization("redshift-serverless", &HEADERS, &question, &keys);
        assert_eq!(
            authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/redshift-serverless/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-target, \
             Signature=b4783740c3da915b7b7d59fe0ed42681f5ad6efb53619a09fbe738a8d3e2e520"
        );
        assert_eq!(added, ["x-amz-date", "authorization"]);
    }

    #[test]
    fn names_cannot_change_the_question() {
        assert_eq!(question("a\"b", None), r#"{"workgroupName":"a\"b","durationSeconds":900}"#);
    }

    #[test]
    fn an_answer_is_read_as_it_is_written() {
        let answer =
            r#"{"dbUser":"IAMR:probe","dbPassword":"a:b","expiration":1.767323045123E9,"nextRefreshTime":1}"#;
        let minted = read(answer).unwrap();
        assert_eq!(minted.login.user, "IAMR:probe");
        assert_eq!(minted.login.password.unwrap().expose(), "a:b");
        let expires = humantime::format_rfc3339_seconds(minted.expires.unwrap());
        assert_eq!(expires.to_string(), "2026-01-02T03:04:05Z");
        for invalid in ["", "[]", "{}", "<html></html>"] {
            assert!(read(invalid).is_none(), "{invalid}");
        }
        for expiration in ["-1", "1e300", "\"soon\""] {
            let answer = answer.replace("1.767323045123E9", expiration);
            assert!(read(&answer).is_none(), "{answer}");
        }
        assert!(read(&answer.replace("a:b", "")).is_none());
    }

    #[test]
    fn a_refusal_is_read() {
        for answer in [
            r#"{"__type":"com.amazonaws.redshiftserverless#AccessDeniedException","message":"no"}"#,
            r#"{"__type":"AccessDeniedException:http://internal.amazon.com/","Message":"no"}"#,
        ] {
            let refusal = read_refusal(answer).unwrap();
            assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("AccessDeniedException", "no"));
        }
        assert!(read_refusal("<html></html>").is_none() && read_refusal("{}").is_none());
    }
}
