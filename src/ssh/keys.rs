//! Private key files: their checks, their formats, and the daemon's own keys.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey, decode_secret_key};
use zeroize::Zeroizing;

use crate::failure::{Cause, Failure, plain};
use crate::files;
use crate::ids::Name;
use crate::secret::Secret;
use crate::settings::plan::{BastionPlan, IdentityPlan};

/// Larger than any private key.
const MAX_KEY_FILE: usize = 64 << 10;

/// A private key to log in with.
pub(super) struct Identity {
    path: PathBuf,
    pub(super) key: Arc<PrivateKey>,
}

impl Identity {
    /// `ssh-ed25519 key SHA256:... (path)`.
    pub(super) fn describe(&self) -> String {
        let fingerprint = self.key.public_key().fingerprint(HashAlg::Sha256);
        format!("the {} key {fingerprint} ({})", self.key.algorithm(), self.path.display())
    }
}

/// The private keys of a bastion, at least one.
pub struct Identities {
    pub(super) keys: Vec<Identity>,
    /// The public line of the daemon's own key, where that is what it logs in with.
    pub own_public_key: Option<String>,
    /// The daemon's own key was missing and has just been made.
    pub just_made: bool,
}

/// Loads the private keys of a bastion; makes the daemon's own when it is missing and may be made. Reads files and
/// may compute for a second (bcrypt), so it belongs on a thread that may block.
///
/// # Errors
/// `auth` `no_identity`, `identity_unreadable` and `passphrase`, naming the file. A list of keys loads if at least
/// one does.
pub fn load_identities(plan: &BastionPlan, passphrase: Option<&Secret>) -> Result<Identities, Failure> {
    match &plan.identity {
        IdentityPlan::Own { path, generate } => {
            let missing = !path.exists();
            let mut just_made = false;
            if missing && *generate {
                let made = generate_key(path, &plan.name, Existing::Keep);
                just_made = made.map_err(|error| cannot_make(path, &error))? == KeyFile::Made;
            } else if missing {
                return Err(Failure::new(
                    Cause::AuthNoIdentity,
                    format!("bastion \"{}\" has no key: {} does not exist", plan.name, path.display()),
                ));
            }
            let identity = load(path, passphrase)?;
            let own_public_key = identity.key.public_key().to_openssh().ok();
            Ok(Identities { keys: vec![identity], own_public_key, just_made })
        }
        IdentityPlan::Files(paths) => {
            let (keys, failures): (Vec<_>, Vec<_>) =
                paths.iter().map(|path| load(path, passphrase)).partition(Result::is_ok);
            let keys: Vec<Identity> = keys.into_iter().flatten().collect();
            match failures.into_iter().find_map(Result::err) {
                Some(failure) if keys.is_empty() => Err(failure),
                _ => Ok(Identities { keys, own_public_key: None, just_made: false }),
            }
        }
    }
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Cause::AuthNoIdentity,
        format!("the key {} cannot be made: {}", path.display(), plain(error)),
    )
    .with_hint(
        "let the daemon's user write to daemon.state_dir, or name an existing private key with `identity`",
    )
}

fn load(path: &Path, passphrase: Option<&Secret>) -> Result<Identity, Failure> {
    let text = read(path)?;
    let key = decode(path, &text, passphrase)?;
    Ok(Identity { path: path.to_owned(), key: Arc::new(key) })
}

fn unreadable(path: &Path, found: impl std::fmt::Display) -> Failure {
    Failure::new(Cause::AuthIdentityUnreadable, format!("the private key {} {found}", path.display()))
}

fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let cannot = |error: io::Error| unreadable(path, format!("cannot be read: {}", plain(&error)));
    // What is looked at is what is read, whatever becomes of the path meanwhile.
    let (file, metadata) = match files::open(path) {
        Ok((file, metadata)) if metadata.is_file() => (file, metadata),
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => return Err(cannot(error)),
        _ => return Err(unreadable(path, "is not a file")),
    };
    let mode = metadata.mode() & 0o777;
    // As ssh does it: our own key must be ours alone; one that belongs to somebody else (root, say) may be shared
    // with a group of ours. Nobody else's business in any case.
    let forbidden = if metadata.uid() == geteuid().as_raw() { 0o077 } else { 0o007 };
    if mode & forbidden != 0 {
        return Err(unreadable(path, format!("can be read by others (mode {mode:04o})"))
            .with_hint(format!("chmod 600 {}", path.display())));
    }
    let bytes = files::read_all(file, &metadata, MAX_KEY_FILE).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => unreadable(path, "is too large to be a key"),
        _ => cannot(error),
    })?;
    let text = std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned()));
    text.map_err(|_| unreadable(path, "is not a private key in any known format"))
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
        )),
        (true, Some(passphrase)) => decode_secret_key(text, Some(passphrase.expose())).map_err(|_| {
            Failure::new(
                Cause::AuthPassphrase,
                format!("the private key {} does not open with `identity_passphrase`", path.display()),
            )
        }),
        (false, _) if is_public(text) => Err(unreadable(path, "is a public key")
            .with_hint("name the private key: the file of the same name without .pub")),
        (false, _) => Err(unreadable(path, format!("is not a private key in any known format: {error}"))),
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

/// What is to become of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// The new one takes its place, whole: there is one at every moment.
    Replace,
}

/// What became of a key's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// It holds a new key.
    Made,
    /// It was there already.
    Kept,
}

/// Makes an Ed25519 key and its `.pub` beside it. The directory is made too; all take the owner of the directory
/// above when root makes them, so that the daemon can read them.
///
/// # Errors
/// When the files cannot be written.
pub fn generate_key(path: &Path, bastion: &Name, existing: Existing) -> io::Result<KeyFile> {
    let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
        .map_err(io::Error::other)?;
    key.set_comment(format!("tunnelkeeper-{bastion}"));
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let public = key.public_key().to_openssh().map_err(io::Error::other)?;
    make_dir(path.parent().unwrap_or(Path::new(".")))?;
    let made = place(path, 0o600, text.as_bytes(), existing)?;
    if made == KeyFile::Made {
        place(&public_path(path), 0o644, format!("{public}\n").as_bytes(), Existing::Replace)?;
    }
    Ok(made)
}

/// Writes the `.pub` of a key again if it is gone.
///
/// # Errors
/// When it cannot be written.
pub fn restore_public_key(path: &Path, public: &str) -> io::Result<()> {
    place(&public_path(path), 0o644, format!("{public}\n").as_bytes(), Existing::Keep).map(drop)
}

/// `KEY.pub`.
fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Makes a directory for nobody else, and those above it, with the owner of the nearest one that exists.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent)?;
        fs::DirBuilder::new().mode(0o700).create(dir)?;
        let opened = OpenOptions::new().read(true).custom_flags(DIRECTORY.bits()).open(dir)?;
        return give_to(&opened, &fs::metadata(parent)?);
    }
    fs::DirBuilder::new().mode(0o700).create(dir)
}

/// The directory itself, not what somebody has put in its place meanwhile.
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW);

/// Writes a file whole under another name before it takes its own: nobody ever reads half a key.
fn place(path: &Path, mode: u32, bytes: &[u8], existing: Existing) -> io::Result<KeyFile> {
    if existing == Existing::Keep && path.exists() {
        return Ok(KeyFile::Kept);
    }
    let unfinished = Unfinished::new(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished.0)?;
    file.write_all(bytes)?;
    give_to(&file, &fs::metadata(path.parent().unwrap_or(Path::new(".")))?)?;
    file.sync_all()?;
    match existing {
        Existing::Replace => fs::rename(&unfinished.0, path).map(|()| KeyFile::Made),
        Existing::Keep => match fs::hard_link(&unfinished.0, path) {
            Ok(()) => Ok(KeyFile::Made),
            // Somebody else was quicker.
            Err(_) if path.exists() => Ok(KeyFile::Kept),
            Err(_) if path.is_symlink() => {
                Err(io::Error::other("it is a link to a file that does not exist"))
            }
            Err(error) => Err(error),
        },
    }
}

/// A name that nobody else has, in the directory of the file that is to be; what has this name is removed in the end.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(path: &Path) -> Self {
        Self(path.with_extension(format!("{:016x}.unfinished", rand::random::<u64>())))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Gives away an open file, never a name: whoever owns the directory can have anything behind a name.
fn give_to(file: &File, owner: &fs::Metadata) -> io::Result<()> {
    if geteuid().is_root() && owner.uid() != 0 {
        fchown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
