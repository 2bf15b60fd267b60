//! Tokens of the service account that a machine or a pod at Google has, from the metadata server.
//!
//! Source: <https://cloud.google.com/compute/docs/access/authenticate-workloads#applications>.

use std::env;
use std::time::SystemTime;

use super::SCOPE;
use crate::credentials::oauth::{self, Granted, Service, Token};
use crate::credentials::web;
use crate::failure::{Cause, Failure};

/// Overrides the server's host, as in Google's own libraries: `host` or `host:port`.
const VARIABLE: &str = "GCE_METADATA_HOST";
const HOST: &str = "metadata.google.internal";
const PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

/// `before` is where credentials were looked for in vain.
pub(super) async fn token(before: &str) -> Result<Token, Failure> {
    let named = env::var(VARIABLE).ok().filter(|host| !host.is_empty());
    let host = named.as_deref().unwrap_or(HOST);
    let query = String::from_utf8_lossy(&oauth::form(&[("scopes", SCOPE)])).into_owned();
    let asked = SystemTime::now();
    let answer = web::get(&format!("http://{host}{PATH}?{query}"), &[("metadata-flavor", "Google")]).await;
    let answer = match answer {
        Ok(answer) if answer.status == 404 => {
            let text = format!("{before}, and the metadata server knows of no service account");
            return Err(Failure::new(Cause::CredentialsMissing, text).with_hint(
                "attach a service account to this machine, or name a file as `credentials_file`",
            ));
        }
        // Nowhere but at Google does it exist; there it may be slow.
        Err(failure) if named.is_none() && is_absent(&failure) => {
            let text = format!("{before}, and there is no metadata server ({})", failure.detail());
            return Err(Failure::new(Cause::CredentialsMissing, text)
                .with_hint("name a file with Google's credentials as `credentials_file`"));
        }
        answer => answer?,
    };
    let service = Service {
        name: "the metadata server",
        signed: false,
        secrets: &[],
        hint: "give the machine's service account the access scope cloud-platform or alloydb.login"
            .to_owned(),
    };
    Ok(service.read::<Granted>(&answer)?.token(asked))
}

/// Whether there is nothing at all, as opposed to something slow or in trouble, by the words of the system's libraries.
fn is_absent(failure: &Failure) -> bool {
    const WORDS: [&str; 4] = [
        "Connection refused",
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
    ];
    failure.cause == Cause::CredentialsUnreachable && WORDS.iter().any(|word| failure.detail().contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_server_is_not_an_absent_one() {
        // Bound, so that nobody else gets it, and listened on by nobody.
        let kept = tokio::net::TcpSocket::new_v4().unwrap();
        kept.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", kept.local_addr().unwrap());
        let failure = web::get(&url, &[]).await.err().unwrap();
        assert!(is_absent(&failure), "{failure}");
        for (detail, expected) in [
            ("dns error: failed to lookup address information: Name or service not known", true),
            ("dns error: failed to lookup address information: Temporary failure in name resolution", false),
            ("http://metadata.google.internal gave no answer within 10 s", false),
            ("error sending request: connection closed before message completed", false),
        ] {
            let failure = Failure::new(Cause::CredentialsUnreachable, detail);
            assert_eq!(is_absent(&failure), expected, "{detail}");
        }
    }
}
