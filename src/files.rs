//! Small files. Reads those that others keep: keys of hosts, roots of trust, secrets. Bounded in size, and never held up by a
//! pipe that nobody writes to. Blocks as long as the file system does, so callers read on a thread that may, under a
//! deadline of their own. Writes those of the state directory (`place`).

mod place;

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tokio::time::timeout;
use zeroize::Zeroizing;

pub use place::{Existing, Placed, make_dir, place};

/// How long reading may take. Opening an encrypted key computes for seconds on a busy machine; what takes longer than
/// this is a file system that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a lock is waited for, which others hold for as long as they write a small file, and how often it is tried.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// What the system says, or that it is no file, or too large.
pub fn read(path: &Path, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let (file, metadata) = open(path)?;
    read_all(file, &metadata, max)
}

/// Reads a file of ours, to write it anew; nothing if there is none. A link is not followed: it may lead to what only
/// root may read, and root would write that into the directory of the daemon's user. So may a second name of a file, or
/// one of another owner than the directory's: root does not read these either.
///
/// # Errors
/// What the system says, or that it is a link, no file of the directory's owner, or too large.
pub fn read_own(path: &Path, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    match open_with(path, OFlag::O_NOFOLLOW) {
        Ok((_, metadata)) if geteuid().is_root() && metadata.nlink() > 1 => {
            Err(io::Error::other("it has a second name (a hard link)"))
        }
        Ok((_, metadata)) if geteuid().is_root() && metadata.uid() != owner_of_directory(path)? => {
            Err(io::Error::other("it belongs to another user than its directory"))
        }
        Ok((file, metadata)) => read_all(file, &metadata, max),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Zeroizing::default()),
        Err(_) if path.is_symlink() => Err(io::Error::other("it is a link")),
        Err(error) => Err(error),
    }
}

fn owner_of_directory(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path.parent().unwrap_or(Path::new(".")))?.uid())
}

/// Holds all others off who ask for the same lock, until it is dropped. The lock is a file of our own that nobody else
/// can open: a directory, or a file that others may read, anybody could hold.
///
/// # Errors
/// What the system says; `ResourceBusy` where another process does not let go of it.
pub fn lock(path: &Path) -> io::Result<File> {
    place(path, 0o600, b"", Existing::Keep)?;
    let (file, _) = open_with(path, OFlag::O_NOFOLLOW)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process has held {} for too long", path.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
        }
    }
}

/// Opens a file, for those who have to look at it before they read it.
///
/// # Errors
/// What the system says, or that it is no file.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    open_with(path, OFlag::empty())
}

fn open_with(path: &Path, flags: OFlag) -> io::Result<(File, Metadata)> {
    let flags = flags | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() || metadata.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok((file, metadata))
}

/// Reads an open file of at most `max` bytes.
///
/// # Errors
/// What the system says, or that it is too large.
pub fn read_all(file: File, metadata: &Metadata, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // A buffer that grows would leave copies behind.
    let expected = usize::try_from(metadata.len()).unwrap_or(max).min(max);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 1));
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {max} bytes")));
    }
    Ok(bytes)
}

/// Runs what reads files on a thread that may block.
///
/// # Errors
/// One sentence, when it does not come to an end in time.
pub async fn read_aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    match timeout(PATIENCE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(format!("it could not be read: {error}")),
        Err(_) => {
            Err(format!("nothing was read within {} s: does the file system hang?", PATIENCE.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("small"), "12345").unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path("small"), 5).unwrap().as_slice(), b"12345");
        for (file, expected) in [
            (path("small"), "it is longer than 4 bytes"),
            (path("pipe"), "it is not a regular file"),
            (dir.path().to_owned(), "it is not a regular file"),
            ("/dev/zero".into(), "it is longer than 4 bytes"),
        ] {
            assert_eq!(read(&file, 4).unwrap_err().to_string(), expected);
        }
        assert!(read(Path::new("/dev/null"), 4).unwrap().is_empty());
        std::os::unix::fs::symlink("small", path("link")).unwrap();
        assert_eq!(read_own(&path("link"), 5).unwrap_err().to_string(), "it is a link");
        assert_eq!(read_own(&path("small"), 5).unwrap().as_slice(), b"12345");
        assert!(read_own(&path("missing"), 5).unwrap().is_empty());
        if geteuid().is_root() {
            fs::hard_link(path("small"), path("second")).unwrap();
            let refused = read_own(&path("second"), 5).unwrap_err().to_string();
            assert_eq!(refused, "it has a second name (a hard link)");
            fs::write(path("theirs"), "").unwrap();
            std::os::unix::fs::chown(path("theirs"), Some(12345), None).unwrap();
            let refused = read_own(&path("theirs"), 5).unwrap_err().to_string();
            assert_eq!(refused, "it belongs to another user than its directory");
        }
    }
}
