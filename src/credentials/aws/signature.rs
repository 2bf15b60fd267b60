//! AWS's Signature Version 4, of a question and of an address.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningInstructions, SigningSettings, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use tracing::Dispatch;
use tracing::dispatcher::with_default;

use super::{DURATION, encode};
use crate::failure::{Cause, Failure};

/// For what a signature counts, besides what is signed.
pub(super) struct Scope<'a> {
    /// Whose signature it is.
    pub keys: &'a Credentials,
    /// The service's name for this purpose.
    pub service: &'a str,
    /// The service's region.
    pub region: &'a str,
    /// When it is signed.
    pub time: SystemTime,
}

/// Signs a POST; returns the headers that it needs besides its own. The address is as it will be sent, so that the signed
/// host is the sent one.
///
/// # Errors
/// Only if keys or headers are not what they should be.
pub(super) fn sign_post(
    scope: &Scope<'_>,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Vec<(String, String)>, Failure> {
    let request = SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(body));
    let signed = instructions(scope, request, SigningSettings::default())?;
    Ok(signed.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Signs the address of a GET, which has a query already, so that it can be used for 15 minutes.
///
/// # Errors
/// Only if keys or address are not what they should be.
pub(super) fn sign_address(scope: &Scope<'_>, url: &str) -> Result<String, Failure> {
    let request = SignableRequest::new("GET", url, std::iter::empty(), SignableBody::empty());
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(Duration::from_secs(DURATION));
    let signed = instructions(scope, request, settings)?;
    let signed = signed.params().iter().map(|(name, value)| format!("&{name}={}", encode(value)));
    Ok(url.to_owned() + &signed.collect::<String>())
}

fn instructions(
    scope: &Scope<'_>,
    request: Result<SignableRequest<'_>, impl std::fmt::Display>,
    settings: SigningSettings,
) -> Result<SigningInstructions, Failure> {
    let unsigned = |error: &dyn std::fmt::Display| {
        Failure::new(Cause::CredentialsMissing, format!("AWS's signature could not be made: {error}"))
    };
    let identity = scope.keys.clone().into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(scope.region)
        .name(scope.service)
        .time(scope.time)
        .settings(settings)
        .build()
        .map_err(|error| unsigned(&error))?;
    let request = request.map_err(|error| unsigned(&error))?;
    // What it logs holds the session's token.
    let signed =
        with_default(&Dispatch::none(), || sign(request, &params.into()).map_err(|error| unsigned(&error)))?;
    Ok(signed.into_parts().0)
}

/// The vectors of who signs were made with botocore 1.44.5, and computed again without it.
#[cfg(test)]
pub(super) mod vectors {
    use super::*;

    /// Keys from AWS's own examples.
    pub(in crate::credentials::aws) fn keys(session_token: Option<&str>) -> Credentials {
        let token = session_token.map(str::to_owned);
        Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token, None, "test")
    }

    /// 2026-01-02 03:04:05 UTC
    pub(in crate::credentials::aws) fn time() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045)
    }

    /// The authorization of a question, and the names of the headers that were added.
    pub(in crate::credentials::aws) fn authorization(
        service: &str,
        headers: &[(&str, &str)],
        question: &str,
        keys: &Credentials,
    ) -> (String, Vec<String>) {
        let scope = Scope { keys, service, region: "us-east-1", time: time() };
        let url = format!("https://{service}.us-east-1.amazonaws.com/");
        let signed = sign_post(&scope, &url, headers, question.as_bytes()).unwrap();
        let authorization = signed.iter().find(|(name, _)| name == "authorization").unwrap().1.clone();
        (authorization, signed.into_iter().map(|(name, _)| name).collect())
    }
}
