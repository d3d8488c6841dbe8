//! The header of one GGUF file: metadata and tensor infos, every count and offset checked against the file.
//!
//! Source: the GGUF specification (`docs/gguf.md` of the ggml project), versions 2 and 3.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::metadata::{Value, ValueType, scalar};
use crate::error::{At, ModelError, quote, quote_bytes};

/// How deep arrays may nest. Nothing real goes beyond 1; the limit keeps hostile files from exhausting the stack.
const MAX_ARRAY_DEPTH: usize = 4;
/// Where tensor data are aligned to when `general.alignment` does not say.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Dimensions of a tensor (`GGML_MAX_DIMS`).
const MAX_DIMENSIONS: u32 = 4;

/// One tensor as the header describes it.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// ggml's order: the contiguous dimension first.
    pub(super) dimensions: Vec<u64>,
    pub(super) type_id: u32,
    /// Relative to [`Header::data_start`].
    pub(super) offset: u64,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) values: HashMap<String, Value>,
    /// Every key and where it stands with its value, in the file's order.
    pub(super) pairs: Vec<(String, Range<usize>)>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) alignment: u64,
    /// Byte of the file at which tensor data begin.
    pub(super) data_start: u64,
}

impl Header {
    pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, ModelError> {
        Parser { path, file, position: 0 }.header()
    }
}

struct Parser<'a> {
    path: &'a Path,
    file: &'a [u8],
    position: usize,
}

