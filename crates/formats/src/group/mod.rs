//! Group formats: codes, scales and zero points, each in a buffer of its own.
//!
//! For a matrix of `rows × cols` elements with a grid of `grid_rows × grid_cols` groups
//! ([`GroupFormat::grid`]; for groups of `n` columns `rows × cols/n`, for channels `rows × 1`, for
//! tiles both divided and rounded up):
//!
//! - **data**: `rows` strings of `cols` codes, each string packed as [`crate::pack`] says and padded
//!   to whole bytes: row-major, the first code in the lowest bits. 8-bit symmetric codes are two's
//!   complement, FP8 codes E4M3FN; narrower symmetric integers are offset-binary (4-bit: `code − 8`).
//! - **scales**: `grid_rows × grid_cols` little-endian scales, row-major.
//! - **zeros** (asymmetric only): `grid_rows` strings of `grid_cols` zero points of the code's width,
//!   packed and padded as the data's rows are.
//!
//! For MXFP4 the data and scales are byte for byte the `blocks` and `scales` of gpt-oss's
//! safetensors; for NVFP4 those of compressed-tensors' `nvfp4-pack-quantized`; for symmetric 4-bit
//! groups the data is its `pack-quantized`.
//!
//! # Scales
//!
//! With `amax` the largest magnitude of a group:
//!
//! | format | scale | source |
//! |---|---|---|
//! | symmetric integers of b bits | `amax / ((2^b − 1)/2)` | GPTQ, compressed-tensors |
//! | asymmetric integers | `(hi − lo) / (2^b − 1)` with 0 in the range; `zero = round(−lo / scale)` | GPTQ, AWQ |
//! | FP4 with f16 scales | `amax / 6` | |
//! | MXFP4 | `2^(⌊log2 amax⌋ − 2)`; what exceeds 6 then saturates | OCP Microscaling 1.0, §6.3 |
//! | NVFP4 | per tensor `amax_tensor / (6 · 448)`; per group `E4M3(amax / 6 / tensor_scale)` | NVIDIA NVFP4 |
//! | FP8 | `amax / 448` | |
//!
//! Scales are rounded to their type first and codes chosen for the rounded scale, so the error
//! is at most
//!
//! - half a scale for symmetric integers, and what rounding the scale takes off the end of the
//!   range, `amax · 2^−11` for f16;
//! - one scale for asymmetric integers, where zero point and code may both be half a step off;
//! - half the gap between the neighbouring values for floats, and a quarter of the value where the
//!   scale's rounding makes it saturate (MXFP4, NVFP4).

mod decode;
mod encode;

pub(crate) use decode::{affine_row, decode_row};
pub(crate) use encode::encode;

use half::f16;

use crate::{GroupFormat, ScaleType, e8m0, fp8};

/// Scale `index` of a buffer of scales.
///
/// # Panics
/// The buffer is too short.
#[inline]
pub fn read_scale(scale: ScaleType, scales: &[u8], index: usize) -> f32 {
    match scale {
        ScaleType::F16 => f16::from_le_bytes([scales[2 * index], scales[2 * index + 1]]).to_f32(),
        ScaleType::F32 => {
            let at = 4 * index;
            f32::from_le_bytes([scales[at], scales[at + 1], scales[at + 2], scales[at + 3]])
        }
        ScaleType::E8M0 => e8m0::decode_e8m0(scales[index]),
        ScaleType::E4M3 => fp8::decode_e4m3(scales[index]),
    }
}

/// The two's complement of an 8-bit symmetric code against its offset-binary form: the same flip
/// both ways.
pub(crate) const INT8_SIGN: u8 = 0x80;

impl GroupFormat {
    /// Codes are stored as two's complement rather than offset-binary.
    pub(crate) const fn is_twos_complement(&self) -> bool {
        matches!(self.code, crate::Code::Int8) && !self.zero
    }
}
