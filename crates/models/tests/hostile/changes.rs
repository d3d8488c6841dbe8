//! Changes to files that were valid.

use proptest::prelude::*;
use serde_json::{Value, json};

/// A change to a file's bytes. Places are fractions of the file in 1/65536.
#[derive(Clone, Debug)]
pub(crate) enum Change {
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

pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
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
pub(crate) fn change_bytes(bytes: &mut Vec<u8>, header: usize, changes: &[Change]) {
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

pub(crate) type JsonChange = (Vec<u8>, Value, bool);

pub(crate) fn json_changes(depth: usize) -> impl Strategy<Value = Vec<JsonChange>> {
    let pick = prop::collection::vec(any::<u8>(), 1..=depth);
    prop::collection::vec((pick, odd_values(), any::<bool>()), 1..3)
}

pub(crate) fn apply(base: &Value, changes: &[JsonChange]) -> String {
    let mut value = base.clone();
    for (pick, odd, remove) in changes {
        change_json(&mut value, &mut pick.iter().copied(), odd.clone(), *remove);
    }
    value.to_string()
}
