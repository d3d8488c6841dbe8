//! One file over HTTP, continued where an earlier attempt stopped, checked against its hash.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use url::Url;

use super::cache::{Cache, create_parent, read_json, write_json};
use super::client::{Attempts, Client, Failure, classify};
use super::digest::{Digest, Hasher};
use super::error::PullError;
use super::progress::{Event, Progress};
use super::reference::shown;

/// A file to fetch, and what is known about it beforehand.
pub(super) struct Wanted<'a> {
    pub(super) url: &'a Url,
    /// For people.
    pub(super) name: &'a str,
    /// Credentials, if the server needs any.
    pub(super) headers: HeaderMap,
    /// Published size in bytes.
    pub(super) size: Option<u64>,
    /// Published hash.
    pub(super) digest: Option<Digest>,
    /// Bytes that will be needed besides the file itself, such as for what an archive holds.
    pub(super) extra_space: u64,
}

impl<'a> Wanted<'a> {
    /// A file of which no more is known than its URL and perhaps its hash.
    pub(super) fn of_url(url: &'a Url, name: &'a str, digest: Option<Digest>) -> Self {
        Self { url, name, headers: HeaderMap::new(), size: None, digest, extra_space: 0 }
    }
}

/// A complete file that has passed its checks.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) size: u64,
    /// The published hash, or the SHA-256 found if none was published.
    pub(super) digest: Digest,
}

/// What a `.part` file is a part of. Kept beside it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PartState {
    url: String,
    digest: Option<Digest>,
    /// Entity tag or date of the version that the bytes belong to (RFC 9110 section 8.8).
    validator: Option<String>,
}

/// Bytes per read and write.
const CHUNK: usize = 256 << 10;

/// Fetches `wanted` into `part`, which is left complete, checked and flushed. When the caller has
/// done with it what it is for, [`clear`] removes what belongs to it.
///
/// What an earlier attempt left in `part` is kept if it can be told to belong to the same file: by
/// the published hash, or else by the server's confirmation (`If-Range`, RFC 9110 section 13.1.5).
/// The caller holds the lock for `part`.
///
/// # Errors
/// After [`super::Retry::attempts`] attempts without a byte of progress, at once for failures that
/// do not pass, and if the complete file has another hash or size than was published. Then nothing
/// is kept; in all other cases what has arrived is kept for the next attempt.
pub(super) fn download(
    client: &Client,
    cache: &Cache,
    wanted: &Wanted<'_>,
    part: &Path,
    progress: &dyn Progress,
) -> Result<Arrived, PullError> {
    create_parent(part)?;
    let mut transfer = Transfer::begin(cache, wanted, part, progress)?;
    let mut attempts = Attempts::new(client.retry());
    // A server that cannot continue a file sends it anew each time: only what no attempt has
    // reached before is progress.
    let mut furthest = transfer.have;
    loop {
        if wanted.size.is_none_or(|size| transfer.have < size) {
            let outcome = transfer.attempt(client);
            if transfer.have > furthest {
                furthest = transfer.have;
                attempts.progressed();
            }
            if let Err(failure) = outcome {
                if matches!(failure, Failure::Lasting(PullError::WrongSize { .. })) {
                    clear(part);
                }
                attempts.pause(wanted.url, failure, progress)?;
                continue;
            }
        }
        transfer.announce(wanted.size);
        match transfer.check() {
            Ok(arrived) => return Ok(arrived),
            // The bytes of an earlier run may be the damaged ones; those of this run came in one
            // piece.
            Err(PullError::WrongDigest { .. }) if transfer.has_old_bytes => {
                transfer.restart("what an earlier attempt left is damaged")?;
            }
            Err(error) => {
                clear(part);
                return Err(error);
            }
        }
    }
}

/// Removes `part` and what is known about it; harmless if there is nothing.
pub(super) fn clear(part: &Path) {
    let _ = fs::remove_file(part);
    let _ = fs::remove_file(state_path(part));
}

fn state_path(part: &Path) -> PathBuf {
    part.with_extension("json")
}

