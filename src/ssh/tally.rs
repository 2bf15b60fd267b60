//! What became of everything that a login was tried with, and what a failed one is to be called.

use std::fmt;

use russh::{MethodKind, MethodSet};

use crate::failure::{Cause, Failure};
use crate::ids::HostPort;

/// What a bastion has rejected, as far as the advice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Key,
    /// An RSA key that was to sign with SHA-2, and not with SHA-1 as well.
    RsaBySha2 {
        /// The bastion says that it takes SHA-1 only.
        wants_sha1: bool,
    },
    Certificate,
}

/// The count of a login.
pub(super) struct Tally {
    accepted: Vec<String>,
    rejected: Vec<String>,
    rejected_kinds: Vec<Rejected>,
    /// What could not be tried, and why.
    setbacks: Vec<Failure>,
    has_password: bool,
    pub(super) password_rejected: bool,
}

impl Tally {
    pub(super) fn new(setbacks: &[Failure], has_password: bool) -> Self {
        Self {
            accepted: Vec::new(),
            rejected: Vec::new(),
            rejected_kinds: Vec::new(),
            setbacks: setbacks.to_vec(),
            has_password,
            password_rejected: false,
        }
    }

    /// The bastion accepts it, and wants more.
    pub(super) fn accept(&mut self, what: String) {
        self.accepted.push(what);
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.len()
    }

    pub(super) fn reject(&mut self, what: String, kind: Rejected) {
        self.rejected.push(what);
        self.rejected_kinds.push(kind);
    }

    pub(super) fn reject_password(&mut self) {
        self.password_rejected = true;
        self.rejected.push("the password".to_owned());
    }

    pub(super) fn set_back(&mut self, failure: Failure) {
        self.setbacks.push(failure);
    }

    /// What let us in, when `last` was what the bastion was shown at the end.
    pub(super) fn describe_success(&self, last: &dyn fmt::Display) -> String {
        let before: String = self.accepted.iter().map(|what| format!("{what} and ")).collect();
        format!("{before}{last}")
    }

    /// Why the login failed, when nothing is left to try of the `methods` that the bastion goes on with.
    pub(super) fn verdict(&self, bastion: &HostPort, user: &str, methods: &MethodSet) -> Failure {
        let mut sentences = vec![self.outcome(bastion, user, methods)];
        let Some(leading) = self.leading_setback() else {
            sentences.extend(self.setbacks.iter().map(|setback| setback.detail().to_owned()));
            let failure = Failure::new(Cause::AuthRejected, sentences.join("; "));
            return match self.advice(methods) {
                Some(hint) => failure.with_hint(hint),
                None => failure,
            };
        };
        sentences.insert(0, leading.detail().to_owned());
        let others = self.setbacks.iter().filter(|setback| *setback != leading);
        sentences.extend(others.map(|setback| setback.detail().to_owned()));
        Failure::new(leading.cause, sentences.join("; ")).with_hint(leading.hint())
    }

    /// What can be told from outside. An unknown user, a key that is not authorised and an account that may not log in all
    /// look the same (sshd asks an unknown user for the same things), so the general hint speaks of all of them.
    fn advice(&self, methods: &MethodSet) -> Option<String> {
        let was_rejected = |kind| self.rejected_kinds.contains(&kind);
        if self.wants_a_password(methods) {
            let text = "set `password`, or let the bastion accept a key alone: AuthenticationMethods and \
                        PubkeyAuthentication in its sshd_config";
            Some(text.to_owned())
        } else if self.password_rejected && self.rejected.len() == 1 {
            // Keys are not what is wrong then.
            Some("correct `password`; the bastion's auth log says whether the account is locked".to_owned())
        } else if !self.accepted.is_empty() {
            let text = "the bastion wants a further step (AuthenticationMethods in its sshd_config): name the key for it \
                        with `identity` as well, or let this account in with one";
            Some(text.to_owned())
        } else if was_rejected(Rejected::RsaBySha2 { wants_sha1: true }) {
            let text = "the bastion takes RSA keys with SHA-1 only: update its sshd, or use a key of another kind \
                        (ssh-keygen -t ed25519), or set `legacy_algorithms = true`";
            Some(text.to_owned())
        } else if was_rejected(Rejected::Certificate) {
            let text = "one of the certificate's principals has to be `user`, or to stand in the bastion's \
                        AuthorizedPrincipalsFile, and its authority in TrustedUserCAKeys; the bastion's log \
                        (journalctl -u ssh) says what it missed";
            Some(text.to_owned())
        } else if was_rejected(Rejected::RsaBySha2 { wants_sha1: false }) {
            let general = Cause::AuthRejected.hint();
            Some(format!(
                "{general}; an sshd that takes RSA keys with SHA-1 only needs `legacy_algorithms = true`"
            ))
        } else {
            None
        }
    }

