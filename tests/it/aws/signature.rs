//! Checks AWS's Signature Version 4 as the services do, step by step as AWS tells it and with none of the product's code (IAM
//! User Guide, "Create a signed AWS API request").

use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use data_encoding::HEXLOWER;

use crate::support::cloud::Asked;

/// What those who carry a question may change, and so is not signed.
const UNSIGNED: [&str; 5] = ["accept", "accept-encoding", "authorization", "content-length", "user-agent"];

/// Whether a question to a service in us-east-1 is signed with this secret, now and with all its headers.
pub fn check(asked: &Asked, service: &str, key_id: &str, secret: &str) -> Result<(), String> {
    let header =
        |name: &str| asked.headers.get(name).map(String::as_str).ok_or(format!("there is no {name}"));
    let authorization =
        header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("another algorithm")?;
    let mut parts = authorization.split(", ").filter_map(|part| part.split_once('='));
    let mut part = |name: &str| {
        parts.next().filter(|part| part.0 == name).map(|part| part.1).ok_or(format!("no {name}"))
    };
    let (credential, signed, signature) = (part("Credential")?, part("SignedHeaders")?, part("Signature")?);

    let time = header("x-amz-date")?;
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let before = humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_secs(60));
    if time > now.as_str() || time < before.to_string().replace(['-', ':'], "").as_str() {
        return Err(format!("it was signed at {time}, and it is {now}"));
    }
    let date = &time[..8];
    let scope = format!("{date}/us-east-1/{service}/aws4_request");
    if credential != format!("{key_id}/{scope}") {
        return Err(format!("the credential is {credential}"));
    }
    let all: Vec<&str> =
        asked.headers.keys().map(String::as_str).filter(|name| !UNSIGNED.contains(name)).collect();
    if signed != all.join(";") {
        return Err(format!("signed were {signed}, sent were {all:?}"));
    }

    let headers: String = all.iter().map(|name| format!("{name}:{}\n", asked.headers[*name])).collect();
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    // All services but S3 encode a path twice.
    let path = path.replace('%', "%25");
    let body = hash(&asked.body);
    let canonical = format!("{}\n{path}\n{query}\n{headers}\n{signed}\n{body}", asked.method);
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hash(&canonical));
    let key = [date, "us-east-1", service, "aws4_request"]
        .iter()
        .fold(format!("AWS4{secret}").into_bytes(), |key, word| keyed_hash(&key, word));
    if signature == HEXLOWER.encode(&keyed_hash(&key, &to_sign)) {
        Ok(())
    } else {
        Err("the signature is wrong".into())
    }
}

fn hash(text: &str) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn keyed_hash(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}
