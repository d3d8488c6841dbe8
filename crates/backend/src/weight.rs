//! Weights: as they come from a file, and as a backend holds them.

use std::any::Any;
use std::sync::Arc;

use marlin_formats::{Format, FormatError, Matrix};

use crate::HostBytes;

/// A matrix `[rows, cols]` (row = output feature) as it lies in a file.
///
/// Vectors (norm weights, biases) have one row.
#[derive(Clone, Debug)]
pub struct WeightSource {
    /// The tensor's name in the file, for errors and the ledger.
    pub name: String,
    /// Its number format.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Codes, blocks or floats, row after row.
    pub data: HostBytes,
    /// Scales, for formats that keep them apart; otherwise empty.
    pub scales: HostBytes,
    /// Zero points, for asymmetric formats; otherwise empty.
    pub zeros: HostBytes,
    /// The factor of the whole tensor; 1 for formats without one.
    pub tensor_scale: f32,
}

impl WeightSource {
    /// A matrix of a format that keeps everything in one run of bytes (GGUF types, floats).
    pub fn plain(
        name: impl Into<String>,
        format: Format,
        rows: usize,
        cols: usize,
        data: HostBytes,
    ) -> Self {
        Self {
            name: name.into(),
            format,
            rows,
            cols,
            data,
            scales: HostBytes::empty(),
            zeros: HostBytes::empty(),
            tensor_scale: 1.0,
        }
    }

    /// The matrix as `formats` sees it.
    ///
    /// # Errors
    /// If the number of bytes does not fit the shape.
    pub fn matrix(&self) -> Result<Matrix<'_>, FormatError> {
        Matrix::new(
            self.format,
            self.rows,
            self.cols,
            &self.data,
            &self.scales,
            &self.zeros,
            self.tensor_scale,
        )
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        (self.data.len() + self.scales.len() + self.zeros.len()) as u64
    }
}

/// A weight where a backend put it. Only that backend knows more.
pub trait WeightStorage: Any + Send + Sync {
    /// The tensor's name in the file.
    fn name(&self) -> &str;
    /// The format of the file.
    fn format(&self) -> Format;
    /// Output features.
    fn rows(&self) -> usize;
    /// Input features.
    fn cols(&self) -> usize;
    /// Bytes that a product with one vector must read, in the file's format: the floor's
    /// numerator, which repacking does not change.
    fn file_bytes(&self) -> u64;
    /// Bytes that the backend holds for it.
    fn held_bytes(&self) -> u64;
    /// For the backend's downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A placed weight, shared by the programs that use it.
pub type Weight = Arc<dyn WeightStorage>;
