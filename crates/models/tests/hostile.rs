//! Files made to break the readers: whatever is in them, the answer is an error that names the file, never a panic,
//! and never memory out of proportion to the file.
//!
//! Some 25,000 cases a run: the headers of GGUF and safetensors files, packed and not, `config.json`, tokenizers in both kinds of file,
//! each changed from a valid one, and chat templates put together from pieces.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::LazyLock;

use marlin_models::{
    ChatOptions, ChatTemplate, Message, ModelError, ModelSource, PackOptions, pack,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Gguf, Meta, place};

/// Counts what each thread allocates.
struct Counting;

#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// Bytes held now; negative after freeing what was there before.
    held: isize,
    /// Most bytes held at once.
    peak: isize,
    /// Bytes of the largest allocation.
    largest: usize,
}

thread_local! {
    static MEMORY: Cell<Memory> = const { Cell::new(Memory { held: 0, peak: 0, largest: 0 }) };
}

fn count(grown: isize, allocated: usize) {
    // A thread that is ending has no counters any more, and nothing that we measure.
    let _ = MEMORY.try_with(|memory| {
        let mut now = memory.get();
        now.held += grown;
        now.peak = now.peak.max(now.held);
        now.largest = now.largest.max(allocated);
        memory.set(now);
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize), 0);
        // SAFETY: the caller's promise about `pointer` and `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize, size);
        // SAFETY: the caller's promise about `pointer`, `layout` and `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // In memory where the system has such a place: rewriting a file 6,000 times makes a disk wait for each.
    static FOLDER: tempfile::TempDir =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
}

/// A folder for the files of this thread, which is that of one test: each case overwrites those of the one before.
fn folder() -> std::path::PathBuf {
    FOLDER.with(|folder| folder.path().to_owned())
}

/// What `work` returns, and the memory that it took.
fn measured<T>(work: impl FnOnce() -> T) -> (T, Memory) {
    MEMORY.set(Memory::default());
    let result = work();
    (result, MEMORY.get())
}

/// How much memory a file may cost.
#[derive(Clone, Copy)]
struct Budget {
    /// Bytes for any file, however small: regular expressions, hash tables' smallest sizes.
    base: usize,
    /// Bytes for each byte of the file.
    per_byte: usize,
}

/// Headers: no more than a few structures per entry, and an entry has at least a dozen bytes.
const HEADER: Budget = Budget { base: 64 << 10, per_byte: 32 };
/// Tokenizers: hash tables of short strings, and the automata of pre-tokenisers.
const TOKENIZER: Budget = Budget { base: 4 << 20, per_byte: 256 };

fn check_memory(memory: Memory, budget: Budget, file_bytes: usize) -> Result<(), TestCaseError> {
    let limit = budget.base + budget.per_byte * file_bytes;
    prop_assert!(memory.largest <= limit, "{memory:?} for {file_bytes} bytes");
    prop_assert!(memory.peak <= limit as isize, "{memory:?} for {file_bytes} bytes");
    Ok(())
}

/// An error must name the file it is about, say what was expected, and not repeat the file.
fn check_error(error: &ModelError, file: &str) -> Result<(), TestCaseError> {
    let message = error.to_string();
    prop_assert!(message.contains(file), "{message}");
    prop_assert!(message.contains("expected") || message.contains("cannot"), "{message}");
    prop_assert!(message.len() < 2000, "{message}");
    Ok(())
}

/// A change to a file's bytes. Places are fractions of the file in 1/65536.
#[derive(Clone, Debug)]
enum Change {
    Byte(u16, u8),
    /// A little-endian number of 4 or 8 bytes.
    Number(u16, bool, u64),
    Truncate(u16),
    Remove(u16, u8),
    Repeat(u16, u8),
}

fn interesting_numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX / 2),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(1 << 40),
        0..64u64,
        any::<u64>(),
        (0..64u32).prop_map(|bit| 1 << bit),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        6 => (any::<u16>(), any::<bool>(), interesting_numbers())
            .prop_map(|(at, wide, number)| Change::Number(at, wide, number)),
        1 => any::<u16>().prop_map(Change::Truncate),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(at, len)| Change::Remove(at, len)),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(at, len)| Change::Repeat(at, len)),
    ];
    prop::collection::vec(change, 1..4)
}

