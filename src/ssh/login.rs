//! Logging in: whatever the bastion goes on with and we have, until it lets us in or nothing is left to try.
//!
//! The bastion is asked first what it accepts ("none", as ssh does); then come certificates, keys, and last the password,
//! by keyboard-interactive before plain: only there can a bastion say that it has expired. Each is tried once, also where
//! a bastion wants several (`AuthenticationMethods`), so a login comes to an end whatever the bastion answers.

mod password;

use std::fmt;
use std::time::Duration;

use russh::client::{AuthResult, Handle};
use russh::keys::{Algorithm, HashAlg};
use russh::{MethodKind, MethodSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::agent::{Agent, Shown};
use super::channel::Connection;
use super::connect::Connected;
use super::guard::Guard;
use super::identities::{Identities, Identity};
use super::signing::{Signing, Unsigned};
use super::tally::{Rejected, Tally};
use crate::failure::{Cause, Failure};
use crate::ids::HostPort;
use crate::milestones::{Milestone, Milestones};
use crate::state::CertificateTerm;
pub use password::FetchPassword;
use password::Password;

/// How long a connection that has just ended may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Connected {
    /// Logs in as `user`.
    ///
    /// # Errors
    /// `auth` failures. The connection is gone then.
    pub async fn login(
        mut self,
        user: &str,
        identities: &Identities,
        password: Option<FetchPassword<'_>>,
        deadline: Instant,
    ) -> Result<Connection, Failure> {
        match self.attempt(user, identities, password, deadline).await {
            Ok(certificate) => Ok(Connection::new(self, certificate)),
            Err(failure) => Err(self.explain(failure).await),
        }
    }

    /// Whether the bastion accepts the signature of one of these, alone or as one step of several. Nothing is opened, and
    /// the connection is closed.
    ///
    /// # Errors
    /// `auth` failures other than a rejection.
    pub async fn accepts(
        mut self,
        user: &str,
        identities: &Identities,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        let outcome = {
            let mut login = self.begin(user, identities, None);
            match timeout_at(deadline, login.show_all()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(login.overdue()),
            }
        };
        match outcome {
            // russh has no other word for the end of a connection.
            Ok(false) if self.handle.is_closed() => {
                let text = format!("{} ended the login of \"{user}\"", self.bastion);
                // Where MaxAuthTries is 1, a no is the end.
                match self.explain(Failure::new(Cause::AuthClosed, text)).await {
                    failure if failure.cause == Cause::AuthTooManyFailures => Ok(false),
                    failure => Err(failure),
                }
            }
            Ok(accepted) => {
                Connection::new(self, None).close().await;
                Ok(accepted)
            }
            Err(failure) => Err(self.explain(failure).await),
        }
    }

    /// What russh reports as a rejection may be the end of the connection; the bastion's last words, where there are
    /// some, explain it better than we can.
    async fn explain(&self, failure: Failure) -> Failure {
        if self.handle.is_closed() {
            let _ = timeout(LAST_WORDS, self.obituary.wait()).await;
        }
        match self.obituary.read() {
            Some(end) => explain_end(failure, &end),
            None => failure,
        }
    }

    fn begin<'a>(
        &'a mut self,
        user: &'a str,
        identities: &'a Identities,
        password: Option<FetchPassword<'a>>,
    ) -> Login<'a> {
        Login {
            tally: Tally::new(&identities.setbacks, password.is_some()),
            handle: &mut self.handle,
            bastion: &self.bastion,
            user,
            identities,
            password: password.map(Password::ToFetch),
            legacy: self.legacy_algorithms,
            agent: None,
            rsa_hashes: None,
            wants_sha1: false,
            awaited: Awaited::Bastion,
            milestones: &self.milestones,
        }
    }

    async fn attempt(
        &mut self,
        user: &str,
        identities: &Identities,
        password: Option<FetchPassword<'_>>,
        deadline: Instant,
    ) -> Result<Option<CertificateTerm>, Failure> {
        let mut login = self.begin(user, identities, password);
        match timeout_at(deadline, login.run()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(login.overdue()),
        }
    }
}

/// What a login waits for.
#[derive(Clone, Copy)]
pub(super) enum Awaited {
    Bastion,
    Agent,
    Secret,
    /// The bastion's word about the password.
    Verdict,
}

