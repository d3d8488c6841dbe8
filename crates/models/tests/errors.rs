//! What is wrong with a file is said with the file, the place, what was found and what was expected.

mod support;

use std::path::{Path, PathBuf};

use marlin_models::{ModelError, ModelSource};
use support::{Gguf, Meta, place};

/// Everything that loading does but moving weights.
fn load(path: &Path) -> Result<(), ModelError> {
    let source = ModelSource::open(path)?;
    source.tokenizer()?;
    source.chat_template()?;
    source.forward(&mut place)?;
    Ok(())
}

fn expect_error(path: &Path, parts: &[&str]) {
    let error = load(path).expect_err("the file is broken").to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    for part in [&[name], parts].concat() {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[track_caller]
fn gguf_error(change: impl FnOnce(&mut Gguf), parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut file = Gguf::llama();
    change(&mut file);
    expect_error(&file.write(folder.path(), "model.gguf"), parts);
}

#[test]
fn the_unbroken_files_load() {
    let folder = tempfile::tempdir().unwrap();
    load(&Gguf::llama().write(folder.path(), "model.gguf")).unwrap();
    let mut version_2 = Gguf::llama();
    version_2.version = 2;
    load(&version_2.write(folder.path(), "v2.gguf")).unwrap();
    load(&hugging_face(|_| {}).1).unwrap();
}

#[test]
fn files_of_another_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("model.gguf: cannot open"), "{error}");
    std::fs::write(&path, "PK\x03\x04 a zip file").unwrap();
    expect_error(&path, &["header", "`PK", "magic number `GGUF`"]);
    let mut version_1 = Gguf::llama();
    version_1.version = 1;
    expect_error(&version_1.write(folder.path(), "v1.gguf"), &["GGUF version 1", "version 2 or 3"]);
    let mut big_endian = Gguf::llama();
    big_endian.version = 3u32.swap_bytes();
    expect_error(&big_endian.write(folder.path(), "be.gguf"), &["big-endian"]);
}

#[test]
fn a_truncated_file_says_where_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Gguf::llama().bytes();
    let path = folder.path().join("cut.gguf");
    for len in (1..bytes.len()).step_by(7) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        expect_error(&path, &["cut.gguf: ", "expected"]);
    }
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    expect_error(&path, &["tensor `blk.0.ffn_down.weight`", "truncated"]);
}

#[test]
fn metadata() {
    gguf_error(
        |file| {
            file.remove("llama.block_count");
        },
        &["metadata key `llama.block_count` is missing", "the number of layers"],
    );
    gguf_error(
        |file| {
            file.set("llama.block_count", Meta::String("two".into()));
        },
        &["`llama.block_count`", "the string `two`", "expected an integer"],
    );
    gguf_error(
        |file| {
            file.set("general.architecture", Meta::String("mamba".into()));
        },
        &["`general.architecture`", "`mamba`", "not supported", "llama", "gemma3"],
    );
    gguf_error(
        |file| file.metadata.push(("general.name".into(), Meta::U32(1))),
        &["`general.name`", "twice"],
    );
    gguf_error(
        |file| {
            file.set("x", Meta::Raw(13, vec![]));
        },
        &["`x`", "value type 13"],
    );
    gguf_error(
        |file| {
            file.set("x", Meta::Raw(7, vec![2]));
        },
        &["`x`", "0 or 1"],
    );
    gguf_error(
        |file| {
            file.set("general.alignment", Meta::U32(33));
        },
        &["`general.alignment`", "power of two"],
    );
    gguf_error(
        |file| {
            file.set("llama.attention.head_count_kv", Meta::U32(3));
        },
        &["`llama.attention.head_count_kv`", "a divisor of the 2 query heads"],
    );
    gguf_error(
        |file| {
            file.set("llama.rope.dimension_count", Meta::U32(6));
        },
        &["`llama.rope.dimension_count`", "an even number up to the 4 values of a head"],
    );
    gguf_error(
        |file| {
            file.set("llama.expert_count", Meta::U32(8));
        },
        &["`llama.expert_count`", "a model without experts"],
    );
}

