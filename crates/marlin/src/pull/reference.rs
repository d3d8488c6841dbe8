//! What a person may write to name a model.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

use super::catalog::{KNOWN_MODELS, KnownModel, known_model};
use super::digest::Digest;
use super::error::PullError;

/// A model, as named by a person.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelReference {
    /// A file or folder that is already here.
    Path(PathBuf),
    /// A model of [`KNOWN_MODELS`].
    Known(&'static KnownModel),
    /// Files of a Hugging Face repository.
    Hub(HubReference),
    /// A file anywhere on the web.
    Url(UrlReference),
}

/// `owner/repo[@revision][:file]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReference {
    /// The user or organisation.
    pub owner: String,
    /// The repository's name.
    pub repo: String,
    /// Branch, tag or commit; `main` when `None`.
    pub revision: Option<String>,
    /// A file's path in the repository, a quantisation such as `Q4_K_M`, or `safetensors`. When
    /// `None`, the repository's usual choice is taken.
    pub file: Option<String>,
}

/// A URL, and the SHA-256 that its file must have, if its fragment gave one (`#sha256=…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlReference {
    /// The URL without its fragment.
    pub url: Url,
    /// The hash that the file must have.
    pub digest: Option<Digest>,
}

impl ModelReference {
    /// Reads `text` as, in this order: an `http(s)` URL, an existing path, a known name, and
    /// `owner/repo[@revision][:file]` of Hugging Face. A URL of a page of Hugging Face means the
    /// repository or file that the page shows.
    ///
    /// # Errors
    /// [`PullError::BadReference`] if it is none of these.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        let bad = |reason: String| PullError::BadReference { text: text.to_owned(), reason };
        if text.is_empty() {
            return Err(bad("the name is empty".to_owned()));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return parse_url(text).map_err(bad);
        }
        if Path::new(text).exists() {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if let Some(model) = known_model(text) {
            return Ok(Self::Known(model));
        }
        if !looks_like_a_path(text)
            && let Some(reference) = HubReference::parse(text)
        {
            return Ok(Self::Hub(reference));
        }
        if looks_like_a_path(text) {
            return Err(bad("no such file or folder".to_owned()));
        }
        let names: Vec<_> = KNOWN_MODELS.iter().map(|model| model.names[0]).collect();
        Err(bad(format!("no such file or folder, and not a known name ({})", names.join(", "))))
    }
}

/// The form that [`ModelReference::parse`] reads, without credentials.
impl fmt::Display for ModelReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Known(model) => f.write_str(model.names[0]),
            Self::Hub(reference) => reference.fmt(f),
            Self::Url(reference) => f.write_str(&shown(&reference.url)),
        }
    }
}

impl HubReference {
    /// Parses `owner/repo[@revision][:file]`; `None` if it does not have that form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (place, file) = match text.split_once(':') {
            Some((place, file)) => (place, Some(file)),
            None => (text, None),
        };
        let (name, revision) = match place.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (place, None),
        };
        let (owner, repo) = name.split_once('/')?;
        let valid = is_hub_name(owner)
            && is_hub_name(repo)
            && revision.is_none_or(is_safe_path)
            && file.is_none_or(is_safe_path);
        valid.then(|| Self {
            owner: owner.to_owned(),
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// `url` without user, password, query and fragment: what may be shown and logged. Signed URLs
/// carry their secrets in the query.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for URLs that cannot have a user, which then have none to show.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// Whether `path` is a relative path of plain names, on every operating system: the only kind of
/// name from a server or an archive that this program joins to a folder.
pub(super) fn is_safe_path(path: &str) -> bool {
    /// Names that Windows gives to devices, whatever their extension.
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];
    !path.is_empty()
        && path.len() <= 512
        && path.split('/').all(|name| {
            let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
            let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit());
            !name.is_empty()
                && !name.ends_with(['.', ' '])
                && !name.contains(|c: char| c.is_control() || r#"\:*?"<>|"#.contains(c))
                && !DEVICES.contains(&stem)
        })
}

/// What the hub allows in the name of an owner or repository.
fn is_hub_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 96
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        && is_safe_path(name)
        && !name.starts_with('.')
}

/// Whether someone who wrote `text` meant a file: a missing file must not become a request to a
/// server.
fn looks_like_a_path(text: &str) -> bool {
    let path = Path::new(text);
    path.is_absolute()
        || text.starts_with(['.', '~', '/', '\\'])
        || text.contains('\\')
        // owner/repo:file.gguf is not a path, folder/file.gguf is.
        || (!text.contains(':')
            && path.extension().is_some_and(|extension| {
                ["gguf", "safetensors", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known))
            }))
}

