//! The folder that models are kept in, its locks, and its records of what was fetched.
//!
//! ```text
//! <cache>/models/pypi/<package>/<version>/<file>            finished files: complete and checked
//! <cache>/models/hub/<owner>/<repo>/<commit>/<path>
//! <cache>/models/url/<hash of the URL>/<file>
//! <cache>/references/<hash of the reference>.json           which files a reference stands for
//! <cache>/downloads/<key>.part, .json, .lock                unfinished files
//! ```
//!
//! A finished file gets its name by an atomic rename, after its content was checked and flushed; so
//! a file below `models` is always whole.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, sha256_hex};
use super::error::PullError;
use super::progress::{Event, Progress};

/// Environment variable that names the cache folder, in place of the operating system's usual one.
pub const CACHE_VARIABLE: &str = "MARLIN_CACHE";

/// A cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Held while one process works on a file; released when dropped, or when the process ends.
#[derive(Debug)]
pub(super) struct FileLock(#[expect(dead_code, reason = "held for its lock")] File);

/// What a reference stood for when it was last fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The reference, as a person would write it, without credentials.
    pub reference: String,
    /// What tells this reference from all others: the same text, unless that would show a secret.
    pub key: String,
    /// Where it came from: a URL, without credentials, or a repository and its commit.
    pub origin: String,
    /// The file or folder to load, relative to the cache folder.
    pub entry: PathBuf,
    /// Every file.
    pub files: Vec<RecordedFile>,
}

/// One finished file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// Relative to the cache folder.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// The hash that it was checked against, or the SHA-256 that it had if none was published.
    pub digest: Digest,
}

impl Cache {
    /// The user's cache folder: `$MARLIN_CACHE`, or `metal-marlin` below `$XDG_CACHE_HOME` or
    /// `~/.cache` (Linux), `~/Library/Caches` (macOS), `%LOCALAPPDATA%` (Windows).
    ///
    /// # Errors
    /// [`PullError::NoCacheFolder`] if the environment names none of these.
    pub fn of_user() -> Result<Self, PullError> {
        if let Some(root) = std::env::var_os(CACHE_VARIABLE).filter(|value| !value.is_empty()) {
            return Ok(Self::at(root));
        }
        dirs::cache_dir()
            .map(|folder| Self::at(folder.join("metal-marlin")))
            .ok_or(PullError::NoCacheFolder)
    }

