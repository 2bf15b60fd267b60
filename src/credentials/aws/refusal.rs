//! What it means when AWS says no: a decision without I/O.

use std::time::{Duration, SystemTime};

use crate::failure::{Cause, Failure};

/// How far off a clock may be before AWS refuses what it signs (AWS IAM User Guide, "Troubleshoot AWS Signature Version 4",
/// request expiration).
const MAX_SKEW: Duration = Duration::from_secs(300);

/// AWS's answer to who must not, or cannot now.
pub(super) struct Refusal {
    /// AWS's word for the reason.
    pub code: String,
    /// A sentence for people; it may go on with what was signed, which holds tokens.
    pub message: String,
}

/// What else is known about a refusal.
pub(super) struct Circumstances<'a> {
    /// Who refuses, for people.
    pub by: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// This machine's time, and the service's if it told it.
    pub clocks: (SystemTime, Option<SystemTime>),
    /// What to do where the service does not know what was asked for.
    pub unknown_hint: &'a str,
}

impl Refusal {
    /// Says what it means.
    pub(super) fn judge(&self, seen: &Circumstances<'_>) -> Failure {
        let sentence = self.message.lines().next().unwrap_or_default().trim();
        let said = format!("{} says {}: {sentence}", seen.by, self.code);
        let skew = Skew::between(seen.clocks.0, seen.clocks.1);
        let is_far_off = skew.as_ref().is_some_and(|skew| skew.by > MAX_SKEW);
        match self.code.as_str() {
            _ if is_about_time(&self.code) || is_about_time(sentence) => by_clock(&said, skew.as_ref()),
            // Some services see no more than that what was signed is not what they would have signed now.
            "SignatureDoesNotMatch" | "InvalidSignatureException" if is_far_off => by_clock(&said, skew.as_ref()),
            code if code.starts_with("ExpiredToken") => Failure::new(Cause::CredentialsExpired, said),
            "ClusterNotFound" | "ClusterNotFoundFault" | "ResourceNotFoundException" => {
                Failure::new(Cause::CredentialsDenied, said).with_hint(seen.unknown_hint)
            }
            code if is_about_haste(code) || seen.status == 429 => {
                Failure::new(Cause::CredentialsUnreachable, said).with_hint(
                    "AWS wants to be asked less often; it is asked again later: see who else asks with the same account",
                )
            }
            _ if seen.status >= 500 => Failure::new(Cause::CredentialsUnreachable, said)
                .with_hint("AWS's service has trouble of its own; it is asked again later"),
            _ => Failure::new(Cause::CredentialsDenied, said),
        }
    }
}

/// What the text of an error of AWS's chain means, in which a refusal may be told.
pub(super) fn cause_in(text: &str) -> Cause {
    let tells = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if is_about_time(text) {
        Cause::CredentialsClockSkew
    } else if tells(&["ExpiredToken"]) {
        Cause::CredentialsExpired
    } else if tells(&[
        "AccessDenied",
        "NotAuthorized",
        "SignatureDoesNotMatch",
        "InvalidClientTokenId",
        "UnrecognizedClient",
        "InvalidIdentityToken",
        "StatusCode(401)",
        "StatusCode(403)",
    ]) {
        Cause::CredentialsDenied
    } else if is_about_haste(text) || tells(&["dispatch failure", "timeout", "timed out"]) {
        Cause::CredentialsUnreachable
    } else {
        Cause::CredentialsMissing
    }
}

fn is_about_time(text: &str) -> bool {
    ["RequestTimeTooSkewed", "RequestExpired", "Signature expired", "Signature not yet current"]
        .iter()
        .any(|word| text.contains(word))
}

fn is_about_haste(text: &str) -> bool {
    ["Throttl", "RequestLimitExceeded", "TooManyRequests"].iter().any(|word| text.contains(word))
}

fn by_clock(said: &str, skew: Option<&Skew>) -> Failure {
    let clocks = skew.map_or_else(String::new, |skew| {
        let by = humantime::format_duration(Duration::from_secs(skew.by.as_secs()));
        format!("this machine's clock is {by} {} AWS's; ", skew.direction)
    });
    Failure::new(Cause::CredentialsClockSkew, format!("{clocks}{said}"))
}

/// How this machine's clock is set by the service's.
struct Skew {
    direction: &'static str,
    by: Duration,
}

