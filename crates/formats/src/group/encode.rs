//! Packed groups from values: round to nearest, see [`super`] for the scales.

use half::f16;

use crate::{
    Code, Format, FormatError, GroupFormat, OwnedMatrix, ScaleType, StridedView, e8m0, fp4, fp8,
    pack, round::nearest,
};

/// Scale and zero point of one group, as they will be read back.
#[derive(Clone, Copy)]
struct Params {
    scale: f32,
    zero: u8,
}

/// Largest magnitude, range and where they are, over the part of one group seen so far.
#[derive(Clone, Copy)]
struct Extent {
    lo: f32,
    hi: f32,
    largest: f32,
    at: (usize, usize),
}

impl Extent {
    /// Nothing seen: the range always contains zero.
    const EMPTY: Extent = Extent { lo: 0.0, hi: 0.0, largest: 0.0, at: (0, 0) };

    fn add(&mut self, x: f32, row: usize, col: usize) {
        // Comparisons with NaN are false, so NaN (only let through for FP8) counts for nothing.
        if x < self.lo {
            self.lo = x;
        }
        if x > self.hi {
            self.hi = x;
        }
        if x.abs() > self.largest.abs() {
            self.largest = x;
            self.at = (row, col);
        }
    }
}

/// Fills `out`, zeroed and of the right size, with a non-empty `src`.
pub(crate) fn encode(
    format: &GroupFormat,
    src: &StridedView<'_, f32>,
    out: &mut OwnedMatrix,
) -> Result<(), FormatError> {
    let (rows, cols) = (src.rows(), src.cols());
    let (_, grid_cols) = format.grid(rows, cols);
    let group_cols = format.group_cols(cols);
    let bits = format.code.bits();
    let zero_bytes = pack::packed_bytes(bits, grid_cols);
    let row_bytes = out.view().row_bytes();

    let mut values = vec![0.0; cols];
    if format.tensor_scale {
        out.tensor_scale = tensor_scale(format, src, &mut values)?;
    }
    let mut codes = vec![0; cols];
    let mut extents = vec![Extent::EMPTY; grid_cols];
    let mut params = Vec::with_capacity(grid_cols);
    let group_rows = format.group_rows();
    for (band, first_row) in (0..rows).step_by(group_rows).enumerate() {
        let band_rows = first_row..rows.min(first_row + group_rows);
        extents.fill(Extent::EMPTY);
        for row in band_rows.clone() {
            src.copy_row(row, &mut values);
            check_finite(format, row, &values)?;
            for (g, values) in values.chunks(group_cols).enumerate() {
                for (i, &x) in values.iter().enumerate() {
                    extents[g].add(x, row, g * group_cols + i);
                }
            }
        }
        params.clear();
        for (g, extent) in extents.iter().enumerate() {
            let p =
                choose(format, extent, out.tensor_scale, &mut out.scales, band * grid_cols + g)?;
            if format.zero {
                pack::set(bits, &mut out.zeros[band * zero_bytes..], g, p.zero);
            }
            params.push(p);
        }
        for row in band_rows {
            if group_rows > 1 {
                src.copy_row(row, &mut values);
            }
            for ((values, codes), p) in
                values.chunks(group_cols).zip(codes.chunks_mut(group_cols)).zip(&params)
            {
                encode_codes(format, values, *p, out.tensor_scale, codes);
            }
            let data = &mut out.data[row * row_bytes..(row + 1) * row_bytes];
            pack::pack(bits, &codes, data);
        }
    }
    Ok(())
}

/// Refuses infinities, and NaN where codes cannot hold it.
fn check_finite(format: &GroupFormat, row: usize, values: &[f32]) -> Result<(), FormatError> {
    let nan_allowed = format.code == Code::Fp8;
    let refused = |x: &f32| !(x.is_finite() || x.is_nan() && nan_allowed);
    match values.iter().position(refused) {
        None => Ok(()),
        Some(col) => Err(FormatError::NotFinite {
            format: Format::Group(*format),
            value: values[col],
            row,
            col,
        }),
    }
}