/// Applies `changes` to the first `header` bytes of a file.
fn change_bytes(bytes: &mut Vec<u8>, header: usize, changes: &[Change]) {
    for change in changes {
        let header = header.min(bytes.len());
        let place = |at: u16| (usize::from(at) * header) >> 16;
        let range = |at: u16, len: u8| {
            let start = place(at);
            start..(start + usize::from(len)).min(header)
        };
        match *change {
            Change::Byte(at, byte) => bytes[place(at)] = byte,
            Change::Number(at, wide, number) => {
                let number = number.to_le_bytes();
                let number = if wide { &number[..] } else { &number[..4] };
                let start = place(at);
                let end = (start + number.len()).min(bytes.len());
                bytes[start..end].copy_from_slice(&number[..end - start]);
            }
            Change::Truncate(at) => bytes.truncate(place(at).max(1)),
            Change::Remove(at, len) => drop(bytes.drain(range(at, len))),
            Change::Repeat(at, len) => {
                let repeated = bytes[range(at, len)].to_vec();
                let start = place(at);
                bytes.splice(start..start, repeated);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

/// Replacements for parts of a JSON file.
fn odd_values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!(true)),
        Just(json!(-1)),
        Just(json!(0)),
        Just(json!(1e300)),
        Just(json!(0.5)),
        Just(json!([])),
        Just(json!({})),
        Just(json!("")),
        Just(json!("x".repeat(300))),
        Just(json!("é\u{0}\n▁ ")),
        interesting_numbers().prop_map(|number| json!(number)),
        Just(json!([[[[[[[[1]]]]]]]])),
        Just(json!({"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": []})),
        Just(json!({"Regex": "(a*)*b|(?=x)+\\p{L}{1,1000}"})),
        prop_oneof![Just(""), Just("a*"), Just("\\b"), Just("(?=a)"), Just("("), Just(".")]
            .prop_map(|pattern| json!({"Regex": pattern})),
        prop_oneof![
            Just("Removed"),
            Just("MergedWithPrevious"),
            Just("MergedWithNext"),
            Just("Contiguous"),
            Just("Split"),
            Just("Metaspace"),
            Just("Digits"),
            Just("Punctuation"),
            Just("Whitespace"),
            Just("WhitespaceSplit"),
            Just("ByteLevel"),
            Just("NFKD"),
            Just("Lowercase"),
            Just("Strip"),
        ]
        .prop_map(|name| json!(name)),
        Just(json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(64)})),
        Just(json!(["a", "b", "c"])),
        Just(json!("a b")),
    ]
}

/// Puts `odd` in the place of the value of a JSON tree that `pick` leads to, or removes that value.
fn change_json(value: &mut Value, pick: &mut dyn Iterator<Item = u8>, odd: Value, remove: bool) {
    let Some(choice) = pick.next().map(usize::from) else {
        *value = odd;
        return;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(choice % map.len()).cloned().unwrap_or_default();
            let last = pick.size_hint().1 == Some(0);
            if last && remove {
                map.remove(&key);
            } else if let Some(inner) = map.get_mut(&key) {
                change_json(inner, pick, odd, remove);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let index = choice % list.len();
            change_json(&mut list[index], pick, odd, remove);
        }
        _ => *value = odd,
    }
}

type JsonChange = (Vec<u8>, Value, bool);

fn json_changes(depth: usize) -> impl Strategy<Value = Vec<JsonChange>> {
    let pick = prop::collection::vec(any::<u8>(), 1..=depth);
    prop::collection::vec((pick, odd_values(), any::<bool>()), 1..3)
}

fn apply(base: &Value, changes: &[JsonChange]) -> String {
    let mut value = base.clone();
    for (pick, odd, remove) in changes {
        change_json(&mut value, &mut pick.iter().copied(), odd.clone(), *remove);
    }
    value.to_string()
}

