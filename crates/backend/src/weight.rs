//! Weights: as they come from a file, and as a backend holds them.

use std::any::Any;
use std::sync::Arc;

use marlin_formats::fragment::{FragmentLayout, Fragments};
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
    /// The matrix in the order that GPU kernels read, where that is how the file has it; `data`, `scales` and `zeros`
    /// are empty then.
    pub fragments: Option<FragmentBytes>,
}

/// A matrix in the fragment layout ([`marlin_formats::fragment`]) as it lies in a file. Sections that its format does
/// not have are empty.
#[derive(Clone, Debug)]
pub struct FragmentBytes {
    /// The codes.
    pub codes: HostBytes,
    /// The scales.
    pub scales: HostBytes,
    /// The minimums.
    pub mins: HostBytes,
    /// The super-blocks' scales and minimums.
    pub supers: HostBytes,
}

impl FragmentBytes {
    /// Codes, scales, minimums, super-blocks.
    pub fn sections(&self) -> [&HostBytes; 4] {
        [&self.codes, &self.scales, &self.mins, &self.supers]
    }

    /// Bytes of all sections.
    pub fn len(&self) -> usize {
        self.sections().iter().map(|section| section.len()).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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
            fragments: None,
        }
    }

    /// A matrix that is in the fragment layout already.
    pub fn packed(
        name: impl Into<String>,
        format: Format,
        rows: usize,
        cols: usize,
        fragments: FragmentBytes,
    ) -> Self {
        let source = Self::plain(name, format, rows, cols, HostBytes::empty());
        Self { fragments: Some(fragments), ..source }
    }

    /// How the matrix lies, or would lie, in the fragment layout.
    ///
    /// # Errors
    /// A shape that the format does not allow, or a format without that layout.
    pub fn fragment_layout(&self) -> Result<FragmentLayout, FormatError> {
        FragmentLayout::checked(self.format, self.rows, self.cols, self.tensor_scale)
    }

    /// The matrix in the fragment layout, if that is how the file has it.
    ///
    /// # Errors
    /// If the number of bytes does not fit the shape.
    pub fn packed_matrix(&self) -> Result<Option<Fragments<'_>>, FormatError> {
        let Self { format, rows, cols, tensor_scale, .. } = *self;
        let Some(fragments) = &self.fragments else { return Ok(None) };
        let sections = fragments.sections().map(|section| &section[..]);
        Fragments::new(format, rows, cols, tensor_scale, sections).map(Some)
    }

    /// All values, row-major, however the file has them.
    ///
    /// # Errors
    /// If the number of bytes does not fit the shape.
    pub fn decode(&self) -> Result<Vec<f32>, FormatError> {
        Ok(match self.packed_matrix()? {
            Some(fragments) => fragments.decode(),
            None => self.matrix()?.decode(),
        })
    }

    /// The matrix as `formats` sees it.
    ///
    /// # Errors
    /// If the number of bytes does not fit the shape, or the file has the matrix in the fragment layout.
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
        let packed = self.fragments.as_ref().map_or(0, FragmentBytes::len);
        (self.data.len() + self.scales.len() + self.zeros.len() + packed) as u64
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

/// A weight that stays in its file: for forward passes that are recorded to be looked at, on no device.
impl WeightStorage for WeightSource {
    fn name(&self) -> &str {
        &self.name
    }
    fn format(&self) -> Format {
        self.format
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn file_bytes(&self) -> u64 {
        self.bytes()
    }
    fn held_bytes(&self) -> u64 {
        0
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A placed weight, shared by the programs that use it.
pub type Weight = Arc<dyn WeightStorage>;