struct Login<'a> {
    handle: &'a mut Handle<Guard>,
    bastion: &'a HostPort,
    user: &'a str,
    identities: &'a Identities,
    password: Option<Password<'a>>,
    legacy: bool,
    /// Connected to when it has to sign.
    agent: Option<Agent>,
    /// How the bastion likes RSA keys to sign, once it was asked.
    rsa_hashes: Option<&'static [Option<HashAlg>]>,
    /// It says that it likes SHA-1 only.
    wants_sha1: bool,
    awaited: Awaited,
    milestones: &'a Milestones,
    tally: Tally,
}

/// The bastion's answer to what it was offered.
enum Answer {
    Accepted,
    /// Not, or not that alone: these may be tried.
    GoOn(MethodSet),
}

impl Login<'_> {
    /// Returns the time of the certificate that the bastion accepted, where there was one.
    async fn run(&mut self) -> Result<Option<CertificateTerm>, Failure> {
        let identities = self.identities;
        let mut left = identities.list.iter();
        let mut used = None;
        let mut last: &(dyn fmt::Display + Sync) = &"nothing, since the bastion asks for nothing";
        let mut by_prompts = self.password.is_some();
        let mut by_password = self.password.is_some();
        let mut answer = self.ask_what_it_accepts().await?;
        loop {
            let methods = match answer {
                Answer::Accepted => {
                    self.milestones.tell(|| Milestone::LoggedIn(self.tally.describe_success(last)));
                    return Ok(used);
                }
                Answer::GoOn(methods) => methods,
            };
            // A password that was rejected once is not tried in another way: that would only lock the account sooner.
            let password_is_good = !self.tally.password_rejected;
            answer = if methods.contains(&MethodKind::PublicKey)
                && let Some(identity) = left.next()
            {
                let accepted_before = self.tally.accepted();
                last = &identity.name;
                let answer = self.show(identity, methods).await?;
                if matches!(answer, Answer::Accepted) || self.tally.accepted() > accepted_before {
                    used = used.or_else(|| identity.term.clone());
                }
                answer
            } else if methods.contains(&MethodKind::KeyboardInteractive) && by_prompts && password_is_good {
                by_prompts = false;
                last = &"the password";
                let another_way = by_password && methods.contains(&MethodKind::Password);
                self.answer_prompts(&methods, another_way).await?
            } else if methods.contains(&MethodKind::Password) && by_password && password_is_good {
                by_password = false;
                last = &"the password";
                self.give_password().await?
            } else {
                return Err(self.tally.verdict(self.bastion, self.user, &methods));
            };
        }
    }

    /// Shows each identity until one is accepted.
    async fn show_all(&mut self) -> Result<bool, Failure> {
        let identities = self.identities;
        for identity in &identities.list {
            let methods = MethodSet::from(&[MethodKind::PublicKey][..]);
            if matches!(self.show(identity, methods).await?, Answer::Accepted) || self.tally.accepted() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask_what_it_accepts(&mut self) -> Result<Answer, Failure> {
        match self.handle.authenticate_none(self.user).await {
            Ok(AuthResult::Success) => Ok(Answer::Accepted),
            Ok(AuthResult::Failure { remaining_methods, .. }) => Ok(Answer::GoOn(remaining_methods)),
            Err(error) => Err(self.cut_off(&error.to_string())),
        }
    }

    /// Shows a key or a certificate, with each hash that the bastion may like.
    async fn show(&mut self, identity: &Identity, methods: MethodSet) -> Result<Answer, Failure> {
        let hashes = match &identity.shown {
            Shown::Key(key) => self.hashes(&key.algorithm()).await?,
            Shown::Certificate(certificate) => self.hashes(&certificate.algorithm()).await?,
        };
        let mut methods = methods;
        for hash in hashes {
            self.awaited = Awaited::Bastion;
            let mut signing = Signing {
                signer: &identity.signer,
                plan: self.identities.agent.as_ref(),
                binding: self.handle.agent_session_binding().cloned(),
                agent: &mut self.agent,
                awaited: &mut self.awaited,
            };
            let shown = match &identity.shown {
                Shown::Key(key) => {
                    let key = key.clone();
                    self.handle.authenticate_publickey_with(self.user, key, *hash, &mut signing).await
                }
                Shown::Certificate(certificate) => {
                    let certificate = certificate.as_ref().clone();
                    self.handle
                        .authenticate_certificate_with(self.user, certificate, *hash, &mut signing)
                        .await
                }
            };
            match shown {
                Ok(AuthResult::Success) => return Ok(Answer::Accepted),
                Ok(AuthResult::Failure { remaining_methods, partial_success: true }) => {
                    self.tally.accept(identity.to_string());
                    return Ok(Answer::GoOn(remaining_methods));
                }
                Ok(AuthResult::Failure { remaining_methods, partial_success: false }) => {
                    methods = remaining_methods;
                    if !methods.contains(&MethodKind::PublicKey) {
                        break;
                    }
                }
                // The bastion would have accepted it.
                Err(Unsigned::Failed(failure)) => {
                    self.tally.set_back(failure);
                    return Ok(Answer::GoOn(methods));
                }
                Err(Unsigned::Gone) => return Err(self.cut_off("the connection ended")),
            }
        }
        self.tally.reject(identity.to_string(), self.kind_of(&identity.shown));
        Ok(Answer::GoOn(methods))
    }

    /// What it is that was rejected.
    fn kind_of(&self, shown: &Shown) -> Rejected {
        match shown {
            Shown::Certificate(_) => Rejected::Certificate,
            Shown::Key(key) if matches!(key.algorithm(), Algorithm::Rsa { .. }) && !self.legacy => {
                Rejected::RsaBySha2 { wants_sha1: self.wants_sha1 }
            }
            Shown::Key(_) => Rejected::Key,
        }
    }

    /// An RSA key signs with SHA-2 (RFC 8332); which one the bastion likes it says in EXT_INFO, and one that says nothing
    /// is asked for both. SHA-1 comes last, and only where it is allowed.
    async fn hashes(&mut self, algorithm: &Algorithm) -> Result<&'static [Option<HashAlg>], Failure> {
        const SHA256: Option<HashAlg> = Some(HashAlg::Sha256);
        const SHA512: Option<HashAlg> = Some(HashAlg::Sha512);
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return Ok(&[None]);
        }
        if let Some(known) = self.rsa_hashes {
            return Ok(known);
        }
        let best = self.handle.best_supported_rsa_hash().await;
        let best = best.map_err(|error| self.cut_off(&error.to_string()))?;
        let hashes: &[_] = match (best, self.legacy) {
            (Some(Some(HashAlg::Sha256)), false) => &[SHA256],
            (Some(Some(HashAlg::Sha256)), true) => &[SHA256, None],
            (Some(Some(_)), false) => &[SHA512],
            (Some(Some(_)), true) => &[SHA512, None],
            (Some(None), true) => &[None],
            (None, true) => &[SHA512, SHA256, None],
            (Some(None) | None, false) => &[SHA512, SHA256],
        };
        (self.rsa_hashes, self.wants_sha1) = (Some(hashes), best == Some(None));
        Ok(hashes)
    }

    fn overdue(&self) -> Failure {
        let Self { bastion, user, .. } = self;
        match self.awaited {
            Awaited::Agent => Failure::new(Cause::AuthAgent, "the agent did not sign in time for the login"),
            Awaited::Secret => {
                Failure::new(Cause::AuthSecret, "`password` was not fetched in time for the login")
            }
            Awaited::Bastion => {
                let text = format!("{bastion} did not decide about the login of \"{user}\" in time");
                Failure::new(Cause::AuthTimeout, text)
            }
            Awaited::Verdict => {
                let text = format!("{bastion} did not decide about the password of \"{user}\" in time");
                // RFC 4252 section 8 lets it ask for a new one instead; russh waits on then.
                Failure::new(Cause::AuthTimeout, text).with_hint(
                    "the bastion's directory service (LDAP, PAM) may be slow, or the password may have expired: log in by \
                     hand to see",
                )
            }
        }
    }

    fn cut_off(&self, why: &str) -> Failure {
        let text = format!("the login of \"{}\" at {} was cut off: {why}", self.user, self.bastion);
        Failure::new(Cause::AuthClosed, text)
    }
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