    /// The cache in the folder `root`, which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that was fetched and is still here, by reference.
    ///
    /// # Errors
    /// [`PullError::Io`] if the folder exists and cannot be read.
    pub fn records(&self) -> Result<Vec<Record>, PullError> {
        let folder = self.root.join("references");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PullError::io(folder, "list the folder")(error)),
        };
        let mut records: Vec<Record> = entries
            .filter_map(|entry| read_json(&entry.ok()?.path()))
            .filter(|record| self.is_whole(record))
            .collect();
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// What `reference` stands for, if all its files are here.
    pub(super) fn record(&self, key: &str) -> Option<Record> {
        read_json(&self.record_path(key)).filter(|record: &Record| self.is_whole(record))
    }

    /// Removes what was fetched for `record`, except files that another record needs too.
    ///
    /// # Errors
    /// [`PullError::Io`] if a file cannot be removed. The record goes last, so that another attempt
    /// can finish the work.
    pub fn remove(&self, record: &Record) -> Result<(), PullError> {
        let others = self.records()?;
        let needed = |path: &Path| {
            others.iter().any(|other| {
                other.key != record.key && other.files.iter().any(|file| file.path == path)
            })
        };
        for file in record.files.iter().filter(|file| is_below(&file.path) && !needed(&file.path)) {
            let path = self.root.join(&file.path);
            remove(&path)?;
            // Empty folders go too; one that still holds something stays.
            let mut folder = path.parent();
            while let Some(empty) = folder.filter(|folder| **folder != self.root)
                && fs::remove_dir(empty).is_ok()
            {
                folder = empty.parent();
            }
        }
        remove(&self.record_path(&record.key))
    }

    pub(super) fn keep_record(&self, record: &Record) -> Result<(), PullError> {
        let path = self.record_path(&record.key);
        create_parent(&path)?;
        write_json(&path, record)
    }

    /// Where a file with this `key` arrives, before it is finished.
    pub(super) fn part(&self, key: &str) -> PathBuf {
        self.root.join("downloads").join(format!("{key}.part"))
    }

    /// Waits until no other process works on `key`. `file` names it for people.
    pub(super) fn lock(
        &self,
        key: &str,
        file: &str,
        progress: &dyn Progress,
    ) -> Result<FileLock, PullError> {
        let path = self.root.join("downloads").join(format!("{key}.lock"));
        create_parent(&path)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(PullError::io(&path, "open the lock file"))?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(FileLock(lock)),
                Err(TryLockError::WouldBlock) => {}
                // A file system without locks: two processes may then fetch the same file twice,
                // and the last rename wins with the same content.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(FileLock(lock));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(PullError::io(path, "lock the file")(error));
                }
            }
            if !std::mem::replace(&mut told, true) {
                progress.event(Event::Waiting { file });
            }
            if progress.cancelled() {
                return Err(PullError::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Fails unless `needed` more bytes fit into the cache folder.
    pub(super) fn check_space(&self, needed: u64) -> Result<(), PullError> {
        fs::create_dir_all(&self.root).map_err(PullError::io(&self.root, "create the folder"))?;
        match fs4::available_space(&self.root) {
            Ok(available) if available < needed => {
                Err(PullError::NoSpace { path: self.root.clone(), needed, available })
            }
            // A file system that cannot tell is no reason to refuse: a full disk shows when
            // writing.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// `path` relative to the cache folder.
    pub(super) fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    fn record_path(&self, key: &str) -> PathBuf {
        self.root.join("references").join(format!("{}.json", &sha256_hex(key)[..32]))
    }

    fn is_whole(&self, record: &Record) -> bool {
        !record.files.is_empty()
            && record
                .files
                .iter()
                .all(|file| has_size(&self.root.join(&file.path), Some(file.size)))
    }
}

/// Whether `path` is a file, of `size` bytes if that is known.
pub(super) fn has_size(path: &Path, size: Option<u64>) -> bool {
    fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && size.is_none_or(|size| size == meta.len()))
}

/// Makes the folder that `path` is to be created in.
pub(super) fn create_parent(path: &Path) -> Result<(), PullError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(PullError::io(parent, "create the folder"))
}

/// Whether `path` stays below the folder it is joined to. Records are files that anyone may have
/// edited.
fn is_below(path: &Path) -> bool {
    path.components().all(|component| matches!(component, std::path::Component::Normal(_)))
}

fn remove(path: &Path) -> Result<(), PullError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PullError::io(path, "remove the file")(error))
        }
        _ => Ok(()),
    }
}

/// Gives a finished file its name, so that nobody ever sees half of it under that name.
pub(super) fn finish(from: &Path, to: &Path) -> Result<(), PullError> {
    create_parent(to)?;
    let failed = || PullError::io(to, "move the finished file there");
    match fs::rename(from, to) {
        // Part of the cache folder is a link to another disk: first bring the content over.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let folder = to.parent().unwrap_or(Path::new("."));
            let mut near = shared_tempfile(folder).map_err(failed())?;
            let mut content =
                File::open(from).map_err(PullError::io(from, "open the finished file"))?;
            io::copy(&mut content, near.as_file_mut())
                .and_then(|_| near.as_file().sync_all())
                .and_then(|()| Ok(near.persist(to)?))
                .map_err(failed())?;
            remove(from)
        }
        renamed => renamed.map_err(failed()),
    }
}

