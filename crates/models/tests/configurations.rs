//! The same model means the same configuration, however it is written down.

use std::path::{Path, PathBuf};

use marlin_models::{Config, ModelSource};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures")
}

/// What the forward pass sees of a configuration, layer by layer.
fn seen(config: &Config) -> String {
    let layers: Vec<_> = (0..config.layers).map(|l| (config.window(l), config.rope(l))).collect();
    let Config {
        architecture,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn,
        vocab,
        context,
        norm_eps,
        norm_offset,
        attention_scale,
        attention_softcap,
        logit_softcap,
        embedding_scale,
        activation,
        tied_embeddings,
        qkv_bias,
        qk_norm,
        ..
    } = config;
    format!(
        "{} {hidden} {heads}/{kv_heads}x{head_dim} {ffn} {vocab} {context} {norm_eps} {norm_offset} \
         {attention_scale} {attention_softcap:?} {logit_softcap:?} {embedding_scale} {activation:?} \
         {tied_embeddings} {qkv_bias} {qk_norm}\n{layers:#?}",
        architecture.name
    )
}

/// A folder that holds what `model` holds, its `config.json` being the one that transformers 5 wrote.
fn as_transformers_5_saves_it(model: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = match name {
            "config.json" => continue,
            "config.transformers5.json" => "config.json",
            name => name,
        };
        std::fs::copy(&path, folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn published_spellings_and_transformers_5s_mean_the_same() {
    for model in ["llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma3", "gemma3_linear"] {
        let path = fixtures().join(model);
        let published = ModelSource::open(&path).unwrap();
        let folder = as_transformers_5_saves_it(&path);
        let saved = ModelSource::open(folder.path()).unwrap();
        assert_eq!(seen(published.config()), seen(saved.config()), "{model}");
    }
}

#[test]
fn a_model_can_be_opened_by_its_folder_or_a_file_in_it() {
    let folder = fixtures().join("llama");
    let by_folder = ModelSource::open(&folder).unwrap();
    let by_file = ModelSource::open(&folder.join("model.safetensors")).unwrap();
    assert_eq!(by_folder.name(), "llama");
    assert_eq!(by_folder.bytes(), by_file.bytes());
    assert_eq!(by_folder.tensors().len(), by_file.tensors().len());
}

#[test]
fn gguf_and_hugging_face_files_hold_the_same_weights_under_the_same_names() {
    for model in ["llama3_rope", "qwen2", "gemma3"] {
        let hugging_face = ModelSource::open(&fixtures().join(model)).unwrap();
        let gguf = ModelSource::open(&fixtures().join(format!("{model}.gguf"))).unwrap();
        for tensor in hugging_face.tensors().iter() {
            let twin = gguf.tensors().get(&tensor.name).unwrap();
            assert_eq!(tensor.shape, twin.shape, "{model} {}", tensor.name);
        }
        // All that GGUF may have more is the factors of the rotary frequencies.
        let more = gguf.tensors().iter().filter(|t| hugging_face.tensors().find(&t.name).is_none());
        let more: Vec<&str> = more.map(|t| t.name.as_str()).collect();
        let expected: &[&str] = if model == "llama3_rope" { &["rope_freqs.weight"] } else { &[] };
        assert_eq!(more, expected);
    }
}
