//! Matrices in device memory, in the order the kernels read them.

use marlin_formats::Matrix;
use marlin_formats::fragment::{
    FragmentCode, FragmentLayout, FragmentMatrix, FragmentMin, FragmentScale,
};

use crate::{Buffer, Device, GpuError};

/// A matrix in device memory, in the fragment layout; or two of the same shape, gate and up, one
/// after the other.
#[derive(Clone, Debug)]
pub struct FragmentWeights {
    pub(super) layout: FragmentLayout,
    pub(super) parts: usize,
    pub(crate) codes: Buffer<u32>,
    pub(crate) scales: Option<Buffer<u8>>,
    pub(crate) mins: Option<Buffer<u8>>,
    pub(crate) supers: Option<Buffer<half::f16>>,
}

impl FragmentWeights {
    /// Packs one matrix, or gate and up, and uploads it.
    ///
    /// # Errors
    /// A format without a fragment layout, matrices that differ in shape or format, or the device failed.
    #[track_caller]
    pub fn upload(
        device: &dyn Device,
        label: &str,
        matrices: &[Matrix<'_>],
    ) -> Result<Self, GpuError> {
        let refuse = |reason: String| GpuError::Launch { kernel: label.to_owned(), reason };
        let first = matrices.first().ok_or_else(|| refuse("no matrix".to_owned()))?;
        let layout = FragmentLayout::new(first.format, first.rows, first.cols, first.tensor_scale)
            .ok_or_else(|| {
                refuse(format!(
                    "{} has no fragment layout: its groups are not 16, 32 or a multiple of 64 \
                         columns",
                    first.format
                ))
            })?;
        let mut all = FragmentMatrix::default();
        for matrix in matrices {
            let packed = layout.pack(matrix).map_err(|e| refuse(e.to_string()))?;
            all.codes.extend(packed.codes);
            all.scales.extend(packed.scales);
            all.mins.extend(packed.mins);
            all.supers.extend(packed.supers);
        }
        Self::from_packed(device, label, layout, matrices.len(), &all)
    }

    /// Uploads `parts` matrices of `layout` that are packed already, one after the other.
    ///
    /// # Errors
    /// Buffers of another size than the layout's, or the device failed.
    #[track_caller]
    pub fn from_packed(
        device: &dyn Device,
        label: &str,
        layout: FragmentLayout,
        parts: usize,
        packed: &FragmentMatrix,
    ) -> Result<Self, GpuError> {
        let lengths =
            [packed.codes.len(), packed.scales.len(), packed.mins.len(), packed.supers.len()];
        let expected = layout.sizes().map(|bytes| bytes * parts);
        if lengths != expected {
            return Err(GpuError::Launch {
                kernel: label.to_owned(),
                reason: format!("buffers of {lengths:?} bytes, expected {expected:?}"),
            });
        }
        let bytes = |part: &str, b: &[u8]| match b.is_empty() {
            true => Ok(None),
            false => device.upload_new(&format!("{label} {part}"), b).map(Some),
        };
        Ok(Self {
            layout,
            parts,
            codes: device.upload_bytes(&format!("{label} codes"), &packed.codes)?,
            scales: bytes("scales", &packed.scales)?,
            mins: bytes("minimums", &packed.mins)?,
            supers: match packed.supers.is_empty() {
                true => None,
                false => {
                    Some(device.upload_bytes(&format!("{label} super-blocks"), &packed.supers)?)
                }
            },
        })
    }

    /// Matrices whose parts are in device memory already: codes, scales, minimums and super-blocks of
    /// [`FragmentLayout::sizes`] bytes, `parts` times.
    pub(crate) fn from_buffers(
        layout: FragmentLayout,
        parts: usize,
        codes: Buffer<u32>,
        [scales, mins]: [Option<Buffer<u8>>; 2],
        supers: Option<Buffer<half::f16>>,
    ) -> Self {
        Self { layout, parts, codes, scales, mins, supers }
    }

    /// The layout of one part.
    pub fn layout(&self) -> &FragmentLayout {
        &self.layout
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.layout.bytes() * self.parts
    }

    /// Whether units of 128 columns have one scale.
    pub(crate) fn allows_wide(&self) -> bool {
        self.layout.blocks().is_multiple_of(2) && self.group_constant().is_multiple_of(128)
    }

    /// Whether scales can multiply the weights in f16.
    pub(crate) fn allows_prescaled(&self) -> bool {
        self.layout.scale == FragmentScale::F16 && self.layout.min == FragmentMin::None
    }

    /// Whether units of 128 columns can wait in threadgroup memory: codes of 4 bits, and every unit whole.
    pub(crate) fn allows_ring(&self) -> bool {
        matches!(self.layout.code, FragmentCode::U4 | FragmentCode::Fp4)
            && self.allows_prescaled()
            && self.allows_wide()
            && self.layout.cols.is_multiple_of(128)
    }

    /// Whether weights with their scales can be f16, as `gemm_batch` needs them.
    pub fn allows_batched(&self) -> bool {
        allows_batched(&self.layout)
    }

    pub(super) fn group_constant(&self) -> u32 {
        if self.layout.group == self.layout.padded_cols() { 0 } else { self.layout.group as u32 }
    }
}

/// Whether weights of `layout` with their scales can be f16.
pub(crate) fn allows_batched(layout: &FragmentLayout) -> bool {
    use FragmentScale::{E4M3, F16, None, SuperBlock};
    matches!(layout.scale, None | F16 | E4M3 | SuperBlock)
        && !matches!(layout.min, FragmentMin::F32)
}
