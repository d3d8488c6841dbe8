//! A model on a device.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use marlin_backend::{Backend, BackendError, Ceilings, Program, TunedProduct};
use marlin_cpu::Isa;
use marlin_models::{ChatTemplate, Config, Message, ModelError, ModelSource, Tokenizer};
use marlin_placement::{Ledger, Phase};

use crate::device::{self, Activations, DeviceChoice};
use crate::{EngineError, Session, SessionOptions};

/// Called while weights are placed, with the bytes done so far and in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Which device.
    pub device: DeviceChoice,
    /// What activations are kept as on a GPU; by default what suits the model.
    pub activations: Option<Activations>,
    /// Threads of the CPU backend; by default one per core.
    pub threads: Option<NonZeroUsize>,
    /// Instruction set of the CPU backend; by default what `MARLIN_CPU` asks for, or the best.
    pub isa: Option<Isa>,
    /// A session that is going to be made: a device without room for it beside the weights is found out before
    /// anything is loaded. Of positions, only those count that the model was trained for.
    pub session: Option<SessionOptions>,
}

/// A model whose weights are placed: share it among sessions.
pub struct Model {
    source: ModelSource,
    backend: Box<dyn Backend>,
    program: Program,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    load_time: Duration,
    passed_over: Option<PassedOver>,
}

/// A device that the processor runs a model in place of.
#[derive(Debug)]
pub struct PassedOver {
    /// `cuda`, `metal`, `emulated`.
    pub device: &'static str,
    /// What it has too little of, or cannot do.
    pub reason: EngineError,
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the processor runs the model, not {}: {}", self.device, self.reason)
    }
}

/// A model's program with its weights, and where they are.
struct Placed {
    backend: Box<dyn Backend>,
    program: Program,
    passed_over: Option<PassedOver>,
}

/// Records the forward pass, its weights on `backend`.
fn place(
    source: &ModelSource,
    backend: &dyn Backend,
    session: Option<&SessionOptions>,
    progress: Progress<'_>,
) -> Result<Program, EngineError> {
    let (mut done, total) = (0, source.bytes());
    let program = source.forward(&mut |weight| {
        let placed = backend.place(weight)?;
        if backend.places_at_once() {
            done += weight.bytes();
            progress(done, total);
        }
        Ok(placed)
    })?;
    if let Some(session) = session {
        let ctx = session.ctx.min(source.config().context);
        backend.check_room(&program, &SessionOptions { ctx, ..session.clone() }.executor())?;
    }
    let mut further = |bytes| {
        done += bytes;
        progress(done, total);
    };
    backend.load(&program, &mut further)?;
    Ok(program)
}

/// Whether a device has no room for something, or cannot do it: what the processor still can.
fn is_limit(error: &EngineError) -> bool {
    let (EngineError::Backend(source) | EngineError::Model(ModelError::Backend { source, .. })) =
        error
    else {
        return false;
    };
    matches!(source, BackendError::DoesNotFit { .. } | BackendError::Unsupported { .. })
}

