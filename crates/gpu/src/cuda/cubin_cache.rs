//! Compiled kernels, kept in the user's cache folder.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sha2::{Digest, Sha256};

/// Bytes of the digest that a file starts with.
const DIGEST_BYTES: usize = 32;

/// What a cubin depends on, as one hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u8; DIGEST_BYTES]);

impl Key {
    /// The key of everything in `parts`, in this order.
    pub(super) fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, so that text cannot wander from one part to the next.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    fn file_name(&self) -> String {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}.cubin")
    }
}

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
        let mut file = fs::read(self.folder.as_ref()?.join(key.file_name())).ok()?;
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
            let _ = write(folder, &key.file_name(), image);
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

/// Environment variable that names the cache folder, as for models.
const CACHE_VARIABLE: &str = "MARLIN_CACHE";

/// `kernels/cuda` below `$MARLIN_CACHE` or below `metal-marlin` in the operating system's cache folder.
pub(super) fn folder_of_user() -> Option<PathBuf> {
    let root = std::env::var_os(CACHE_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("metal-marlin")))?;
    Some(root.join("kernels").join(super::KIND))
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
        let path = folder.path().join(key.file_name());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(cache.find(key), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(cache.find(key), None);
    }
}
