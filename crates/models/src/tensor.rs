//! Tensors as they lie in a model's files, under one naming whatever the files' own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_backend::{FragmentBytes, HostBytes, WeightSource};
use marlin_formats::Format;

use crate::error::{At, ModelError};

/// A tensor in a mapped file. Holding it keeps the file mapped.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// The canonical name: GGUF's, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its name in the file.
    pub name_in_file: String,
    /// Sizes, the contiguous dimension last; a matrix is `[rows, cols]`, row = output feature.
    pub shape: Vec<usize>,
    /// Number format of the elements.
    pub format: Format,
    /// The elements, row after row; none where the matrix is packed.
    pub data: HostBytes,
    /// A matrix in the order that GPU kernels read, in a packed file.
    pub fragments: Option<FragmentBytes>,
    /// The file that it is in.
    pub file: Arc<Path>,
}

impl StoredTensor {
    /// Elements of the contiguous dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All elements / [`cols`](Self::cols). A vector has one row.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rest)| rest.iter().product())
    }

    /// The tensor as a backend takes it: bytes shared, not copied.
    pub fn weight(&self) -> WeightSource {
        let (format, rows, cols) = (self.format, self.rows(), self.cols());
        match &self.fragments {
            Some(packed) => WeightSource::packed(&self.name, format, rows, cols, packed.clone()),
            None => WeightSource::plain(&self.name, format, rows, cols, self.data.clone()),
        }
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64 + self.fragments.as_ref().map_or(0, |packed| packed.len() as u64)
    }
}

/// All tensors of a model, by canonical name.
#[derive(Debug)]
pub struct TensorTable {
    model: PathBuf,
    tensors: Vec<StoredTensor>,
    by_name: HashMap<String, usize>,
}

impl TensorTable {
    pub(crate) fn new(model: &Path) -> Self {
        Self { model: model.to_owned(), tensors: Vec::new(), by_name: HashMap::new() }
    }

    pub(crate) fn insert(&mut self, tensor: StoredTensor) -> Result<(), ModelError> {
        if self.by_name.contains_key(&tensor.name) {
            let at = At::tensor(&tensor.name);
            return Err(ModelError::invalid(&tensor.file, at, "it twice", "every tensor once"));
        }
        self.by_name.insert(tensor.name.clone(), self.tensors.len());
        self.tensors.push(tensor);
        Ok(())
    }

    /// The tensors in the order of the files.
    pub fn iter(&self) -> std::slice::Iter<'_, StoredTensor> {
        self.tensors.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none (a GGUF file may hold just a vocabulary).
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor called `name`, if the model has it.
    pub fn find(&self, name: &str) -> Option<&StoredTensor> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`ModelError::Missing`] when the model does not have it.
    pub fn get(&self, name: &str) -> Result<&StoredTensor, ModelError> {
        self.find(name)
            .ok_or_else(|| ModelError::missing(&self.model, At::tensor(name), "a weight"))
    }

    /// The tensor called `name`, which must have `shape`.
    ///
    /// # Errors
    /// [`ModelError::Missing`], or [`ModelError::Invalid`] when the shape is another.
    pub fn with_shape(&self, name: &str, shape: &[usize]) -> Result<&StoredTensor, ModelError> {
        let tensor = self.get(name)?;
        if tensor.shape != shape {
            return Err(ModelError::invalid(
                &tensor.file,
                At::tensor(name),
                format!("shape {:?}", tensor.shape),
                format!("{shape:?}"),
            ));
        }
        Ok(tensor)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(StoredTensor::bytes).sum()
    }
}

/// Refuses data ranges `(name, start, end)` of one file that overlap.
pub(crate) fn check_overlap(
    path: &Path,
    ranges: &mut [(&str, u64, u64)],
) -> Result<(), ModelError> {
    ranges.sort_unstable_by_key(|&(_, start, end)| (start, end));
    for pair in ranges.windows(2) {
        let [(before, _, end), (name, start, _)] = [pair[0], pair[1]];
        if start < end {
            return Err(ModelError::invalid(
                path,
                At::tensor(name),
                format!(
                    "data at byte {start}, inside those of tensor {}",
                    crate::error::quote(before)
                ),
                format!("byte {end} or later"),
            ));
        }
    }
    Ok(())
}
