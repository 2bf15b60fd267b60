//! Logins that AWS gives to those who sign with its keys.
//!
//! - `keys`: who signs, and `command`, which a profile may have for it; `signature`: Signature Version 4;
//! - `rds`: tokens, made here without asking anybody;
//! - `redshift`, `redshift_serverless`: temporary passwords, which a `service` of AWS is asked for;
//! - `refusal`: what it means when AWS says no.
//!
//! AWS's own crates find keys and sign; its crates for whole services are left out, which have hundreds of thousands of
//! lines for two questions.

mod command;
mod keys;
pub(super) mod rds;
pub(super) mod redshift;
pub(super) mod redshift_serverless;
mod refusal;
mod service;
mod signature;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

pub(super) use service::Asker;

/// How long a login is asked for, in seconds: the shortest that AWS gives, as it is used at once.
const DURATION: u64 = 900;

/// RFC 3986 section 2.3, to which AWS holds.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}
