//! The safetensors format: a JSON header of tensors, then their data.
//!
//! Source: the format's description in the `safetensors` repository. The header is read here rather than by that
//! project's crate, whose errors name neither the file nor the tensor and which takes the last of duplicate names.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use marlin_backend::HostBytes;
use marlin_formats::Format;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{At, ModelError, quote};
use crate::mapped::MappedFile;
use crate::packed::{LAYOUT_KEY, PADDING, PackedTensors, VERSION_KEY};
use crate::tensor::{StoredTensor, TensorTable, check_overlap};

/// Longest header (the limit of the reference implementation).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of the header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The name in the header that is no tensor's.
pub(super) const METADATA: &str = "__metadata__";

/// The header's tensors in order. Unlike a map it can hold a name twice, so that this can be refused.
struct Entries {
    tensors: Vec<(String, Entry)>,
    /// Strings by name, which is all that may be there.
    metadata: Option<HashMap<String, String>>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries { tensors: Vec::new(), metadata: None };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        entries.metadata = map.next_value()?;
                    } else {
                        let entry = map.next_value()?;
                        entries.tensors.push((name, entry));
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Adds the tensors of the file `map` to `table`, under the names that `rename` gives them.
///
/// Returns the names as they are in the file.
pub(super) fn read(
    path: &Path,
    map: Arc<MappedFile>,
    rename: impl Fn(&str) -> String,
    table: &mut TensorTable,
) -> Result<Vec<String>, ModelError> {
    let file: Arc<Path> = path.into();
    let len = map.len() as u64;
    let (header, data_start) = header(path, &map)?;
    let mut packed = packed_tensors(path, &header)?;
    let entries = header.tensors;

    let bytes = HostBytes::new(map);
    let mut ranges = Vec::with_capacity(entries.len());
    for (name, entry) in &entries {
        let at = || At::tensor(name);
        let format = match entry.dtype.as_str() {
            "F32" => Some(Format::F32),
            "F16" => Some(Format::F16),
            "BF16" => Some(Format::BF16),
            "U8" if packed.is_some() => None,
            other => {
                let found = format!("dtype {}", quote(other));
                return Err(ModelError::unsupported(path, at(), found, "F32, F16 or BF16"));
            }
        };
        let [begin, end] = entry.data_offsets;
        let element = match format {
            None => 1,
            Some(Format::F32) => 4,
            Some(_) => 2,
        };
        let size = entry.shape.iter().try_fold(element, |n: u64, &d| n.checked_mul(d));
        if end.checked_sub(begin) != size || size.is_none() || size == Some(0) {
            let found = format!(
                "data_offsets {:?} for {} of shape {:?}",
                [begin, end],
                entry.dtype,
                entry.shape
            );
            let expected = match size {
                Some(size) if size > 0 => format!("{size} bytes"),
                _ => "a shape of positive sizes that can be addressed".to_owned(),
            };
            return Err(ModelError::invalid(path, at(), found, expected));
        }
        let range = data_start
            .checked_add(begin)
            .zip(data_start.checked_add(end))
            .filter(|&(_, end)| end <= len);
        let Some((start, end)) = range else {
            let found = format!("data up to offset {end}");
            let expected = format!("{} bytes at most (is the file truncated?)", len - data_start);
            return Err(ModelError::invalid(path, at(), found, expected));
        };
        ranges.push((name.as_str(), start, end));
        let Some(data) = bytes.slice(start as usize..end as usize) else {
            unreachable!("the range was checked against the map's length");
        };
        let Some(format) = format else {
            if let Some(packed) = packed.as_mut().filter(|_| name != PADDING) {
                packed.insert(path, name, data)?;
            }
            continue;
        };
        table.insert(StoredTensor {
            name: rename(name),
            name_in_file: name.clone(),
            // Each is at most the number of bytes, which fits.
            shape: entry.shape.iter().map(|&d| d as usize).collect(),
            format,
            data,
            fragments: None,
            file: file.clone(),
        })?;
    }
    check_overlap(path, &mut ranges)?;
    if let Some(packed) = packed {
        for tensor in packed.assemble(&file)? {
            table.insert(StoredTensor { name: rename(&tensor.name), ..tensor })?;
        }
    }
    Ok(entries.into_iter().map(|(name, _)| name).collect())
}

/// What the header says of packed matrices, if the file is packed.
fn packed_tensors(path: &Path, header: &Entries) -> Result<Option<PackedTensors>, ModelError> {
    let strings = || {
        let all = header.metadata.iter().flatten();
        all.map(|(key, value)| (key.as_str(), value.as_str()))
    };
    let version = match strings().find(|(key, _)| *key == VERSION_KEY) {
        None => None,
        Some((key, text)) => Some(
            text.parse()
                .map_err(|_| ModelError::invalid(path, At::key(key), quote(text), "a number"))?,
        ),
    };
    PackedTensors::of(path, version, strings())
}

/// Whether a file says that it is packed, in whatever version.
pub(super) fn is_packed(path: &Path, map: &MappedFile) -> bool {
    header(path, map).is_ok_and(|(header, _)| {
        header.metadata.is_some_and(|metadata| metadata.contains_key(LAYOUT_KEY))
    })
}

/// The header, and the byte of the file at which data begin.
fn header(path: &Path, map: &MappedFile) -> Result<(Entries, u64), ModelError> {
    let len = map.len() as u64;
    let header_len = map.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let header_end = header_len.and_then(|header| header.checked_add(8));
    let Some(data_start) = header_end.filter(|&end| end <= len.min(MAX_HEADER_BYTES)) else {
        let found = match header_len {
            Some(header) => format!("a header of {header} bytes in a file of {len}"),
            None => format!("a file of {len} bytes"),
        };
        let expected = "a header within the file (is it a safetensors file, and complete?)";
        return Err(ModelError::invalid(path, At::Header, found, expected));
    };
    let entries = serde_json::from_slice(&map[8..data_start as usize]).map_err(|e| {
        let expected = "a JSON object of tensors with dtype, shape and data_offsets";
        ModelError::invalid(path, At::Header, quote(&e.to_string()), expected)
    })?;
    Ok((entries, data_start))
}
