//! Tokenizers of real models against llama.cpp's token ids.
//!
//! llama.cpp carries vocabularies without weights (`models/ggml-vocab-*.gguf`), texts (`.inp`) and the ids it expects
//! for them (`.out`). They are too large to carry here: `MARLIN_TEST_VOCABULARIES` names the folder that has them.

use std::path::{Path, PathBuf};

use marlin_models::gguf::GgufFile;
use marlin_models::{ModelError, Tokenizer};

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("MARLIN_TEST_VOCABULARIES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: MARLIN_TEST_VOCABULARIES does not name llama.cpp's models folder");
    }
    folder
}

fn tokenizer(path: &Path) -> Result<Tokenizer, ModelError> {
    Tokenizer::from_gguf(GgufFile::open(path)?.metadata())
}

#[test]
fn ids_are_llama_cpps() {
    let Some(folder) = folder() else { return };
    for name in [
        "llama-bpe",
        "llama-spm",
        "qwen2",
        "qwen35",
        "gpt-2",
        "starcoder",
        "refact",
        "falcon",
        "command-r",
        "deepseek-coder",
        "deepseek-llm",
        "gemma-4",
        "phi-3",
        "mpt",
    ] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let tokenizer = tokenizer(&path).unwrap_or_else(|e| panic!("{e}"));
        let read = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display()));
        let (texts, expected) = (read(".inp").unwrap(), read(".out").unwrap());
        let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
        let lines = expected.lines().collect::<Vec<_>>();
        assert_eq!(texts.len(), lines.len(), "{name}");
        for (text, line) in texts.into_iter().zip(lines) {
            let expected: Vec<u32> =
                line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let ids = tokenizer.encode(text, false, false).unwrap();
            assert_eq!(ids, expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn decoding_gives_the_text_back() {
    let Some(folder) = folder() else { return };
    for name in ["llama-bpe", "llama-spm", "qwen2", "gpt-2", "command-r", "gemma-4", "deepseek-llm"]
    {
        let tokenizer = tokenizer(&folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
        for text in ["Hello, world!", " two  spaces\n\n\ttab", "naïve 日本語 🙂 don't 1234567", ""]
        {
            let ids = tokenizer.encode(text, false, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
        }
    }
}