fn parse_url(text: &str) -> Result<ModelReference, String> {
    let mut url = Url::parse(text).map_err(|error| error.to_string())?;
    let digest = match url.fragment() {
        None | Some("") => None,
        Some(fragment) => {
            let hex = fragment.strip_prefix("sha256=").ok_or_else(|| {
                format!("the part after '#' is '{fragment}', expected sha256=<64 hex digits>")
            })?;
            Some(
                Digest::sha256(hex)
                    .ok_or_else(|| format!("'{hex}' is not a sha256: expected 64 hex digits"))?,
            )
        }
    };
    url.set_fragment(None);
    if digest.is_none()
        && let Some(reference) = hub_page(&url)
    {
        return Ok(ModelReference::Hub(reference));
    }
    Ok(ModelReference::Url(UrlReference { url, digest }))
}

/// The repository or file that a page of huggingface.co is about: what a person copies from the
/// browser's address line is the page, not the file.
fn hub_page(url: &Url) -> Option<HubReference> {
    if url.host_str() != Some("huggingface.co") {
        return None;
    }
    let segments: Vec<&str> = url.path_segments()?.filter(|segment| !segment.is_empty()).collect();
    let text = match *segments.as_slice() {
        [owner, repo] => format!("{owner}/{repo}"),
        [owner, repo, "tree", revision] => format!("{owner}/{repo}@{revision}"),
        [owner, repo, "blob" | "resolve", revision, ref file @ ..] if !file.is_empty() => {
            format!("{owner}/{repo}@{revision}:{}", file.join("/"))
        }
        _ => return None,
    };
    HubReference::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(owner: &str, repo: &str, revision: Option<&str>, file: Option<&str>) -> ModelReference {
        ModelReference::Hub(HubReference {
            owner: owner.to_owned(),
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    fn reason(text: &str) -> String {
        match ModelReference::parse(text) {
            Err(PullError::BadReference { reason, .. }) => reason,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn owner_and_repo_with_revision_and_file() {
        for (text, expected) in [
            ("HuggingFaceTB/SmolLM2-135M", hub("HuggingFaceTB", "SmolLM2-135M", None, None)),
            ("a/b:Q4_K_M", hub("a", "b", None, Some("Q4_K_M"))),
            ("a/b:sub/x.gguf", hub("a", "b", None, Some("sub/x.gguf"))),
            ("a/b.c@v1.0:x.gguf", hub("a", "b.c", Some("v1.0"), Some("x.gguf"))),
        ] {
            let parsed = ModelReference::parse(text).unwrap();
            assert_eq!(parsed, expected);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_hugging_face_page_is_the_file_it_shows() {
        for (text, expected) in [
            ("https://huggingface.co/a/b", hub("a", "b", None, None)),
            ("https://huggingface.co/a/b/tree/main", hub("a", "b", Some("main"), None)),
            (
                "https://huggingface.co/a/b/blob/main/q/x.gguf",
                hub("a", "b", Some("main"), Some("q/x.gguf")),
            ),
            (
                "https://huggingface.co/a/b/resolve/main/x.gguf?download=true",
                hub("a", "b", Some("main"), Some("x.gguf")),
            ),
        ] {
            assert_eq!(ModelReference::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_url_may_carry_its_hash() {
        let hex = "ab".repeat(32);
        let ModelReference::Url(reference) =
            ModelReference::parse(&format!("https://example.org/x.gguf#sha256={hex}")).unwrap()
        else {
            panic!("expected a URL")
        };
        assert_eq!(reference.url.as_str(), "https://example.org/x.gguf");
        assert_eq!(reference.digest, Digest::sha256(&hex));
        assert!(reason("https://example.org/x.gguf#sha256=12").contains("64 hex digits"));
        assert!(reason("https://example.org/x.gguf#md5=12").contains("expected sha256="));
    }

    #[test]
    fn an_existing_path_wins_over_everything_but_a_url() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            ModelReference::parse(file.to_str().unwrap()).unwrap(),
            ModelReference::Path(file)
        );
    }

    #[test]
    fn a_missing_file_is_never_asked_of_a_server() {
        for text in ["models/x.gguf", "./a/b", "../a", "/no/such", "~/a/b", r"C:\x\y.gguf"] {
            assert_eq!(reason(text), "no such file or folder", "{text}");
        }
        assert!(reason("nonsense").contains("smollm2-135m"));
        assert!(reason("").contains("empty"));
    }

    #[test]
    fn only_plain_relative_names_are_safe() {
        for good in
            ["a", "a/b.gguf", "model-00001-of-00002.safetensors", "..a", "a..b", "Übung.gguf"]
        {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            r"..\a",
            "C:a",
            "a\0b",
            "a\n",
            "nul",
            "COM1.gguf",
            "a.",
            "a ",
        ] {
            assert!(!is_safe_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let url =
            Url::parse("https://user:secret@example.org/x.gguf?X-Amz-Signature=secret#secret")
                .unwrap();
        assert_eq!(shown(&url), "https://example.org/x.gguf");
    }
}
