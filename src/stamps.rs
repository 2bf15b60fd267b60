//! Notices when files have changed: their content, their place, their owner or who may read them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Inode, size, and the time of the last change of anything, the mode too: seconds and nanoseconds.
type Stamp = Option<(u64, u64, i64, i64)>;

/// How some files looked at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps(Vec<(PathBuf, Stamp)>);

impl Stamps {
    /// Looks at files; one that is not there counts as one that looks different from any that is. May block.
    #[must_use]
    pub fn take(paths: Vec<PathBuf>) -> Self {
        let stamp = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
        };
        Self(paths.into_iter().map(|path| (path.clone(), stamp(&path))).collect())
    }

    /// Looks again. May block.
    #[must_use]
    pub fn retake(&self) -> Self {
        Self::take(self.0.iter().map(|(path, _)| path.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn changes_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let absent = Stamps::take(vec![path.clone()]);
        assert_eq!(absent.retake(), absent);
        fs::write(&path, "a").unwrap();
        let there = absent.retake();
        assert_ne!(there, absent);
        assert_eq!(there.retake(), there);
        let other = dir.path().join("other");
        fs::write(&other, "b").unwrap();
        fs::rename(&other, &path).unwrap();
        let renamed = there.retake();
        assert_ne!(renamed, there);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_ne!(renamed.retake(), renamed);
    }
}
