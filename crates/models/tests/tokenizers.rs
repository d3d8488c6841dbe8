//! Tokenizers against the ids that `tokenizers`, `sentencepiece` and llama.cpp give.

use std::path::{Path, PathBuf};

use marlin_models::gguf::GgufFile;
use marlin_models::{ModelSource, Tokenizer};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/architectures").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check(tokenizer: &Tokenizer, cases: &Value) {
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false, true).unwrap(), expected, "{text:?}");
        if let Some(as_text) = case.get("ids_special_as_text") {
            assert_eq!(tokenizer.encode(text, false, false).unwrap(), ids(as_text), "{text:?}");
        }
    }
}

#[test]
fn tokenizer_json_and_gguf_give_the_reference_ids() {
    for model in ["llama3_rope", "qwen2"] {
        let cases = json(&fixture(model).join("tokenizer_cases.json"));
        for path in [fixture(model), fixture(&format!("{model}.gguf"))] {
            check(&ModelSource::open(&path).unwrap().tokenizer().unwrap(), &cases);
        }
    }
}

#[test]
fn sentencepiece_from_gguf_gives_the_reference_ids() {
    let tokenizer = ModelSource::open(&fixture("gemma3.gguf")).unwrap().tokenizer().unwrap();
    let cases = json(&fixture("gemma3").join("tokenizer_cases.json"));
    check(&tokenizer, &cases);
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids(&case["ids"]), false), text);
    }
}

#[test]
fn a_bos_token_goes_before_the_text_only_if_asked_for_and_configured() {
    let tokenizer = ModelSource::open(&fixture("gemma3.gguf")).unwrap().tokenizer().unwrap();
    let bos = tokenizer.special().bos.unwrap();
    assert!(tokenizer.special().add_bos);
    let with = tokenizer.encode("a", true, false).unwrap();
    let without = tokenizer.encode("a", false, false).unwrap();
    assert_eq!(with, [&[bos], without.as_slice()].concat());
}

/// The styles of real `tokenizer.json` files, made small; `make_tokenizers.py` has the references from `tokenizers`.
#[test]
fn the_styles_of_tokenizer_json_do_what_tokenizers_does() {
    let data = json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers.json"));
    for entry in data["tokenizers"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let model = fixture("llama");
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(model.join(file), folder.path().join(file)).unwrap();
        }
        std::fs::write(folder.path().join("tokenizer.json"), entry["tokenizer"].to_string())
            .unwrap();
        let tokenizer = ModelSource::open(folder.path()).unwrap().tokenizer().unwrap();
        for case in entry["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encode = |add, parse| tokenizer.encode(text, add, parse).unwrap();
            assert_eq!(encode(false, true), ids(&case["ids"]), "{name}: {text:?}");
            assert_eq!(encode(true, true), ids(&case["with_special"]), "{name}: {text:?}");
            assert_eq!(encode(false, false), ids(&case["special_as_text"]), "{name}: {text:?}");
            let decoded = tokenizer.decode(&encode(false, true), true);
            assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

/// The default model: its path is in `MARLIN_TEST_MODEL`, because it is too large to carry here.
#[test]
fn the_default_model_tokenises_as_llama_cpp_does() {
    let Some(path) = std::env::var_os("MARLIN_TEST_MODEL") else {
        eprintln!("skipped: MARLIN_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf");
        return;
    };
    let file = GgufFile::open(Path::new(&path)).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    let reference = json(&root().join("tests/data/tokenizer_smollm2.json"));
    check(&tokenizer, &reference["cases"]);
    assert_eq!(tokenizer.special().bos, Some(1));
    assert_eq!(tokenizer.special().eos, Some(2));
    // <|endoftext|> and <|im_end|>.
    assert_eq!(tokenizer.special().end_of_generation, [0, 2]);
    for case in reference["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text, false, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens, true), text);
    }
}
