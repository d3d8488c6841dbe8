//! The header of a packed GGUF file (`docs/packed-files.md`).

use super::Metadata;
use crate::error::ModelError;
use crate::packed::{
    Contents, LAYOUT, LAYOUT_KEY, Layout, MATRIX_PREFIX, Plan, VERSION, VERSION_KEY, whole_pages,
};

/// Numbers of value and tensor types (GGUF specification).
const U32: u32 = 4;
const STRING: u32 = 8;
const I8_TENSOR: u32 = 24;
const F32_TENSOR: u32 = 0;
/// The version of the format that is written.
const GGUF_VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";

/// The header for `plan`'s tensors and `metadata`'s keys, which are kept as they are but for those that describe the
/// file itself.
pub(crate) fn packed_layout(metadata: &Metadata, plan: &Plan) -> Result<Layout, ModelError> {
    let alignment = plan.alignment();
    let mut pairs: Vec<Vec<u8>> = metadata
        .raw_pairs()
        .filter(|(key, _)| *key != ALIGNMENT_KEY && !key.starts_with("split."))
        .map(|(_, raw)| raw.to_vec())
        .collect();
    pairs.push(pair(ALIGNMENT_KEY, U32, &(alignment as u32).to_le_bytes()));
    pairs.push(pair(LAYOUT_KEY, STRING, &string(LAYOUT)));
    pairs.push(pair(VERSION_KEY, U32, &(VERSION as u32).to_le_bytes()));
    for matrix in &plan.matrices {
        let key = format!("{MATRIX_PREFIX}{}", matrix.tensor.name_in_file);
        pairs.push(pair(&key, STRING, &string(&matrix.shape().to_string())));
    }
    let mut header = b"GGUF".to_vec();
    header.extend(GGUF_VERSION.to_le_bytes());
    header.extend((plan.entries.len() as u64).to_le_bytes());
    header.extend((pairs.len() as u64).to_le_bytes());
    pairs.iter().for_each(|pair| header.extend(pair));
    let mut offsets = Vec::with_capacity(plan.entries.len());
    let mut offset = 0_u64;
    for entry in &plan.entries {
        // ggml's order: the contiguous dimension first.
        let (type_id, dimensions) = match &entry.contents {
            Contents::Section { .. } => (I8_TENSOR, vec![entry.bytes]),
            Contents::Floats(tensor) => (F32_TENSOR, reversed(&tensor.shape)),
            Contents::Unchanged(tensor) => {
                let id = tensor.format.ggml_id().ok_or_else(|| {
                    let at = crate::error::At::tensor(&tensor.name);
                    let found = tensor.format.to_string();
                    ModelError::unsupported(&tensor.file, at, found, "a type that GGUF has")
                })?;
                (id, reversed(&tensor.shape))
            }
        };
        header.extend(string(&entry.name));
        header.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| header.extend(size.to_le_bytes()));
        header.extend(type_id.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offsets.push(offset);
        offset = (offset + entry.bytes).next_multiple_of(alignment);
    }
    let data = (header.len() as u64).next_multiple_of(alignment);
    offsets.iter_mut().for_each(|offset| *offset += data);
    Ok(Layout { header, offsets, len: whole_pages(data + offset) })
}

fn reversed(shape: &[usize]) -> Vec<u64> {
    shape.iter().rev().map(|&size| size as u64).collect()
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn pair(key: &str, value_type: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = string(key);
    bytes.extend(value_type.to_le_bytes());
    bytes.extend(value);
    bytes
}
