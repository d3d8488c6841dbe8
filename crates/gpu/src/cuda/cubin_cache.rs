//! Compiled kernels, kept in the user's cache folder.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sha2::{Digest, Sha256};

use crate::kernel_cache::{DIGEST_BYTES, Key};

const EXTENSION: &str = "cubin";

/// A folder of cubins. A file is the SHA-256 of its contents and then the contents: the driver
/// takes an image without a length, so a damaged one must not reach it.
pub(super) struct CubinCache {
    folder: Option<PathBuf>,
}

impl CubinCache {
    /// Keeps files in `folder`, which need not exist; without one, keeps nothing.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The cubin of `key`, if it is there and whole.
    pub(super) fn find(&self, key: Key) -> Option<Vec<u8>> {
        let mut file = fs::read(self.folder.as_ref()?.join(key.file_name(EXTENSION))).ok()?;
        if file.len() <= DIGEST_BYTES {
            return None;
        }
        let image = file.split_off(DIGEST_BYTES);
        (Sha256::digest(&image).as_slice() == file).then_some(image)
    }

    /// Keeps a cubin. A cache that cannot be written only costs the next start some time, so
    /// failures are passed over.
    pub(super) fn keep(&self, key: Key, image: &[u8]) {
        if let Some(folder) = &self.folder {
            let _ = write(folder, &key.file_name(EXTENSION), image);
        }
    }
}

/// Writes under a name of this process's and renames, so that others see all of it or nothing.
fn write(folder: &Path, name: &str, image: &[u8]) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(folder)?;
    let unique = WRITES.fetch_add(1, Relaxed);
    let unfinished = folder.join(format!("{name}.{}-{unique}.part", std::process::id()));
    let finish = || {
        let mut file = fs::File::create(&unfinished)?;
        file.write_all(&Sha256::digest(image))?;
        file.write_all(image)?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(name))
    };
    finish().inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_under_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(Some(folder.path().join("below")));
        let (key, other) = (Key::of(&["a", "b"]), Key::of(&["ab", ""]));
        assert_eq!(cache.find(key), None);
        cache.keep(key, b"image");
        assert_eq!(cache.find(key).as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.find(other), None);
    }

    #[test]
    fn a_damaged_file_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(Some(folder.path().to_owned()));
        let key = Key::of(&["source"]);
        cache.keep(key, b"a whole image");
        let path = folder.path().join(key.file_name(EXTENSION));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(cache.find(key), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(cache.find(key), None);
    }
}