/// NVFP4's first level: maps the tensor's largest magnitude to the largest code times the largest
/// scale. With scales that have a range of their own there is nothing to gain, and the factor is 1.
fn tensor_scale(
    format: &GroupFormat,
    src: &StridedView<'_, f32>,
    values: &mut [f32],
) -> Result<f32, FormatError> {
    if format.scale != ScaleType::E4M3 {
        return Ok(1.0);
    }
    let mut amax = 0.0f32;
    for row in 0..src.rows() {
        src.copy_row(row, values);
        check_finite(format, row, values)?;
        amax = values.iter().fold(amax, |m, x| m.max(x.abs()));
    }
    let scale = amax / (format.code.reach() * ScaleType::E4M3.max());
    Ok(if scale > 0.0 { scale } else { 1.0 })
}

/// Chooses, rounds and stores the parameters of one group.
fn choose(
    format: &GroupFormat,
    extent: &Extent,
    tensor_scale: f32,
    scales: &mut [u8],
    index: usize,
) -> Result<Params, FormatError> {
    let amax = extent.largest.abs();
    let max_code = ((1u32 << format.code.bits()) - 1) as f32;
    let ideal = if format.zero {
        // Divided first: the range of two finite floats may be infinite.
        extent.hi / max_code - extent.lo / max_code
    } else {
        amax / format.code.reach()
    } / tensor_scale;
    let overflow = || FormatError::ScaleOverflow {
        format: Format::Group(*format),
        value: extent.largest,
        row: extent.at.0,
        col: extent.at.1,
        max_scale: format.scale.max(),
    };
    let scale = match format.scale {
        ScaleType::F16 => {
            let scale = f16::from_f32(ideal);
            if scale.is_infinite() {
                return Err(overflow());
            }
            scales[2 * index..2 * index + 2].copy_from_slice(&scale.to_le_bytes());
            scale.to_f32()
        }
        ScaleType::F32 => {
            scales[4 * index..4 * index + 4].copy_from_slice(&ideal.to_le_bytes());
            ideal
        }
        ScaleType::E8M0 => {
            let emax = e8m0::floor_log2(format.code.reach());
            let code = e8m0::encode_e8m0(amax / tensor_scale, emax);
            scales[index] = code;
            e8m0::decode_e8m0(code)
        }
        ScaleType::E4M3 => {
            if !format.tensor_scale && ideal > ScaleType::E4M3.max() {
                return Err(overflow());
            }
            let code = fp8::encode_e4m3(ideal);
            scales[index] = code;
            fp8::decode_e4m3(code)
        }
    };
    let zero = if format.zero && scale > 0.0 {
        (-extent.lo / scale).round_ties_even().min(max_code) as u8
    } else {
        0
    };
    Ok(Params { scale, zero })
}

/// The codes of one row's part of a group.
fn encode_codes(
    format: &GroupFormat,
    values: &[f32],
    params: Params,
    tensor_scale: f32,
    codes: &mut [u8],
) {
    let scale = params.scale * tensor_scale;
    // A scale that underflowed makes every value 0, whatever the code; NaN alone still has to be
    // told apart.
    let scaled = |x: f32| {
        if scale > 0.0 || x.is_nan() { x / scale } else { 0.0 }
    };
    match format.code {
        Code::Fp4 => {
            for (code, &x) in codes.iter_mut().zip(values) {
                *code = fp4::encode_e2m1(scaled(x));
            }
        }
        Code::Fp8 => {
            for (code, &x) in codes.iter_mut().zip(values) {
                *code = fp8::encode_e4m3(scaled(x));
            }
        }
        _ => {
            let max_code = ((1u32 << format.code.bits()) - 1) as f32;
            let offset =
                if format.zero { f32::from(params.zero) } else { f32::from(format.offset()) };
            let flip = if format.is_twos_complement() { super::INT8_SIGN } else { 0 };
            for (code, &x) in codes.iter_mut().zip(values) {
                let in_range = scaled(x).clamp(-offset, max_code - offset);
                *code = (nearest(in_range) + offset) as u8 ^ flip;
            }
        }
    }
}