    /// The setback without which the login might have gone well.
    fn leading_setback(&self) -> Option<&Failure> {
        let untried = self.accepted.is_empty() && self.rejected.is_empty();
        let leads = |setback: &&Failure| match setback.cause {
            Cause::AuthCertificateExpired => self.accepted.is_empty(),
            // One that only a person could have gone on from.
            Cause::AuthAgent | Cause::AuthRejected => true,
            _ => untried,
        };
        self.setbacks.iter().find(leads)
    }

    fn outcome(&self, bastion: &HostPort, user: &str, methods: &MethodSet) -> String {
        let (accepted, rejected) = (self.accepted.join(" and "), self.rejected.join(" and "));
        let names: Vec<&str> = methods.iter().map(Into::into).collect();
        let names = if names.is_empty() { "nothing else".to_owned() } else { names.join(", ") };
        match (accepted.is_empty(), rejected.is_empty()) {
            (true, true) => format!("{bastion} accepts {names} for \"{user}\""),
            (true, false) => match methods.is_empty() {
                true => format!("{bastion} rejected {rejected} for \"{user}\""),
                false => format!("{bastion} rejected {rejected} for \"{user}\"; it accepts {names}"),
            },
            (false, true) => {
                format!("{bastion} accepted {accepted} for \"{user}\" and wants {names} as well")
            }
            (false, false) => format!(
                "{bastion} accepted {accepted} for \"{user}\", wants {names} as well and rejected {rejected}"
            ),
        }
    }

