//! Typed access to the fields of a JSON file, with errors that name file and field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{At, ModelError, quote};
use crate::mapped::read_text;

/// Longest configuration file. Real ones have a few kilobytes; vocabularies are read elsewhere.
const MAX_BYTES: u64 = 8 << 20;

/// A JSON file whose outermost value is an object.
#[derive(Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    object: Map<String, Value>,
}

impl JsonFile {
    /// Reads the file at `path`; `None` if there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, ModelError> {
        let text = match read_text(path, MAX_BYTES) {
            Ok(text) => text,
            Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Ok(Some(Self { path: path.to_owned(), object })),
            Ok(_) => {
                Err(ModelError::invalid(path, At::File, "another JSON value", "a JSON object"))
            }
            Err(e) => Err(ModelError::invalid(path, At::File, e.to_string(), "a JSON object")),
        }
    }

    /// Its fields.
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields { path: &self.path, prefix: String::new(), object: &self.object, defaults: &[] }
    }
}

/// The fields of an object in a JSON file. A field that is `null` counts as absent.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: String,
    object: &'a Map<String, Value>,
    defaults: &'a [(&'a str, f64)],
}

impl<'a> Fields<'a> {
    /// The same fields, numbers that are absent (not `null`) having the values of `defaults`.
    pub(crate) fn with_defaults(self, defaults: &'a [(&'a str, f64)]) -> Self {
        Self { defaults, ..self }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// Whether the field is there, be it `null`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn default(&self, name: &str) -> Option<f64> {
        let default = self.defaults.iter().find(|(field, _)| *field == name);
        default.map(|(_, value)| *value).filter(|_| !self.has(name))
    }

    /// A whole number that fits `T`.
    pub(crate) fn integer<T: TryFrom<u64>>(&self, name: &str) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(name) else {
            return Ok(self.default(name).and_then(|value| T::try_from(value as u64).ok()));
        };
        let integer = value.as_u64().and_then(|v| T::try_from(v).ok());
        integer.map(Some).ok_or_else(|| self.wrong(name, "a whole number that is not too large"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f32>, ModelError> {
        let Some(value) = self.value(name) else {
            return Ok(self.default(name).map(|value| value as f32));
        };
        let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(name, "a finite number"))
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, ModelError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => {
                value.as_bool().map(Some).ok_or_else(|| self.wrong(name, "true or false"))
            }
        }
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(name, "a string")),
        }
    }

    pub(crate) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ModelError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(name, "a list")),
        }
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ModelError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields {
                path: self.path,
                prefix: self.full_name(name) + ".",
                object,
                defaults: &[],
            })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// The fields of an object by name, for objects whose names are data.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.object.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub(crate) fn missing(&self, name: &str, expected: impl Into<String>) -> ModelError {
        ModelError::missing(self.path, At::field(self.full_name(name)), expected)
    }

    /// The error for a field of the wrong type or out of range.
    pub(crate) fn wrong(&self, name: &str, expected: impl Into<String>) -> ModelError {
        let at = At::field(self.full_name(name));
        ModelError::invalid(self.path, at, self.found(name), expected)
    }

    /// The error for a field that asks for something that is not done here.
    pub(crate) fn unsupported(&self, name: &str, expected: impl Into<String>) -> ModelError {
        let at = At::field(self.full_name(name));
        ModelError::unsupported(self.path, at, self.found(name), expected)
    }

    fn found(&self, name: &str) -> String {
        match self.value(name) {
            None => "nothing".into(),
            Some(Value::Array(list)) => format!("a list of {}", list.len()),
            Some(Value::Object(object)) => format!("an object of {} fields", object.len()),
            Some(value) => quote(&value.to_string()),
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}
