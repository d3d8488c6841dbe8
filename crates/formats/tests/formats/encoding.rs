//! Encoding: the error bound of every format, and what becomes of difficult values.

use half::f16;
use marlin_formats::{
    Code, Format, FormatError, GgmlType, Group, GroupFormat, OwnedMatrix, ScaleType, encode,
};
use proptest::prelude::*;

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.to_vec())
}

/// Columns for a test: several blocks, and no round number where any will do.
fn columns(format: Format, blocks: usize) -> usize {
    match format {
        Format::Group(GroupFormat { group: Group::Block { .. }, .. }) => 128 * blocks - 7,
        _ if format.block() == 1 => 16 * blocks + 1,
        _ => format.block() * blocks,
    }
}

/// Weights of many magnitudes, with zeros and outliers.
fn any_weights(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let element = prop_oneof![
        8 => -1.0f32..1.0,
        2 => Just(0.0f32),
        1 => -50.0f32..50.0,
        1 => -1e-3f32..1e-3,
    ];
    (prop::collection::vec(element, len), -12i32..8)
        .prop_map(|(x, exponent)| x.into_iter().map(|x| x * 2f32.powi(exponent)).collect())
}

fn any_matrix() -> impl Strategy<Value = (Format, usize, usize, Vec<f32>)> {
    (any_format(), 1usize..4, 1usize..4).prop_flat_map(|(format, rows, blocks)| {
        let cols = columns(format, blocks);
        (Just(format), Just(rows), Just(cols), any_weights(rows * cols))
    })
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Half the smallest f16: what rounding a scale to f16 may lose where it is denormal.
const F16_TINY: f32 = 1.0 / (1 << 25) as f32;

/// The largest error allowed for one element of a group of these values, by the bounds that `group`
/// documents.
fn group_bound(g: &GroupFormat, x: f32, group: &[f32], tensor_scale: f32) -> f32 {
    let amax = largest(group);
    let reach = g.code.reach();
    let max_code = ((1u32 << g.code.bits()) - 1) as f32;
    // Rounding the scale moves the end of the range, and every value in proportion.
    let scale_rounding = match g.scale {
        ScaleType::F16 => amax / 1024.0 + max_code * F16_TINY,
        ScaleType::F32 => amax * 1e-6,
        _ => 0.0,
    };
    let bound = match (g.code, g.scale) {
        // Half the gap: a quarter of a binade's lower end, half of ½ among the denormals; 6 to 8
        // saturates by a quarter as well.
        (Code::Fp4, ScaleType::E8M0) => x.abs().max(amax / 4.0) / 4.0,
        (Code::Fp4, ScaleType::E4M3) => {
            let lost = reach * tensor_scale / 512.0;
            x.abs().max(amax / 6.0 * 1.07) / 4.0 + lost
        }
        (Code::Fp4, _) => x.abs().max(amax / 6.0) / 4.0,
        (Code::Fp8, _) => (x.abs() / 16.0).max(amax / 448.0 / 1024.0),
        _ if g.zero => {
            let hi = group.iter().fold(0.0f32, |m, x| m.max(*x));
            let lo = group.iter().fold(0.0f32, |m, x| m.min(*x));
            (hi - lo) / max_code
        }
        _ => amax / reach / 2.0,
    };
    bound + scale_rounding + f32::MIN_POSITIVE
}

/// The same for a ggml type of 32 columns, by the bounds that `ggml` documents.
fn legacy_bound(t: GgmlType, x: f32, block: &[f32]) -> f32 {
    let amax = largest(block);
    let range = block.iter().fold(f32::MIN, |m, x| m.max(*x))
        - block.iter().fold(f32::MAX, |m, x| m.min(*x));
    let (bound, codes) = match t {
        GgmlType::Q4_0 => (amax / 8.0, 8.0),
        GgmlType::Q5_0 => (amax / 16.0, 16.0),
        GgmlType::Q4_1 => (range / 15.0 / 2.0, 15.0),
        GgmlType::Q5_1 => (range / 31.0 / 2.0, 31.0),
        GgmlType::Q8_0 => (amax / 127.0 / 2.0, 127.0),
        GgmlType::MxFp4 => return x.abs().max(amax / 4.0) / 4.0 + f32::MIN_POSITIVE,
        _ => unreachable!("a K-quant"),
    };
    bound + (amax + range) / 1024.0 + (codes + 1.0) * F16_TINY
}

/// The bound on a super-block's rms error that the K-quants' search proves.
fn k_bound(t: GgmlType, block: &[f32]) -> f32 {
    let group = t.affine().group.expect("K-quants have groups");
    let range = |x: &[f32]| {
        x.iter().fold(0.0f32, |m, x| m.max(*x)) - x.iter().fold(0.0f32, |m, x| m.min(*x))
    };
    let widest = block.chunks(group).map(range).fold(0.0, f32::max);
    let with_minimum = |n: f32, q: f32| widest / n * (1.0 + 1.0 / q).powi(2);
    let symmetric = |n: f32, q: f32| largest(block) / (n - 0.5) * (1.0 + 1.0 / q);
    let (step, multiples) = match t {
        GgmlType::Q2K => (with_minimum(3.0, 15.0), 15.0),
        GgmlType::Q4K => (with_minimum(15.0, 63.0), 63.0),
        GgmlType::Q5K => (with_minimum(31.0, 63.0), 63.0),
        GgmlType::Q3K => (symmetric(4.0, 31.0), 31.0),
        GgmlType::Q6K => (symmetric(32.0, 127.0), 127.0),
        _ => unreachable!("not a K-quant"),
    };
    // Below 2^−14 the super-block's f16 numbers are denormal: a step of theirs more, times the
    // multiple and the code.
    0.5 * step * (1.0 + 1.0 / 512.0) + 64.0 * multiples * F16_TINY
}

fn check_bounds(format: Format, src: &[f32], matrix: &OwnedMatrix) {
    let (rows, cols) = (matrix.rows, matrix.cols);
    let found = matrix.decode();
    let error = |i: usize| (found[i] - src[i]).abs();
    match format {
        Format::F32 => assert_eq!(found, src),
        Format::F16 => (0..src.len()).for_each(|i| {
            assert!(error(i) <= (src[i].abs() / 2048.0).max(F16_TINY), "{}", src[i]);
        }),
        Format::BF16 => (0..src.len()).for_each(|i| {
            assert!(error(i) <= src[i].abs() / 256.0, "{}", src[i]);
        }),
        Format::Ggml(t) if t.block_elements() == 256 => {
            for (b, block) in src.chunks(256).enumerate() {
                let sum: f32 = (0..256).map(|i| error(256 * b + i).powi(2)).sum();
                let (rms, bound) = ((sum / 256.0).sqrt(), k_bound(t, block));
                assert!(rms <= bound, "{format}, block {b}: {rms} > {bound}");
            }
        }
        Format::Ggml(t) => {
            for (i, x) in src.iter().enumerate() {
                let bound = legacy_bound(t, *x, &src[i / 32 * 32..][..32]);
                assert!(error(i) <= bound, "{format}: {x}, {} > {bound}", error(i));
            }
        }
        Format::Group(g) => {
            for i in 0..src.len() {
                let (row, col) = (i / cols, i % cols);
                let (tall, wide) = (g.group_rows(), g.group_cols(cols));
                let (first_row, first_col) = (row / tall * tall, col / wide * wide);
                let group: Vec<f32> = (first_row..rows.min(first_row + tall))
                    .flat_map(|r| src[r * cols..][first_col..cols.min(first_col + wide)].to_vec())
                    .collect();
                let bound = group_bound(&g, src[i], &group, matrix.tensor_scale);
                assert!(
                    error(i) <= bound,
                    "{format} ({row}, {col}): {} became {}, bound {bound}",
                    src[i],
                    found[i]
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn errors_stay_within_the_documented_bound((format, rows, cols, src) in any_matrix()) {
        let matrix = encode(format, rows, cols, &src).expect("moderate values");
        check_bounds(format, &src, &matrix);
    }

    /// Denormals, huge values, whatever has 32 bits: an answer or a typed error, and never an
    /// infinity that was not there.
    #[test]
    fn any_floats_encode_or_are_refused(
        format in any_format(),
        rows in 1usize..3,
        bits in prop::collection::vec(any::<u32>(), 1..50),
        tame in any::<bool>(),
    ) {
        let cols = columns(format, 1);
        let src: Vec<f32> = (0..rows * cols)
            .map(|i| f32::from_bits(bits[i % bits.len()]))
            .map(|x| if tame && !x.is_finite() { 1.0 } else { x })
            .collect();
        let is_float = matches!(format, Format::F32 | Format::F16 | Format::BF16);
        match encode(format, rows, cols, &src) {
            Ok(matrix) => {
                let found = matrix.decode();
                for (x, y) in src.iter().zip(&found) {
                    prop_assert_eq!(x.is_nan(), y.is_nan(), "{}: {} became {}", format, x, y);
                    prop_assert!(is_float || !y.is_infinite(), "{}: {} became {}", format, x, y);
                }
            }
            Err(FormatError::NotFinite { row, col, value, .. }) => {
                prop_assert!(!is_float && !value.is_finite());
                prop_assert_eq!(value.to_bits(), src[row * cols + col].to_bits());
            }
            Err(FormatError::ScaleOverflow { row, col, value, max_scale, .. }) => {
                prop_assert!(value.abs() > max_scale);
                prop_assert_eq!(value.to_bits(), src[row * cols + col].to_bits());
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn values_that_cannot_be_represented_are_named(
        format in any_format(),
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        at in any::<prop::sample::Index>(),
    ) {
        let (rows, cols) = (3, columns(format, 2));
        let mut src = vec![0.25; rows * cols];
        let at = at.index(src.len());
        src[at] = value;
        let kept = match format {
            Format::F32 | Format::F16 | Format::BF16 => true,
            Format::Group(g) => g.code == Code::Fp8 && value.is_nan(),
            Format::Ggml(_) => false,
        };
        match encode(format, rows, cols, &src) {
            Ok(matrix) => {
                prop_assert!(kept, "{} took {}", format, value);
                let found = matrix.decode();
                prop_assert!(found[at] == value || found[at].is_nan() && value.is_nan());
                let others = found.iter().enumerate().filter(|(i, _)| *i != at);
                for (_, x) in others {
                    prop_assert!((x - 0.25).abs() < 0.02, "NaN disturbs nothing else: {}", x);
                }
            }
            Err(FormatError::NotFinite { format: named, row, col, .. }) => {
                prop_assert!(!kept);
                prop_assert_eq!((named, row, col), (format, at / cols, at % cols));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in Format::ALL {
        let cols = columns(format, 2);
        for zero in [0.0, -0.0] {
            let matrix = encode(format, 2, cols, &vec![zero; 2 * cols]).expect("zeros");
            assert!(matrix.decode().iter().all(|x| *x == 0.0), "{format}");
            assert_eq!(matrix.tensor_scale, 1.0, "{format}");
        }
    }
}

#[test]
fn empty_matrices_are_matrices() {
    for format in Format::ALL {
        for (rows, cols) in [(0, 0), (0, 256), (3, 0)] {
            let matrix = encode(format, rows, cols, &[]).expect("empty");
            assert!(matrix.decode().is_empty(), "{format}");
        }
    }
}

#[test]
fn scales_that_overflow_f16_are_refused_with_their_cause() {
    for format in Format::ALL {
        let cols = columns(format, 2);
        let mut src = vec![1.0; 2 * cols];
        src[cols + 5] = -3e38;
        let f16_scale = match format {
            Format::Group(g) => g.scale == ScaleType::F16,
            Format::Ggml(t) => t != GgmlType::MxFp4,
            _ => false,
        };
        match encode(format, 2, cols, &src) {
            Ok(matrix) => {
                assert!(!f16_scale, "{format}");
                assert!(matrix.decode()[cols + 5] < -1e38, "{format}");
            }
            Err(FormatError::ScaleOverflow { value, row, col, max_scale, .. }) => {
                assert!(f16_scale, "{format}");
                assert_eq!((value, row, col, max_scale), (-3e38, 1, 5, 65504.0), "{format}");
            }
            Err(other) => panic!("{format}: {other}"),
        }
    }
}

#[test]
fn symmetric_scales_are_those_of_gptq_and_the_ends_are_reached() {
    // amax / 7.5 = 1; −7.5 rounds to the even −8, 7.5 saturates at 7; ½ and −½ round to 0, 1½ to 2.
    let mut src = [0.0; 32];
    src[..7].copy_from_slice(&[-7.5, 7.5, 0.5, -0.5, 1.5, -1.5, 3.0]);
    let matrix = encode(Format::INT4_G32, 1, 32, &src).expect("encodes");
    assert_eq!(matrix.scales, f16::ONE.to_le_bytes());
    assert_eq!(matrix.data[..4], [0xf0, 0x88, 0x6a, 0x8b]);
    assert_eq!(matrix.decode()[..7], [-8.0, 7.0, 0.0, 0.0, 2.0, -2.0, 3.0]);
}

#[test]
fn asymmetric_ranges_contain_zero() {
    // All positive: the zero point is 0, and zero itself is representable.
    let src: Vec<f32> = (0..32).map(|i| 7.5 + i as f32 / 31.0 * 7.5).collect();
    let matrix = encode(Format::INT4_ASYM_G32, 1, 32, &src).expect("encodes");
    assert_eq!((matrix.scales, matrix.zeros), (f16::ONE.to_le_bytes().to_vec(), vec![0]));
    // All negative: the zero point is the largest code.
    let src: Vec<f32> = src.iter().map(|x| -x).collect();
    let matrix = encode(Format::INT4_ASYM_G32, 1, 32, &src).expect("encodes");
    assert_eq!((matrix.scales, matrix.zeros), (f16::ONE.to_le_bytes().to_vec(), vec![15]));
}

#[test]
fn mxfp4_values_that_fit_survive() {
    // Any codes with a magnitude of at least 4 among them have the scale that they were made with.
    let codes: Vec<u8> = (0..16u8).map(|i| 0x67 ^ i.wrapping_mul(0x1b)).collect();
    let matrix = marlin_formats::Matrix::new(Format::MXFP4, 1, 32, &codes, &[120], &[], 1.0)
        .expect("a matrix");
    let again = encode(Format::MXFP4, 1, 32, &matrix.decode()).expect("encodes");
    assert_eq!(again.view(), matrix);
}

#[test]
fn nvfp4_uses_the_whole_range_of_both_scales() {
    let mut src = vec![0.01; 32];
    src[3] = 2688.0; // 6 · 448
    src[20] = 0.02;
    let matrix = encode(Format::NVFP4, 1, 32, &src).expect("encodes");
    assert_eq!(matrix.tensor_scale, 1.0);
    assert_eq!(matrix.scales[0], 0x7e, "448");
    assert_eq!(matrix.decode()[3], 2688.0);
}
