//! Which model a command works on.

use std::path::PathBuf;

use metal_marlin::pull::{ModelReference, Puller, Settings, default_model};

use crate::error::CliError;
use crate::progress_bar::DownloadBar;

/// What `--help` says about a model's name.
pub(crate) const MODEL_HELP: &str = "\
A GGUF file, a Hugging Face folder, a known name (`marlin pull --list`), owner/repo[:file] of Hugging
Face, or a URL (with #sha256=… its file is checked). What is not here yet is fetched into the cache
folder once.";

/// Reads what the user wrote; the default model if nothing.
pub(crate) fn reference(name: Option<&str>) -> Result<ModelReference, CliError> {
    match name {
        Some(name) => Ok(ModelReference::parse(name)?),
        None => Ok(ModelReference::Known(default_model())),
    }
}

/// The model's path, fetched with a progress bar if it is not here.
pub(crate) fn resolve(name: Option<&str>) -> Result<PathBuf, CliError> {
    let reference = reference(name)?;
    if let ModelReference::Path(path) = reference {
        return Ok(path);
    }
    Ok(Puller::new(Settings::from_env()?).resolve(&reference, &DownloadBar::default())?)
}
