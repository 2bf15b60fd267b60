//! Private key files: their checks, their formats, and the making of the daemon's own.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey, decode_secret_key};
use zeroize::Zeroizing;

use crate::failure::{Cause, Failure, plain};
use crate::files::{self, Existing, Placed};
use crate::ids::Name;
use crate::secret::Secret;

/// Larger than any private key.
pub(super) const MAX_KEY_FILE: usize = 64 << 10;

/// A key file that cannot be logged in with as it is.
pub(super) struct Unusable {
    pub(super) failure: Failure,
    /// Its public half, where that can be told: an agent may have the other.
    pub(super) public: Option<Box<PublicKey>>,
}

impl From<Failure> for Unusable {
    fn from(failure: Failure) -> Self {
        Self { failure, public: None }
    }
}

/// Reads a private key.
pub(super) fn load(path: &Path, passphrase: Option<&Secret>) -> Result<PrivateKey, Unusable> {
    let text = read(path)?;
    if let Ok(public) = PublicKey::from_openssh(&text) {
        return Err(Unusable { failure: is_the_public_half(path), public: Some(Box::new(public)) });
    }
    decode(path, &text, passphrase).map_err(|failure| {
        // What OpenSSH writes tells the public half of what it encrypts.
        let inside = || PrivateKey::from_openssh(&*text).ok().map(|key| key.public_key().clone());
        let beside = || {
            let bytes = files::read(&public_path(path), MAX_KEY_FILE).ok()?;
            PublicKey::from_openssh(std::str::from_utf8(&bytes).ok()?).ok()
        };
        Unusable { failure, public: inside().or_else(beside).map(Box::new) }
    })
}

fn is_the_public_half(path: &Path) -> Failure {
    unreadable(path, "is a public key").with_hint(
        "name the private key, the file of the same name without .pub; or set `agent` where an agent has the key",
    )
}

fn unreadable(path: &Path, found: impl std::fmt::Display) -> Failure {
    Failure::new(Cause::AuthIdentityUnreadable, format!("the private key {} {found}", path.display()))
}

fn unformatted(path: &Path, found: impl std::fmt::Display) -> Failure {
    unreadable(path, found).with_hint(
        "name a private key of OpenSSH (-----BEGIN OPENSSH PRIVATE KEY-----), PEM, PKCS#8 or PuTTY",
    )
}

fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let cannot = |error: io::Error| {
        let failure = unreadable(path, format!("cannot be read: {}", plain(&error)));
        match error.kind() {
            io::ErrorKind::NotFound => failure.with_hint(format!(
                "correct `identity`, or make the key: ssh-keygen -t ed25519 -f {}",
                path.display()
            )),
            io::ErrorKind::PermissionDenied => failure.with_hint(
                "give the file to the daemon's user (chown), and let it enter the directories on the way",
            ),
            _ => failure.from_system(&error),
        }
    };
    // What is looked at is what is read, whatever becomes of the path meanwhile.
    let (file, metadata) = match files::open(path) {
        Ok((file, metadata)) if metadata.is_file() => (file, metadata),
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => return Err(cannot(error)),
        _ => return Err(unreadable(path, "is not a file")),
    };
    let mode = metadata.mode() & 0o777;
    let uid = metadata.uid();
    let bytes = files::read_all(file, &metadata, MAX_KEY_FILE).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => unreadable(path, "is too large to be a key"),
        _ => cannot(error),
    })?;
    let text = std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned()));
    let text = text.map_err(|_| unformatted(path, "is not a private key in any known format"))?;
    // As ssh does it: our own key must be ours alone; one that belongs to somebody else (root, say) may be shared
    // with a group of ours. Nobody else's business in any case.
    let forbidden = if uid == geteuid().as_raw() { 0o077 } else { 0o007 };
    if mode & forbidden != 0 && !is_public(&text) {
        return Err(unreadable(path, format!("can be read by others (mode {mode:04o})"))
            .with_hint(format!("chmod 600 {}", path.display())));
    }
    Ok(text)
}

