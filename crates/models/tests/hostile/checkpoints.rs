//! Checkpoints as Hugging Face has them: headers of safetensors files, packed and not, and `config.json`.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use marlin_models::ModelSource;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::changes::{apply, change_bytes, changes, json_changes};
use crate::memory::{HEADER, check_memory, measured};
use crate::{check_error, config, folder, open, packed};

/// A checkpoint in this thread's folder.
pub(crate) struct Checkpoint(PathBuf);

impl Checkpoint {
    pub(crate) fn new(config: &[u8], weights: &[u8]) -> Self {
        let checkpoint = Self(folder());
        checkpoint.write("config.json", config);
        checkpoint.write("model.safetensors", weights);
        checkpoint
    }

    /// A llama of one layer, all f32 and 8 values wide.
    pub(crate) fn llama() -> Self {
        Self::new(&llama_config(), &llama_weights())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }
}

fn llama_config() -> Vec<u8> {
    llama_config_json().to_string().into_bytes()
}

fn llama_config_json() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 6, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 5,
        "eos_token_id": [5, 5], "tie_word_embeddings": true, "layer_types": ["full_attention"],
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        },
    })
}

fn gemma_config() -> Value {
    json!({
        "model_type": "gemma3", "text_config": {
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 4, "intermediate_size": 16, "vocab_size": 6, "max_position_embeddings": 64,
            "query_pre_attn_scalar": 4, "sliding_window": 4, "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 2.0},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}
            }
        }
    })
}

/// The header of a llama of one layer, all f32 and 8 values wide.
fn llama_header() -> Value {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in [
        ("model.embed_tokens.weight", vec![6, 8]),
        ("model.norm.weight", vec![8]),
        ("model.layers.0.input_layernorm.weight", vec![8]),
        ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", vec![4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", vec![8, 8]),
        ("model.layers.0.post_attention_layernorm.weight", vec![8]),
        ("model.layers.0.mlp.gate_proj.weight", vec![16, 8]),
        ("model.layers.0.mlp.up_proj.weight", vec![16, 8]),
        ("model.layers.0.mlp.down_proj.weight", vec![8, 16]),
    ] {
        let end = offset + 4 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]});
        header.insert(name.into(), entry);
        offset = end;
    }
    header.into()
}

fn safetensors(header: &str) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + 4096, 0);
    bytes
}

fn llama_weights() -> Vec<u8> {
    safetensors(&llama_header().to_string())
}

/// A packed safetensors file.
fn packed_safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    std::fs::write(plain.join("config.json"), llama_config()).unwrap();
    std::fs::write(plain.join("model.safetensors"), llama_weights()).unwrap();
    packed(&ModelSource::open(&plain).unwrap(), &folder.path().join("packed"))
}

/// The JSON of a safetensors file's header, and its data.
fn taken_apart(file: &[u8]) -> (Value, &[u8]) {
    let (len, rest) = file.split_first_chunk::<8>().unwrap();
    let (json, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (serde_json::from_slice(json).unwrap(), data)
}

/// Opens a checkpoint whose files may be anything; memory is for `bytes` bytes.
fn check(config: &[u8], weights: &[u8], bytes: usize) -> Result<(), TestCaseError> {
    let checkpoint = Checkpoint::new(config, weights);
    let (result, memory) = measured(|| open(checkpoint.path()));
    if let Err(error) = &result {
        check_error(error, checkpoint.path().to_str().unwrap())?;
    }
    check_memory(memory, HEADER, bytes)
}

#[test]
fn checkpoints_are_whole_before_they_are_broken() {
    let packed = Checkpoint::new(&llama_config(), &packed_safetensors());
    assert!(ModelSource::open(packed.path()).unwrap().is_packed());
    open(packed.path()).unwrap();
    open(Checkpoint::llama().path()).unwrap();
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn safetensors_headers(
        json in json_changes(3),
        bytes in prop::option::of(changes()),
    ) {
        let mut file = safetensors(&apply(&llama_header(), &json));
        if let Some(changes) = bytes {
            let header = file.len() - 4096;
            change_bytes(&mut file, header, &changes);
        }
        check(&llama_config(), &file, file.len() + 1024)?;
    }

    #[test]
    fn configurations(
        gemma in any::<bool>(),
        json in json_changes(3),
        bytes in prop::option::weighted(0.2, changes()),
    ) {
        let base = if gemma { gemma_config() } else { llama_config_json() };
        let mut config = apply(&base, &json).into_bytes();
        let header = config.len();
        change_bytes(&mut config, header, &bytes.unwrap_or_default());
        check(&config, &llama_weights(), config.len() + 8192)?;
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn packed_safetensors_headers(json in json_changes(3), bytes in prop::option::of(changes())) {
        static FILE: LazyLock<Vec<u8>> = LazyLock::new(packed_safetensors);
        let (header, data) = taken_apart(&FILE);
        let header = apply(&header, &json);
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        if let Some(changes) = bytes {
            let header = file.len();
            change_bytes(&mut file, header, &changes);
        }
        file.extend(data);
        check(&llama_config(), &file, file.len() + 1024)?;
    }
}
