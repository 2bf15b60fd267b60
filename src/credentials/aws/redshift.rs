//! Temporary passwords for clusters of Amazon Redshift: `GetClusterCredentials` (Amazon Redshift API Reference).

use aws_smithy_xml::decode::{Document, ScopedDecoder, try_data};

use super::refusal::Refusal;
use super::service::{Asker, Service};
use super::{DURATION, encode};
use crate::credentials::Minted;
use crate::failure::Failure;
use crate::secret::{Login, Secret};

const SERVICE: Service = Service {
    name: "redshift",
    variable: "AWS_ENDPOINT_URL_REDSHIFT",
    refusal: read_refusal,
    unknown_hint: "check `cluster_id`, whose upper and lower case count, `region`, and whether the keys are of the cluster's account",
};
const HEADERS: [(&str, &str); 1] = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];

/// Asks for a user and a password; the user comes back with `IAM:` before it, and logs in with it.
///
/// # Errors
/// `credentials` failures. A user that the database does not know is none: only the login fails.
pub(in crate::credentials) async fn ask(
    asker: &Asker<'_>,
    user: &str,
    cluster: &str,
    database: Option<&str>,
) -> Result<Minted, Failure> {
    asker.ask(&SERVICE, &HEADERS, question(user, cluster, database), read).await
}

fn question(user: &str, cluster: &str, database: Option<&str>) -> String {
    let database = database.map_or_else(String::new, |name| format!("&DbName={}", encode(name)));
    format!(
        "Action=GetClusterCredentials&Version=2012-12-01&DbUser={}{database}&ClusterIdentifier={}&AutoCreate=false&DurationSeconds={DURATION}",
        encode(user),
        encode(cluster),
    )
}

fn read(answer: &str) -> Option<Minted> {
    let field = |name| text(answer, &["GetClusterCredentialsResponse", "GetClusterCredentialsResult", name]);
    let login = Login { user: field("DbUser")?, password: Some(Secret::new(field("DbPassword")?)) };
    let expires = humantime::parse_rfc3339(&field("Expiration")?).ok()?;
    Some(Minted { login, expires: Some(expires) })
}

fn read_refusal(answer: &str) -> Option<Refusal> {
    // The services behind AWS's gateways do not agree on whether there may be several.
    let field = |name| {
        let one = text(answer, &["ErrorResponse", "Error", name]);
        one.or_else(|| text(answer, &["ErrorResponse", "Errors", "Error", name]))
    };
    Some(Refusal { code: field("Code")?, message: field("Message").unwrap_or_default() })
}

/// The text of the first element of a document that lies at this path.
fn text(document: &str, path: &[&str]) -> Option<String> {
    let (root, below) = path.split_first()?;
    let mut document = Document::new(document);
    let mut element = document.root_element().ok()?;
    if element.start_el().local() == *root { find(&mut element, below) } else { None }
}

fn find(element: &mut ScopedDecoder<'_, '_>, path: &[&str]) -> Option<String> {
    let Some((name, below)) = path.split_first() else {
        let text = try_data(element).ok()?;
        return (!text.is_empty()).then(|| text.into_owned());
    };
    while let Some(mut child) = element.next_tag() {
        if child.start_el().local() == *name {
            return find(&mut child, below);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::signature::vectors;
    use super::*;

    #[test]
    fn a_question_is_signed_as_botocore_does() {
        let question = question("probe", "c1", Some("dev"));
        let (authorization, added) =
            vectors::authorization("redshift", &HEADERS, &question, &vectors::keys(None));
        assert_eq!(
            authorization,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/redshift/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=b6f44a4f9b952cdecf998978ae404f61c41b3d3d6444b1cddd6dec467192bbe3"
        );
        assert_eq!(added, ["x-amz-date", "authorization"]);
        let keys = vectors::keys(Some("SESS/TOK+=="));
        let (authorization, _) = vectors::authorization("redshift", &HEADERS, &question, &keys);
        assert!(authorization.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token"));
    }

    #[test]
    fn names_cannot_change_the_question() {
        assert_eq!(
            question("a&AutoCreate=true", "c 1", None),
            "Action=GetClusterCredentials&Version=2012-12-01&DbUser=a%26AutoCreate%3Dtrue&ClusterIdentifier=c%201&\
             AutoCreate=false&DurationSeconds=900"
        );
    }

    const ANSWER: &str = "<?xml version=\"1.0\"?>
        <GetClusterCredentialsResponse xmlns=\"http://redshift.amazonaws.com/doc/2012-12-01/\">
          <GetClusterCredentialsResult>
            <DbUser>IAM:probe</DbUser><DbPassword>a&lt;b&amp;c:d</DbPassword>
            <Expiration>2026-01-02T03:19:05.123Z</Expiration>
          </GetClusterCredentialsResult>
          <ResponseMetadata><RequestId>x</RequestId></ResponseMetadata>
        </GetClusterCredentialsResponse>";

    #[test]
    fn an_answer_is_read_as_it_is_written() {
        let minted = read(ANSWER).unwrap();
        assert_eq!(minted.login.user, "IAM:probe");
        assert_eq!(minted.login.password.unwrap().expose(), "a<b&c:d");
        let expires = humantime::format_rfc3339_millis(minted.expires.unwrap());
        assert_eq!(expires.to_string(), "2026-01-02T03:19:05.123Z");
        for missing in ["DbUser", "DbPassword", "Expiration", "GetClusterCredentialsResult"] {
            assert!(read(&ANSWER.replace(missing, "Other")).is_none(), "{missing}");
        }
        assert!(read(&ANSWER.replace("IAM:probe", "")).is_none());
        assert!(read(&ANSWER.replace("2026-01-02T", "later")).is_none());
    }

    #[test]
    fn a_refusal_is_read() {
        let refusal = read_refusal(
            "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no &quot;x&quot;</Message></Error>\
             <RequestId>1</RequestId></ErrorResponse>",
        )
        .unwrap();
        assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("AccessDenied", "no \"x\""));
        assert!(read_refusal("<html><title>504</title></html>").is_none() && read_refusal("").is_none());
    }

    proptest! {
        /// Whoever answers, the reader comes to an end.
        #[test]
        fn any_answer_is_read_or_not(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "<GetClusterCredentialsResponse>", "<GetClusterCredentialsResult>", "<DbUser>", "</DbUser>", "<DbUser/>",
                    "</GetClusterCredentialsResult>", "</GetClusterCredentialsResponse>", "x", "&lt;", "&#x0;", "&", "<!--", "-->",
                    "<![CDATA[", "]]>", "<?xml?>", "<!DOCTYPE a [<!ENTITY b \"c\">]>", "&b;", "<", ">", " a='", "'",
                ]),
                0..40,
            )
        ) {
            let _ = read(&parts.concat());
            let _ = read_refusal(&parts.concat());
        }
    }
}
