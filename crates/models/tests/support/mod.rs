//! A writer of small GGUF files, for tests: what it writes is up to the test, valid or not.

#![allow(dead_code, reason = "each test binary that shares this module uses a part of it")]

use std::path::{Path, PathBuf};

/// A metadata value as the specification lays it out.
#[derive(Clone, Debug)]
pub(crate) enum Meta {
    U16(u16),
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A value type and the bytes after it, as they are.
    Raw(u32, Vec<u8>),
}

/// A tensor's entry in the header, and its data.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// ggml's order: the contiguous dimension first.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) type_id: u32,
    /// `None` for the next free place.
    pub(crate) offset: Option<u64>,
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) metadata: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<Tensor>,
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn array_head(bytes: &mut Vec<u8>, element: u32, len: usize) {
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(element.to_le_bytes());
    bytes.extend((len as u64).to_le_bytes());
}

impl Meta {
    fn write(&self, bytes: &mut Vec<u8>) {
        let mut fixed = |id: u32, value: &[u8]| {
            bytes.extend(id.to_le_bytes());
            bytes.extend(value);
        };
        match self {
            Meta::U16(v) => fixed(2, &v.to_le_bytes()),
            Meta::U32(v) => fixed(4, &v.to_le_bytes()),
            Meta::F32(v) => fixed(6, &v.to_le_bytes()),
            Meta::Bool(v) => fixed(7, &[u8::from(*v)]),
            Meta::Raw(id, value) => fixed(*id, value),
            Meta::String(v) => {
                fixed(8, &[]);
                string(bytes, v);
            }
            Meta::Strings(list) => {
                array_head(bytes, 8, list.len());
                list.iter().for_each(|item| string(bytes, item));
            }
            Meta::I32s(list) => {
                array_head(bytes, 5, list.len());
                list.iter().for_each(|item| bytes.extend(item.to_le_bytes()));
            }
            Meta::F32s(list) => {
                array_head(bytes, 6, list.len());
                list.iter().for_each(|item| bytes.extend(item.to_le_bytes()));
            }
        }
    }
}

impl Gguf {
    /// Sets a key, in its place if it is there already.
    pub(crate) fn set(&mut self, key: &str, value: Meta) -> &mut Self {
        match self.metadata.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.into(), value)),
        }
        self
    }

    pub(crate) fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(name, _)| name != key);
        self
    }

    /// An f32 tensor of zeros.
    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64]) -> &mut Self {
        let elements: u64 = dimensions.iter().product();
        self.tensors.push(Tensor {
            name: name.into(),
            dimensions: dimensions.to_vec(),
            type_id: 0,
            offset: None,
            data: vec![0; 4 * elements as usize],
        });
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            string(&mut bytes, key);
            value.write(&mut bytes);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0u8);
            string(&mut bytes, &tensor.name);
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
            bytes.extend(tensor.type_id.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        bytes
    }

    pub(crate) fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }

    /// A llama of one layer, 8 values wide, with a byte-level BPE of 12 tokens.
    pub(crate) fn llama() -> Self {
        let mut file = Gguf { version: 3, metadata: Vec::new(), tensors: Vec::new() };
        let tokens = ["<|s|>", "<|im_end|>", "a", "b", "c", "Ġ", "ab", "Ġa", "abc", "Ċ", "d", "e"];
        let mut kinds = vec![1; tokens.len()];
        (kinds[0], kinds[1]) = (3, 3);
        let strings = |list: &[&str]| Meta::Strings(list.iter().map(|&s| s.into()).collect());
        file.set("general.architecture", Meta::String("llama".into()))
            .set("general.name", Meta::String("tiny".into()))
            .set("llama.block_count", Meta::U32(1))
            .set("llama.context_length", Meta::U32(64))
            .set("llama.embedding_length", Meta::U32(8))
            .set("llama.feed_forward_length", Meta::U32(16))
            .set("llama.attention.head_count", Meta::U32(2))
            .set("llama.attention.head_count_kv", Meta::U32(1))
            .set("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5))
            .set("llama.rope.freq_base", Meta::F32(10_000.0))
            .set("llama.rope.dimension_count", Meta::U32(4))
            .set("tokenizer.ggml.model", Meta::String("gpt2".into()))
            .set("tokenizer.ggml.pre", Meta::String("bloom".into()))
            .set("tokenizer.ggml.tokens", strings(&tokens))
            .set("tokenizer.ggml.token_type", Meta::I32s(kinds))
            .set("tokenizer.ggml.merges", strings(&["a b", "Ġ a", "ab c"]))
            .set("tokenizer.ggml.bos_token_id", Meta::U32(0))
            .set("tokenizer.ggml.eos_token_id", Meta::U32(1))
            .set("tokenizer.ggml.add_bos_token", Meta::Bool(true))
            .set(
                "tokenizer.chat_template",
                Meta::String("{% for m in messages %}{{ m.content }}{% endfor %}".into()),
            );
        file.tensor("token_embd.weight", &[8, 12])
            .tensor("output_norm.weight", &[8])
            .tensor("blk.0.attn_norm.weight", &[8])
            .tensor("blk.0.attn_q.weight", &[8, 8])
            .tensor("blk.0.attn_k.weight", &[8, 4])
            .tensor("blk.0.attn_v.weight", &[8, 4])
            .tensor("blk.0.attn_output.weight", &[8, 8])
            .tensor("blk.0.ffn_norm.weight", &[8])
            .tensor("blk.0.ffn_gate.weight", &[8, 16])
            .tensor("blk.0.ffn_up.weight", &[8, 16])
            .tensor("blk.0.ffn_down.weight", &[16, 8]);
        file
    }

    /// A llama of one layer, 256 values wide, whose matrices are of `format`.
    pub(crate) fn quantised(format: marlin_formats::Format) -> Self {
        let mut file = Gguf::llama();
        file.set("llama.embedding_length", Meta::U32(256))
            .set("llama.feed_forward_length", Meta::U32(256))
            .set("llama.rope.dimension_count", Meta::U32(128));
        file.tensors.clear();
        let mut seed = 0_u32;
        let mut numbers = |count: u64| -> Vec<f32> {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..count).map(|_| next()).collect()
        };
        for (name, rows) in [
            ("token_embd", 12),
            ("blk.0.attn_q", 256),
            ("blk.0.attn_k", 128),
            ("blk.0.attn_v", 128),
            ("blk.0.attn_output", 256),
            ("blk.0.ffn_gate", 256),
            ("blk.0.ffn_up", 256),
            ("blk.0.ffn_down", 256),
        ] {
            let values = numbers(rows * 256);
            let matrix = marlin_formats::encode(format, rows as usize, 256, &values).unwrap();
            file.tensor(&format!("{name}.weight"), &[256, rows]);
            let tensor = file.tensors.last_mut().unwrap();
            (tensor.type_id, tensor.data) = (format.ggml_id().unwrap(), matrix.data);
        }
        for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            file.tensor(&format!("{name}.weight"), &[256]);
            let values = numbers(256).into_iter().flat_map(|x| (1.0 + 0.1 * x).to_le_bytes());
            file.tensors.last_mut().unwrap().data = values.collect();
        }
        file
    }
}

/// Stands in for a backend's `place`: weights stay in their file.
pub(crate) fn place(
    source: &marlin_backend::WeightSource,
) -> Result<marlin_backend::Weight, marlin_backend::BackendError> {
    Ok(std::sync::Arc::new(source.clone()))
}