fn config(cases: u32) -> ProptestConfig {
    // Failures are reproduced by the values that are printed, not by a file of seeds.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Opens a model and records its forward pass: everything that reading a header leads to.
fn open(path: &Path) -> Result<(), ModelError> {
    let source = ModelSource::open(path)?;
    source.forward(&mut place)?;
    Ok(())
}

/// Bytes of a GGUF file before its data.
fn header_len(bytes: &[u8]) -> usize {
    let data: usize = Gguf::llama().tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum();
    bytes.len().saturating_sub(data)
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
fn the_files_that_are_broken_here_are_whole_to_begin_with() {
    let bytes = Gguf::llama().bytes();
    check_gguf(&bytes, true).unwrap();
    let (packed, header) = packed_gguf();
    check_gguf(&packed, true).unwrap();
    assert!(header < packed.len() / 2 && open(&folder().join("hostile.gguf")).is_ok());
    let folder = HuggingFace::new();
    folder.write("config.json", &llama_config().to_string());
    folder.write_bytes("model.safetensors", &packed_safetensors());
    assert!(ModelSource::open(folder.path()).unwrap().is_packed());
    open(folder.path()).unwrap();
    folder.write("config.json", &llama_config().to_string());
    folder.write_bytes("model.safetensors", &safetensors(&llama_header().to_string()));
    folder.write("tokenizer.json", &tokenizer_json().to_string());
    open(folder.path()).unwrap();
    let tokenizer = ModelSource::open(folder.path()).unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("b c", false, false).unwrap(), [4, 3, 2]);
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

fn packed(source: &ModelSource, out: &Path) -> Vec<u8> {
    pack(source, out, PackOptions::default(), &mut |_, _| ControlFlow::Continue(())).unwrap();
    let weights = if out.is_dir() { out.join("model.safetensors") } else { out.to_owned() };
    std::fs::read(weights).unwrap()
}

/// A packed safetensors file.
fn packed_safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    std::fs::write(plain.join("config.json"), llama_config().to_string()).unwrap();
    let file = safetensors(&llama_header().to_string());
    std::fs::write(plain.join("model.safetensors"), file).unwrap();
    packed(&ModelSource::open(&plain).unwrap(), &folder.path().join("packed"))
}

/// The JSON of a safetensors file's header, and its data.
fn taken_apart(file: &[u8]) -> (Value, &[u8]) {
    let (len, rest) = file.split_first_chunk::<8>().unwrap();
    let (json, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (serde_json::from_slice(json).unwrap(), data)
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
        let folder = HuggingFace::new();
        folder.write("config.json", &llama_config().to_string());
        folder.write_bytes("model.safetensors", &file);
        let (result, memory) = measured(|| open(folder.path()));
        if let Err(error) = &result {
            check_error(error, folder.path().to_str().unwrap())?;
        }
        check_memory(memory, HEADER, file.len() + 1024)?;
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

/// A checkpoint in this thread's folder.
struct HuggingFace(std::path::PathBuf);

impl HuggingFace {
    fn new() -> Self {
        Self(folder())
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, text: &str) {
        self.write_bytes(name, text.as_bytes());
    }

    fn write_bytes(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }
}

fn llama_config() -> Value {
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
        let folder = HuggingFace::new();
        folder.write("config.json", &llama_config().to_string());
        folder.write_bytes("model.safetensors", &file);
        let (result, memory) = measured(|| open(folder.path()));
        if let Err(error) = &result {
            check_error(error, folder.path().to_str().unwrap())?;
        }
        check_memory(memory, HEADER, file.len() + 1024)?;
    }

    #[test]
    fn configurations(
        gemma in any::<bool>(),
        json in json_changes(3),
        bytes in prop::option::weighted(0.2, changes()),
    ) {
        let base = if gemma { gemma_config() } else { llama_config() };
        let mut config = apply(&base, &json).into_bytes();
        let header = config.len();
        change_bytes(&mut config, header, &bytes.unwrap_or_default());
        let folder = HuggingFace::new();
        folder.write_bytes("config.json", &config);
        folder.write_bytes("model.safetensors", &safetensors(&llama_header().to_string()));
        let (result, memory) = measured(|| open(folder.path()));
        if let Err(error) = &result {
            check_error(error, folder.path().to_str().unwrap())?;
        }
        check_memory(memory, HEADER, config.len() + 8192)?;
    }
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
        let folder = HuggingFace::new();
        folder.write("config.json", &llama_config().to_string());
        folder.write_bytes("model.safetensors", &safetensors(&llama_header().to_string()));
        folder.write_bytes("tokenizer.json", &file);
        let source = ModelSource::open(folder.path()).unwrap();
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

    #[test]
    fn chat_templates(pieces in prop::collection::vec(template_pieces(), 0..24)) {
        let source = pieces.concat();
        let (result, memory) = measured(|| ChatTemplate::new(&source));
        check_memory(memory, TOKENIZER, source.len())?;
        if let Ok(template) = result {
            let messages = [Message::new("user", "Hi!"), Message::new("assistant", "Hello.")];
            let rendered = template.render(&messages, "<s>", "</s>", &ChatOptions::default());
            if let Err(error) = rendered {
                prop_assert!(error.to_string().contains("chat template"), "{error}");
            }
        }
    }
}

fn template_pieces() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("{{"),
        Just("}}"),
        Just("{%"),
        Just("%}"),
        Just("{%-"),
        Just("-%}"),
        Just("{#"),
        Just("#}"),
        Just("{% for m in messages %}"),
        Just("{% endfor %}"),
        Just("{% if messages %}"),
        Just("{% else %}"),
        Just("{% endif %}"),
        Just("{% generation %}"),
        Just("{% endgeneration %}"),
        Just("{% set x = messages %}"),
        Just("{% macro f(a) %}"),
        Just("{% endmacro %}"),
        Just("{{ f(1) }}"),
        Just("{{ m.content | trim }}"),
        Just("{{ messages[-1]['role'] }}"),
        Just("{{ messages[::-1] | tojson(indent=99999999999) }}"),
        Just("{{ range(99999999) }}"),
        Just("{{ 'a' * 99999999999 }}"),
        Just("{{ raise_exception('no') }}"),
        Just("{{ strftime_now('%Q%%%') }}"),
        Just("{% break %}"),
        Just("{% include 'chat' %}"),
        Just("(((("),
        Just("[[[["),
        Just("{{ x.split('').strip('').replace('', 'a') }}"),
        Just("\\"),
        Just("'"),
        Just(" "),
        Just("é"),
        Just("0x"),
        Just("{{ messages | map(attribute='role') | join(', ') }}"),
        Just("{{ 1 // 0 }}"),
        Just("{{ -9223372036854775808 % -1 }}"),
    ]
    .prop_map(str::to_owned)
}
