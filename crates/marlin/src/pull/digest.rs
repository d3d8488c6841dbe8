//! Published hashes, and checking a stream of bytes against one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A hash that a publisher gives for a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Digest {
    /// SHA-256 of the file (FIPS 180-4): PyPI, Git LFS, `#sha256=` of a URL.
    Sha256([u8; 32]),
    /// Git's name for a file: SHA-1 of `blob `, its size in decimal, a zero byte and the file.
    /// Small files of a Hugging Face repository have no other hash. It guards against damage, not
    /// against someone who makes collisions.
    GitBlob([u8; 20]),
}

impl Digest {
    /// Parses 64 hexadecimal digits as a SHA-256. `None` for anything else.
    #[must_use]
    pub fn sha256(hex: &str) -> Option<Self> {
        decode_hex(hex).map(Self::Sha256)
    }

    /// Parses 40 hexadecimal digits as the name of a git blob. `None` for anything else.
    #[must_use]
    pub fn git_blob(hex: &str) -> Option<Self> {
        decode_hex(hex).map(Self::GitBlob)
    }

    /// The hash's usual name.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::GitBlob(_) => "git blob id",
        }
    }
}

/// The digits alone.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::GitBlob(bytes) => bytes,
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self}", self.algorithm())
    }
}

/// `sha256:…` or `git-blob:…`, as the cache's own records have it.
impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        match digest {
            Digest::Sha256(_) => format!("sha256:{digest}"),
            Digest::GitBlob(_) => format!("git-blob:{digest}"),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::sha256(hex),
            Some(("git-blob", hex)) => Self::git_blob(hex),
            _ => None,
        }
        .ok_or_else(|| {
            format!("'{text}' is not sha256:<64 hex digits> or git-blob:<40 hex digits>")
        })
    }
}

fn decode_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    // `from_str_radix` alone would also take a sign.
    if hex.len() != 2 * N || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Hashes bytes as they arrive, with whatever algorithm the expected digest needs.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// A hasher whose result compares with `expected`; SHA-256 when nothing is expected.
    ///
    /// `size` is the file's size in bytes, which git puts in front of the content.
    pub(super) fn comparable_with(expected: Option<&Digest>, size: Option<u64>) -> Self {
        match (expected, size) {
            (Some(Digest::GitBlob(_)), Some(size)) => {
                Self::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0")))
            }
            _ => Self::Sha256(Sha256::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::GitBlob(hasher) => Digest::GitBlob(hasher.finalize().into()),
        }
    }
}

/// SHA-256 of `text`, for names in the cache that must be unique and safe.
pub(super) fn sha256_hex(text: &str) -> String {
    Digest::Sha256(Sha256::digest(text).into()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(bytes: &[u8], expected: Option<&Digest>) -> Digest {
        let mut hasher = Hasher::comparable_with(expected, Some(bytes.len() as u64));
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn sha256_is_that_of_fips_180_4() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash(b"abc", None).to_string(), expected);
        assert_eq!(Digest::sha256(expected), Some(hash(b"abc", None)));
    }

    /// `printf 'hello\n' | git hash-object --stdin`
    #[test]
    fn git_blob_is_what_git_computes() {
        let expected = Digest::git_blob("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        assert_eq!(hash(b"hello\n", Some(&expected)), expected);
    }

    #[test]
    fn only_whole_hexadecimal_digests_are_parsed() {
        let good = "a".repeat(64);
        assert!(Digest::sha256(&good).is_some());
        assert!(Digest::sha256(&good.to_uppercase()).is_some());
        for bad in
            ["", "abc", &good[1..], &format!("+{}", &good[1..]), &"é".repeat(32), &"g".repeat(64)]
        {
            assert_eq!(Digest::sha256(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_cache_record_form_round_trips() {
        for digest in
            [Digest::sha256(&"0f".repeat(32)).unwrap(), Digest::git_blob(&"f0".repeat(20)).unwrap()]
        {
            let text = String::from(digest);
            assert_eq!(text.parse::<Digest>(), Ok(digest));
        }
        assert!("md5:00".parse::<Digest>().is_err());
    }
}
