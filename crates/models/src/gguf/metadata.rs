//! GGUF metadata: typed values by key, read in place from the mapped file.
//!
//! Arrays are kept as byte ranges: a vocabulary of 262,144 strings costs nothing until it is asked for.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{At, ModelError, quote, quote_bytes};
use crate::mapped::MappedFile;

/// The type of a metadata value (GGUF specification, `gguf_metadata_value_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    pub(super) fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
            .get(usize::try_from(id).ok()?)
            .copied()
    }

    /// Bytes of one value, for the types that have a fixed size.
    pub(super) fn fixed_size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }
}

/// One metadata value. Strings and arrays are ranges of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any of the unsigned integer types.
    Unsigned(u64),
    /// Any of the signed integer types.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A UTF-8 string.
    String(Range<usize>),
    /// An array.
    Array {
        /// The type of every element.
        element: ValueType,
        /// How many there are.
        len: usize,
        /// Where they are in the file.
        data: Range<usize>,
    },
}

impl Value {
    fn describe(&self, file: &[u8]) -> String {
        match self {
            Value::Unsigned(v) => format!("the integer {v}"),
            Value::Signed(v) => format!("the integer {v}"),
            Value::Float(v) => format!("the number {v}"),
            Value::Bool(v) => format!("the truth value {v}"),
            Value::String(range) => format!("the string {}", quote_bytes(&file[range.clone()])),
            Value::Array { element, len, .. } => format!("an array of {len} {}", element.name()),
        }
    }
}

/// The metadata of a GGUF file.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    map: Arc<MappedFile>,
    values: HashMap<String, Value>,
    pairs: Vec<(String, Range<usize>)>,
}

impl Metadata {
    pub(super) fn new(
        path: PathBuf,
        map: Arc<MappedFile>,
        values: HashMap<String, Value>,
        pairs: Vec<(String, Range<usize>)>,
    ) -> Self {
        Self { path, map, values, pairs }
    }

    /// Every key and the bytes of it and its value, in the file's order.
    pub(super) fn raw_pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.pairs.iter().map(|(key, range)| (key.as_str(), &self.map[range.clone()]))
    }

    /// Keys that begin with `prefix` and hold strings in UTF-8, in the file's order.
    pub(super) fn strings_under(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        let keys = self.pairs.iter().map(|(key, _)| key.as_str());
        keys.filter(move |key| key.starts_with(prefix))
            .filter_map(|key| Some((key, self.string(key).ok()??)))
    }

    /// The file that the metadata are from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The untyped value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// `key`'s value as a person would read it: strings quoted and cut, arrays as their type and length.
    pub fn describe(&self, key: &str) -> Option<String> {
        self.get(key).map(|value| value.describe(&self.map))
    }

    /// An integer that fits `T`, whatever integer type the file stores it in.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the key holds something else.
    pub fn integer<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>, ModelError> {
        let wide = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(v)) => i128::from(*v),
            Some(Value::Signed(v)) => i128::from(*v),
            Some(other) => return Err(self.wrong(key, other, "an integer")),
        };
        T::try_from(wide).map(Some).map_err(|_| {
            let bits = 8 * size_of::<T>();
            self.wrong(key, &self.values[key], format!("an integer of {bits} bits"))
        })
    }

    /// A number, integer or not.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the key holds something else, or a number that is not finite.
    pub fn number(&self, key: &str) -> Result<Option<f32>, ModelError> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(v)) => *v as f32,
            Some(Value::Signed(v)) => *v as f32,
            Some(Value::Float(v)) => *v as f32,
            Some(other) => return Err(self.wrong(key, other, "a number")),
        };
        if !value.is_finite() {
            return Err(self.wrong(key, &self.values[key], "a finite number"));
        }
        Ok(Some(value))
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the key holds something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(self.wrong(key, other, "a truth value")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the key holds something else, or the bytes are not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value @ Value::String(range)) => std::str::from_utf8(&self.map[range.clone()])
                .map(Some)
                .map_err(|_| self.wrong(key, value, "a string in UTF-8")),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// An array of strings, not yet checked to be UTF-8.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the key holds something else.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { element: ValueType::String, len, data }) => {
                Ok(Some(Strings { rest: &self.map[data.clone()], left: *len }))
            }
            Some(other) => Err(self.wrong(key, other, "an array of strings")),
        }
    }

    /// An array of numbers, each widened to `f64` (exact for every type but the 64-bit integers).
    ///
    /// # Errors
    /// [`ModelError::Invalid`] when the key holds something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Numbers<'_>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { element, data, .. }) if element.fixed_size().is_some() => {
                Ok(Some(Numbers { rest: &self.map[data.clone()], element: *element }))
            }
            Some(other) => Err(self.wrong(key, other, "an array of numbers")),
        }
    }

    /// The error for a `key` that must be there and is not.
    pub(crate) fn missing(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::missing(&self.path, At::key(key), expected)
    }

    /// The error for a `key` whose value is of the wrong type or out of range.
    pub(crate) fn unexpected(&self, key: &str, expected: impl Into<String>) -> ModelError {
        match self.get(key) {
            Some(value) => self.wrong(key, value, expected),
            None => self.missing(key, expected),
        }
    }

    /// The error for a `key` that asks for something that is not done here.
    pub(crate) fn unsupported(&self, key: &str, expected: impl Into<String>) -> ModelError {
        let found = self.describe(key).unwrap_or_else(|| "nothing".into());
        ModelError::unsupported(&self.path, At::key(key), found, expected)
    }

    fn wrong(&self, key: &str, value: &Value, expected: impl Into<String>) -> ModelError {
        ModelError::invalid(&self.path, At::key(key), value.describe(&self.map), expected)
    }

    /// The error for element `index` of the array under `key`.
    pub(crate) fn bad_element(
        &self,
        key: &str,
        index: usize,
        found: &[u8],
        expected: impl Into<String>,
    ) -> ModelError {
        ModelError::invalid(
            &self.path,
            At::Key(format!("{}[{index}]", quote(key))),
            quote_bytes(found),
            expected,
        )
    }
}