impl Model {
    /// Opens the model at `path` (a `.gguf` file or a Hugging Face folder) and places its
    /// weights.
    ///
    /// # Errors
    /// [`EngineError`], naming the file and what is wrong with it.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Arc<Self>, EngineError> {
        Self::load_with_progress(path, options, &mut |_, _| {})
    }

    /// The same, telling how far it is.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_progress(
        path: &Path,
        options: &ModelOptions,
        progress: Progress<'_>,
    ) -> Result<Arc<Self>, EngineError> {
        let source = ModelSource::open(path)?;
        match options.device {
            DeviceChoice::Auto => match device::best_gpu(options, source.config()) {
                Some(gpu) => Self::load_preferring(source, gpu, options, progress),
                None => Self::load_for(source, device::cpu(options)?, options, progress),
            },
            _ => {
                let backend = device::backend(options, source.config())?;
                Self::load_for(source, backend, options, progress)
            }
        }
    }

    /// Places a model on a device that the caller brings.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if the device has no room for the weights.
    pub fn load_on(
        source: ModelSource,
        backend: Box<dyn Backend>,
        progress: Progress<'_>,
    ) -> Result<Arc<Self>, EngineError> {
        Self::load_for(source, backend, &ModelOptions::default(), progress)
    }

    fn load_for(
        source: ModelSource,
        backend: Box<dyn Backend>,
        options: &ModelOptions,
        progress: Progress<'_>,
    ) -> Result<Arc<Self>, EngineError> {
        Self::load_with(source, |source| {
            let program = place(source, &*backend, options.session.as_ref(), progress)?;
            Ok(Placed { backend, program, passed_over: None })
        })
    }

    /// Places a model on `preferred`; if that has no room for its weights and the options' session, or cannot multiply them, on the processor,
    /// as `options` say. [`passed_over`](Self::passed_over) tells.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_preferring(
        source: ModelSource,
        preferred: Box<dyn Backend>,
        options: &ModelOptions,
        progress: Progress<'_>,
    ) -> Result<Arc<Self>, EngineError> {
        Self::load_with(source, |source| {
            let session = options.session.as_ref();
            let reason = match place(source, &*preferred, session, progress) {
                Ok(program) => {
                    return Ok(Placed { backend: preferred, program, passed_over: None });
                }
                Err(error) if is_limit(&error) => error,
                Err(error) => return Err(error),
            };
            let passed_over = Some(PassedOver { device: preferred.name(), reason });
            // What it holds may be the processor's own memory.
            drop(preferred);
            let backend = device::cpu(options)?;
            let program = place(source, &*backend, session, progress)?;
            Ok(Placed { backend, program, passed_over })
        })
    }

    fn load_with(
        source: ModelSource,
        placing: impl FnOnce(&ModelSource) -> Result<Placed, EngineError>,
    ) -> Result<Arc<Self>, EngineError> {
        let start = Instant::now();
        // Building the tokenizer takes about as long as placing a small model's weights,
        // and neither needs the other.
        let (tokenizer, placed) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| source.tokenizer());
            let placed = placing(&source);
            let tokenizer = match tokenizer.join() {
                Ok(tokenizer) => tokenizer,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (tokenizer, placed)
        });
        let (tokenizer, Placed { backend, program, passed_over }) = (tokenizer?, placed?);
        let chat_template = source.chat_template()?;
        let load_time = start.elapsed();
        Ok(Arc::new(Self {
            source,
            backend,
            program,
            tokenizer,
            chat_template,
            load_time,
            passed_over,
        }))
    }

    /// The device that would have been taken, and why it was not.
    pub fn passed_over(&self) -> Option<&PassedOver> {
        self.passed_over.as_ref()
    }

    /// Makes a session: its activations, KV cache and sampler state.
    ///
    /// # Errors
    /// If there is not enough memory, or an option is 0.
    pub fn session(self: &Arc<Self>, options: SessionOptions) -> Result<Session, EngineError> {
        self.backend.ledger().enter(Phase::Load);
        let executor = self.backend.compile(self.program.clone(), &options.executor())?;
        Ok(Session::new(self.clone(), executor, options))
    }

    /// The tokens of a prompt as it is: with BOS where the model has it, and special tokens
    /// in the text read as such.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        Ok(self.tokenizer.encode(text, true, true)?)
    }

    /// The tokens of a conversation in the model's own chat template, ending where the
    /// assistant's answer begins.
    ///
    /// # Errors
    /// If the template refuses the messages.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        Ok(self.chat_template.encode(&self.tokenizer, messages, &Default::default())?)
    }

    /// The file, its configuration and tensors.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        self.source.config()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// The device's name.
    pub fn device(&self) -> &'static str {
        self.backend.name()
    }

    /// One line about the device: instruction set and threads.
    pub fn device_description(&self) -> String {
        self.backend.description()
    }

    /// The book in which this model's allocations, copies, waits and dispatches are counted.
    pub fn ledger(&self) -> &Ledger {
        self.backend.ledger()
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Measures how this model's products with each of `tokens` tokens are divided best on its device, and keeps that
    /// for later runs; see [`Backend::tune`].
    ///
    /// # Errors
    /// If memory is short, the device fails, or the result cannot be kept.
    pub fn tune(
        &self,
        tokens: &[usize],
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<TunedProduct>, EngineError> {
        Ok(self.backend.tune(&self.program, tokens, again, progress)?)
    }

    /// Measures what the device can do at most; takes about a second.
    pub fn measure_ceilings(&self) -> Ceilings {
        self.backend.measure_ceilings()
    }
}
