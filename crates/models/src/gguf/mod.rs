//! GGUF files, versions 2 and 3, in one part or several.

mod header;
mod metadata;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_backend::HostBytes;
use marlin_formats::Format;

use crate::error::{At, ModelError};
use crate::mapped::{MappedFile, map_file};
use crate::packed::{PackedTensors, VERSION_KEY};
use crate::tensor::{StoredTensor, TensorTable, check_overlap};
use header::{Header, TensorInfo, misplaced};
pub use metadata::{Metadata, Numbers, Strings, Value, ValueType};
pub(crate) use write::packed_layout;

/// ggml's number for tensors of bytes, which only packed files have.
const I8_TENSOR: u32 = 24;

/// An open GGUF file, all of its parts mapped.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    version: u32,
    metadata: Metadata,
    tensors: TensorTable,
}

impl GgufFile {
    /// Opens the file at `path`. If it is one part of several (`…-00002-of-00003.gguf`), opens the other parts too.
    ///
    /// # Errors
    /// [`ModelError`] when a part cannot be read, breaks the format, or has tensors of an unknown type.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let given = Part::open(path)?;
        let count = given.split("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Self::assemble(path, vec![given]);
        }
        let number = given.split("split.no")?.unwrap_or(0);
        let names = part_names(path, number, count)?;
        let mut parts = Vec::with_capacity(names.len());
        let mut given = Some(given);
        for (index, name) in names.iter().enumerate() {
            let part = match given.take_if(|_| index == usize::from(number)) {
                Some(part) => part,
                None => Part::open(name)?,
            };
            for (key, expected) in [("split.no", index as u16), ("split.count", count)] {
                if part.split(key)? != Some(expected) {
                    return Err(part.metadata.unexpected(key, format!("the integer {expected}")));
                }
            }
            parts.push(part);
        }
        Self::assemble(path, parts)
    }

    fn assemble(path: &Path, parts: Vec<Part>) -> Result<Self, ModelError> {
        let mut tensors = TensorTable::new(path);
        let mut metadata = None;
        let mut version = 0;
        for part in parts {
            part.place_tensors(&mut tensors)?;
            // Only the first part describes the model; the others repeat just the keys about the split.
            if metadata.is_none() {
                version = part.header.version;
                metadata = Some(part.metadata);
            }
        }
        let metadata = metadata.unwrap_or_else(|| unreachable!("a file has at least one part"));
        if let Some(total) = metadata.integer::<u64>("split.tensors.count")?
            && total != tensors.len() as u64
        {
            let expected = format!("the {} tensors that all parts have", tensors.len());
            return Err(metadata.unexpected("split.tensors.count", expected));
        }
        Ok(Self { path: path.to_owned(), version, metadata, tensors })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata (of the first part).
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors of all parts.
    pub fn tensors(&self) -> &TensorTable {
        &self.tensors
    }

    pub(crate) fn into_parts(self) -> (Metadata, TensorTable) {
        (self.metadata, self.tensors)
    }
}

/// One file of possibly several.
struct Part {
    path: Arc<Path>,
    map: Arc<MappedFile>,
    header: Header,
    metadata: Metadata,
}

impl Part {
    fn open(path: &Path) -> Result<Self, ModelError> {
        Self::parse(path, map_file(path)?)
    }

    fn parse(path: &Path, map: Arc<MappedFile>) -> Result<Self, ModelError> {
        let mut header = Header::parse(path, &map)?;
        let values = std::mem::take(&mut header.values);
        let pairs = std::mem::take(&mut header.pairs);
        let metadata = Metadata::new(path.to_owned(), map.clone(), values, pairs);
        Ok(Self { path: path.into(), map, header, metadata })
    }

    fn split(&self, key: &str) -> Result<Option<u16>, ModelError> {
        self.metadata.integer(key)
    }

