//! The header of a packed model's safetensors file, and the files beside it (`docs/packed-files.md`).

use std::fs;
use std::path::Path;

use marlin_formats::Format;
use serde_json::{Map, Value, json};

use super::safetensors::{self, METADATA};
use super::{HuggingFaceFolder, INDEX, WEIGHTS};
use crate::error::{At, ModelError};
use crate::mapped::map_file;
use crate::packed::{
    Contents, LAYOUT, LAYOUT_KEY, Layout, MATRIX_PREFIX, PADDING, Plan, VERSION, VERSION_KEY,
    whole_pages,
};

/// The header for `plan`'s tensors, padded so that data begin at a page.
pub(crate) fn packed_layout(folder: &Path, plan: &Plan) -> Result<Layout, ModelError> {
    let mut metadata = Map::new();
    metadata.insert("format".to_owned(), json!("pt"));
    metadata.insert(LAYOUT_KEY.to_owned(), json!(LAYOUT));
    metadata.insert(VERSION_KEY.to_owned(), json!(VERSION.to_string()));
    for matrix in &plan.matrices {
        let key = format!("{MATRIX_PREFIX}{}", matrix.tensor.name_in_file);
        metadata.insert(key, json!(matrix.shape().to_string()));
    }
    let mut tensors = Map::new();
    tensors.insert(METADATA.to_owned(), Value::Object(metadata));
    let mut entry = |name: &str, dtype: &str, shape: &[usize], at: u64, bytes: u64| {
        let value = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes] });
        tensors.insert(name.to_owned(), value);
    };
    let mut offset = 0;
    let mut offsets = Vec::with_capacity(plan.entries.len());
    for of in &plan.entries {
        let (dtype, shape) = match &of.contents {
            Contents::Section { .. } => ("U8", vec![of.bytes as usize]),
            Contents::Floats(tensor) => ("F32", tensor.shape.clone()),
            Contents::Unchanged(tensor) => {
                let dtype = match tensor.format {
                    Format::F32 => "F32",
                    Format::F16 => "F16",
                    Format::BF16 => "BF16",
                    other => {
                        let at = At::tensor(&tensor.name);
                        let found = other.to_string();
                        return Err(ModelError::unsupported(folder, at, found, "f32, f16 or bf16"));
                    }
                };
                (dtype, tensor.shape.clone())
            }
        };
        entry(&of.name, dtype, &shape, offset, of.bytes);
        offsets.push(offset);
        offset += of.bytes;
    }
    let padding = whole_pages(offset) - offset;
    if padding > 0 {
        entry(PADDING, "U8", &[padding as usize], offset, padding);
    }
    let mut text = Value::Object(tensors).to_string();
    let data = whole_pages(8 + text.len() as u64);
    // Spaces after the object belong to the header.
    text.extend(std::iter::repeat_n(' ', data as usize - 8 - text.len()));
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.as_bytes());
    offsets.iter_mut().for_each(|offset| *offset += data);
    Ok(Layout { header, offsets, len: data + offset + padding })
}

/// Whether `folder` is what [`pack`](crate::pack) writes.
pub(crate) fn is_packed_folder(folder: &Path) -> bool {
    let weights = folder.join(WEIGHTS);
    map_file(&weights).is_ok_and(|map| safetensors::is_packed(&weights, &map))
}

impl HuggingFaceFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies configuration, tokenizer and the like to another folder.
    pub(crate) fn copy_beside_weights(&self, to: &Path) -> Result<(), ModelError> {
        let read = |e| ModelError::io(&self.path, "list", e);
        for entry in fs::read_dir(&self.path).map_err(read)? {
            let from = entry.map_err(read)?.path();
            let Some(name) = from.file_name() else { continue };
            let text = name.to_string_lossy();
            let extension = from.extension().and_then(|extension| extension.to_str());
            let wanted = matches!(extension, Some("json" | "jinja" | "txt" | "model" | "md"))
                || text.starts_with("LICENSE");
            // Caches have links in place of files.
            if wanted && text != INDEX && !text.starts_with('.') && from.is_file() {
                let target = to.join(name);
                fs::copy(&from, &target).map_err(|e| ModelError::io(&target, "write", e))?;
            }
        }
        Ok(())
    }
}
