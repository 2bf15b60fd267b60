//! Tokens for Amazon RDS and Aurora: an address that was signed, as the password.
//!
//! Nobody is asked for it. The database takes one for 15 minutes, of which `Logins` uses it for the first 12, only over TLS,
//! and only if it was signed for the name and port by which AWS knows the database (Amazon RDS User Guide, "Connecting to your
//! DB instance using IAM authentication").

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;

use super::signature::{Scope, sign_address};
use super::{DURATION, encode, keys};
use crate::clock;
use crate::credentials::Minted;
use crate::failure::{Cause, Failure};
use crate::ids::{HostPort, Target};
use crate::secret::{Login, Secret};
use crate::settings::plan::AwsKeysPlan;

/// Makes a token.
///
/// # Errors
/// `credentials` failures of those who give the keys; `missing` for a database on a Unix socket, which has no name at AWS.
pub(in crate::credentials) async fn sign(
    user: &str,
    region: &str,
    keys: &AwsKeysPlan,
    database: &Target,
) -> Result<Minted, Failure> {
    let Target::Tcp(at) = database else {
        let text = "a token for Amazon RDS is made for a host and port, which a Unix socket has not";
        return Err(Failure::new(Cause::CredentialsMissing, text)
            .with_hint("write the database's own endpoint as `host`"));
    };
    let keys = Box::pin(keys::fetch(keys, region)).await?;
    let time = clock::now().wall;
    let token = token(user, region, &keys, at, time)?;
    let login = Login { user: user.to_owned(), password: Some(Secret::new(token)) };
    // What temporary keys have signed counts no longer than they do.
    let expires = [Some(time + Duration::from_secs(DURATION)), keys.expiry()].into_iter().flatten().min();
    Ok(Minted { login, expires })
}

fn token(
    user: &str,
    region: &str,
    keys: &Credentials,
    at: &HostPort,
    time: SystemTime,
) -> Result<String, Failure> {
    let scope = Scope { keys, service: "rds-db", region, time };
    // Names are the same in both cases, but signatures of them are not, and AWS writes its own in lower case.
    let host = at.host.to_ascii_lowercase();
    let address = format!("https://{host}:{}/?Action=connect&DBUser={}", at.port, encode(user));
    let signed = sign_address(&scope, &address)?;
    Ok(signed.trim_start_matches("https://").to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::signature::vectors;
    use super::*;

    fn at(host: &str) -> HostPort {
        HostPort::new(host, 5432)
    }

    const HOST: &str = "db.abc123.us-east-1.rds.amazonaws.com";

    #[test]
    fn a_token_is_botocores() {
        let token = token("probe", "us-east-1", &vectors::keys(None), &at(HOST), vectors::time()).unwrap();
        let (address, query) = token.split_once('?').unwrap();
        assert_eq!(address, format!("{HOST}:5432/"));
        let parameters: BTreeSet<&str> = query.split('&').collect();
        let expected = [
            "Action=connect",
            "DBUser=probe",
            "X-Amz-Algorithm=AWS4-HMAC-SHA256",
            "X-Amz-Credential=AKIDEXAMPLE%2F20260102%2Fus-east-1%2Frds-db%2Faws4_request",
            "X-Amz-Date=20260102T030405Z",
            "X-Amz-Expires=900",
            "X-Amz-SignedHeaders=host",
            "X-Amz-Signature=29dcc6522636ac736f7337f1251b5cf361aae5206d492103049695ba9c3ddf63",
        ];
        assert_eq!(parameters, BTreeSet::from(expected));
        assert_eq!(token.len(), 332);
    }

    #[test]
    fn a_token_of_temporary_keys_is_botocores() {
        let keys = vectors::keys(Some("SESS/TOK+=="));
        let token = token("iam_user+x", "us-east-1", &keys, &at(HOST), vectors::time()).unwrap();
        for part in [
            "DBUser=iam_user%2Bx&",
            "&X-Amz-Security-Token=SESS%2FTOK%2B%3D%3D",
            "&X-Amz-Signature=6cfd1841ac6b2dacb008e7aa882fab708da04bf9b745d75172976d91d0cf6ea3",
        ] {
            assert!(token.contains(part), "{part} is not in {token}");
        }
    }

    #[test]
    fn a_name_in_capitals_is_the_same_database() {
        let token_for =
            |host| token("probe", "us-east-1", &vectors::keys(None), &at(host), vectors::time()).unwrap();
        assert_eq!(token_for(&HOST.to_uppercase()), token_for(HOST));
    }

    #[test]
    fn a_users_name_cannot_change_the_question() {
        let user = "a b&Action=x/é~";
        let token = token(user, "us-east-1", &vectors::keys(None), &at(HOST), vectors::time()).unwrap();
        assert!(token.contains("&DBUser=a%20b%26Action%3Dx%2F%C3%A9~&"), "{token}");
    }
}
