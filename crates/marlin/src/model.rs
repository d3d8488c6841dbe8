//! Which model a command works on, and loading it.

use std::path::PathBuf;
use std::sync::Arc;

use metal_marlin::pull::{ModelReference, Puller, Settings, default_model};
use metal_marlin::{KvFormat, Model, Session, SessionOptions};

use crate::error::CliError;
use crate::options::{ContextOptions, ModelOptions};
use crate::output::note;
use crate::progress_bar::{DownloadBar, LoadBar};

/// What `--help` says about a model's name.
pub(crate) const MODEL_HELP: &str = "A GGUF file, a Hugging Face folder, a known name (`marlin pull \
    --list`), owner/repo[:file] of Hugging Face, or a URL (with #sha256=… its file is checked). What \
    is not here yet is fetched into the cache folder once. [default: smollm2-135m]";

/// Positions of a session when none are asked for: enough for a long conversation, and a KV cache
/// that fits everywhere.
const USUAL_CONTEXT: usize = 4096;

/// Reads what the user wrote; the default model if nothing.
pub(crate) fn reference(name: Option<&str>) -> Result<ModelReference, CliError> {
    match name {
        Some(name) => Ok(ModelReference::parse(name)?),
        None => Ok(ModelReference::Known(default_model())),
    }
}

/// The temperature that suits a model of the catalogue.
pub(crate) fn usual_temperature(name: Option<&str>) -> Option<f32> {
    match reference(name).ok()? {
        ModelReference::Known(known) => Some(known.temperature),
        _ => None,
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

/// The engine's options.
pub(crate) fn engine_options(options: &ModelOptions) -> metal_marlin::ModelOptions {
    metal_marlin::ModelOptions {
        device: options.device.into(),
        activations: options.activations.map(Into::into),
        threads: options.threads,
        ..Default::default()
    }
}

/// Fetches the model if need be, and loads it with a progress bar, on a device that has room for the session too, if
/// one is going to be made.
pub(crate) fn load(
    options: &ModelOptions,
    session: Option<SessionOptions>,
) -> Result<Arc<Model>, CliError> {
    let path = resolve(options.model.as_deref())?;
    let engine_options = metal_marlin::ModelOptions { session, ..engine_options(options) };
    let mut bar = LoadBar::new(&path);
    let mut show = |done, total| bar.show(done, total);
    let model = Model::load_with_progress(&path, &engine_options, &mut show)?;
    drop(bar);
    if let Some(passed_over) = model.passed_over() {
        note(&format!("note: {passed_over}"));
    }
    Ok(model)
}

/// Loads a model for one conversation.
pub(crate) fn load_for(
    model: &ModelOptions,
    context: &ContextOptions,
) -> Result<Arc<Model>, CliError> {
    load(model, Some(conversation(context, USUAL_CONTEXT)))
}

/// What a conversation needs; `usual` positions when none are asked for.
fn conversation(options: &ContextOptions, usual: usize) -> SessionOptions {
    SessionOptions {
        ctx: options.ctx.map_or(usual, Into::into),
        kv: KvFormat::from(options.kv),
        ..SessionOptions::default()
    }
}

/// A session for one conversation.
pub(crate) fn session(model: &Arc<Model>, options: &ContextOptions) -> Result<Session, CliError> {
    let trained = model.config().context;
    let session = conversation(options, trained.min(USUAL_CONTEXT));
    let ctx = session.ctx;
    if ctx > trained {
        note(&format!(
            "warning: --ctx {ctx} is more than the {trained} tokens that the model was trained for"
        ));
    }
    Ok(model.session(session)?)
}
