//! Values and integers from packed groups.

use super::{INT8_SIGN, read_scale};
use crate::{AffineRow, Code, GroupFormat, Matrix, fp4, fp8, pack};

/// The grid row that holds the scales of a row: index of its first scale, and its packed zero
/// points.
fn grid_row<'a>(matrix: &Matrix<'a>, format: &GroupFormat, row: usize) -> (usize, usize, &'a [u8]) {
    let (_, grid_cols) = format.grid(matrix.rows, matrix.cols);
    let grid_row = row / format.group_rows();
    let zeros = if format.zero {
        let bytes = pack::packed_bytes(format.code.bits(), grid_cols);
        &matrix.zeros[grid_row * bytes..(grid_row + 1) * bytes]
    } else {
        &[]
    };
    (grid_row * grid_cols, grid_cols, zeros)
}

/// See [`Matrix::decode_row`].
pub(crate) fn decode_row(matrix: &Matrix<'_>, format: &GroupFormat, row: usize, out: &mut [f32]) {
    let cols = matrix.cols;
    let data = matrix.row_data(row);
    let bits = format.code.bits();
    let offset = f32::from(format.offset());
    match format.code {
        Code::Fp4 => pack::unpack_with(bits, data, cols, |i, code| {
            out[i] = fp4::E2M1[usize::from(code)];
        }),
        Code::Fp8 => pack::unpack_with(bits, data, cols, |i, code| out[i] = fp8::decode_e4m3(code)),
        _ if format.is_twos_complement() => {
            pack::unpack_with(bits, data, cols, |i, code| out[i] = f32::from(code as i8));
        }
        _ => pack::unpack_with(bits, data, cols, |i, code| {
            out[i] = f32::from(code) - offset;
        }),
    }
    let (first, _, zeros) = grid_row(matrix, format, row);
    for (g, out) in out.chunks_mut(format.group_cols(cols)).enumerate() {
        let scale = read_scale(format.scale, matrix.scales, first + g) * matrix.tensor_scale;
        let zero = if format.zero { f32::from(pack::get(bits, zeros, g)) } else { 0.0 };
        if format.zero {
            out.iter_mut().for_each(|x| *x = (*x - zero) * scale);
        } else {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// See [`Matrix::affine_row`]; `out` is empty.
pub(crate) fn affine_row(
    matrix: &Matrix<'_>,
    format: &GroupFormat,
    row: usize,
    out: &mut AffineRow,
) {
    let data = matrix.row_data(row);
    let bits = format.code.bits();
    out.codes.resize(matrix.cols, 0);
    pack::unpack(bits, data, &mut out.codes);
    if format.is_twos_complement() {
        out.codes.iter_mut().for_each(|code| *code ^= INT8_SIGN);
    }
    let (first, grid_cols, zeros) = grid_row(matrix, format, row);
    // E2M1's table is doubled; halving a scale is exact in f32 for every scale type.
    let factor = if format.code == Code::Fp4 { 0.5 } else { 1.0 };
    for g in 0..grid_cols {
        let scale = read_scale(format.scale, matrix.scales, first + g) * factor;
        out.scales.push(scale);
        if format.zero {
            out.mins.push(-scale * f32::from(pack::get(bits, zeros, g)));
        }
    }
}
