//! Giving the password: to the bastion itself, or in answer to its questions. It is fetched when it is needed, and given in
//! each way once.

use std::future::Future;
use std::pin::Pin;

use russh::MethodSet;
use russh::client::{AuthResult, KeyboardInteractiveAuthResponse as Interactive};

use super::{Answer, Awaited, Login};
use crate::failure::{Cause, Failure};
use crate::secret::Secret;
use crate::ssh::prompts::{self, Reply};

/// More sets of prompts than any login has.
const MAX_PROMPT_SETS: usize = 10;

/// Fetches a password when it is needed, and not before.
pub type FetchPassword<'a> = Pin<Box<dyn Future<Output = Result<Secret, Failure>> + Send + 'a>>;

pub(super) enum Password<'a> {
    ToFetch(FetchPassword<'a>),
    Fetched(Secret),
}

impl Login<'_> {
    /// `another_way`: the password can be given in another way, too.
    pub(super) async fn answer_prompts(
        &mut self,
        methods: &MethodSet,
        another_way: bool,
    ) -> Result<Answer, Failure> {
        let mut answered = false;
        self.awaited = Awaited::Bastion;
        let mut said = self.handle.authenticate_keyboard_interactive_start(self.user, None).await;
        for _ in 0..MAX_PROMPT_SETS {
            let prompts = match said {
                Ok(Interactive::Success) => return Ok(Answer::Accepted),
                Ok(Interactive::Failure { remaining_methods, partial_success }) => {
                    match (partial_success, answered) {
                        (true, _) => self.tally.accept("the password".to_owned()),
                        (false, true) => self.tally.reject_password(),
                        (false, false) => {}
                    }
                    return Ok(Answer::GoOn(remaining_methods));
                }
                Ok(Interactive::InfoRequest { prompts, .. }) => prompts,
                Err(error) => return Err(self.cut_off(&error.to_string())),
            };
            let answers = match prompts::reply(&prompts, answered) {
                Reply::Nothing => Vec::new(),
                Reply::Password => {
                    answered = true;
                    vec![self.secret().await?.expose().to_owned()]
                }
                Reply::PasswordAgain => {
                    self.tally.reject_password();
                    return Err(self.tally.verdict(self.bastion, self.user, methods));
                }
                Reply::NewPassword(prompt) => return Err(self.password_expired(&prompt)),
                Reply::Person(prompt) => {
                    self.tally.set_back(self.needs_a_person(&prompt));
                    if !another_way || answered {
                        return Err(self.tally.verdict(self.bastion, self.user, methods));
                    }
                    // Only an answer ends this way of asking.
                    vec![String::new(); prompts.len()]
                }
            };
            self.awaited = if answered { Awaited::Verdict } else { Awaited::Bastion };
            said = self.handle.authenticate_keyboard_interactive_respond(answers).await;
        }
        let text = format!("{} does not come to an end with its questions", self.bastion);
        Err(Failure::new(Cause::AuthRejected, text))
    }

    pub(super) async fn give_password(&mut self) -> Result<Answer, Failure> {
        let secret = self.secret().await?.expose().to_owned();
        self.awaited = Awaited::Verdict;
        match self.handle.authenticate_password(self.user, secret).await {
            Ok(AuthResult::Success) => Ok(Answer::Accepted),
            Ok(AuthResult::Failure { remaining_methods, partial_success }) => {
                if partial_success {
                    self.tally.accept("the password".to_owned());
                } else {
                    self.tally.reject_password();
                }
                Ok(Answer::GoOn(remaining_methods))
            }
            Err(error) => Err(self.cut_off(&error.to_string())),
        }
    }

    async fn secret(&mut self) -> Result<&Secret, Failure> {
        if let Some(Password::ToFetch(fetch)) = &mut self.password {
            self.awaited = Awaited::Secret;
            self.password = Some(Password::Fetched(fetch.await?));
        }
        match &self.password {
            Some(Password::Fetched(secret)) => Ok(secret),
            _ => Err(Failure::new(Cause::AuthSecret, "no `password` is set")),
        }
    }

    fn password_expired(&self, prompt: &str) -> Failure {
        let text = format!("{} wants a new password of \"{}\": \"{prompt}\"", self.bastion, self.user);
        Failure::new(Cause::AuthPasswordExpired, text)
    }

    fn needs_a_person(&self, prompt: &str) -> Failure {
        let text = format!("{} asks \"{prompt}\", which only a person can answer", self.bastion);
        Failure::new(Cause::AuthRejected, text).with_hint(
            "let this account in without a second factor: a `Match User` block with AuthenticationMethods publickey in \
             sshd_config",
        )
    }
}