    /// Checks where every tensor of this part lies, and adds them to `table`.
    fn place_tensors(&self, table: &mut TensorTable) -> Result<(), ModelError> {
        let bytes = HostBytes::new(self.map.clone());
        let version = self.metadata.integer::<u64>(VERSION_KEY)?;
        let keys = self.metadata.strings_under("marlin.");
        let mut packed = PackedTensors::of(&self.path, version, keys)?;
        let mut ranges = Vec::with_capacity(self.header.tensors.len());
        let mut plain = Vec::with_capacity(self.header.tensors.len());
        for info in &self.header.tensors {
            if let Some(packed) = packed.as_mut().filter(|_| info.type_id == I8_TENSOR) {
                let all = info.dimensions.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
                let size = all.unwrap_or(u64::MAX);
                let data = self.data_of(info, size, "bytes", &bytes, &mut ranges)?;
                packed.insert(&self.path, &info.name, data)?;
                continue;
            }
            let (format, shape, size) = self.shape_of(info)?;
            let what = format!("{format} {shape:?}");
            let data = self.data_of(info, size, &what, &bytes, &mut ranges)?;
            plain.push(StoredTensor {
                name: info.name.clone(),
                name_in_file: info.name.clone(),
                shape,
                format,
                data,
                fragments: None,
                file: self.path.clone(),
            });
        }
        let packed = packed.map(|packed| packed.assemble(&self.path)).transpose()?;
        for tensor in packed.into_iter().flatten().chain(plain) {
            table.insert(tensor)?;
        }
        check_overlap(&self.path, &mut ranges)
    }

    /// A tensor's format, its shape with the contiguous dimension last, and its bytes.
    fn shape_of(&self, info: &TensorInfo) -> Result<(Format, Vec<usize>, u64), ModelError> {
        let at = || At::tensor(&info.name);
        let format = Format::from_ggml_id(info.type_id).ok_or_else(|| {
            let found = format!("tensor type {}", ggml_type_name(info.type_id));
            let expected = "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k to q6_k or mxfp4";
            ModelError::unsupported(&self.path, at(), found, expected)
        })?;
        let mut shape = Vec::with_capacity(info.dimensions.len());
        for &size in info.dimensions.iter().rev() {
            shape.push(usize::try_from(size).map_err(|_| {
                let found = format!("a dimension of {size}");
                ModelError::invalid(&self.path, at(), found, "one that this machine can address")
            })?);
        }
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = rows
            .ok_or_else(|| "more rows than this machine can address".to_owned())
            .and_then(|rows| format.sizes(rows, cols).map_err(|e| e.to_string()))
            .map_err(|found| {
                let expected = format!("a shape that {format} allows, found {shape:?}");
                ModelError::invalid(&self.path, at(), found, expected)
            })?
            .data as u64;
        Ok((format, shape, size))
    }

    /// The `size` bytes of a tensor, if they are in the file; `what` they are is for errors.
    fn data_of<'a>(
        &self,
        info: &'a TensorInfo,
        size: u64,
        what: &str,
        bytes: &HostBytes,
        ranges: &mut Vec<(&'a str, u64, u64)>,
    ) -> Result<HostBytes, ModelError> {
        if !info.offset.is_multiple_of(self.header.alignment) {
            let found = format!("data at offset {}", info.offset);
            let expected = format!("a multiple of {}", self.header.alignment);
            return Err(misplaced(&self.path, &info.name, found, expected));
        }
        let start = self.header.data_start.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(size));
        let (Some(start), Some(end)) = (start, end.filter(|&e| e <= bytes.len() as u64)) else {
            let found = format!("{size} bytes of {what} at offset {} of the data", info.offset);
            let data = (bytes.len() as u64).saturating_sub(self.header.data_start);
            let expected = format!("them within the data's {data} bytes (is the file truncated?)");
            return Err(misplaced(&self.path, &info.name, found, expected));
        };
        ranges.push((info.name.as_str(), start, end));
        let Some(data) = bytes.slice(start as usize..end as usize) else {
            unreachable!("the range was checked against the map's length");
        };
        Ok(data)
    }
}

/// The paths of all `count` parts, given that of part `number`.
fn part_names(path: &Path, number: u16, count: u16) -> Result<Vec<PathBuf>, ModelError> {
    let suffix = |number: u32| format!("-{number:05}-of-{count:05}.gguf");
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = suffix(u32::from(number) + 1);
    let Some(prefix) = name.strip_suffix(&own) else {
        let found = format!("part {} of {count}", u32::from(number) + 1);
        let expected = format!("a file name that ends in {own}");
        return Err(ModelError::invalid(path, At::key("split.no"), found, expected));
    };
    Ok((1..=u32::from(count))
        .map(|number| path.with_file_name(format!("{prefix}{}", suffix(number))))
        .collect())
}

/// The name of a tensor type that is not read here, if ggml has one (`enum ggml_type`).
fn ggml_type_name(id: u32) -> String {
    let name = match id {
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        20 => "iq4_nl",
        21 => "iq3_s",
        22 => "iq2_s",
        23 => "iq4_xs",
        24 => "i8",
        25 => "i16",
        26 => "i32",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        40 => "nvfp4",
        _ => return id.to_string(),
    };
    format!("{name} ({id})")
}
