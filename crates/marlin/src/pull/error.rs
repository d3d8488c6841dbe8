//! What can go wrong while a model is fetched.

use std::io;
use std::path::PathBuf;

use super::digest::Digest;

/// Why a model could not be fetched or found.
///
/// The display text is one line that says what it is about, what was found and what was expected;
/// [`PullError::hint`] says what to do next, where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The text names neither a file, nor a known model, nor anything that can be fetched.
    #[error("model '{text}': {reason}")]
    BadReference {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The operating system does not say where the user's cache folder is.
    #[error("no cache folder: the environment names neither a home folder nor a cache folder")]
    NoCacheFolder,

    /// An environment variable has a value that cannot be used.
    #[error("{variable}={value}: {reason}")]
    BadSetting {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A file operation in the cache folder failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as in "cannot {action}".
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },

    /// The file would not fit on the disk.
    #[error(
        "{}: not enough free space: {needed} bytes needed, {available} available",
        path.display()
    )]
    NoSpace {
        /// The folder that was to receive the file.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that the file system offers to this user.
        available: u64,
    },

    /// No connection, or one that broke and kept breaking.
    #[error("{url}: {reason} (tried {attempts} times)")]
    Connection {
        /// What was requested, without credentials and query.
        url: String,
        /// The last failure.
        reason: String,
        /// How many attempts were made since the last byte of progress.
        attempts: u32,
    },

    /// A failure that another attempt would not cure, such as an untrusted certificate.
    #[error("{url}: {reason}")]
    Request {
        /// What was requested, without credentials and query.
        url: String,
        /// The failure.
        reason: String,
    },

    /// The server answered, but not with the file.
    #[error("{url}: the server answered {status} {meaning}")]
    Status {
        /// What was requested, without credentials and query.
        url: String,
        /// The HTTP status code.
        status: u16,
        /// The standard phrase of the status code.
        meaning: String,
    },

    /// The answer is not what the protocol promises.
    #[error("{url}: {reason}")]
    BadAnswer {
        /// What was requested, without credentials and query.
        url: String,
        /// What was found and what was expected.
        reason: String,
    },

    /// A listing does not have what was asked for.
    #[error("{place} has no {wanted}; it has: {}", list(available))]
    NotListed {
        /// The repository, package or archive.
        place: String,
        /// What was looked for.
        wanted: String,
        /// What there is instead.
        available: Vec<String>,
    },

    /// A server or an archive names a file outside the folder it would be put in.
    #[error(
        "{place}: refused the file name '{name}': it is not a plain path below the model's folder"
    )]
    UnsafeName {
        /// The repository or archive.
        place: String,
        /// The name as it was given.
        name: String,
    },

    /// The bytes that arrived are not those that were published.
    #[error("{what}: wrong {}: found {found}, expected {expected}", expected.algorithm())]
    WrongDigest {
        /// The file or URL.
        what: String,
        /// Hash of what arrived.
        found: Digest,
        /// Hash that was published, or that this program was built with.
        expected: Digest,
    },

    /// The server offers a file of another size than was published.
    #[error("{what}: wrong size: found {found} bytes, expected {expected}")]
    WrongSize {
        /// The file or URL.
        what: String,
        /// Size on offer, in bytes.
        found: u64,
        /// Size published, in bytes.
        expected: u64,
    },

    /// The downloaded archive cannot be read.
    #[error("{archive}: {reason}")]
    BadArchive {
        /// The archive's name or URL.
        archive: String,
        /// What was found and what was expected.
        reason: String,
    },

    /// What was downloaded is not a model file.
    #[error("{what}: not a model file: {found}")]
    NotAModel {
        /// The URL or file.
        what: String,
        /// What it starts with, and what it should start with.
        found: String,
    },

    /// [`super::Progress::cancelled`] answered yes. What had arrived is kept for the next attempt.
    #[error("cancelled")]
    Cancelled,
}

impl PullError {
    /// What the user can do about it, as a phrase that follows "hint: ".
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::BadReference { .. } => {
                "give a file, a folder, a known name (see `marlin pull --list`), owner/repo[:file] of Hugging Face, or a URL"
            }
            Self::NoCacheFolder => "set MARLIN_CACHE to a folder that models may be kept in",
            Self::NoSpace { .. } => {
                "free some space, or set MARLIN_CACHE to a folder on another disk"
            }
            Self::Connection { .. } => {
                "check the network; behind a proxy set HTTPS_PROXY; what has arrived is kept for the next attempt"
            }
            Self::Request { reason, .. } if reason.contains("certificate") => {
                "the system does not trust this server; install its authority's certificate, or set SSL_CERT_FILE"
            }
            Self::Status { status: 401 | 403, .. } => {
                "the repository may not exist, or be private or gated: set HF_TOKEN to a token that may read it"
            }
            Self::Status { status: 404, .. } => {
                "check the spelling of the owner, the repository and the file"
            }
            Self::WrongDigest { .. } => {
                "nothing was kept; if it happens again, the server or the network changes the file"
            }
            _ => return None,
        })
    }

    /// For `map_err`: the operation `action` on `path` failed.
    pub(super) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }
}

/// The first few of `names`, for one line of text.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "nothing of that kind".to_owned();
    }
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
