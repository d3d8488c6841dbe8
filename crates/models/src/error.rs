//! What can be wrong with a model file, said with the file, the place in it, what was found and what was expected.

use std::fmt;
use std::path::{Path, PathBuf};

/// The place in a model file that an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum At {
    /// The file as a whole.
    File,
    /// The fixed part of the file before its first key.
    Header,
    /// A GGUF metadata key.
    Key(String),
    /// A field of a JSON file, as a dotted path.
    Field(String),
    /// A tensor, by the name it has in the file.
    Tensor(String),
    /// A token of the vocabulary, by its id.
    Token(u64),
}

impl At {
    pub(crate) fn key(name: impl AsRef<str>) -> Self {
        At::Key(quote(name.as_ref()))
    }

    pub(crate) fn field(name: impl AsRef<str>) -> Self {
        At::Field(quote(name.as_ref()))
    }

    pub(crate) fn tensor(name: impl AsRef<str>) -> Self {
        At::Tensor(quote(name.as_ref()))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::File => write!(f, "the file"),
            At::Header => write!(f, "header"),
            At::Key(name) => write!(f, "metadata key {name}"),
            At::Field(name) => write!(f, "field {name}"),
            At::Tensor(name) => write!(f, "tensor {name}"),
            At::Token(id) => write!(f, "token {id}"),
        }
    }
}

/// A model file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, such as "open".
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file breaks its format, or contradicts itself.
    #[error("{}: {at}: found {found}, expected {expected}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: At,
        /// What is there.
        found: String,
        /// What the format asks for.
        expected: String,
    },
    /// Something that every usable file has is not there.
    #[error("{}: {at} is missing, expected {expected}", path.display())]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        at: At,
        /// What it would have held.
        expected: String,
    },
    /// The file is fine, but asks for something that this library does not do.
    #[error("{}: {at}: {found} is not supported, expected {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: At,
        /// What it asks for.
        found: String,
        /// What is supported instead.
        expected: String,
    },
    /// Whoever asked for the work ended it.
    #[error("{}: cancelled before it was whole; nothing was written", path.display())]
    Cancelled {
        /// What was being written.
        path: PathBuf,
    },
    /// A device refused a weight, or the forward pass as a whole.
    #[error("{}: {source}", path.display())]
    Backend {
        /// The model.
        path: PathBuf,
        /// The device's error.
        source: marlin_backend::BackendError,
    },
}

impl ModelError {
    /// The file or folder that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            ModelError::Io { path, .. }
            | ModelError::Invalid { path, .. }
            | ModelError::Missing { path, .. }
            | ModelError::Unsupported { path, .. }
            | ModelError::Cancelled { path }
            | ModelError::Backend { path, .. } => path,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        ModelError::Io { path: path.to_owned(), action, source }
    }

    pub(crate) fn backend(path: &Path, source: marlin_backend::BackendError) -> Self {
        ModelError::Backend { path: path.to_owned(), source }
    }

    pub(crate) fn invalid(
        path: &Path,
        at: At,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        ModelError::Invalid {
            path: path.to_owned(),
            at,
            found: found.into(),
            expected: expected.into(),
        }
    }

    pub(crate) fn missing(path: &Path, at: At, expected: impl Into<String>) -> Self {
        ModelError::Missing { path: path.to_owned(), at, expected: expected.into() }
    }

    pub(crate) fn unsupported(
        path: &Path,
        at: At,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        ModelError::Unsupported {
            path: path.to_owned(),
            at,
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// `text` in backticks, escaped and cut: file contents are not trusted to be short or printable.
pub(crate) fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut quoted = String::from("`");
    for (i, c) in text.chars().enumerate() {
        if i == SHOWN {
            quoted.push('…');
            break;
        }
        if c.is_control() {
            quoted.extend(c.escape_default());
        } else {
            quoted.push(c);
        }
    }
    quoted.push('`');
    quoted
}

/// [`quote`] for bytes that may not be UTF-8.
pub(crate) fn quote_bytes(bytes: &[u8]) -> String {
    // 4 bytes a character at most, so the cut below never hides that `quote` would cut as well.
    let shown = &bytes[..bytes.len().min(4 * 81)];
    quote(&String::from_utf8_lossy(shown))
}
