//! Weights: first a note of where they are in the file, then matrices and vectors in device memory.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use marlin_backend::{BackendError, Weight, WeightSource, WeightStorage};
use marlin_formats::fragment::FragmentLayout;
use marlin_formats::{Format, Matrix};

use super::Shared;
use crate::Buffer;
use crate::ops::linear::FragmentWeights;

/// What was made, each with the numbers of the weights that it was made from.
type Kept<T> = Mutex<Vec<(Vec<u64>, Arc<T>)>>;

/// A placed weight. What it became depends on the programs that use it: queries, keys and values are one matrix,
/// gate and up another. The first weight of a group keeps it.
pub(super) struct GpuWeight {
    shared: Arc<Shared>,
    /// Tells it from every other weight of the process.
    pub(super) id: u64,
    pub(super) source: WeightSource,
    matrices: Kept<FragmentWeights>,
    vectors: Kept<Buffer<f32>>,
}

impl GpuWeight {
    /// Checks the bytes against the shape, and takes note of them.
    pub(super) fn new(shared: &Arc<Shared>, source: &WeightSource) -> Result<Self, BackendError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let weight = Self {
            shared: shared.clone(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            source: source.clone(),
            matrices: Mutex::default(),
            vectors: Mutex::default(),
        };
        match weight.source.packed_matrix() {
            Ok(Some(_)) => {}
            Ok(None) => drop(weight.matrix()?),
            Err(error) => return Err(weight.bad(error.to_string())),
        }
        Ok(weight)
    }

    /// This backend's view of a weight that it placed.
    pub(super) fn of<'a>(
        weight: &'a Weight,
        shared: &Arc<Shared>,
    ) -> Result<&'a Self, BackendError> {
        weight
            .as_any()
            .downcast_ref::<Self>()
            .filter(|own| Arc::ptr_eq(&own.shared, shared))
            .ok_or_else(|| {
                shared.unsupported(format!("`{}`, placed by another backend", weight.name()))
            })
    }

    /// The matrix in the file.
    pub(super) fn matrix(&self) -> Result<Matrix<'_>, BackendError> {
        self.source.matrix().map_err(|error| self.bad(error.to_string()))
    }

    /// How it lies in device memory by itself.
    pub(super) fn layout(&self) -> Result<FragmentLayout, BackendError> {
        let WeightSource { format, rows, cols, tensor_scale, .. } = self.source;
        FragmentLayout::new(format, rows, cols, tensor_scale).ok_or_else(|| {
            let name = &self.source.name;
            self.shared.unsupported(format!(
                "`{name}`: {format}, whose groups are not 16, 32 or a multiple of 64 columns"
            ))
        })
    }

    /// An error about this weight.
    pub(super) fn bad(&self, problem: String) -> BackendError {
        let WeightSource { name, format, rows, cols, .. } = &self.source;
        BackendError::Weight {
            name: name.clone(),
            rows: *rows,
            cols: *cols,
            format: *format,
            problem,
        }
    }

    /// The matrix made of the weights `ids`, of which this is the first.
    pub(super) fn placed_matrix(&self, ids: &[u64]) -> Option<Arc<FragmentWeights>> {
        let matrices = self.matrices.lock().unwrap_or_else(PoisonError::into_inner);
        matrices.iter().find(|(of, _)| of == ids).map(|(_, matrix)| matrix.clone())
    }

    pub(super) fn keep_matrix(&self, ids: Vec<u64>, matrix: Arc<FragmentWeights>) {
        self.matrices.lock().unwrap_or_else(PoisonError::into_inner).push((ids, matrix));
    }

    /// The vector made of the weights `ids`, of which this is the first.
    pub(super) fn placed_vector(&self, ids: &[u64]) -> Option<Arc<Buffer<f32>>> {
        let vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        vectors.iter().find(|(of, _)| of == ids).map(|(_, vector)| vector.clone())
    }

    pub(super) fn keep_vector(&self, ids: Vec<u64>, vector: Arc<Buffer<f32>>) {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner).push((ids, vector));
    }
}

impl WeightStorage for GpuWeight {
    fn name(&self) -> &str {
        &self.source.name
    }
    fn format(&self) -> Format {
        self.source.format
    }
    fn rows(&self) -> usize {
        self.source.rows
    }
    fn cols(&self) -> usize {
        self.source.cols
    }
    fn file_bytes(&self) -> u64 {
        self.source.bytes()
    }
    fn held_bytes(&self) -> u64 {
        let matrices = self.matrices.lock().unwrap_or_else(PoisonError::into_inner);
        let vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        let matrices: usize = matrices.iter().map(|(_, matrix)| matrix.bytes()).sum();
        let vectors: usize = vectors.iter().map(|(_, vector)| 4 * vector.len()).sum();
        (matrices + vectors) as u64
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