    fn wants_a_password(&self, methods: &MethodSet) -> bool {
        let by_password = [MethodKind::Password, MethodKind::KeyboardInteractive];
        let instead = !self.accepted.is_empty() || !methods.contains(&MethodKind::PublicKey);
        !self.has_password && instead && by_password.iter().any(|method| methods.contains(method))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: MethodKind = MethodKind::PublicKey;
    const PASSWORD: MethodKind = MethodKind::Password;

    fn verdict(tally: &Tally, methods: &[MethodKind]) -> Failure {
        tally.verdict(&HostPort::new("bastion", 22), "me", &MethodSet::from(methods))
    }

    #[test]
    fn what_let_us_in_is_told_with_all_its_steps() {
        let mut tally = Tally::new(&[], true);
        assert_eq!(tally.describe_success(&"/keys/prod"), "/keys/prod");
        tally.accept("the key B".to_owned());
        assert_eq!(tally.describe_success(&"the password"), "the key B and the password");
    }

    #[test]
    fn what_was_tried_is_told() {
        let mut tally = Tally::new(&[], false);
        assert_eq!(verdict(&tally, &[KEY]).detail(), "bastion:22 accepts publickey for \"me\"");
        tally.reject("the key A".to_owned(), Rejected::Key);
        tally.reject("the key B".to_owned(), Rejected::Key);
        assert_eq!(
            verdict(&tally, &[KEY, PASSWORD]).detail(),
            "bastion:22 rejected the key A and the key B for \"me\"; it accepts publickey, password"
        );
        assert_eq!(verdict(&tally, &[KEY, PASSWORD]).hint(), Cause::AuthRejected.hint());
        assert!(verdict(&tally, &[PASSWORD]).hint().starts_with("set `password`"));
        tally.accept("the key C".to_owned());
        let failure = verdict(&tally, &[PASSWORD]);
        assert_eq!(
            failure.detail(),
            "bastion:22 accepted the key C for \"me\", wants password as well and rejected the key A and the key B"
        );
        assert!(failure.hint().starts_with("set `password`"));
    }

    #[test]
    fn a_rejected_password_alone_is_not_mended_with_a_key() {
        let mut tally = Tally::new(&[], true);
        tally.reject_password();
        assert!(verdict(&tally, &[KEY, PASSWORD]).hint().starts_with("correct `password`"));
        tally.reject("the key A".to_owned(), Rejected::Key);
        assert_eq!(verdict(&tally, &[KEY, PASSWORD]).hint(), Cause::AuthRejected.hint());
    }

    #[test]
    fn what_can_be_told_of_a_rejection_is_advised() {
        let hint = |accepted: &[&str], rejected: &[Rejected]| {
            let mut tally = Tally::new(&[], false);
            accepted.iter().for_each(|what| tally.accept((*what).to_owned()));
            rejected.iter().for_each(|kind| tally.reject("it".to_owned(), *kind));
            verdict(&tally, &[KEY]).hint().to_owned()
        };
        let rsa = |wants_sha1| Rejected::RsaBySha2 { wants_sha1 };
        assert!(hint(&["the key A"], &[]).contains("AuthenticationMethods"));
        assert!(hint(&["the key A"], &[Rejected::Certificate]).contains("AuthenticationMethods"));
        assert!(hint(&[], &[Rejected::Certificate, Rejected::Key]).contains("AuthorizedPrincipalsFile"));
        assert!(hint(&[], &[rsa(true), Rejected::Certificate]).contains("with SHA-1 only: update"));
        let both = hint(&[], &[rsa(false)]);
        assert!(both.starts_with(Cause::AuthRejected.hint()) && both.contains("`legacy_algorithms = true`"));
        assert_eq!(hint(&[], &[Rejected::Key]), Cause::AuthRejected.hint());
    }

    #[test]
    fn the_setback_that_mattered_names_the_failure() {
        let expired = Failure::new(Cause::AuthCertificateExpired, "it expired");
        let unreadable = Failure::new(Cause::AuthIdentityUnreadable, "it is gone");
        let agent = Failure::new(Cause::AuthAgent, "it is silent").with_hint("wake it");
        let tally = |setbacks: &[&Failure], accepted: bool, rejected: bool| {
            let setbacks: Vec<Failure> = setbacks.iter().map(|setback| (*setback).clone()).collect();
            let mut tally = Tally::new(&setbacks, true);
            if accepted {
                tally.accept("the key A".to_owned());
            }
            if rejected {
                tally.reject_password();
            }
            verdict(&tally, &[KEY])
        };
        for (setbacks, accepted, rejected, cause, begins) in [
            (
                &[&unreadable][..],
                false,
                false,
                Cause::AuthIdentityUnreadable,
                "it is gone; bastion:22 accepts",
            ),
            (&[&unreadable], false, true, Cause::AuthRejected, "bastion:22 rejected the password for"),
            (
                &[&unreadable, &expired],
                false,
                true,
                Cause::AuthCertificateExpired,
                "it expired; bastion:22 rejected",
            ),
            (&[&expired], true, false, Cause::AuthRejected, "bastion:22 accepted the key A"),
            (&[&agent], true, true, Cause::AuthAgent, "it is silent; bastion:22 accepted"),
        ] {
            let failure = tally(setbacks, accepted, rejected);
            assert_eq!(failure.cause, cause, "{failure}");
            assert!(failure.detail().starts_with(begins), "{failure}");
            assert!(setbacks.iter().all(|setback| failure.detail().contains(setback.detail())), "{failure}");
        }
        assert_eq!(tally(&[&agent], false, false).hint(), "wake it");
    }
}