#[test]
fn counts_that_the_file_cannot_hold() {
    let huge = (u64::MAX / 2).to_le_bytes();
    let array = |element: u32| [&element.to_le_bytes(), huge.as_slice()].concat();
    for raw in [
        Meta::Raw(8, huge.to_vec()),
        Meta::Raw(9, array(0)),
        Meta::Raw(9, array(8)),
        Meta::Raw(9, array(12)),
    ] {
        gguf_error(
            |file| {
                file.set("x", raw);
            },
            &["`x`", "expected"],
        );
    }
    // Arrays of arrays of arrays …
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    gguf_error(
        |file| {
            file.set("x", Meta::Raw(9, nested));
        },
        &["`x`", "nested deeper"],
    );
}

#[test]
fn tensors() {
    gguf_error(|file| file.tensors[3].type_id = 16, &["`blk.0.attn_q.weight`", "iq2_xxs (16)"]);
    gguf_error(|file| file.tensors[3].type_id = 999, &["`blk.0.attn_q.weight`", "999"]);
    // 8 columns are no block of 32.
    gguf_error(|file| file.tensors[3].type_id = 8, &["`blk.0.attn_q.weight`", "q8_0", "8 columns"]);
    gguf_error(
        |file| file.tensors[3].offset = Some(4),
        &["`blk.0.attn_q.weight`", "a multiple of 32"],
    );
    gguf_error(|file| file.tensors[3].offset = Some(0), &["inside those of tensor"]);
    gguf_error(|file| file.tensors[3].offset = Some(u64::MAX - 31), &["`blk.0.attn_q.weight`"]);
    gguf_error(|file| file.tensors[3].offset = Some(1 << 40), &["within the data's"]);
    gguf_error(
        |file| file.tensors[3].dimensions = vec![1 << 62, 1 << 62],
        &["`blk.0.attn_q.weight`"],
    );
    gguf_error(|file| file.tensors[3].dimensions = vec![0, 8], &["a dimension of 0"]);
    gguf_error(|file| file.tensors[3].dimensions = vec![1; 9], &["9 dimensions"]);
    gguf_error(
        |file| file.tensors[3].dimensions = vec![16, 4],
        &["shape [4, 16]", "expected [8, 8]"],
    );
    gguf_error(
        |file| file.tensors[3].name = "blk.0.attn_k.weight".into(),
        &["`blk.0.attn_k.weight`", "twice"],
    );
    gguf_error(
        |file| file.tensors[3].name = "blk.0.attn_qkv.weight".into(),
        &["tensor `blk.0.attn_q.weight` is missing"],
    );
    gguf_error(
        |file| {
            file.tensor("blk.0.attn_q_norm.weight", &[4]);
        },
        &["tensor `blk.0.attn_q_norm.weight`", "only weights that `llama` uses"],
    );
}

