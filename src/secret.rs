//! Secret text: masked wherever it could be printed, wiped from memory when dropped.
//!
//! Fetching a secret is [`crate::credentials`]' work; this module only says what one is and where one may live.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

/// A password or passphrase. It has no `Display`, its `Debug` is masked, and its memory is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over secret text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(masked)")
    }
}

/// What one logs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user, as the database shall have it: temporary ones have a colon in it.
    pub user: String,
    /// Needed unless the other side lets the user in without.
    pub password: Option<Secret>,
}

/// Where a secret is fetched from, anew at each login.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the daemon.
    Env(String),
    /// A file, absolute or relative to the daemon's working directory.
    File(PathBuf),
    /// A file of that name in systemd's `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// The standard output of a command, which is run without a shell.
    Command(Vec<String>),
    /// Written in the configuration itself.
    Plain(Secret),
}

/// Names the source, never the secret.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(variable) => write!(f, "environment variable {variable}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credential(name) => write!(f, "systemd credential {name}"),
            Self::Command(argv) => write!(f, "command {}", argv.first().map_or("", String::as_str)),
            Self::Plain(_) => f.write_str("the configuration"),
        }
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_a_secret() {
        let source = SecretSource::Plain(Secret::new("hunter2".to_owned()));
        for text in [format!("{source:?}"), source.to_string()] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_commands_arguments_are_not_shown() {
        let source = SecretSource::Command(vec!["op".into(), "read".into(), "--token=abc".into()]);
        assert_eq!(source.to_string(), "command op");
        assert_eq!(format!("{source:?}"), "command op");
    }
}
