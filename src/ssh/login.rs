//! Logging in: each identity in turn, until the bastion accepts one or nothing is left to try.

use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg};
use russh::{MethodKind, MethodSet};
use tokio::time::{Instant, timeout_at};

use super::channel::Connection;
use super::connect::Connected;
use super::guard::Guard;
use super::keys::{Identities, Identity};
use crate::failure::{Cause, Failure};
use crate::ids::HostPort;

impl Connected {
    /// Logs in as `user`.
    ///
    /// # Errors
    /// `auth` failures. The connection is gone then.
    pub async fn login(
        mut self,
        user: &str,
        identities: &Identities,
        deadline: Instant,
    ) -> Result<Connection, Failure> {
        let attempt = offer_all(&mut self.handle, &self.bastion, user, identities);
        let outcome = match timeout_at(deadline, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(
                Cause::AuthTimeout,
                format!("{} did not decide about the login of \"{user}\" in time", self.bastion),
            )),
        };
        match outcome {
            Ok(()) => Ok(Connection::new(self.handle, self.bastion, self.gate, self.obituary, self.refusal)),
            Err(failure) => {
                // What russh reports as a rejection may be the end of the connection; the bastion's last words,
                // where there are some, explain it better than we can.
                let last_words = self.obituary.read();
                self.gate.condemn();
                Err(match last_words {
                    Some(end) => explain_end(failure, &end),
                    None => failure,
                })
            }
        }
    }
}

async fn offer_all(
    handle: &mut Handle<Guard>,
    bastion: &HostPort,
    user: &str,
    identities: &Identities,
) -> Result<(), Failure> {
    let mut offered = Vec::new();
    let mut accepted_methods = MethodSet::empty();
    for identity in &identities.keys {
        offered.push(identity.describe());
        match offer(handle, user, identity).await {
            Ok(AuthResult::Success) => return Ok(()),
            Ok(AuthResult::Failure { partial_success: true, remaining_methods }) => {
                return Err(Failure::new(
                    Cause::AuthRejected,
                    format!(
                        "{bastion} accepted {} for \"{user}\" and wants {} as well, which is not supported",
                        identity.describe(),
                        names(&remaining_methods)
                    ),
                ));
            }
            Ok(AuthResult::Failure { remaining_methods, .. }) => {
                let go_on = remaining_methods.contains(&MethodKind::PublicKey);
                accepted_methods = remaining_methods;
                if !go_on {
                    break;
                }
            }
            Err(error) => {
                return Err(Failure::new(
                    Cause::AuthClosed,
                    format!("the login of \"{user}\" at {bastion} was cut off: {error}"),
                ));
            }
        }
    }
    let offers = match names(&accepted_methods) {
        none if none.is_empty() => String::new(),
        names => format!("; it accepts {names}"),
    };
    Err(Failure::new(
        Cause::AuthRejected,
        format!("{bastion} rejected {} for \"{user}\"{offers}", offered.join(" and ")),
    ))
}

async fn offer(
    handle: &mut Handle<Guard>,
    user: &str,
    identity: &Identity,
) -> Result<AuthResult, russh::Error> {
    let hashes: &[Option<HashAlg>] = match identity.key.algorithm() {
        // An ssh-rsa key signs with SHA-2 (RFC 8332); which one the server likes it says in EXT_INFO, and a server
        // that says nothing is asked for both. SHA-1 is never offered.
        Algorithm::Rsa { .. } => match handle.best_supported_rsa_hash().await? {
            Some(Some(HashAlg::Sha256)) => &[Some(HashAlg::Sha256)],
            Some(Some(_)) => &[Some(HashAlg::Sha512)],
            Some(None) | None => &[Some(HashAlg::Sha512), Some(HashAlg::Sha256)],
        },
        _ => &[None],
    };
    let mut result = AuthResult::Failure { remaining_methods: MethodSet::empty(), partial_success: false };
    for hash in hashes {
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&identity.key), *hash);
        result = handle.authenticate_publickey(user, key).await?;
        match &result {
            AuthResult::Failure { partial_success: false, remaining_methods }
                if remaining_methods.contains(&MethodKind::PublicKey) => {}
            _ => break,
        }
    }
    Ok(result)
}

fn names(methods: &MethodSet) -> String {
    let names: Vec<&str> = methods.iter().map(Into::into).collect();
    names.join(", ")
}

/// Joins what we saw (no login) with what the connection's end says.
fn explain_end(failure: Failure, end: &Failure) -> Failure {
    let text = end.detail();
    if text.contains("Too many authentication failures") {
        return Failure::new(Cause::AuthTooManyFailures, format!("{}: {text}", failure.detail()));
    }
    match end.cause {
        // russh's own end after a rejection that leaves no method to go on with.
        Cause::SessionProtocol if text.contains("No authentication method") => failure,
        Cause::SessionClosed | Cause::SessionReset | Cause::SessionKeepaliveTimeout
            if failure.cause != Cause::AuthTimeout =>
        {
            Failure::new(Cause::AuthClosed, format!("during the login, {text}"))
        }
        _ => failure,
    }
}
