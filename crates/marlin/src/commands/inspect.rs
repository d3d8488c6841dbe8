//! `marlin inspect`: what is in a model, without running it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use marlin_models::{Config, ModelSource, StoredTensor};
use serde::Serialize;

use crate::error::CliError;
use crate::model::{self, MODEL_HELP};
use crate::output::{bytes, one_line, print, print_json};

/// Show a model's architecture, sizes, and every tensor's format
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  marlin inspect                              the default model
  marlin inspect model.gguf --metadata        with the file's own keys
  marlin inspect model.gguf --json | jq .bytes_per_token")]
pub(crate) struct Args {
    #[arg(value_name = "MODEL", help = "The model [default: smollm2-135m]", long_help = MODEL_HELP)]
    model: Option<String>,

    #[arg(
        short = 'm',
        long = "model",
        value_name = "PATH|NAME",
        conflicts_with = "model",
        hide = true
    )]
    model_option: Option<String>,

    /// Also show a GGUF file's metadata
    #[arg(long)]
    metadata: bool,

    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// A model at a glance; the JSON form has the same names.
#[derive(Serialize)]
struct Summary {
    path: PathBuf,
    name: String,
    architecture: &'static str,
    parameters: u64,
    /// Bytes of all tensors.
    weight_bytes: u64,
    /// Bytes of weights that one decoded token reads.
    bytes_per_token: u64,
    /// Bytes that one position takes in the KV cache, at 16 bits.
    kv_bytes_per_position: u64,
    context: usize,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    tied_embeddings: bool,
    sliding_window: Option<usize>,
    /// Whether its matrices are in the order that GPU kernels read.
    packed: bool,
    /// Whether the model brings a chat template; otherwise ChatML is used.
    chat_template: bool,
    formats: Vec<FormatShare>,
    tensors: Vec<TensorLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
}

/// All tensors of one number format.
#[derive(Serialize)]
struct FormatShare {
    format: String,
    tensors: usize,
    bytes: u64,
    bits_per_weight: f64,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    /// The contiguous dimension last.
    shape: Vec<usize>,
    format: String,
    bytes: u64,
}

pub(crate) fn run(args: &Args) -> Result<(), CliError> {
    let name = args.model.as_deref().or(args.model_option.as_deref());
    let source = ModelSource::open(&model::resolve(name)?)?;
    let summary = Summary::new(&source, args.metadata)?;
    if args.json { print_json(&summary) } else { print(&summary.text()) }
}

