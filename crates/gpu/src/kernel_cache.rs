//! Where compiled kernels are kept between runs: the user's cache folder, and names that change with everything that a
//! compiled kernel depends on.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = 32;

/// What a compiled kernel depends on, as one hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key([u8; DIGEST_BYTES]);

impl Key {
    /// The key of everything in `parts`, in this order.
    pub(crate) fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, so that text cannot wander from one part to the next.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// A file's name.
    pub(crate) fn file_name(&self, extension: &str) -> String {
        format!("{}.{extension}", hexadecimal(&self.0))
    }
}

/// Two digits a byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Environment variable that names the cache folder, as for models.
const CACHE_VARIABLE: &str = "MARLIN_CACHE";

/// `kernels/<kind>` below `$MARLIN_CACHE` or below `metal-marlin` in the operating system's cache folder.
pub(crate) fn folder_of_user(kind: &str) -> Option<PathBuf> {
    let root = std::env::var_os(CACHE_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("metal-marlin")))?;
    Some(root.join("kernels").join(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_does_not_wander_between_the_parts_of_a_key() {
        let names = [&["a", "b"][..], &["ab", ""], &["", "ab"], &["ab"]]
            .map(|parts| Key::of(parts).file_name("x"));
        for (i, name) in names.iter().enumerate() {
            assert!(name.ends_with(".x") && name.len() == 2 * DIGEST_BYTES + 2);
            assert!(!names[..i].contains(name));
        }
    }
}