impl<'a> Parser<'a> {
    fn header(mut self) -> Result<Header, ModelError> {
        let magic = self.take(4, &At::Header, "the magic number")?;
        if magic != b"GGUF" {
            return Err(self.invalid(At::Header, quote_bytes(magic), "the magic number `GGUF`"));
        }
        let version = self.u32(&At::Header, "the version")?;
        if version.swap_bytes() < version && version.swap_bytes() <= 3 {
            return Err(ModelError::unsupported(
                self.path,
                At::Header,
                "a big-endian file",
                "a little-endian one",
            ));
        }
        if !(2..=3).contains(&version) {
            let found = format!("GGUF version {version}");
            return Err(ModelError::unsupported(self.path, At::Header, found, "version 2 or 3"));
        }
        // The smallest tensor info is name length, dimension count, one dimension, type and offset; the smallest
        // key-value pair is key length, value type and one byte.
        let tensors = self.count(8 + 4 + 8 + 4 + 8, &At::Header, "tensors")?;
        let pairs = self.count(8 + 4 + 1, &At::Header, "metadata keys")?;

        let mut values = HashMap::new();
        let mut ranges = Vec::new();
        for index in 0..pairs {
            let start = self.position;
            let at = At::Key(format!("number {index}"));
            let key = self.string(&at, "its name")?;
            let at = At::key(&key);
            let value_type = self.value_type(&at)?;
            let value = self.value(value_type, &at)?;
            ranges.push((key.clone(), start..self.position));
            if values.insert(key, value).is_some() {
                return Err(self.invalid(at, "it twice", "every key once"));
            }
        }
        let alignment = match values.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(a)) if a.is_power_of_two() => *a,
            Some(_) => {
                let at = At::key("general.alignment");
                return Err(self.invalid(at, "something else", "an unsigned power of two"));
            }
        };

        let mut infos = Vec::new();
        for index in 0..tensors {
            infos.push(self.tensor(index)?);
        }
        let data_start = (self.position as u64)
            .checked_next_multiple_of(alignment)
            .filter(|start| infos.is_empty() || *start <= self.file.len() as u64)
            .ok_or_else(|| {
                let found = format!("a file of {} bytes", self.file.len());
                let expected =
                    format!("tensor data after byte {}, aligned to {alignment}", self.position);
                self.invalid(At::Header, found, expected)
            })?;
        Ok(Header { version, values, pairs: ranges, tensors: infos, alignment, data_start })
    }

    fn tensor(&mut self, index: usize) -> Result<TensorInfo, ModelError> {
        let name = self.string(&At::Tensor(format!("number {index}")), "its name")?;
        let at = At::tensor(&name);
        let rank = self.u32(&at, "its number of dimensions")?;
        if !(1..=MAX_DIMENSIONS).contains(&rank) {
            let expected = format!("1 to {MAX_DIMENSIONS} dimensions");
            return Err(self.invalid(at, format!("{rank} dimensions"), expected));
        }
        let mut dimensions = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            dimensions.push(self.u64(&at, "a dimension")?);
        }
        if dimensions.contains(&0) {
            return Err(self.invalid(at, "a dimension of 0", "positive dimensions"));
        }
        let type_id = self.u32(&at, "its type")?;
        let offset = self.u64(&at, "its offset")?;
        Ok(TensorInfo { name, dimensions, type_id, offset })
    }

    fn value_type(&mut self, at: &At) -> Result<ValueType, ModelError> {
        let id = self.u32(at, "a value type")?;
        ValueType::from_id(id).ok_or_else(|| {
            self.invalid(at.clone(), format!("value type {id}"), "a type from 0 to 12")
        })
    }

    fn value(&mut self, value_type: ValueType, at: &At) -> Result<Value, ModelError> {
        match value_type {
            ValueType::String => Ok(Value::String(self.string_range(at, "a string")?)),
            ValueType::Array => self.array(at),
            scalar_type => {
                let size = scalar_type.fixed_size().unwrap_or_default();
                let bytes = self.take(size as u64, at, "a value")?;
                scalar(scalar_type, bytes)
                    .ok_or_else(|| self.invalid(at.clone(), format!("{bytes:?}"), "0 or 1"))
            }
        }
    }

    fn array(&mut self, at: &At) -> Result<Value, ModelError> {
        let (element, len) = self.array_head(at)?;
        let start = self.position;
        self.skip_elements(element, len, 1, at)?;
        Ok(Value::Array { element, len, data: start..self.position })
    }

    fn array_head(&mut self, at: &At) -> Result<(ValueType, usize), ModelError> {
        let element = self.value_type(at)?;
        // A string has at least its length, an array its type and length.
        let smallest =
            element.fixed_size().unwrap_or(if element == ValueType::String { 8 } else { 12 });
        let len = self.count(smallest as u64, at, "array elements")?;
        Ok((element, len))
    }

    fn skip_elements(
        &mut self,
        element: ValueType,
        len: usize,
        depth: usize,
        at: &At,
    ) -> Result<(), ModelError> {
        if let Some(size) = element.fixed_size() {
            // `count` has checked that `len * size` bytes remain, so this cannot overflow.
            self.take((len * size) as u64, at, "array elements")?;
            return Ok(());
        }
        for _ in 0..len {
            if element == ValueType::String {
                self.string_range(at, "an array element")?;
                continue;
            }
            if depth == MAX_ARRAY_DEPTH {
                let expected = format!("at most {MAX_ARRAY_DEPTH} levels of arrays");
                return Err(self.invalid(at.clone(), "arrays nested deeper", expected));
            }
            let (inner, inner_len) = self.array_head(at)?;
            self.skip_elements(inner, inner_len, depth + 1, at)?;
        }
        Ok(())
    }

    /// A count of things that take at least `smallest` bytes each, refused when the rest of the file cannot hold them.
    fn count(&mut self, smallest: u64, at: &At, what: &str) -> Result<usize, ModelError> {
        let count = self.u64(at, &format!("the number of {what}"))?;
        let rest = (self.file.len() - self.position) as u64;
        if count.checked_mul(smallest).is_none_or(|bytes| bytes > rest) {
            let expected = format!("no more than fit the remaining {rest} bytes");
            return Err(self.invalid(at.clone(), format!("{count} {what}"), expected));
        }
        Ok(count as usize)
    }

    fn string(&mut self, at: &At, what: &str) -> Result<String, ModelError> {
        let range = self.string_range(at, what)?;
        let bytes = &self.file[range];
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| self.invalid(at.clone(), quote_bytes(bytes), format!("{what} in UTF-8")))
    }

    fn string_range(&mut self, at: &At, what: &str) -> Result<Range<usize>, ModelError> {
        let len = self.u64(at, what)?;
        self.take(len, at, what)?;
        Ok(self.position - len as usize..self.position)
    }

    fn u32(&mut self, at: &At, what: &str) -> Result<u32, ModelError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4, at, what)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, at: &At, what: &str) -> Result<u64, ModelError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8, at, what)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn take(&mut self, len: u64, at: &At, what: &str) -> Result<&'a [u8], ModelError> {
        let rest = &self.file[self.position..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.position += bytes.len();
                Ok(bytes)
            }
            None => {
                let found = format!("{} bytes left at byte {}", rest.len(), self.position);
                let expected = format!("{what} of {len} bytes (is the file truncated?)");
                Err(self.invalid(at.clone(), found, expected))
            }
        }
    }

    fn invalid(&self, at: At, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::invalid(self.path, at, found, expected)
    }
}

/// Said of a tensor whose data cannot be where the header says.
pub(super) fn misplaced(path: &Path, name: &str, found: String, expected: String) -> ModelError {
    ModelError::invalid(path, At::Tensor(quote(name)), found, expected)
}