/// A temporary file that others may read once it has its name. Temporary files are private by
/// default, but a cache may be shared; the umask still applies.
fn shared_tempfile(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Reads a JSON file; `None` if it is missing or not what is expected, which callers treat alike.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a JSON file so that a reader sees all of it or nothing. The folder must exist.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), PullError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = shared_tempfile(folder)?;
        file.write_all(serde_json::to_string_pretty(value)?.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(PullError::io(path, "write the file"))
}

#[cfg(test)]
mod tests {
    use super::super::progress::Silent;
    use super::*;

    fn record(reference: &str, size: u64) -> Record {
        Record {
            reference: reference.to_owned(),
            key: reference.to_owned(),
            origin: "https://example.org/x.gguf".to_owned(),
            entry: "models/x.gguf".into(),
            files: vec![RecordedFile {
                path: "models/x.gguf".into(),
                size,
                digest: Digest::sha256(&"00".repeat(32)).unwrap(),
            }],
        }
    }

    #[test]
    fn a_record_counts_only_while_its_files_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!(cache.records().unwrap(), []);
        cache.keep_record(&record("a/b", 3)).unwrap();
        assert_eq!(cache.record("a/b"), None);
        fs::create_dir(folder.path().join("models")).unwrap();
        fs::write(folder.path().join("models/x.gguf"), "abc").unwrap();
        assert_eq!(cache.record("a/b"), Some(record("a/b", 3)));
        assert_eq!(cache.records().unwrap(), [record("a/b", 3)]);
        fs::write(folder.path().join("models/x.gguf"), "ab").unwrap();
        assert_eq!(cache.record("a/b"), None);
    }

    #[test]
    fn removing_keeps_what_another_record_needs_and_never_leaves_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        let shared = cache.root().join("models/x.gguf");
        create_parent(&shared).unwrap();
        fs::write(&shared, "abc").unwrap();
        let outside = folder.path().join("precious");
        fs::write(&outside, "abc").unwrap();
        let (first, mut second) = (record("a/b", 3), record("a/b:x", 3));
        second.files.push(RecordedFile { path: "../precious".into(), ..second.files[0].clone() });
        cache.keep_record(&first).unwrap();
        cache.keep_record(&second).unwrap();

        cache.remove(&first).unwrap();
        assert!(shared.exists());
        assert_eq!(cache.records().unwrap(), std::slice::from_ref(&second));
        cache.remove(&second).unwrap();
        assert!(!shared.exists() && !cache.root().join("models").exists() && outside.exists());
        assert_eq!(cache.records().unwrap(), []);
    }

    #[test]
    fn a_lock_is_exclusive_until_dropped() {
        struct Impatient;
        impl Progress for Impatient {
            fn event(&self, _: Event<'_>) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let held = cache.lock("k", "x", &Silent).unwrap();
        assert!(matches!(cache.lock("k", "x", &Impatient), Err(PullError::Cancelled)));
        cache.lock("other", "x", &Silent).unwrap();
        drop(held);
        cache.lock("k", "x", &Impatient).unwrap();
    }

    /// Needs two file systems; `/dev/shm` is one of its own wherever it exists.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_is_finished_across_file_systems() {
        use std::os::unix::fs::MetadataExt;
        let (Ok(shm), near) = (tempfile::tempdir_in("/dev/shm"), tempfile::tempdir().unwrap())
        else {
            return;
        };
        let (from, to) = (shm.path().join("from"), near.path().join("new/to"));
        fs::write(&from, "abc").unwrap();
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        finish(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "abc");
        assert!(!from.exists());
        assert_eq!(device(&to), device(near.path()));
    }

    #[test]
    fn more_than_the_disk_has_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new"));
        cache.check_space(1).unwrap();
        let Err(PullError::NoSpace { needed, available, .. }) = cache.check_space(u64::MAX) else {
            panic!("expected NoSpace")
        };
        assert!(needed == u64::MAX && available > 0);
    }
}
