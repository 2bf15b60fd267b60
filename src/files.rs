//! Small files. Reads those that others keep: keys of hosts, roots of trust, secrets. Bounded in size, and never held up by a
//! pipe that nobody writes to. Blocks as long as the file system does, so callers read on a thread that may, under a
//! deadline of their own. Writes those of the state directory (`place`).

mod place;

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::time::timeout;
use zeroize::Zeroizing;

pub use place::{Existing, Placed, make_dir, place};

/// How long reading may take. Opening an encrypted key computes for seconds on a busy machine; what takes longer than
/// this is a file system that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// What the system says, or that it is no file, or too large.
pub fn read(path: &Path, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let (file, metadata) = open(path)?;
    read_all(file, &metadata, max)
}

/// Reads a file of ours, to write it anew; nothing if there is none. A link is not followed: it may lead to what only
/// root may read, and root would write that into the directory of the daemon's user.
///
/// # Errors
/// What the system says, or that it is a link, no file, or too large.
pub fn read_own(path: &Path, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    match open_with(path, OFlag::O_NOFOLLOW) {
        Ok((file, metadata)) => read_all(file, &metadata, max),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Zeroizing::default()),
        Err(_) if path.is_symlink() => Err(io::Error::other("it is a link")),
        Err(error) => Err(error),
    }
}

/// Holds all others off a directory of ours who ask too, until it is dropped.
///
/// # Errors
/// What the system says.
pub fn lock(dir: &Path) -> io::Result<File> {
    let directory = File::open(dir)?;
    directory.lock()?;
    Ok(directory)
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
        std::fs::write(path("small"), "12345").unwrap();
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
    }
}
