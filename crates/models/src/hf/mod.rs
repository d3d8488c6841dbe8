//! Folders in the layout of Hugging Face checkpoints.

pub(crate) mod json;
mod safetensors;
mod write;

use std::path::{Path, PathBuf};

use crate::architectures::Architecture;
use crate::error::{At, ModelError, quote};
use crate::mapped::{map_file, read_text};
use crate::tensor::TensorTable;
use crate::tokenizer::{HuggingFaceTokens, Tokenizer, from_json};
use json::{Fields, JsonFile};
pub(crate) use write::{is_packed_folder, packed_layout};

/// Longest `tokenizer.json`: some 8 times the longest that is in use.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The file of weights, where it is one.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The file that says which weights are in which file, where they are several.
const INDEX: &str = "model.safetensors.index.json";
/// Longest index of shards.
const MAX_SHARDS: usize = 10_000;

/// A checkpoint's folder: its configuration files, read.
#[derive(Debug)]
pub(crate) struct HuggingFaceFolder {
    path: PathBuf,
    config: JsonFile,
    generation: Option<JsonFile>,
    tokenizer_config: Option<JsonFile>,
}

impl HuggingFaceFolder {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let config = path.join("config.json");
        Ok(Self {
            path: path.to_owned(),
            config: JsonFile::read(&config)?.ok_or_else(|| {
                ModelError::missing(path, At::field("config.json"), "a model's configuration")
            })?,
            generation: JsonFile::read(&path.join("generation_config.json"))?,
            tokenizer_config: JsonFile::read(&path.join("tokenizer_config.json"))?,
        })
    }

    /// The fields of `config.json`.
    pub(crate) fn config(&self) -> Fields<'_> {
        self.config.fields()
    }

    /// A name for the model: the folder's.
    pub(crate) fn name(&self) -> Option<String> {
        let folder = self.path.canonicalize().ok()?;
        Some(folder.file_name()?.to_string_lossy().into_owned())
    }

    /// All tensors, under canonical names.
    pub(crate) fn tensors(&self, architecture: &Architecture) -> Result<TensorTable, ModelError> {
        let mut table = TensorTable::new(&self.path);
        let rename = |name: &str| architecture.canonical_name(name);
        let single = self.path.join(WEIGHTS);
        let index_path = self.path.join(INDEX);
        let Some(index) = JsonFile::read(&index_path)? else {
            if !single.exists() {
                let at = At::field(WEIGHTS);
                let expected =
                    "the weights, or model.safetensors.index.json and the files it names";
                return Err(ModelError::missing(&self.path, at, expected));
            }
            safetensors::read(&single, map_file(&single)?, rename, &mut table)?;
            return Ok(table);
        };
        self.read_shards(&index, rename, &mut table)?;
        Ok(table)
    }

    fn read_shards(
        &self,
        index: &JsonFile,
        rename: impl Fn(&str) -> String,
        table: &mut TensorTable,
    ) -> Result<(), ModelError> {
        let index = index.fields();
        let map = index
            .object("weight_map")?
            .ok_or_else(|| index.missing("weight_map", "the file of each tensor"))?;
        let mut shards: Vec<&str> = Vec::new();
        for (tensor, file) in map.entries() {
            // A plain name: an index must not lead out of its folder.
            let plain = file.as_str().filter(|name| {
                !name.contains(['/', '\\', ':'])
                    && !name.starts_with('.')
                    && name.ends_with(".safetensors")
            });
            shards.push(plain.ok_or_else(|| {
                map.wrong(tensor, "the name of a .safetensors file in the same folder")
            })?);
        }
        shards.sort_unstable();
        shards.dedup();
        if shards.len() > MAX_SHARDS {
            return Err(index.wrong("weight_map", format!("at most {MAX_SHARDS} files")));
        }
        for shard in shards {
            let path = self.path.join(shard);
            let names = safetensors::read(&path, map_file(&path)?, &rename, table)?;
            for name in &names {
                if map.value(name).and_then(|file| file.as_str()) != Some(shard) {
                    let expected = format!("only tensors that the index has in {}", quote(shard));
                    return Err(ModelError::invalid(&path, At::tensor(name), "it here", expected));
                }
            }
        }
        for (tensor, _) in map.entries() {
            if table.find(&rename(tensor)).is_none() {
                let expected = "it in the file that the index names";
                return Err(ModelError::missing(&self.path, At::tensor(tensor), expected));
            }
        }
        Ok(())
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let path = self.path.join("tokenizer.json");
        if !path.exists() {
            let at = At::field("tokenizer.json");
            return Err(ModelError::missing(&self.path, at, "the model's tokenizer"));
        }
        from_json(&path, &read_text(&path, MAX_TOKENIZER_BYTES)?, &self.token_roles()?)
    }

    fn token_roles(&self) -> Result<HuggingFaceTokens, ModelError> {
        let mut roles = HuggingFaceTokens::default();
        // What is meant for generation comes before what the model was trained with.
        for file in [self.generation.as_ref(), Some(&self.config)].into_iter().flatten() {
            let fields = file.fields();
            let text = fields.object("text_config")?;
            for fields in [Some(fields), text].into_iter().flatten() {
                roles.bos_id =
                    roles.bos_id.or(token_ids(&fields, "bos_token_id")?.first().copied());
                roles.eos_ids.extend(token_ids(&fields, "eos_token_id")?);
            }
        }
        if let Some(file) = &self.tokenizer_config {
            let fields = file.fields();
            roles.bos_text = token_text(&fields, "bos_token")?;
            roles.eos_text = token_text(&fields, "eos_token")?;
            roles.add_bos = fields.boolean("add_bos_token")?;
        }
        Ok(roles)
    }

    /// The chat template and where it is: `chat_template.jinja`, or in `tokenizer_config.json` as a string or as
    /// a list of named templates, of which the one called `default` is meant.
    pub(crate) fn chat_template(&self) -> Result<Option<(PathBuf, String)>, ModelError> {
        let own_file = self.path.join("chat_template.jinja");
        if own_file.exists() {
            return Ok(Some((own_file.clone(), read_text(&own_file, 1 << 20)?)));
        }
        let Some(file) = &self.tokenizer_config else {
            return Ok(None);
        };
        let fields = file.fields();
        let path = fields.path().to_owned();
        match fields.value("chat_template") {
            None => Ok(None),
            Some(serde_json::Value::String(template)) => Ok(Some((path, template.clone()))),
            Some(serde_json::Value::Array(named)) => {
                let field = |template: &serde_json::Value, name: &str| {
                    template.get(name).and_then(|v| v.as_str()).map(str::to_owned)
                };
                let default = named.iter().find(|t| field(t, "name").as_deref() == Some("default"));
                default
                    .or(named.first())
                    .and_then(|template| field(template, "template"))
                    .map(|template| Some((path, template)))
                    .ok_or_else(|| {
                        fields.wrong("chat_template", "templates with name and template")
                    })
            }
            Some(_) => Err(fields.wrong("chat_template", "a template, or a list of named ones")),
        }
    }
}

/// One id or a list of them.
fn token_ids(fields: &Fields<'_>, name: &str) -> Result<Vec<u32>, ModelError> {
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match fields.value(name) {
        None => Some(Vec::new()),
        Some(serde_json::Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| fields.wrong(name, "a token id or a list of them"))
}

/// A token as a string, or as an object with its `content`.
fn token_text(fields: &Fields<'_>, name: &str) -> Result<Option<String>, ModelError> {
    let Some(value) = fields.value(name) else {
        return Ok(None);
    };
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.map(|text| Some(text.to_owned())).ok_or_else(|| fields.wrong(name, "a token"))
}
