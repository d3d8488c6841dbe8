//! Tokenizers in files of their own: `tokenizer.json`.

use marlin_models::{ModelError, ModelSource};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::changes::{apply, change_bytes, changes, json_changes};
use crate::checkpoints::Checkpoint;
use crate::memory::{TOKENIZER, check_memory, measured};
use crate::{check_error, config};

fn tokenizer_json() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 5, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": true,
             "normalized": false, "special": true}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"String": "\t"}, "content": " "},
            {"type": "Prepend", "prepend": "a"}
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": " ?[a-z]+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4}, "merges": [["a", "b"]]}
    })
}

#[test]
fn the_tokenizer_is_whole_before_it_is_broken() {
    let checkpoint = Checkpoint::llama();
    checkpoint.write("tokenizer.json", tokenizer_json().to_string().as_bytes());
    let tokenizer = ModelSource::open(checkpoint.path()).unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("b c", false, false).unwrap(), [4, 3, 2]);
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn tokenizers_in_json(
        json in json_changes(5),
        bytes in prop::option::weighted(0.2, changes()),
    ) {
        let mut file = apply(&tokenizer_json(), &json).into_bytes();
        let header = file.len();
        change_bytes(&mut file, header, &bytes.unwrap_or_default());
        let checkpoint = Checkpoint::llama();
        checkpoint.write("tokenizer.json", &file);
        let source = ModelSource::open(checkpoint.path()).unwrap();
        let (result, memory) = measured(|| {
            let tokenizer = source.tokenizer()?;
            let ids = tokenizer.encode("ab c <|im_end|> é\u{301} 12, a", true, true);
            Ok::<_, ModelError>(ids.map(|ids| tokenizer.decode(&ids, true)).is_ok())
        });
        if let Err(error) = &result {
            check_error(error, "tokenizer.json")?;
        }
        check_memory(memory, TOKENIZER, file.len())?;
    }
}
