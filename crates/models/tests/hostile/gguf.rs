//! GGUF files: headers, packed and not, and the tokenizers in them.

use std::sync::LazyLock;

use marlin_models::{ModelError, ModelSource};
use proptest::prelude::*;

use crate::changes::{change_bytes, changes};
use crate::memory::{HEADER, TOKENIZER, check_memory, measured};
use crate::support::{Gguf, Meta};
use crate::{check_error, config, folder, open, packed};

/// Bytes of a GGUF file before its data.
fn header_len(bytes: &[u8]) -> usize {
    let data: usize = Gguf::llama().tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum();
    bytes.len().saturating_sub(data)
}

/// A packed GGUF file and the length of its header.
fn packed_gguf() -> (Vec<u8>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelSource::open(&Gguf::llama().write(folder.path(), "plain.gguf")).unwrap();
    let bytes = packed(&source, &folder.path().join("packed.gguf"));
    let last = b"blk.0.ffn_norm.weight";
    let name = bytes.windows(last.len()).rposition(|window| window == last).unwrap();
    // After the name the number of dimensions, one dimension, the type and the offset.
    (bytes, name + last.len() + 4 + 8 + 4 + 8)
}

fn check_gguf(bytes: &[u8], tokenizer: bool) -> Result<(), TestCaseError> {
    let path = folder().join("hostile.gguf");
    std::fs::write(&path, bytes).unwrap();
    let (result, memory) = measured(|| open(&path));
    if let Err(error) = &result {
        check_error(error, "hostile")?;
    }
    check_memory(memory, HEADER, bytes.len())?;
    if tokenizer && let Ok(source) = ModelSource::open(&path) {
        let (result, memory) = measured(|| {
            let tokenizer = source.tokenizer()?;
            let ids = tokenizer.encode("ab c <|im_end|> é", true, true);
            let text = ids.map(|ids| tokenizer.decode(&ids, true));
            drop(source.chat_template()?);
            Ok::<_, ModelError>(text.is_ok())
        });
        if let Err(error) = &result {
            check_error(error, "hostile.gguf")?;
        }
        check_memory(memory, TOKENIZER, bytes.len())?;
    }
    Ok(())
}

#[test]
fn files_are_whole_before_they_are_broken() {
    let bytes = Gguf::llama().bytes();
    check_gguf(&bytes, true).unwrap();
    let (packed, header) = packed_gguf();
    check_gguf(&packed, true).unwrap();
    assert!(header < packed.len() / 2 && open(&folder().join("hostile.gguf")).is_ok());
}

proptest! {
    #![proptest_config(config(6000))]

    #[test]
    fn gguf_headers(changes in changes()) {
        let mut bytes = Gguf::llama().bytes();
        let header = header_len(&bytes);
        change_bytes(&mut bytes, header, &changes);
        check_gguf(&bytes, false)?;
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn packed_gguf_headers(changes in changes()) {
        static FILE: LazyLock<(Vec<u8>, usize)> = LazyLock::new(packed_gguf);
        let (mut bytes, header) = FILE.clone();
        change_bytes(&mut bytes, header, &changes);
        check_gguf(&bytes, false)?;
    }
}

/// What a metadata key of the tokenizer may be changed to.
fn odd_metadata() -> impl Strategy<Value = Meta> {
    let text =
        prop_oneof!["[abĠ<|>_ \\PC]{0,12}", Just("<0x0A>".to_owned()), Just("a b".to_owned())];
    prop_oneof![
        prop::collection::vec(text, 0..20).prop_map(Meta::Strings),
        prop::collection::vec(any::<i32>(), 0..20).prop_map(Meta::I32s),
        prop::collection::vec(0..8, 12).prop_map(Meta::I32s),
        prop::collection::vec(any::<f32>(), 12).prop_map(Meta::F32s),
        any::<u32>().prop_map(Meta::U32),
        prop_oneof![Just("gpt2"), Just("llama"), Just("gemma4"), Just("falcon"), Just("x")]
            .prop_map(|name| Meta::String(name.into())),
    ]
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn tokenizers_in_gguf(
        odd in prop::collection::vec((0..TOKENIZER_KEYS.len(), odd_metadata()), 0..4),
        changes in prop::option::of(changes()),
    ) {
        let mut file = Gguf::llama();
        for (key, value) in odd {
            file.set(TOKENIZER_KEYS[key], value);
        }
        let mut bytes = file.bytes();
        let header = header_len(&bytes);
        change_bytes(&mut bytes, header, &changes.unwrap_or_default());
        check_gguf(&bytes, true)?;
    }
}

const TOKENIZER_KEYS: [&str; 10] = [
    "tokenizer.ggml.model",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.chat_template",
];