/// A `.part` file being filled.
struct Transfer<'a> {
    cache: &'a Cache,
    wanted: &'a Wanted<'a>,
    progress: &'a dyn Progress,
    path: &'a Path,
    state_path: PathBuf,
    file: File,
    hasher: Hasher,
    /// Bytes in the file, all of which `hasher` has seen.
    have: u64,
    /// Whether some of them are from before this run.
    has_old_bytes: bool,
    validator: Option<String>,
    announced: bool,
    buffer: Vec<u8>,
}

impl<'a> Transfer<'a> {
    fn begin(
        cache: &'a Cache,
        wanted: &'a Wanted<'a>,
        path: &'a Path,
        progress: &'a dyn Progress,
    ) -> Result<Self, PullError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(PullError::io(path, "open the file"))?;
        let mut transfer = Self {
            cache,
            wanted,
            progress,
            path,
            state_path: state_path(path),
            file,
            hasher: Hasher::comparable_with(wanted.digest.as_ref(), wanted.size),
            have: 0,
            has_old_bytes: false,
            validator: None,
            announced: false,
            buffer: vec![0; CHUNK],
        };
        transfer.adopt_old_bytes()?;
        Ok(transfer)
    }

    /// Keeps what an earlier run left, if it is a part of the wanted file; otherwise empties the
    /// file.
    fn adopt_old_bytes(&mut self) -> Result<(), PullError> {
        let state: Option<PartState> = read_json(&self.state_path);
        let length =
            self.file.metadata().map_err(PullError::io(self.path, "read the file's size"))?.len();
        let usable = state.filter(|state| {
            let same_file = match (&self.wanted.digest, &state.digest) {
                (Some(wanted), Some(of_part)) => wanted == of_part,
                (None, None) => state.url == shown(self.wanted.url) && state.validator.is_some(),
                _ => false,
            };
            same_file && self.wanted.size.is_none_or(|size| length <= size)
        });
        let Some(state) = usable.filter(|_| length > 0) else {
            return self.empty();
        };
        self.validator = state.validator;
        self.has_old_bytes = true;
        while self.have < length {
            if self.progress.cancelled() {
                return Err(PullError::Cancelled);
            }
            let read = self
                .file
                .read(&mut self.buffer)
                .map_err(PullError::io(self.path, "read what has arrived before"))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&self.buffer[..read]);
            self.have += read as u64;
        }
        Ok(())
    }

    /// One request, and its answer written to the end.
    fn attempt(&mut self, client: &Client) -> Result<(), Failure> {
        let response = client.get(self.wanted.url, &self.request_headers())?;
        if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            return Err(self
                .bad_answer(format!("the file comes encoded as {encoding:?}, expected as it is"))
                .into());
        }
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => self.continue_with(&response)?,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let total = text_of(response.headers(), &header::CONTENT_RANGE);
                if total == Some(format!("bytes */{}", self.have).as_str()) {
                    // The version is still the same (`If-Range`), and nothing is left of it to
                    // fetch.
                    return Ok(());
                }
                self.restart("the server's file is shorter than what had arrived")?;
                return Err(Failure::Passing {
                    reason: "the file begins anew".to_owned(),
                    pause: None,
                });
            }
            _ => {
                if self.have > 0 {
                    self.restart(
                        "the server has another version of the file, or cannot continue one",
                    )?;
                }
                response.body().content_length()
            }
        };
        if let (Some(found), Some(expected)) = (total, self.wanted.size)
            && found != expected
        {
            let what = shown(self.wanted.url);
            return Err(PullError::WrongSize { what, found, expected }.into());
        }
        self.validator = validator(response.headers());
        self.keep_state()?;
        if let Some(total) = total.or(self.wanted.size) {
            self.cache.check_space(
                total.saturating_sub(self.have).saturating_add(self.wanted.extra_space),
            )?;
        }
        let total = total.or(self.wanted.size);
        self.announce(total);
        // One byte more than expected is enough to know that it is another file.
        let limit =
            total.map_or(u64::MAX, |total| total.saturating_sub(self.have).saturating_add(1));
        self.receive(response.into_body().into_reader().take(limit))?;
        match total {
            Some(total) if self.have < total => Err(Failure::Passing {
                reason: format!("the connection ended after {} of {total} bytes", self.have),
                pause: None,
            }),
            Some(total) if self.have > total => {
                let what = shown(self.wanted.url);
                Err(PullError::WrongSize { what, found: self.have, expected: total }.into())
            }
            _ => Ok(()),
        }
    }

    /// Tells, once, that the file is on its way.
    fn announce(&mut self, total: Option<u64>) {
        if !std::mem::replace(&mut self.announced, true) {
            self.progress.event(Event::Started {
                file: self.wanted.name,
                total,
                resumed_at: self.have,
            });
        }
    }

    fn request_headers(&self) -> HeaderMap {
        let mut headers = self.wanted.headers.clone();
        // A range of a compressed stream would be a range of something else.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        // Without a hash to check and a validator to send, nothing would notice another version's
        // bytes.
        if self.have > 0 && (self.wanted.digest.is_some() || self.validator.is_some()) {
            headers.insert(header::RANGE, range_from(self.have));
            if let Some(validator) =
                self.validator.as_deref().and_then(|text| HeaderValue::from_str(text).ok())
            {
                headers.insert(header::IF_RANGE, validator);
            }
        }
        headers
    }

    /// Checks that a 206 answer continues at the byte asked for; returns the file's whole size.
    fn continue_with(&mut self, response: &Response<ureq::Body>) -> Result<Option<u64>, Failure> {
        let range = text_of(response.headers(), &header::CONTENT_RANGE).unwrap_or_default();
        let parsed = range.strip_prefix("bytes ").and_then(|range| {
            let (span, total) = range.split_once('/')?;
            let (first, _) = span.split_once('-')?;
            let total =
                if total.trim() == "*" { None } else { Some(total.trim().parse::<u64>().ok()?) };
            Some((first.trim().parse::<u64>().ok()?, total))
        });
        match parsed {
            Some((first, total)) if first == self.have => Ok(total),
            _ => Err(self
                .bad_answer(format!(
                    "asked for the bytes from {}, was answered with '{range}'",
                    self.have
                ))
                .into()),
        }
    }

    fn receive(&mut self, mut body: impl Read) -> Result<(), Failure> {
        loop {
            if self.progress.cancelled() {
                return Err(PullError::Cancelled.into());
            }
            let read = match body.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(classify(self.wanted.url, error.into())),
            };
            let bytes = &self.buffer[..read];
            self.file.write_all(bytes).map_err(PullError::io(self.path, "write the file"))?;
            self.hasher.update(bytes);
            self.have += read as u64;
            self.progress.event(Event::Advanced { bytes: read as u64 });
        }
    }

    /// The file is complete: compares its hash and makes sure that it is on the disk.
    fn check(&mut self) -> Result<Arrived, PullError> {
        let fresh = Hasher::comparable_with(self.wanted.digest.as_ref(), self.wanted.size);
        let found = std::mem::replace(&mut self.hasher, fresh).finish();
        if let Some(expected) = self.wanted.digest
            && found != expected
        {
            return Err(PullError::WrongDigest { what: shown(self.wanted.url), found, expected });
        }
        self.file.sync_all().map_err(PullError::io(self.path, "write the file to the disk"))?;
        Ok(Arrived { size: self.have, digest: found })
    }

    /// Forgets what has arrived, to fetch all of it again.
    fn restart(&mut self, reason: &str) -> Result<(), PullError> {
        self.empty()?;
        self.progress.event(Event::Restarted { reason });
        Ok(())
    }

    fn empty(&mut self) -> Result<(), PullError> {
        self.hasher = Hasher::comparable_with(self.wanted.digest.as_ref(), self.wanted.size);
        self.have = 0;
        self.has_old_bytes = false;
        self.validator = None;
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map(|_| ()).map_err(PullError::io(self.path, "empty the file"))
    }

    fn keep_state(&self) -> Result<(), PullError> {
        let state = PartState {
            url: shown(self.wanted.url),
            digest: self.wanted.digest,
            validator: self.validator.clone(),
        };
        write_json(&self.state_path, &state)
    }

    fn bad_answer(&self, reason: String) -> PullError {
        PullError::BadAnswer { url: shown(self.wanted.url), reason }
    }
}

/// The strong validator of an answer: only such a one may stand in `If-Range`.
fn validator(headers: &HeaderMap) -> Option<String> {
    let tag = text_of(headers, &header::ETAG).filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| text_of(headers, &header::LAST_MODIFIED)).map(str::to_owned)
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn range_from(first: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes={first}-")).expect("digits are valid in a header")
}
