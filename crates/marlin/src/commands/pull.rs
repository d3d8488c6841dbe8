//! `marlin pull`: fetches models, and shows and removes what was fetched.

use std::path::PathBuf;

use metal_marlin::pull::{Digest, KNOWN_MODELS, ModelReference, Puller, Record, Settings};
use serde::Serialize;

use crate::error::CliError;
use crate::model::{self, MODEL_HELP};
use crate::output::{bytes, print, print_json};
use crate::progress_bar::DownloadBar;

/// Fetch a model into the cache folder and print its path
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin pull                                     the default model
  marlin pull owner/repo                          its usual quantisation, or its safetensors
  marlin pull owner/repo:Q8_0                     the quantisation named
  marlin pull owner/repo@v1.0:dir/file.gguf       a file at a tag, branch or commit
  marlin pull https://example.org/m.gguf#sha256=…

A transfer that was interrupted continues where it stopped. Every file is checked against the hash
that its publisher gives.

Environment:
  MARLIN_CACHE         folder to keep models in
  HF_TOKEN             for private and gated repositories
  HF_ENDPOINT          a mirror of huggingface.co
  MARLIN_PYPI_INDEX    a mirror of https://pypi.org/simple
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = "What to fetch [default: smollm2-135m]", long_help = MODEL_HELP)]
    model: Option<String>,

    /// List the known names, and what is in the cache folder
    #[arg(long, conflicts_with_all = ["model", "remove"])]
    list: bool,

    /// Remove MODEL from the cache folder instead
    #[arg(long, requires = "model")]
    remove: bool,

    /// Write the result as JSON
    #[arg(long)]
    json: bool,
}

/// What is in the cache, for scripts.
#[derive(Serialize)]
struct Listed {
    model: String,
    path: PathBuf,
    origin: String,
    bytes: u64,
    files: Vec<ListedFile>,
}

#[derive(Serialize)]
struct ListedFile {
    path: PathBuf,
    bytes: u64,
    /// `sha256:…` or `git-blob:…`
    digest: Digest,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let puller = Puller::new(Settings::from_env()?);
    if args.list {
        return list(&puller, args.json);
    }
    let reference = model::reference(args.model.as_deref())?;
    if args.remove {
        return remove(&puller, &reference, args.json);
    }
    let path = puller.pull(&reference, &DownloadBar::default())?;
    match puller.record(&reference) {
        Some(record) if args.json => print_json(&Listed::new(&puller, record)),
        _ if args.json => {
            print_json(&serde_json::json!({ "model": reference.to_string(), "path": path }))
        }
        _ => print(&format!("{}\n", path.display())),
    }
}

fn list(puller: &Puller, json: bool) -> Result<(), CliError> {
    let cached: Vec<Listed> =
        puller.cache().records()?.into_iter().map(|record| Listed::new(puller, record)).collect();
    if json {
        let known: Vec<_> = KNOWN_MODELS
            .iter()
            .map(|known| {
                serde_json::json!({
                    "names": known.names, "description": known.description, "licence": known.licence,
                    "bytes": known.file_size,
                })
            })
            .collect();
        return print_json(
            &serde_json::json!({ "cache": puller.cache().root(), "known": known, "cached": cached }),
        );
    }
    let mut text = String::from("Known names:\n");
    for known in KNOWN_MODELS {
        text += &format!(
            "  {:<24} {:>9}  {} ({})\n",
            known.names[0],
            bytes(known.file_size),
            known.description,
            known.licence
        );
    }
    text += &format!("In {}:\n", puller.cache().root().display());
    if cached.is_empty() {
        text += "  nothing yet\n";
    }
    for listed in cached {
        text += &format!(
            "  {:<24} {:>9}  {}\n",
            listed.model,
            bytes(listed.bytes),
            listed.path.display()
        );
    }
    print(&text)
}

fn remove(puller: &Puller, reference: &ModelReference, json: bool) -> Result<(), CliError> {
    if let ModelReference::Path(path) = reference {
        let message =
            format!("{}: is a path, expected the name of a fetched model", path.display());
        return Err(CliError::with_hint(message, "`marlin pull --list` shows them"));
    }
    let record = puller.record(reference).ok_or_else(|| {
        let message = format!("{reference}: is not in {}", puller.cache().root().display());
        CliError::with_hint(message, "`marlin pull --list` shows what is")
    })?;
    puller.cache().remove(&record)?;
    if json { print_json(&Listed::new(puller, record)) } else { Ok(()) }
}

impl Listed {
    fn new(puller: &Puller, record: Record) -> Self {
        let root = puller.cache().root();
        Self {
            model: record.reference,
            path: root.join(record.entry),
            origin: record.origin,
            bytes: record.files.iter().map(|file| file.size).sum(),
            files: record
                .files
                .into_iter()
                .map(|file| ListedFile {
                    path: root.join(file.path),
                    bytes: file.size,
                    digest: file.digest,
                })
                .collect(),
        }
    }
}
