//! Writes small files whole or not at all, for the daemon's user also when root does it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// What is to become of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// The new one takes its place, whole: there is one at every moment.
    Replace,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It holds what it was to hold.
    Made,
    /// It was there already.
    Kept,
}

/// Makes a directory for nobody else, and those above it, with the owner of the nearest one that exists.
///
/// # Errors
/// What the system says.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            // Somebody else was quicker.
            Err(_) if dir.is_dir() => return Ok(()),
            made => made?,
        }
        let opened = OpenOptions::new().read(true).custom_flags(DIRECTORY.bits()).open(dir)?;
        return give_to(&opened, &fs::metadata(parent)?);
    }
    fs::DirBuilder::new().mode(0o700).create(dir)
}

/// The directory itself, not what somebody has put in its place meanwhile.
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW);

/// Writes a file whole under another name before it takes its own: nobody ever reads half of it. Where root makes it,
/// it takes the directory's owner.
///
/// # Errors
/// What the system says.
pub fn place(path: &Path, mode: u32, bytes: &[u8], existing: Existing) -> io::Result<Placed> {
    if existing == Existing::Keep && path.exists() {
        return Ok(Placed::Kept);
    }
    let unfinished = Unfinished::new(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished.0)?;
    file.write_all(bytes)?;
    give_to(&file, &fs::metadata(path.parent().unwrap_or(Path::new(".")))?)?;
    // Whatever the caller's umask says.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    match existing {
        Existing::Replace => fs::rename(&unfinished.0, path).map(|()| Placed::Made),
        Existing::Keep => match fs::hard_link(&unfinished.0, path) {
            Ok(()) => Ok(Placed::Made),
            // Somebody else was quicker.
            Err(_) if path.exists() => Ok(Placed::Kept),
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
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_given_away_is_what_was_opened() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (theirs, name) = (dir.path().join("theirs"), dir.path().join("name"));
        fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
        let file = File::create(&name).unwrap();
        fs::remove_file(&name).unwrap();
        fs::write(dir.path().join("ours"), "").unwrap();
        symlink("ours", &name).unwrap();
        give_to(&file, &fs::metadata(&theirs).unwrap()).unwrap();
        assert_eq!(fs::metadata(dir.path().join("ours")).unwrap().uid(), 0);
        assert_eq!(file.metadata().unwrap().uid(), 12345);
    }
}