#[test]
fn tokenizers() {
    let set = |key: &'static str, value: Meta| {
        move |file: &mut Gguf| {
            file.set(key, value);
        }
    };
    let strings = |list: &[&str]| Meta::Strings(list.iter().map(|&s| s.into()).collect());
    gguf_error(
        set("tokenizer.ggml.pre", Meta::String("klingon".into())),
        &["`tokenizer.ggml.pre`", "`klingon`", "qwen2"],
    );
    gguf_error(
        set("tokenizer.ggml.model", Meta::String("rwkv".into())),
        &["`tokenizer.ggml.model`", "`rwkv`", "SentencePiece"],
    );
    gguf_error(
        set("tokenizer.ggml.merges", strings(&["a b", "ab"])),
        &["tokenizer.ggml.merges`[1]", "`ab`", "two tokens with a space between"],
    );
    gguf_error(
        set("tokenizer.ggml.merges", strings(&["a e"])),
        &["`tokenizer.ggml.merges`", "ae", "whose union is a token"],
    );
    gguf_error(
        set("tokenizer.ggml.merges", strings(&["abc <|im_end|>"])),
        &["`tokenizer.ggml.merges`", "<|im_end|>"],
    );
    gguf_error(set("tokenizer.ggml.tokens", strings(&["a", "b", "a"])), &["tokenizer.ggml"]);
    gguf_error(
        set("tokenizer.ggml.token_type", Meta::I32s(vec![1; 3])),
        &["`tokenizer.ggml.token_type`", "an array of 3", "each of the 12 tokens"],
    );
    gguf_error(
        set("tokenizer.ggml.eos_token_id", Meta::U32(12)),
        &["`tokenizer.ggml.eos_token_id`", "the integer 12", "one of the 12 tokens"],
    );
    gguf_error(
        |file| {
            file.set("tokenizer.ggml.model", Meta::String("llama".into()));
        },
        &["`tokenizer.ggml.scores` is missing"],
    );
    gguf_error(
        |file| {
            file.set("tokenizer.ggml.model", Meta::String("llama".into()));
            file.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 11]));
        },
        &["`tokenizer.ggml.scores`", "a score for each of the 12 tokens"],
    );
    gguf_error(
        set("tokenizer.chat_template", Meta::String("{% for %}".into())),
        &["`tokenizer.chat_template`", "line 1", "a template in Jinja"],
    );
}

#[test]
fn parts_of_a_split_file() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Gguf::llama();
    let part = |number: u16, count: u16, tensors: std::ops::Range<usize>| {
        let mut part = whole.clone();
        part.tensors = whole.tensors[tensors].to_vec();
        part.set("split.no", Meta::U16(number));
        part.set("split.count", Meta::U16(count));
        part.set("split.tensors.count", Meta::Raw(5, 11i32.to_le_bytes().to_vec()));
        part
    };
    let first = part(0, 2, 0..5).write(folder.path(), "m-00001-of-00002.gguf");
    let error = load(&first).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf: cannot open"), "{error}");

    let second = part(1, 2, 5..11).write(folder.path(), "m-00002-of-00002.gguf");
    for path in [&first, &second] {
        load(path).unwrap();
        let source = ModelSource::open(path).unwrap();
        assert_eq!(source.tensors().len(), whole.tensors.len());
        assert_eq!(source.name(), "tiny");
    }

    part(1, 3, 5..11).write(folder.path(), "m-00002-of-00002.gguf");
    let error = load(&first).unwrap_err().to_string();
    assert!(error.contains("`split.count`") && error.contains("the integer 3"), "{error}");

    part(1, 2, 5..10).write(folder.path(), "m-00002-of-00002.gguf");
    expect_error(&first, &["`split.tensors.count`", "the 10 tensors"]);

    let renamed = part(0, 2, 0..5).write(folder.path(), "renamed.gguf");
    expect_error(&renamed, &["`split.no`", "-00001-of-00002.gguf"]);
}

/// The qwen3 fixture's folder (two shards), after `change`.
fn hugging_face(change: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    for (model, name) in [
        ("qwen3", "config.json"),
        ("qwen3", "model.safetensors.index.json"),
        ("qwen3", "model-00001-of-00002.safetensors"),
        ("qwen3", "model-00002-of-00002.safetensors"),
        ("qwen2", "tokenizer.json"),
    ] {
        std::fs::copy(fixtures.join(model).join(name), folder.path().join(name)).unwrap();
    }
    change(folder.path());
    let path = folder.path().to_owned();
    (folder, path)
}

#[track_caller]
fn folder_error(change: impl FnOnce(&Path), parts: &[&str]) {
    let (_keep, path) = hugging_face(change);
    expect_error(&path, parts);
}