impl Summary {
    fn new(source: &ModelSource, with_metadata: bool) -> Result<Self, CliError> {
        let config = source.config();
        let tensors: Vec<TensorLine> = source.tensors().iter().map(TensorLine::new).collect();
        let metadata = source.gguf_metadata().filter(|_| with_metadata).map(|metadata| {
            let describe = |key: &str| metadata.describe(key).unwrap_or_default();
            metadata.keys().map(|key| (key.to_owned(), describe(key))).collect()
        });
        Ok(Self {
            path: source.path().to_owned(),
            name: source.name().to_owned(),
            architecture: config.architecture.name,
            parameters: tensors.iter().map(TensorLine::elements).sum(),
            weight_bytes: source.bytes(),
            bytes_per_token: bytes_per_token(config, source),
            kv_bytes_per_position: 2
                * 2
                * (config.layers * config.kv_heads * config.head_dim) as u64,
            context: config.context,
            layers: config.layers,
            hidden: config.hidden,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn: config.ffn,
            vocab: config.vocab,
            tied_embeddings: config.tied_embeddings,
            sliding_window: config.window.as_ref().map(|window| window.size),
            packed: source.is_packed(),
            chat_template: !source.chat_template()?.is_fallback(),
            formats: FormatShare::of(&tensors),
            tensors,
            metadata,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line =
            |name: &str, value: String| text += &format!("{name:<16} {}\n", one_line(&value));
        line("model", self.name.clone());
        line("path", self.path.display().to_string());
        line("architecture", self.architecture.to_owned());
        line("parameters", count(self.parameters));
        line("weights", bytes(self.weight_bytes));
        line("read per token", bytes(self.bytes_per_token));
        line("KV per position", format!("{} at f16", bytes(self.kv_bytes_per_position)));
        line("context", format!("{} tokens", self.context));
        line("layers", self.layers.to_string());
        line("hidden", self.hidden.to_string());
        let heads =
            format!("{} of {}, {} for keys and values", self.heads, self.head_dim, self.kv_heads);
        line("heads", heads);
        line("feed-forward", self.ffn.to_string());
        let tied = if self.tied_embeddings { ", embedding also the output" } else { "" };
        line("vocabulary", format!("{} tokens{tied}", self.vocab));
        if let Some(window) = self.sliding_window {
            line("sliding window", format!("{window} tokens"));
        }
        line(
            "chat template",
            if self.chat_template { "its own" } else { "none; ChatML is used" }.to_owned(),
        );
        if self.packed {
            line("packed", "as GPU kernels read it".to_owned());
        }
        text += "\nformat       tensors      bytes  bits/weight\n";
        for share in &self.formats {
            text += &format!(
                "{:<12} {:>7} {:>10}  {:>11.2}\n",
                share.format,
                share.tensors,
                bytes(share.bytes),
                share.bits_per_weight
            );
        }
        let width = self
            .tensors
            .iter()
            .map(|tensor| one_line(&tensor.name).chars().count())
            .max()
            .unwrap_or(0);
        text += &format!("\n{:<width$}  {:<12} {:>10}  shape\n", "tensor", "format", "bytes");
        for tensor in &self.tensors {
            let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
            text += &format!(
                "{:<width$}  {:<12} {:>10}  {shape}\n",
                one_line(&tensor.name),
                tensor.format,
                bytes(tensor.bytes)
            );
        }
        if let Some(metadata) = &self.metadata {
            text += "\nmetadata\n";
            for (key, value) in metadata {
                text += &format!("{} = {}\n", one_line(key), one_line(value));
            }
        }
        text
    }
}

/// Bytes of weights that decoding one token reads: all tensors but the embedding, of which it reads
/// one row, unless the embedding is the output projection too.
fn bytes_per_token(config: &Config, source: &ModelSource) -> u64 {
    let tensors = source.tensors();
    let embedding = tensors.find("token_embd.weight");
    let embedding_bytes = embedding.map_or(0, StoredTensor::bytes);
    let row = embedding.map_or(0, |tensor| embedding_bytes / tensor.rows().max(1) as u64);
    let output = if config.tied_embeddings { embedding_bytes } else { 0 };
    source.bytes() - embedding_bytes + output + row
}

impl TensorLine {
    fn new(tensor: &StoredTensor) -> Self {
        Self {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            format: tensor.format.to_string(),
            bytes: tensor.bytes(),
        }
    }

    fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

impl FormatShare {
    /// The formats of `tensors`, the one with the most bytes first.
    fn of(tensors: &[TensorLine]) -> Vec<Self> {
        let mut shares: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
        for tensor in tensors {
            let (count, bytes, elements) = shares.entry(&tensor.format).or_default();
            *count += 1;
            *bytes += tensor.bytes;
            *elements += tensor.elements();
        }
        let mut shares: Vec<Self> = shares
            .into_iter()
            .map(|(format, (tensors, bytes, elements))| Self {
                format: format.to_owned(),
                tensors,
                bytes,
                bits_per_weight: 8.0 * bytes as f64 / elements.max(1) as f64,
            })
            .collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        shares
    }
}

/// `134.5 M`
fn count(number: u64) -> String {
    match number as f64 {
        n if n >= 999.95e6 => format!("{:.2} B", n / 1e9),
        n if n >= 999.95e3 => format!("{:.1} M", n / 1e6),
        _ => number.to_string(),
    }
}
