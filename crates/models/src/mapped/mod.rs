//! Files mapped into memory.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use marlin_backend::HostOwner;

use crate::error::{At, ModelError};
#[cfg(target_os = "linux")]
use linux::Mapping;
#[cfg(not(target_os = "linux"))]
use portable::Mapping;

/// What a mapping's address is a multiple of on Linux, so that even a device with Apple's pages, an emulated one, can
/// adopt it.
#[cfg(target_os = "linux")]
const ALIGNMENT: usize = 16384;

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile(Mapping);

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl HostOwner for MappedFile {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn release(&self, range: Range<usize>) {
        let inside = range.start <= range.end && range.end <= self.0.bytes().len();
        if inside && !range.is_empty() {
            self.0.release(&range);
        }
    }
}

/// Maps a whole file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Arc<MappedFile>, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, "open", e))?;
    let metadata = file.metadata().map_err(|e| ModelError::io(path, "examine", e))?;
    if !metadata.is_file() {
        return Err(ModelError::invalid(path, At::File, "something else", "a regular file"));
    }
    if metadata.len() == 0 {
        // Mapping nothing is an error of the system's that would not say what is wrong.
        return Err(ModelError::invalid(path, At::File, "an empty file", "a model file"));
    }
    let len = usize::try_from(metadata.len()).map_err(|_| {
        let found = format!("{} bytes", metadata.len());
        ModelError::invalid(path, At::File, found, "no more than this machine can address")
    })?;
    // SAFETY: the mapping is read-only. It is undefined behaviour for another process to change or
    // truncate the file while it is mapped; as in every program that maps model files, that is left to the user:
    // weights cannot be read without a copy otherwise.
    let map = unsafe { Mapping::new(&file, len) }.map_err(|e| ModelError::io(path, "map", e))?;
    Ok(Arc::new(MappedFile(map)))
}

/// Reads a text file of at most `limit` bytes. Such files are parsed into structures several times their size.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, "open", e))?;
    let len = file.metadata().map_err(|e| ModelError::io(path, "examine", e))?.len();
    if len > limit {
        let found = format!("{len} bytes");
        return Err(ModelError::invalid(path, At::File, found, format!("at most {limit} bytes")));
    }
    let mut text = String::new();
    // The length above is a hint; the limit holds even if the file grows meanwhile.
    std::io::Read::read_to_string(&mut std::io::Read::take(file, limit), &mut text)
        .map_err(|e| ModelError::io(path, "read", e))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_come_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let map = map_file(file.path()).unwrap();
        map.release(5000..90_000);
        map.release(90_000..100_001);
        assert_eq!(map.bytes(), bytes);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn mappings_begin_where_large_pages_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for len in [1, 4096, 16_384, 100_001] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(file.path(), &bytes).unwrap();
            let maps = [(); 3].map(|()| map_file(file.path()).unwrap());
            for map in maps {
                assert_eq!(map.as_ptr() as usize % ALIGNMENT, 0);
                assert_eq!(map.bytes(), bytes);
            }
        }
    }

    #[test]
    fn a_folder_and_an_empty_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = map_file(folder.path()).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = map_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("an empty file"), "{error}");
    }
}