fn decode(path: &Path, text: &str, passphrase: Option<&Secret>) -> Result<PrivateKey, Failure> {
    let error = match decode_secret_key(text, None) {
        Ok(key) => return Ok(key),
        Err(error) => error,
    };
    if is_unsupported_encryption(text) {
        return Err(unreadable(path, "is encrypted in an old format that is not supported")
            .with_hint(format!("convert it: ssh-keygen -p -f {}", path.display())));
    }
    let encrypted = matches!(error, russh::keys::Error::KeyIsEncrypted) || is_encrypted(text);
    match (encrypted, passphrase) {
        (true, None) => Err(Failure::new(
            Cause::AuthPassphrase,
            format!("the private key {} is encrypted, and no `identity_passphrase` is set", path.display()),
        )
        .with_hint(format!(
            "set `identity_passphrase`, or take the passphrase off: ssh-keygen -p -f {}",
            path.display()
        ))),
        (true, Some(passphrase)) => decode_secret_key(text, Some(passphrase.expose())).map_err(|error| {
            if is_short(&error) {
                return short(path);
            }
            Failure::new(
                Cause::AuthPassphrase,
                format!("the private key {} does not open with `identity_passphrase`", path.display()),
            )
            .with_hint(format!(
                "correct `identity_passphrase`; this asks for it too: ssh-keygen -y -f {}",
                path.display()
            ))
        }),
        (false, _) if is_public(text) => Err(is_the_public_half(path)),
        (false, _) if is_short(&error) => Err(short(path)),
        (false, _) => Err(unformatted(path, format!("is not a private key in any known format: {error}"))),
    }
}

fn is_public(text: &str) -> bool {
    let text = text.trim_start();
    ["ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2 PUBLIC KEY"].iter().any(|start| text.starts_with(start))
}

fn is_encrypted(text: &str) -> bool {
    let ppk = text.lines().find_map(|line| line.strip_prefix("Encryption: "));
    text.contains("ENCRYPTED") || ppk.is_some_and(|cipher| cipher.trim() != "none")
}

/// Legacy PEM encryption: only RSA keys with AES-128 can be opened.
fn is_unsupported_encryption(text: &str) -> bool {
    let legacy = text.lines().find_map(|line| line.strip_prefix("DEK-Info: "));
    legacy.is_some_and(|info| !info.starts_with("AES-128-CBC,") || !text.contains("BEGIN RSA PRIVATE KEY"))
}

/// OpenSSH stores a nistp256 key whose number begins with a zero byte (one in 256 does) without that byte, and
/// ssh-key 0.7 does not take it so; PKCS#8 keeps it.
fn is_short(error: &russh::keys::Error) -> bool {
    use russh::keys::ssh_key::{Error, encoding};
    matches!(error, russh::keys::Error::SshKey(Error::Encoding(encoding::Error::Length)))
}

fn short(path: &Path) -> Failure {
    unreadable(path, "has a number of a length that cannot be read, as one in 256 keys of the kind ecdsa has")
        .with_hint(format!("convert it, it stays the same key: ssh-keygen -p -m PKCS8 -f {}", path.display()))
}

/// Makes an Ed25519 key and its `.pub` beside it. The directory is made too; all take the owner of the directory
/// above when root makes them, so that the daemon can read them.
///
/// # Errors
/// When the files cannot be written.
pub fn generate_key(path: &Path, bastion: &Name, existing: Existing) -> io::Result<Placed> {
    let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
        .map_err(io::Error::other)?;
    key.set_comment(format!("tunnelkeeper-{bastion}"));
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let public = key.public_key().to_openssh().map_err(io::Error::other)?;
    files::make_dir(path.parent().unwrap_or(Path::new(".")))?;
    let made = files::place(path, 0o600, text.as_bytes(), existing)?;
    if made == Placed::Made {
        files::place(&public_path(path), 0o644, format!("{public}\n").as_bytes(), Existing::Replace)?;
    }
    Ok(made)
}

/// Writes the `.pub` of a key again if it is gone.
///
/// # Errors
/// When it cannot be written.
pub fn restore_public_key(path: &Path, public: &str) -> io::Result<()> {
    files::place(&public_path(path), 0o644, format!("{public}\n").as_bytes(), Existing::Keep).map(drop)
}

/// `KEY.pub`.
pub(super) fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

#[cfg(test)]
mod tests;
