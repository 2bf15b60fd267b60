//! What a bastion asks in keyboard-interactive authentication (RFC 4256), and what a daemon can answer: the password,
//! once, where it is asked for by that name and would not be shown on a screen. All else needs a person.

use russh::client::Prompt;

use crate::failure::one_line;

/// What follows a set of prompts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Nothing was asked.
    Nothing,
    /// The password was.
    Password,
    /// It was once more: what was given is not good.
    PasswordAgain,
    /// A new password is wanted, in these words: the old one has expired.
    NewPassword(String),
    /// This was asked, which is for a person.
    Person(String),
}

/// The longest prompt that is shown to people, in characters.
const MAX_SHOWN: usize = 160;

/// Judges a set of prompts; `answered`: the password was given before.
pub(super) fn reply(prompts: &[Prompt], answered: bool) -> Reply {
    let shown = |prompt: &Prompt| one_line(&prompt.prompt, MAX_SHOWN);
    let Some(first) = prompts.first() else { return Reply::Nothing };
    if let Some(new) = prompts.iter().find(|prompt| subject(prompt) == Subject::NewPassword) {
        return Reply::NewPassword(shown(new));
    }
    match prompts.iter().find(|prompt| subject(prompt) != Subject::Password) {
        Some(other) => Reply::Person(shown(other)),
        None if prompts.len() > 1 => Reply::Person(shown(first)),
        None if answered => Reply::PasswordAgain,
        None => Reply::Password,
    }
}

#[derive(PartialEq, Eq)]
enum Subject {
    Password,
    NewPassword,
    Other,
}

fn subject(prompt: &Prompt) -> Subject {
    // sshd puts whatever PAM has to say on lines before the question itself.
    let text = prompt.prompt.trim().lines().last().unwrap_or_default().to_lowercase();
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let has = |any: &[&str]| words.iter().any(|word| any.contains(word));
    // What pam_oath, pam_google_authenticator, Duo and RADIUS ask for may have "password" in its name.
    let once =
        has(&["otp", "code", "passcode", "token", "pin", "factor", "duo", "verification", "challenge"])
            || words.windows(2).any(|pair| pair == ["one", "time"]);
    if prompt.echo || once || !text.contains("passw") {
        Subject::Other
    } else if has(&["new", "current", "old", "retype", "reenter", "change"]) {
        Subject::NewPassword
    } else {
        Subject::Password
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(prompts: &[(&str, bool)], answered: bool) -> Reply {
        let prompt = |(text, echo): &(&str, bool)| Prompt { prompt: (*text).to_owned(), echo: *echo };
        reply(&prompts.iter().map(prompt).collect::<Vec<_>>(), answered)
    }

    #[test]
    fn only_a_hidden_password_is_answered() {
        for prompt in [
            "Password: ",
            "password:",
            "(me@host) Password: ",
            "me's password",
            "Passwort: ",
            "[sudo] PASSWORD",
        ] {
            assert_eq!(judged(&[(prompt, false)], false), Reply::Password, "{prompt}");
            assert_eq!(judged(&[(prompt, true)], false), Reply::Person(prompt.trim().to_owned()), "{prompt}");
        }
        for prompt in [
            "Verification code: ",
            "One-time password (OATH) for `me': ",
            "Enter one time password",
            "OTP password:",
            "Passcode or option (1-3): ",
            "Token:",
            "Enter PIN for password device",
            "",
            "What is your quest? ",
        ] {
            assert_eq!(
                judged(&[(prompt, false)], false),
                Reply::Person(prompt.trim().to_owned()),
                "{prompt}"
            );
        }
    }

    #[test]
    fn a_new_password_is_no_password() {
        for prompt in [
            "New password: ",
            "Retype new password: ",
            "Current password: ",
            "(current) UNIX password: ",
            "Old Password:",
        ] {
            for answered in [false, true] {
                let new = Reply::NewPassword(prompt.trim().to_owned());
                assert_eq!(judged(&[(prompt, false)], answered), new, "{prompt}");
            }
        }
        let pair = [("Password:", false), ("New password:", false)];
        assert_eq!(judged(&pair, false), Reply::NewPassword("New password:".to_owned()));
        let sshd = "You must change it\nChanging password for me.\nCurrent password: ";
        let told = "You must change it Changing password for me. Current password:";
        assert_eq!(judged(&[(sshd, false)], true), Reply::NewPassword(told.to_owned()));
        assert_eq!(judged(&[("A new code of conduct\nPassword: ", false)], false), Reply::Password);
    }

    #[test]
    fn the_secret_is_given_once_and_alone() {
        assert_eq!(judged(&[], false), Reply::Nothing);
        assert_eq!(judged(&[], true), Reply::Nothing);
        assert_eq!(judged(&[("Password: ", false)], true), Reply::PasswordAgain);
        let twice = [("Password:", false), ("Password:", false)];
        assert_eq!(judged(&twice, false), Reply::Person("Password:".to_owned()));
        let two = [("Password:", false), ("Verification code:", false)];
        assert_eq!(judged(&two, false), Reply::Person("Verification code:".to_owned()));
    }

    #[test]
    fn what_a_bastion_asks_cannot_forge_a_line() {
        assert_eq!(
            judged(&[("a\r\nERROR \u{1b}[2J", true)], false),
            Reply::Person("a  ERROR  [2J".to_owned())
        );
    }
}
