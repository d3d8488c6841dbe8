//! Machine code of pipelines, kept in the user's cache folder as Metal's binary archives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sha2::{Digest, Sha256};

use crate::kernel_cache::{Key, hexadecimal};

const EXTENSION: &str = "metalar";
/// The file beside an archive that has its SHA-256: Metal maps archives, so a damaged one must not reach it.
const DIGEST_EXTENSION: &str = "sha256";

/// A folder of archives, one a pipeline.
pub(super) struct ArchiveCache {
    folder: Option<PathBuf>,
}

impl ArchiveCache {
    /// Keeps files in `folder`, which need not exist; without one, keeps nothing.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The archive of `key`, if it is there and whole.
    pub(super) fn find(&self, key: Key) -> Option<PathBuf> {
        let path = self.folder.as_ref()?.join(key.file_name(EXTENSION));
        let expected = fs::read_to_string(path.with_extension(DIGEST_EXTENSION)).ok()?;
        let found = hexadecimal(&Sha256::digest(fs::read(&path).ok()?));
        (found == expected).then_some(path)
    }

    /// Somewhere to write the archive of `key`; `None` where nothing is kept. A cache that cannot be written only
    /// costs the next start some time, so failures are passed over, here and below.
    pub(super) fn unfinished(&self, key: Key) -> Option<Unfinished> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let folder = self.folder.as_ref()?;
        fs::create_dir_all(folder).ok()?;
        let unique = WRITES.fetch_add(1, Relaxed);
        let path = folder.join(key.file_name(EXTENSION));
        // Under a name of this process's, so that others see all of it or nothing.
        let part = path.with_extension(format!("{}-{unique}.part", std::process::id()));
        Some(Unfinished { part, path })
    }
}

/// An archive that is being written; removed when dropped before it is kept.
pub(super) struct Unfinished {
    part: PathBuf,
    path: PathBuf,
}

impl Unfinished {
    /// Where Metal shall write.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Keeps what was written, if anything was.
    pub(super) fn keep(self) {
        let _ = self.try_keep();
    }

    fn try_keep(&self) -> io::Result<()> {
        let digest = hexadecimal(&Sha256::digest(fs::read(&self.part)?));
        let digest_part = self.part.with_extension(DIGEST_EXTENSION);
        fs::write(&digest_part, digest)?;
        fs::rename(&digest_part, self.path.with_extension(DIGEST_EXTENSION))?;
        fs::rename(&self.part, &self.path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(folder: &Path) -> (ArchiveCache, Key, PathBuf) {
        let cache = ArchiveCache::new(Some(folder.join("below")));
        let key = Key::of(&["a", "b"]);
        let unfinished = cache.unfinished(key).unwrap();
        fs::write(unfinished.part(), b"machine code").unwrap();
        unfinished.keep();
        let path = folder.join("below").join(key.file_name(EXTENSION));
        (cache, key, path)
    }

    #[test]
    fn what_is_kept_is_found_under_its_key_alone_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, path) = kept(folder.path());
        assert_eq!(cache.find(key), Some(path.clone()));
        assert_eq!(fs::read(&path).unwrap(), b"machine code");
        assert!(cache.find(Key::of(&["ab", ""])).is_none());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn a_damaged_archive_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, key, path) = kept(folder.path());
        fs::write(&path, b"machine cod").unwrap();
        assert!(cache.find(key).is_none());
    }

    #[test]
    fn an_archive_that_was_not_written_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ArchiveCache::new(Some(folder.path().to_owned()));
        let key = Key::of(&["never"]);
        cache.unfinished(key).unwrap().keep();
        assert!(cache.find(key).is_none());
        drop(cache.unfinished(key));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
