//! Files whose matrices lie in the order that GPU kernels read, so that a device can use the mapped file as it is.
//! `docs/packed-files.md` specifies them.
//!
//! The container is that of the model's original file. A matrix is up to four tensors of bytes, its *sections*, and a
//! metadata key that says what it was; vectors are f32; all other tensors and the metadata are as they were.

mod plan;
mod write;

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use marlin_backend::{FragmentBytes, HostBytes, WeightSource};
use marlin_formats::Format;

use crate::error::{At, ModelError, quote};
use crate::tensor::StoredTensor;

pub(crate) use plan::{Contents, Plan};
pub(crate) use write::{Layout, whole_pages};
pub use write::{PackOptions, PackProgress, PackSummary, pack};

/// The metadata key that says in which layout matrices are.
pub(crate) const LAYOUT_KEY: &str = "marlin.layout";
/// The layout that there is: `marlin_formats::fragment`.
pub(crate) const LAYOUT: &str = "fragment";
/// The metadata key of the layout's version.
pub(crate) const VERSION_KEY: &str = "marlin.layout.version";
/// The version that is written, and the newest that is read.
pub(crate) const VERSION: u64 = 1;
/// Before a matrix's name in the metadata key that says what it was.
pub(crate) const MATRIX_PREFIX: &str = "marlin.fragment.";
/// After a matrix's name in those of its sections.
pub(crate) const SECTIONS: [&str; 4] = ["codes", "scales", "mins", "supers"];
/// The tensor of bytes that fills a safetensors file's last page: that format allows no bytes that belong to none.
pub(crate) const PADDING: &str = "marlin.padding";
/// The length of a file is a multiple of it: the largest page of the systems whose GPUs share the host's memory.
pub(crate) const FILE_ALIGNMENT: u64 = 16384;

/// What a matrix was before it was packed, as its metadata key says it: `q4_0 576x1536`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MatrixShape {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl std::fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}x{}", self.format, self.rows, self.cols)
    }
}

impl FromStr for MatrixShape {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (format, shape) = text.split_once(' ').ok_or(())?;
        let (rows, cols) = shape.split_once('x').ok_or(())?;
        let size = |text: &str| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|&size: &usize| size > 0 && digits).ok_or(())
        };
        let format = format.parse().map_err(|_| ())?;
        Ok(Self { format, rows: size(rows)?, cols: size(cols)? })
    }
}

/// What a container's metadata say of its matrices, and the byte tensors that were found in it.
#[derive(Debug, Default)]
pub(crate) struct PackedTensors {
    /// By name, in the file's order.
    matrices: Vec<(String, MatrixShape)>,
    sections: HashMap<String, HostBytes>,
}

impl PackedTensors {
    /// Looks at the metadata of a file: `keys` gives the strings of keys that begin with `marlin.`. `None` if the file
    /// is not packed.
    pub(crate) fn of<'a>(
        path: &Path,
        version: Option<u64>,
        keys: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Option<Self>, ModelError> {
        let mut packed = Self::default();
        let mut layout = None;
        for (key, text) in keys {
            if key == LAYOUT_KEY {
                layout = Some(text);
            } else if let Some(name) = key.strip_prefix(MATRIX_PREFIX) {
                let shape = text.parse().map_err(|()| {
                    let expected = "a number format and sizes, such as `q4_0 576x1536`";
                    ModelError::invalid(path, At::key(key), quote(text), expected)
                })?;
                packed.matrices.push((name.to_owned(), shape));
            }
        }
        let Some(layout) = layout else { return Ok(None) };
        if layout != LAYOUT {
            let expected = format!("the layout `{LAYOUT}`");
            return Err(ModelError::unsupported(
                path,
                At::key(LAYOUT_KEY),
                quote(layout),
                expected,
            ));
        }
        match version {
            None => {
                let expected = "the version of the layout";
                Err(ModelError::missing(path, At::key(VERSION_KEY), expected))
            }
            Some(VERSION) => Ok(Some(packed)),
            Some(version) => {
                let expected = format!(
                    "version {VERSION}: update this program, or pack the original model again"
                );
                let found = format!("version {version}");
                Err(ModelError::unsupported(path, At::key(VERSION_KEY), found, expected))
            }
        }
    }

    /// Takes note of a tensor of bytes.
    pub(crate) fn insert(
        &mut self,
        path: &Path,
        name: &str,
        bytes: HostBytes,
    ) -> Result<(), ModelError> {
        match self.sections.insert(name.to_owned(), bytes) {
            None => Ok(()),
            Some(_) => {
                Err(ModelError::invalid(path, At::tensor(name), "it twice", "every tensor once"))
            }
        }
    }

    /// The matrices, each put together from its sections, which must be of the size that shape and format make.
    pub(crate) fn assemble(mut self, file: &Arc<Path>) -> Result<Vec<StoredTensor>, ModelError> {
        // Whatever order the metadata came in, tables of tensors are the same in every run.
        let place = |name: &str, sections: &HashMap<String, HostBytes>| {
            let codes = sections.get(&format!("{name}.{}", SECTIONS[0]));
            codes.map_or(0, |bytes| bytes.range().start)
        };
        self.matrices.sort_by_cached_key(|(name, _)| (place(name, &self.sections), name.clone()));
        let mut tensors = Vec::with_capacity(self.matrices.len());
        for (name, MatrixShape { format, rows, cols }) in std::mem::take(&mut self.matrices) {
            let mut section = |which: &str| {
                self.sections.remove(&format!("{name}.{which}")).unwrap_or_else(HostBytes::empty)
            };
            let [codes, scales, mins, supers] = SECTIONS.map(&mut section);
            let fragments = FragmentBytes { codes, scales, mins, supers };
            let source = WeightSource::packed(&*name, format, rows, cols, fragments.clone());
            source.packed_matrix().map_err(|error| {
                let expected = "sections that fit the matrix (is the file truncated?)";
                ModelError::invalid(file, At::tensor(&name), quote(&error.to_string()), expected)
            })?;
            tensors.push(StoredTensor {
                name_in_file: name.clone(),
                name,
                shape: vec![rows, cols],
                format,
                data: HostBytes::empty(),
                fragments: Some(fragments),
                file: file.clone(),
            });
        }
        match self.sections.keys().min() {
            None => Ok(tensors),
            Some(name) => {
                let expected = format!("only sections of matrices with a key `{MATRIX_PREFIX}…`");
                Err(ModelError::invalid(file, At::tensor(name), "bytes", expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_described_by_format_and_sizes() {
        let text = "q4_k 576x1536";
        let shape: MatrixShape = text.parse().unwrap();
        assert_eq!((shape.rows, shape.cols), (576, 1536));
        assert_eq!(shape.to_string(), text);
        for wrong in
            ["", "q4_k", "q4_k 576", "q4_k 0x4", "q4_k 4x-4", "q4_k +4x4", "x 4x4", "q4_k 4x4 1"]
        {
            assert_eq!(wrong.parse::<MatrixShape>(), Err(()), "{wrong}");
        }
    }
}
