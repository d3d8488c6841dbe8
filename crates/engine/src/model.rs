//! A model on a device.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use marlin_backend::{Backend, BackendError, Ceilings, Program, TunedProduct};
use marlin_cpu::Isa;
use marlin_models::{ChatTemplate, Config, Message, ModelSource, Tokenizer};
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
}

/// A model whose weights are placed: share it among sessions.
pub struct Model {
    source: ModelSource,
    backend: Box<dyn Backend>,
    program: Program,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    load_time: Duration,
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
        match Self::load_on(path, options, progress) {
            // What the best device has no room for, or cannot multiply, the processor still can.
            Err(EngineError::Backend(
                BackendError::DoesNotFit { .. } | BackendError::Unsupported { .. },
            )) if options.device == DeviceChoice::Auto => {
                let cpu = ModelOptions { device: DeviceChoice::Cpu, ..options.clone() };
                Self::load_on(path, &cpu, progress)
            }
            loaded => loaded,
        }
    }

    fn load_on(
        path: &Path,
        options: &ModelOptions,
        progress: Progress<'_>,
    ) -> Result<Arc<Self>, EngineError> {
        let start = Instant::now();
        let source = ModelSource::open(path)?;
        let backend = device::backend(options, source.config())?;
        // Building the tokenizer takes about as long as placing a small model's weights,
        // and neither needs the other.
        let (tokenizer, program) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| source.tokenizer());
            let (mut done, total) = (0, source.bytes());
            let program = source.forward(&mut |weight| {
                let placed = backend.place(weight)?;
                if backend.places_at_once() {
                    done += weight.bytes();
                    progress(done, total);
                }
                Ok(placed)
            });
            let program = program.map_err(EngineError::from).and_then(|program| {
                let mut further = |bytes| {
                    done += bytes;
                    progress(done, total);
                };
                backend.load(&program, &mut further)?;
                Ok(program)
            });
            let tokenizer = match tokenizer.join() {
                Ok(tokenizer) => tokenizer,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (tokenizer, program)
        });
        let (tokenizer, program) = (tokenizer?, program?);
        let chat_template = source.chat_template()?;
        let load_time = start.elapsed();
        Ok(Arc::new(Self { source, backend, program, tokenizer, chat_template, load_time }))
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
