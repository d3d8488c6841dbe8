//! MXFP4 in safetensors: gpt-oss's `*_blocks` and `*_scales`, and ggml's block.
//!
//! gpt-oss stores u8 `[experts, rows, cols/32, 16]` blocks, low nibble first, and u8 `[experts,
//! rows, cols/32]` E8M0 scales (decoded by `convert_moe_packed_tensors` in Hugging Face
//! transformers). Per expert these are, byte for byte, data and scales of [`Format::MXFP4`], so
//! nothing is moved. compressed-tensors' `mxfp4-pack-quantized` is the same again.
//!
//! ggml's block ([`GgmlType::MxFp4`]) interleaves scale and codes and pairs columns `j` and `j +
//! 16` in a byte.

use std::borrow::Cow;

use super::{Imported, check_len, refuse};
use crate::{Format, FormatError, GgmlType, Matrix, OwnedMatrix};

const LAYOUT: &str = "MXFP4";

/// One expert's matrix, borrowed: `blocks` u8 `[rows, cols/32, 16]`, `scales` u8 `[rows, cols/32]`.
///
/// # Errors
/// `cols` is not a multiple of 32, or a tensor has another length than the shape calls for.
pub fn unpack<'a>(
    rows: usize,
    cols: usize,
    blocks: &'a [u8],
    scales: &'a [u8],
) -> Result<Imported<'a>, FormatError> {
    check_len(LAYOUT, "blocks", blocks.len(), &[rows, cols / 32, 16], 1)?;
    check_len(LAYOUT, "scales", scales.len(), &[rows, cols / 32], 1)?;
    Imported {
        format: Format::MXFP4,
        rows,
        cols,
        data: blocks.into(),
        scales: scales.into(),
        zeros: Cow::Borrowed(&[]),
        tensor_scale: 1.0,
        column_order: None,
    }
    .checked()
}

/// From ggml's block to [`Format::MXFP4`].
///
/// # Errors
/// The matrix is not of [`GgmlType::MxFp4`].
pub fn from_ggml(matrix: &Matrix<'_>) -> Result<OwnedMatrix, FormatError> {
    if matrix.format != Format::Ggml(GgmlType::MxFp4) {
        return refuse(LAYOUT, format!("expected mxfp4_ggml, found {}", matrix.format));
    }
    let mut out = OwnedMatrix::zeroed(Format::MXFP4, matrix.rows, matrix.cols)?;
    let blocks = matrix.data.as_chunks::<17>().0;
    for ((block, codes), scale) in
        blocks.iter().zip(out.data.as_chunks_mut::<16>().0).zip(&mut out.scales)
    {
        *scale = block[0];
        let qs = &block[1..];
        for j in 0..8 {
            let (even, odd) = (qs[2 * j], qs[2 * j + 1]);
            codes[j] = even & 15 | odd << 4;
            codes[j + 8] = even >> 4 | odd & 0xf0;
        }
    }
    Ok(out)
}

/// From [`Format::MXFP4`] to ggml's block.
///
/// # Errors
/// The matrix is not of [`Format::MXFP4`], or a scale is NaN, which ggml does not know.
pub fn to_ggml(matrix: &Matrix<'_>) -> Result<OwnedMatrix, FormatError> {
    if matrix.format != Format::MXFP4 {
        return refuse(LAYOUT, format!("expected mxfp4, found {}", matrix.format));
    }
    if let Some(i) = matrix.scales.iter().position(|s| *s == 0xff) {
        let (row, block) = (i / (matrix.cols / 32), i % (matrix.cols / 32));
        return refuse(
            LAYOUT,
            format!("the scale of row {row}, block {block} is NaN, which ggml's block cannot hold"),
        );
    }
    let format = Format::Ggml(GgmlType::MxFp4);
    let mut out = OwnedMatrix::zeroed(format, matrix.rows, matrix.cols)?;
    let blocks = out.data.as_chunks_mut::<17>().0;
    for ((block, codes), scale) in
        blocks.iter_mut().zip(matrix.data.as_chunks::<16>().0).zip(matrix.scales)
    {
        block[0] = *scale;
        for j in 0..8 {
            let (low, high) = (codes[j], codes[j + 8]);
            block[1 + 2 * j] = low & 15 | high << 4;
            block[2 + 2 * j] = low >> 4 | high & 0xf0;
        }
    }
    Ok(out)
}
