//! A model, whatever kind of file it is in.

use std::path::{Path, PathBuf};

use marlin_backend::Program;

use crate::architectures::{Forward, Place};
use crate::chat::{ChatTemplate, TemplateError};
use crate::config::{self, Config};
use crate::error::{At, ModelError};
use crate::gguf::{GgufFile, Metadata};
use crate::hf::HuggingFaceFolder;
use crate::tensor::TensorTable;
use crate::tokenizer::Tokenizer;

const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// An open model: its configuration and tensors at hand, its tokenizer and chat template on demand.
#[derive(Debug)]
pub struct ModelSource {
    path: PathBuf,
    name: String,
    config: Config,
    tensors: TensorTable,
    origin: Origin,
}

#[derive(Debug)]
pub(crate) enum Origin {
    Gguf(Box<Metadata>),
    HuggingFace(Box<HuggingFaceFolder>),
}

impl ModelSource {
    /// Opens a model: a `.gguf` file (any part of one in several), a folder with `config.json`, or a `.safetensors`
    /// file in such a folder.
    ///
    /// Weights are mapped, not read. The tokenizer is built by [`tokenizer`](Self::tokenizer), so that opening a
    /// model just to look at it takes no time.
    ///
    /// # Errors
    /// [`ModelError`], naming the file, the place in it, what was found and what was expected.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(path).map_err(|e| ModelError::io(path, "open", e))?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        if metadata.is_dir() {
            return Self::open_folder(path, path);
        }
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("safetensors" | "json") => {
                let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                Self::open_folder(path, folder.unwrap_or(Path::new(".")))
            }
            // GGUF says what it is in its first bytes, and downloads are often named otherwise.
            _ => Self::open_gguf(path),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let (metadata, tensors) = GgufFile::open(path)?.into_parts();
        let config = config::from_gguf(&metadata, &tensors)?;
        let own_name = metadata.string("general.name")?.map(str::to_owned);
        let name = own_name.or_else(|| Some(path.file_stem()?.to_string_lossy().into_owned()));
        Ok(Self {
            path: path.to_owned(),
            name: name.unwrap_or_default(),
            config,
            tensors,
            origin: Origin::Gguf(Box::new(metadata)),
        })
    }

    fn open_folder(path: &Path, folder: &Path) -> Result<Self, ModelError> {
        let folder = HuggingFaceFolder::open(folder)?;
        let (architecture, fields) = config::hugging_face_architecture(folder.config())?;
        let tensors = folder.tensors(architecture)?;
        let config = config::from_hugging_face(architecture, &fields, &tensors)?;
        Ok(Self {
            path: path.to_owned(),
            name: folder.name().unwrap_or_default(),
            config,
            tensors,
            origin: Origin::HuggingFace(Box::new(folder)),
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name for people: the one in the file, otherwise the file's or folder's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights, under canonical names.
    pub fn tensors(&self) -> &TensorTable {
        &self.tensors
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether its matrices are in the order that GPU kernels read ([`pack`](crate::pack)).
    pub fn is_packed(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.fragments.is_some())
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.tensors.bytes()
    }

    /// The metadata, if the model is a GGUF file.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        match &self.origin {
            Origin::Gguf(metadata) => Some(metadata),
            Origin::HuggingFace(_) => None,
        }
    }

    /// Records the forward pass, placing each weight that it uses through `place`, in the order of use.
    ///
    /// # Errors
    /// [`ModelError`] when a weight is missing, has another shape than the configuration says, is refused by `place`,
    /// or is there without being used.
    pub fn forward(&self, place: Place<'_>) -> Result<Program, ModelError> {
        let forward = Forward::new(&self.path, &self.config, &self.tensors, place);
        (self.config.architecture.forward)(forward)
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    /// [`ModelError`] when there is none, or it is damaged or of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.origin {
            Origin::Gguf(metadata) => Tokenizer::from_gguf(metadata),
            Origin::HuggingFace(folder) => folder.tokenizer(),
        }
    }

    /// The chat template; ChatML if the model has none.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the model's template is not valid Jinja.
    pub fn chat_template(&self) -> Result<ChatTemplate, ModelError> {
        let (path, at, source) = match &self.origin {
            Origin::Gguf(metadata) => match metadata.string(TEMPLATE_KEY)? {
                None => return Ok(ChatTemplate::chatml()),
                Some(source) => {
                    (metadata.path().to_owned(), At::key(TEMPLATE_KEY), source.to_owned())
                }
            },
            Origin::HuggingFace(folder) => match folder.chat_template()? {
                None => return Ok(ChatTemplate::chatml()),
                Some((path, source)) => (path, At::field("chat_template"), source),
            },
        };
        ChatTemplate::new(&source).map_err(|e| {
            let found = match e {
                TemplateError::Syntax { line, reason } => format!("at line {line}: {reason}"),
                other => other.to_string(),
            };
            ModelError::invalid(&path, at, found, "a template in Jinja")
        })
    }
}
