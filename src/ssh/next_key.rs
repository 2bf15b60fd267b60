//! The key that is to take the place of the daemon's own: made beside it as `KEY.next`, taken over once the bastion
//! accepts it, with what was before kept as `KEY.old`.
//!
//! At every moment a whole key stands at `KEY`, so that a daemon that is killed in between logs in with one or the other.
//! What is left half done is done again by the next take-over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use russh::keys::PrivateKey;
use zeroize::Zeroizing;

use super::keys::{MAX_KEY_FILE, public_path};
use crate::failure::plain;
use crate::files::{self, Existing};
use crate::settings::plan::certificate_beside;

/// A key that waits for the bastion to accept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextKey {
    /// What the bastion has to be told.
    pub public_key: String,
    /// When it was made.
    pub since: SystemTime,
}

/// Where the next key is that takes the place of this one.
#[must_use]
pub fn next_key_path(key: &Path) -> PathBuf {
    beside(key, ".next")
}

/// Where the key is whose place was taken.
#[must_use]
pub fn old_key_path(key: &Path) -> PathBuf {
    beside(key, ".old")
}

fn beside(key: &Path, ending: &str) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Looks for the next key of this one. May block.
///
/// # Errors
/// One sentence, where there is one that cannot be read.
pub fn find_next_key(key: &Path) -> Result<Option<NextKey>, String> {
    let next = next_key_path(key);
    let cannot = |error: &dyn std::fmt::Display| format!("the next key {}: {error}", next.display());
    let since = match fs::symlink_metadata(&next) {
        Ok(metadata) => metadata.modified().map_err(|error| cannot(&plain(&error)))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(&plain(&error))),
    };
    let bytes = files::read_own(&next, MAX_KEY_FILE).map_err(|error| cannot(&plain(&error)))?;
    let public_key = public_line(&bytes).map_err(|error| cannot(&error))?;
    Ok(Some(NextKey { public_key, since }))
}

fn public_line(bytes: &[u8]) -> Result<String, String> {
    let key = PrivateKey::from_openssh(bytes).map_err(|error| error.to_string())?;
    key.public_key().to_openssh().map_err(|error| error.to_string())
}

/// Puts the next key in the place of this one, if it still is the one that was accepted. Returns the public line of the
/// key before. May block.
///
/// # Errors
/// What the system says, or that the next key is another by now.
pub fn take_over_next_key(key: &Path, accepted: &NextKey) -> io::Result<Option<String>> {
    let (next, old) = (next_key_path(key), old_key_path(key));
    let bytes = files::read_own(&next, MAX_KEY_FILE)?;
    if public_line(&bytes).as_ref() != Ok(&accepted.public_key) {
        return Err(io::Error::other("it is another key than the one that was accepted"));
    }
    let before = files::read_own(key, MAX_KEY_FILE)?;
    let is_taken_over = *before == *bytes;
    if !before.is_empty() && !is_taken_over {
        keep(&old, &before)?;
    }
    // Not a change of names: what is written is what was accepted, whoever makes another next key meanwhile.
    keep(key, &bytes)?;
    let certified = certificate_beside(&next);
    if certified.exists() || !is_taken_over {
        rename(&certificate_beside(key), &certificate_beside(&old))?;
        rename(&certified, &certificate_beside(key))?;
    }
    for path in [public_path(&next), next] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(public_line(&before).ok().filter(|_| !is_taken_over))
}

/// Writes a key and its public half.
fn keep(path: &Path, bytes: &Zeroizing<Vec<u8>>) -> io::Result<()> {
    files::place(path, 0o600, bytes, Existing::Replace)?;
    if let Ok(public) = public_line(bytes) {
        files::place(&public_path(path), 0o644, format!("{public}\n").as_bytes(), Existing::Replace)?;
    }
    Ok(())
}

/// What is not there need not be moved.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::generate_key;
    use super::*;
    use crate::ids::Name;

    struct Keys {
        _dir: tempfile::TempDir,
        key: PathBuf,
    }

    impl Keys {
        /// A key and the next one.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let key = dir.path().join("prod");
            let keys = Self { _dir: dir, key };
            keys.make(&keys.key);
            keys.make(&next_key_path(&keys.key));
            keys
        }

        fn make(&self, path: &Path) {
            generate_key(path, &Name::parse("prod").unwrap(), Existing::Replace).unwrap();
        }

        fn next(&self) -> NextKey {
            find_next_key(&self.key).unwrap().unwrap()
        }
    }

    fn public(path: &Path) -> Option<String> {
        let of_private = public_line(&fs::read(path).ok()?).unwrap();
        assert_eq!(fs::read_to_string(public_path(path)).unwrap().trim(), of_private);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        Some(of_private)
    }

    #[test]
    fn the_next_key_takes_over_and_the_one_before_is_kept() {
        let keys = Keys::new();
        let (before, next) = (public(&keys.key), keys.next());
        assert_eq!(take_over_next_key(&keys.key, &next).unwrap(), before);
        assert_eq!(public(&keys.key), Some(next.public_key));
        assert_eq!(public(&old_key_path(&keys.key)), before);
        assert_eq!(find_next_key(&keys.key), Ok(None));
        assert!(!public_path(&next_key_path(&keys.key)).exists());
    }

    #[test]
    fn what_was_cut_off_is_done_again() {
        let keys = Keys::new();
        let (next, old) = (next_key_path(&keys.key), old_key_path(&keys.key));
        let (before, expected) = (public(&keys.key).unwrap(), keys.next());
        // Killed once the old key was kept.
        fs::copy(&keys.key, &old).unwrap();
        assert_eq!(take_over_next_key(&keys.key, &expected).unwrap(), Some(before.clone()));
        // Killed before the next one was removed: it must not become the old one as well.
        fs::copy(&keys.key, &next).unwrap();
        assert_eq!(take_over_next_key(&keys.key, &keys.next()).unwrap(), None);
        assert_eq!(public(&keys.key), Some(expected.public_key));
        assert_eq!(public(&old), Some(before));
        assert_eq!(find_next_key(&keys.key), Ok(None));
    }

    #[test]
    fn another_key_than_the_accepted_one_does_not_take_over() {
        let keys = Keys::new();
        let (before, accepted) = (public(&keys.key), keys.next());
        keys.make(&next_key_path(&keys.key));
        assert!(take_over_next_key(&keys.key, &accepted).is_err());
        assert_eq!(public(&keys.key), before);
        fs::write(next_key_path(&keys.key), "half a key").unwrap();
        assert!(find_next_key(&keys.key).is_err());
    }

    #[test]
    fn certificates_go_with_their_keys() {
        let keys = Keys::new();
        let (next, old) = (next_key_path(&keys.key), old_key_path(&keys.key));
        for (path, text) in [(&keys.key, "first"), (&next, "second")] {
            fs::write(certificate_beside(path), text).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(certificate_beside(path)).ok();
        take_over_next_key(&keys.key, &keys.next()).unwrap();
        assert_eq!((read(&keys.key), read(&old)), (Some("second".into()), Some("first".into())));
        assert_eq!(read(&next), None);
        keys.make(&next);
        take_over_next_key(&keys.key, &keys.next()).unwrap();
        // It would be for another key.
        assert_eq!((read(&keys.key), read(&old)), (None, Some("second".into())));
    }
}
