//! Number formats of quantised weights: the reference that every backend's kernels are tested
//! against.
//!
//! A [`Matrix`] is `[rows, cols]`, row = output feature, columns contiguous along `k`, its bytes
//! borrowed (from a mapped file, say). [`Matrix::decode_row`] gives its values as f32;
//! [`Matrix::affine_row`] the integers that integer kernels multiply; [`encode`] makes one from
//! f32.
//!
//! | format | name | bits | scale | zero point or minimum | module |
//! |---|---|---|---|---|---|
//! | f32, f16, bf16 | `f32` `f16` `bf16` | 32, 16 | – | – | [`Format`] |
//! | FP4 (E2M1) | `fp4-g32` `-g64` `-g128` | 4 | f16 per group | – | [`group`], [`fp4`] |
//! | MXFP4 | `mxfp4` | 4 | E8M0 per 32 | – | [`group`], [`e8m0`] |
//! | NVFP4 | `nvfp4` | 4 | E4M3 per 16, f32 per tensor | – | [`group`], [`fp8`] |
//! | INT4 symmetric | `int4-g32` … `int4-channel` | 4 | f16 per group or row | offset 8 | [`group`] |
//! | INT4 asymmetric | `int4-asym-g32` … `int4-asym-channel` | 4 | f16 per group or row | 4-bit zero point | [`group`] |
//! | INT3, INT2 | `int3-g32` … `int2-asym-g128` | 3, 2 | f16 per group | offset 4, 2, or zero point | [`group`] |
//! | INT8 | `int8-channel` `int8-block` | 8 | f32 per row or 128×128 tile | two's complement | [`group`] |
//! | FP8 (E4M3FN) | `fp8-channel` `fp8-block` | 8 | f32 per row or 128×128 tile | – | [`group`], [`fp8`] |
//! | GGUF legacy | `q4_0` `q4_1` `q5_0` `q5_1` `q8_0` | 4, 5, 8 | f16 per 32 | offset, or f16 minimum | [`ggml`] |
//! | GGUF K-quants | `q2_k` … `q6_k` | 2 … 6 | 4 to 8 bits per 16 or 32, f16 per 256 | as the scale | [`ggml`] |
//! | GGUF MXFP4 | `mxfp4_ggml` | 4 | E8M0 per 32 | – | [`ggml`] |
//!
//! [`layouts`] moves codes from and to the files of other projects (GPTQ, AWQ, compressed-tensors,
//! gpt-oss), [`pack`] packs codes into bits, and [`hadamard`] has the rotations that some
//! quantisers apply first.
//!
//! ```
//! use marlin_formats::{AffineRow, Format, encode};
//!
//! # fn main() -> Result<(), marlin_formats::FormatError> {
//! let (rows, cols) = (2, 128);
//! let weights: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.1).sin()).collect();
//! let matrix = encode("int4-g64".parse()?, rows, cols, &weights)?;
//! assert_eq!((matrix.data.len(), matrix.scales.len()), (128, 8));
//!
//! let mut values = vec![0.0; cols];
//! matrix.view().decode_row(1, &mut values);
//! assert!(weights[cols..].iter().zip(&values).all(|(w, v)| (w - v).abs() < 0.07));
//!
//! let mut row = AffineRow::default();
//! matrix.view().affine_row(1, &mut row);
//! assert_eq!(values[70], (f32::from(row.codes[70]) - 8.0) * row.scales[1]);
//! # Ok(())
//! # }
//! ```
//!
//! # What encoding does with difficult values
//!
//! Rounding is to nearest, ties to even, except in ggml's legacy formats and MXFP4 block, which
//! follow ggml to the bit.
//!
//! | format | NaN | ±∞ | too large | too small |
//! |---|---|---|---|---|
//! | f32, f16, bf16 | kept (quiet) | kept | ±∞, as IEEE 754 rounds | denormals kept |
//! | FP8 | E4M3 NaN | [`FormatError::NotFinite`] | cannot happen: the scale is f32 | rounds to 0 |
//! | every other | [`FormatError::NotFinite`] | [`FormatError::NotFinite`] | [`FormatError::ScaleOverflow`] | rounds to 0 |

pub mod affine;
pub mod e8m0;
mod error;
mod float;
mod format;
pub mod fp4;
pub mod fp8;
pub mod fragment;
pub mod ggml;
pub mod group;
pub mod hadamard;
pub mod layouts;
mod matrix;
mod name;
pub mod pack;
mod round;
mod strided;
pub mod tile;

pub use affine::{Affine, AffineRow, ScaleStorage, Values};
pub use error::{FormatError, Part};
pub use format::{Code, Format, GgmlType, Group, GroupFormat, ScaleType, Sizes};
pub use hadamard::Hadamard;
pub use matrix::{Matrix, OwnedMatrix, encode, encode_strided};
pub use strided::StridedView;