/// The strings of an array, as bytes.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        // The header's parser has walked the array, so neither split can fail; `?` keeps that free of panics.
        self.left = self.left.checked_sub(1)?;
        let (len, rest) = self.rest.split_first_chunk::<8>()?;
        let (string, rest) =
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.rest = rest;
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The numbers of an array.
#[derive(Debug, Clone)]
pub struct Numbers<'a> {
    rest: &'a [u8],
    element: ValueType,
}

impl Iterator for Numbers<'_> {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        let (value, rest) = self.rest.split_at_checked(self.element.fixed_size()?)?;
        let number = match scalar(self.element, value)? {
            Value::Unsigned(v) => v as f64,
            Value::Signed(v) => v as f64,
            Value::Float(v) => v,
            Value::Bool(v) => f64::from(u8::from(v)),
            Value::String(_) | Value::Array { .. } => return None,
        };
        self.rest = rest;
        Some(number)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.element.fixed_size().map_or(0, |size| self.rest.len() / size);
        (len, Some(len))
    }
}

impl ExactSizeIterator for Numbers<'_> {}

/// The value of a fixed-size type from exactly its bytes; `None` for a length that does not fit and for a
/// truth value that is neither 0 nor 1.
pub(super) fn scalar(value_type: ValueType, bytes: &[u8]) -> Option<Value> {
    macro_rules! read {
        ($type:ty) => {
            <$type>::from_le_bytes(bytes.try_into().ok()?)
        };
    }
    Some(match value_type {
        ValueType::U8 => Value::Unsigned(read!(u8).into()),
        ValueType::U16 => Value::Unsigned(read!(u16).into()),
        ValueType::U32 => Value::Unsigned(read!(u32).into()),
        ValueType::U64 => Value::Unsigned(read!(u64)),
        ValueType::I8 => Value::Signed(read!(i8).into()),
        ValueType::I16 => Value::Signed(read!(i16).into()),
        ValueType::I32 => Value::Signed(read!(i32).into()),
        ValueType::I64 => Value::Signed(read!(i64)),
        ValueType::F32 => Value::Float(read!(f32).into()),
        ValueType::F64 => Value::Float(read!(f64)),
        ValueType::Bool => Value::Bool(match read!(u8) {
            0 => false,
            1 => true,
            _ => return None,
        }),
        ValueType::String | ValueType::Array => return None,
    })
}
