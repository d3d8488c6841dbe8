//! The Hugging Face hub: which files a repository has, and which of them make a model.

use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderValue, header};
use url::Url;

use super::client::Client;
use super::digest::Digest;
use super::error::PullError;
use super::progress::Progress;
use super::reference::{HubReference, is_safe_path};

/// The hub, or a mirror of it.
pub(super) struct Hub {
    /// As in `HF_ENDPOINT`.
    pub(super) endpoint: Url,
    /// As in `HF_TOKEN`.
    pub(super) token: Option<String>,
}

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Path in the repository; [`is_safe_path`] holds.
    pub(super) path: String,
    /// Bytes.
    pub(super) size: Option<u64>,
    pub(super) digest: Option<Digest>,
}

/// The files that make one model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) files: Vec<RemoteFile>,
    /// Path of the file to load, or of the folder: `""` is the repository's root.
    pub(super) entry: String,
}

/// Answer of `/api/models/{repo}/revision/{revision}?blobs=true`, as far as it is needed.
#[derive(Debug, Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    /// The files of `reference`'s repository at its revision.
    ///
    /// # Errors
    /// If the hub has no such repository or revision, or names a file that is not a safe path.
    pub(super) fn list(
        &self,
        client: &Client,
        reference: &HubReference,
        progress: &dyn Progress,
    ) -> Result<Listing, PullError> {
        let revision = reference.revision.as_deref().unwrap_or("main");
        let mut url =
            self.url(&["api", "models", &reference.owner, &reference.repo, "revision", revision]);
        url.set_query(Some("blobs=true"));
        let info: ModelInfo = client.get_json(&url, &self.headers(), progress)?;
        let place = reference.to_string();
        if !is_safe_path(&info.sha) || info.sha.contains('/') {
            return Err(PullError::UnsafeName { place, name: info.sha });
        }
        let files = info.siblings.into_iter().map(|sibling| RemoteFile::new(sibling, &place));
        Ok(Listing { commit: info.sha, files: files.collect::<Result<_, _>>()? })
    }

    /// Where `file` of the repository at `commit` is fetched from.
    pub(super) fn file_url(&self, reference: &HubReference, commit: &str, file: &str) -> Url {
        let mut segments = vec![reference.owner.as_str(), &reference.repo, "resolve", commit];
        segments.extend(file.split('/'));
        self.url(&segments)
    }

    /// The token, if there is one. A redirect to another host drops it.
    pub(super) fn headers(&self) -> HeaderMap {
        let value = self.token.as_ref().and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        value.into_iter().map(|value| (header::AUTHORIZATION, value)).collect()
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        // Percent-encodes what a segment may not have, such as the slash of a branch's name.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

impl RemoteFile {
    fn new(sibling: Sibling, place: &str) -> Result<Self, PullError> {
        if !is_safe_path(&sibling.rfilename) {
            return Err(PullError::UnsafeName { place: place.to_owned(), name: sibling.rfilename });
        }
        Ok(match sibling.lfs {
            Some(lfs) => Self {
                path: sibling.rfilename,
                size: Some(lfs.size),
                digest: Digest::sha256(&lfs.sha256),
            },
            None => Self {
                path: sibling.rfilename,
                size: sibling.size,
                // Git puts the size in front of what it hashes: without it the hash cannot be
                // checked.
                digest: sibling.size.and(sibling.blob_id).and_then(|id| Digest::git_blob(&id)),
            },
        })
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Quantisations in the order in which one is taken when none is named: the usual compromise first,
/// then what is nearest to it, the large ones last.
const USUAL_CHOICE: &[&str] = &[
    "Q4_K_M", "Q4_K_S", "Q4_K", "Q4_0", "Q4_1", "MXFP4", "Q5_K_M", "Q5_K_S", "Q5_K", "Q5_0",
    "Q5_1", "Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q3_K", "Q2_K_L", "Q2_K", "F16", "BF16",
    "F32",
];

/// Files of a safetensors folder besides the weights, that a model may need.
const FOLDER_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "hf_quant_config.json",
];

/// Chooses the files that make the model `reference` asks for: the named file; or the GGUF file of
/// the named, else the usual, quantisation, with all its shards; or, without any GGUF file, the
/// safetensors folder at the root.
///
/// # Errors
/// [`PullError::NotListed`] if there is no such file.
pub(super) fn select(
    reference: &HubReference,
    files: &[RemoteFile],
) -> Result<Selection, PullError> {
    // Projectors for images stand beside the language model, and are none.
    let ggufs: Vec<&RemoteFile> = files
        .iter()
        .filter(|file| has_extension(file.name(), "gguf") && !file.name().contains("mmproj"))
        .collect();
    let chosen = match reference.file.as_deref() {
        Some("safetensors") => return select_folder(reference, files),
        Some(wanted) => ggufs
            .iter()
            .find(|file| file.path == wanted)
            .or_else(|| ggufs.iter().find(|file| quantisation_is(file, wanted))),
        None if ggufs.is_empty() => return select_folder(reference, files),
        None => USUAL_CHOICE
            .iter()
            .find_map(|usual| ggufs.iter().find(|file| quantisation_is(file, usual)))
            .or(ggufs.first()),
    };
    let Some(chosen) = chosen else {
        return Err(not_listed(
            reference,
            format!(
                "GGUF file or quantisation '{}'",
                reference.file.as_deref().unwrap_or_default()
            ),
            ggufs.iter().map(|file| file.path.clone()).collect(),
        ));
    };
    let shards = match shard(&chosen.path) {
        None => vec![(*chosen).clone()],
        Some((base, _, count)) => (1..=count)
            .map(|number| {
                let path = shard_path(base, number, count);
                let found = files.iter().find(|file| file.path == path).cloned();
                found.ok_or_else(|| not_listed(reference, format!("shard '{path}'"), Vec::new()))
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Selection { entry: shards[0].path.clone(), files: shards })
}

fn select_folder(reference: &HubReference, files: &[RemoteFile]) -> Result<Selection, PullError> {
    let weights = |file: &&RemoteFile| {
        let name = file.path.as_str();
        has_extension(name, "safetensors")
            && (name == "model.safetensors" || (name.starts_with("model-") && !name.contains('/')))
    };
    let has = |wanted: &str| files.iter().any(|file| file.path == wanted);
    if !has("config.json") || !files.iter().any(|file| weights(&file)) {
        let models = files.iter().filter(|file| has_extension(&file.path, "safetensors"));
        let wanted = "GGUF file, nor config.json with model*.safetensors".to_owned();
        return Err(not_listed(reference, wanted, models.map(|file| file.path.clone()).collect()));
    }
    let belongs = |file: &&RemoteFile| weights(file) || FOLDER_FILES.contains(&file.path.as_str());
    Ok(Selection { entry: String::new(), files: files.iter().filter(belongs).cloned().collect() })
}

fn not_listed(reference: &HubReference, wanted: String, available: Vec<String>) -> PullError {
    PullError::NotListed {
        place: format!("{}/{}", reference.owner, reference.repo),
        wanted,
        available,
    }
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// Whether the file's name ends, before the extension and the shard number, in `wanted` as a word.
fn quantisation_is(file: &RemoteFile, wanted: &str) -> bool {
    let stem = file.name().rsplit_once('.').map_or(file.name(), |(stem, _)| stem);
    let stem = shard(file.name()).map_or(stem, |(base, ..)| base);
    let Some(at) = stem.len().checked_sub(wanted.len()) else {
        return false;
    };
    stem.is_char_boundary(at)
        && stem[at..].eq_ignore_ascii_case(wanted)
        && (at == 0 || stem[..at].ends_with(['-', '.', '_']))
}

/// Splits `base-00002-of-00003.gguf`, the name that `gguf-split` gives, into base, number and
/// count.
pub(super) fn shard(path: &str) -> Option<(&str, u32, u32)> {
    let (stem, extension) = path.rsplit_once('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| {
        let plain = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let (number, count) = (parse(number)?, parse(count)?);
    let valid = extension.eq_ignore_ascii_case("gguf") && (1..=count).contains(&number);
    valid.then_some((base, number, count))
}

/// The inverse of [`shard`].
pub(super) fn shard_path(base: &str, number: u32, count: u32) -> String {
    format!("{base}-{number:05}-of-{count:05}.gguf")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RemoteFile> {
        paths
            .iter()
            .map(|path| RemoteFile { path: (*path).to_owned(), size: None, digest: None })
            .collect()
    }

    fn selected(reference: &str, paths: &[&str]) -> Result<(String, Vec<String>), String> {
        let reference = HubReference::parse(reference).unwrap();
        match select(&reference, &files(paths)) {
            Ok(selection) => {
                Ok((selection.entry, selection.files.into_iter().map(|file| file.path).collect()))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn entry(reference: &str, paths: &[&str]) -> String {
        selected(reference, paths).unwrap().0
    }

    const QUANTISED: &[&str] =
        &["README.md", "m-Q8_0.gguf", "m-Q4_K_S.gguf", "m-Q4_K_M.gguf", "mmproj-f16.gguf"];

    #[test]
    fn without_a_name_the_usual_quantisation_is_taken() {
        assert_eq!(entry("a/b", QUANTISED), "m-Q4_K_M.gguf");
        assert_eq!(entry("a/b", &["m-Q8_0.gguf", "m-f16.gguf"]), "m-Q8_0.gguf");
        assert_eq!(entry("a/b", &["odd.gguf"]), "odd.gguf");
    }

    #[test]
    fn a_quantisation_is_found_whole_and_in_any_case() {
        assert_eq!(entry("a/b:q8_0", QUANTISED), "m-Q8_0.gguf");
        assert_eq!(entry("a/b:Q4_K_S", QUANTISED), "m-Q4_K_S.gguf");
        assert_eq!(entry("a/b:F16", &["m-bf16.gguf", "m.f16.gguf"]), "m.f16.gguf");
        let error = selected("a/b:Q4", QUANTISED).unwrap_err();
        assert!(error.contains("'Q4'") && error.contains("m-Q4_K_S.gguf"), "{error}");
    }

    #[test]
    fn a_path_is_found_exactly() {
        assert_eq!(entry("a/b:x/m.gguf", &["m.gguf", "x/m.gguf"]), "x/m.gguf");
        assert!(selected("a/b:y/m.gguf", &["m.gguf", "x/m.gguf"]).is_err());
    }

    #[test]
    fn all_shards_come_with_the_first() {
        let paths =
            ["Q4_0/m-Q4_0-00002-of-00002.gguf", "Q4_0/m-Q4_0-00001-of-00002.gguf", "m-Q8_0.gguf"];
        let (entry, files) = selected("a/b:Q4_0", &paths).unwrap();
        assert_eq!(entry, paths[1]);
        assert_eq!(files, [paths[1], paths[0]]);
        assert!(selected("a/b:Q4_0", &paths[..1]).unwrap_err().contains("00001-of-00002"));
    }

    #[test]
    fn a_safetensors_folder_comes_with_what_it_needs_and_no_more() {
        let paths = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "pytorch_model.bin",
            "onnx/model.safetensors",
            "README.md",
        ];
        let (entry, files) = selected("a/b", &paths).unwrap();
        assert_eq!(entry, "");
        assert_eq!(files, paths[..5]);
    }

    #[test]
    fn safetensors_beside_gguf_are_had_by_name() {
        let paths = ["config.json", "model.safetensors", "m-Q4_0.gguf"];
        assert_eq!(entry("a/b", &paths), "m-Q4_0.gguf");
        assert_eq!(selected("a/b:safetensors", &paths).unwrap().1, paths[..2]);
    }

    #[test]
    fn a_repository_without_a_model_says_so() {
        assert!(selected("a/b", &["README.md"]).unwrap_err().contains("nothing of that kind"));
        assert!(selected("a/b", &["model.safetensors"]).unwrap_err().contains("config.json"));
    }

    #[test]
    fn shard_names_are_those_of_gguf_split() {
        assert_eq!(shard("a/m-00002-of-00003.gguf"), Some(("a/m", 2, 3)));
        assert_eq!(shard_path("a/m", 2, 3), "a/m-00002-of-00003.gguf");
        for other in [
            "m.gguf",
            "m-00000-of-00003.gguf",
            "m-00004-of-00003.gguf",
            "m-2-of-3.gguf",
            "m-00001-of-00002.bin",
        ] {
            assert_eq!(shard(other), None, "{other}");
        }
    }
}