impl Skew {
    fn between(ours: SystemTime, theirs: Option<SystemTime>) -> Option<Self> {
        Some(match theirs?.duration_since(ours) {
            Ok(by) => Self { direction: "behind", by },
            Err(error) => Self { direction: "ahead of", by: error.duration() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn judge(status: u16, code: &str, message: &str, theirs: Option<SystemTime>) -> Failure {
        let refusal = Refusal { code: code.to_owned(), message: message.to_owned() };
        refusal.judge(&Circumstances { by: "it", status, clocks: (NOW, theirs), unknown_hint: "look" })
    }

    #[test]
    fn each_refusal_has_its_cause() {
        use Cause::{
            CredentialsClockSkew as Clock, CredentialsDenied as Denied, CredentialsExpired as Expired,
            CredentialsUnreachable as Unreachable,
        };
        for (status, code, message, cause) in [
            (403, "AccessDenied", "User: arn:aws:iam::1:user/x is not authorized", Denied),
            (400, "AccessDeniedException", "", Denied),
            (403, "NotAuthorized", "", Denied),
            (403, "SignatureDoesNotMatch", "The request signature we calculated does not match", Denied),
            (403, "InvalidClientTokenId", "The security token included in the request is invalid", Denied),
            (400, "UnrecognizedClientException", "", Denied),
            (400, "ValidationException", "durationSeconds", Denied),
            (404, "ClusterNotFound", "Cluster c1 not found", Denied),
            (400, "ResourceNotFoundException", "", Denied),
            (403, "ExpiredToken", "", Expired),
            (400, "ExpiredTokenException", "", Expired),
            (403, "RequestTimeTooSkewed", "", Clock),
            (400, "RequestExpired", "", Clock),
            (403, "SignatureDoesNotMatch", "Signature expired: 20260102T030405Z is now earlier than", Clock),
            (400, "InvalidSignatureException", "Signature not yet current: 20260102T030405Z is", Clock),
            (400, "Throttling", "Rate exceeded", Unreachable),
            (400, "ThrottlingException", "", Unreachable),
            (429, "Anything", "", Unreachable),
            (500, "InternalFailure", "", Unreachable),
            (503, "ServiceUnavailable", "", Unreachable),
        ] {
            let failure = judge(status, code, message, None);
            assert_eq!(failure.cause, cause, "{code}");
            assert!(failure.detail().contains(code), "{failure}");
        }
        assert_eq!(judge(404, "ClusterNotFound", "", None).hint(), "look");
        assert!(judge(400, "Throttling", "", None).hint().contains("less often"));
        assert!(judge(503, "ServiceUnavailable", "", None).hint().contains("trouble of its own"));
    }

    #[test]
    fn a_clock_that_is_off_is_told_by_how_much() {
        let theirs = NOW + Duration::from_millis(601_900);
        let failure = judge(403, "RequestTimeTooSkewed", "no", Some(theirs));
        assert_eq!(
            failure.detail(),
            "this machine's clock is 10m 1s behind AWS's; it says RequestTimeTooSkewed: no"
        );
        let failure = judge(403, "RequestTimeTooSkewed", "no", Some(NOW - Duration::from_secs(3600)));
        assert!(failure.detail().contains("is 1h ahead of AWS's"), "{failure}");
        // A signature that is wrong for no other reason.
        assert_eq!(judge(403, "SignatureDoesNotMatch", "", Some(theirs)).cause, Cause::CredentialsClockSkew);
        let close = NOW + Duration::from_secs(20);
        assert_eq!(judge(403, "SignatureDoesNotMatch", "", Some(close)).cause, Cause::CredentialsDenied);
    }

    /// AWS shows what it would have signed.
    #[test]
    fn what_was_signed_is_not_shown() {
        let message = "The request signature does not match.\n\nThe Canonical String for this request should have been\n\
                       'POST\n/\n\nx-amz-security-token:hunter2\n'";
        let failure = judge(403, "SignatureDoesNotMatch", message, None);
        assert!(failure.detail().ends_with("does not match.") && !failure.detail().contains("hunter2"));
    }

    #[test]
    fn errors_of_the_chain_are_told_apart() {
        for (text, cause) in [
            ("service error: unhandled error (AccessDenied)", Cause::CredentialsDenied),
            ("service error: ExpiredTokenException: token expired", Cause::CredentialsExpired),
            ("Non-success status from HTTP credential provider: StatusCode(403)", Cause::CredentialsDenied),
            ("dispatch failure: io error", Cause::CredentialsUnreachable),
            ("could not read web identity token file", Cause::CredentialsMissing),
            ("Signature expired: x", Cause::CredentialsClockSkew),
        ] {
            assert_eq!(cause_in(text), cause, "{text}");
        }
    }
}