/// Replaces `from`, which must be there, in a text file.
fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn hugging_face_configurations() {
    let edited = |from: &'static str, to: &'static str| {
        move |folder: &Path| edit(&folder.join("config.json"), from, to)
    };
    folder_error(
        |f| std::fs::remove_file(f.join("config.json")).unwrap(),
        &["config.json", "missing"],
    );
    folder_error(edited("\"qwen3\"", "\"qwen9\""), &["field `model_type`", "qwen9", "gemma3_text"]);
    folder_error(edited("\"qwen3\"", "17"), &["field `model_type`", "17", "a string"]);
    folder_error(
        edited("\"hidden_size\"", "\"hidden\""),
        &["field `hidden_size` is missing", "the width of the model"],
    );
    folder_error(
        edited(
            "\"model_type\"",
            "\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}, \"model_type\"",
        ),
        &["field `quantization_config.quant_method`", "gptq", "not supported", "bf16"],
    );
    folder_error(
        edited("\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"dynamic\"}"),
        &["field `rope_scaling.rope_type`", "dynamic", "yarn"],
    );
    folder_error(edited("\"silu\"", "\"relu\""), &["field `hidden_act`", "relu", "`silu`"]);
    folder_error(edited("{", "["), &["config.json", "expected a JSON object"]);
}

#[test]
fn safetensors_files() {
    const SECOND: &str = "model-00002-of-00002.safetensors";
    folder_error(
        |f| std::fs::remove_file(f.join(SECOND)).unwrap(),
        &["model-00002-of-00002.safetensors: cannot open"],
    );
    folder_error(
        |f| {
            let bytes = std::fs::read(f.join(SECOND)).unwrap();
            std::fs::write(f.join(SECOND), &bytes[..bytes.len() - 1]).unwrap();
        },
        &[SECOND, "tensor", "truncated"],
    );
    folder_error(|f| std::fs::write(f.join(SECOND), "short").unwrap(), &[SECOND, "header"]);
    folder_error(
        |f| edit(&f.join("model.safetensors.index.json"), SECOND, "../../secret.safetensors"),
        &["field `weight_map.", "../../secret", "in the same folder"],
    );
    let header = |json: &str| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend([0; 64]);
        bytes
    };
    let single = |json: &'static str| {
        move |f: &Path| {
            std::fs::remove_file(f.join("model.safetensors.index.json")).unwrap();
            std::fs::write(f.join("model.safetensors"), header(json)).unwrap();
        }
    };
    folder_error(
        single(r#"{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}"#),
        &["model.safetensors: tensor `a`", "`I64`", "BF16"],
    );
    folder_error(
        single(r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}"#),
        &["tensor `a`", "[0, 8]", "12 bytes"],
    );
    folder_error(
        single(
            r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4], "data_offsets": [0, 8]}}"#,
        ),
        &["tensor `a`", "can be addressed"],
    );
    folder_error(
        single(
            r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#,
        ),
        &["tensor `b`", "inside those of tensor `a`"],
    );
    folder_error(
        single(
            r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#,
        ),
        &["tensor `a`", "twice"],
    );
    folder_error(single(r#"{"a": 1}"#), &["model.safetensors: header", "dtype"]);
}

#[test]
fn tokenizer_json() {
    let edited = |from: &'static str, to: &'static str| {
        move |folder: &Path| edit(&folder.join("tokenizer.json"), from, to)
    };
    folder_error(
        |f| std::fs::remove_file(f.join("tokenizer.json")).unwrap(),
        &["field `tokenizer.json` is missing"],
    );
    folder_error(
        edited("\"BPE\"", "\"Unigram\""),
        &["tokenizer.json: field model.type", "`Unigram`"],
    );
    folder_error(edited("\"BPE\"", "\"BPE"), &["tokenizer.json: the file", "line"]);
    folder_error(
        edited("\"type\": \"ByteLevel\"", "\"type\": \"Telepathy\""),
        &["tokenizer.json", "`Telepathy`", "ByteLevel"],
    );
    folder_error(
        edited("\"vocab\": {", "\"vocab\": {\"huge\": 4294967295,"),
        &["token 4294967295"],
    );
    folder_error(
        edited("\"merges\": [", "\"merges\": [\"no such\","),
        &["field model.merges", "no"],
    );
}
