//! Products with quantised matrices: every format, against the product of the decoded values in f64.

mod common;

use half::{bf16, f16};
use marlin_formats::{Format, OwnedMatrix, encode};
use marlin_gpu::ops::linear::{
    Activation, Epilogue, FragmentWeights, GemmShape, gemm, gemv, linear,
};
use marlin_gpu::{CommandList, Device, GpuError};
use marlin_kernels::Element;
use marlin_placement::AccessPattern;

/// A type that activations can have.
trait Number: Element {
    /// Relative rounding error of one store.
    const ROUNDING: f64;
    fn of(value: f32) -> Self;
    fn value(self) -> f64;
}

impl Number for f32 {
    const ROUNDING: f64 = 1e-6;
    fn of(value: f32) -> Self {
        value
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
}

impl Number for f16 {
    const ROUNDING: f64 = 1.0 / 2048.0;
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

impl Number for bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// A fixed, sign-changing sequence in (−½, ½) with an outlier now and then.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            let x =
                (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32;
            (x - 0.5) * if i % 89 == 7 { 5.0 } else { 1.0 }
        })
        .collect()
}

fn matrix(format: Format, rows: usize, cols: usize) -> OwnedMatrix {
    encode(format, rows, cols, &numbers(rows as u32, rows * cols))
        .unwrap_or_else(|e| panic!("{format} [{rows}, {cols}]: {e}"))
}

/// What is multiplied and how it is finished.
#[derive(Clone, Copy, Default)]
struct Case {
    tokens: usize,
    bias: bool,
    gated: Option<Activation>,
    accumulate: bool,
    /// Powers of two that x is larger by than numbers mostly are.
    doublings: i32,
}

/// Runs one product through `product` and compares every element.
///
/// The bound is that of f32 sums in any order plus the rounding of the result: a few 2⁻²⁴ of Σ |w · x|, and what the
/// weights lose where the kernel rounds them to 16 bits (`weight_rounding`).
fn check<T: Number>(
    device: &dyn Device,
    format: Format,
    rows: usize,
    cols: usize,
    case: Case,
    weight_rounding: f64,
    product: impl FnOnce(
        &mut CommandList,
        &FragmentWeights,
        marlin_kernels::View<'_, T>,
        marlin_kernels::ViewMut<'_, T>,
        Epilogue<'_>,
    ) -> Result<(), GpuError>,
) {
    let Case { tokens, .. } = case;
    let gate = matrix(format, rows, cols);
    let up = encode(format, rows, cols, &numbers(77, rows * cols)).unwrap();
    let parts: Vec<_> =
        if case.gated.is_some() { vec![gate.view(), up.view()] } else { vec![gate.view()] };
    let weights = FragmentWeights::upload(device, "weights", &parts).unwrap();
    let larger = 2f32.powi(case.doublings);
    let x: Vec<T> = numbers(3, tokens * cols).into_iter().map(|v| T::of(larger * v)).collect();
    let before: Vec<T> = numbers(5, tokens * rows).into_iter().map(T::of).collect();
    let bias = numbers(9, rows.next_multiple_of(16) + rows);
    let x_buffer = device.upload_new("x", &x).unwrap();
    let y_buffer = device.upload_new("y", &before).unwrap();
    let bias_buffer = device.upload_new("bias", &bias).unwrap();
    let epilogue = Epilogue {
        bias: case.bias.then(|| bias_buffer.view()),
        gated: case.gated,
        accumulate: case.accumulate,
        stride: 0,
    };
    let mut list = CommandList::new("product");
    product(&mut list, &weights, x_buffer.view(), y_buffer.view_mut().unwrap(), epilogue).unwrap();
    device.run(list).unwrap_or_else(|e| panic!("{format} [{rows}, {cols}] × {tokens}: {e}"));
    let found = device.download_all(&y_buffer).unwrap();

    let decoded: Vec<Vec<f32>> = parts.iter().map(|m| m.decode()).collect();
    for token in 0..tokens {
        for row in 0..rows {
            let sum = |part: usize| {
                let (mut sum, mut size) = (0.0f64, 0.0f64);
                for k in 0..cols {
                    let term =
                        f64::from(decoded[part][row * cols + k]) * x[token * cols + k].value();
                    sum += term;
                    size += term.abs();
                }
                if case.bias {
                    sum += f64::from(bias[part * rows.next_multiple_of(16) + row]);
                }
                (sum, size)
            };
            let (first, mut size) = sum(0);
            let mut expected = match case.gated {
                None => first,
                Some(activation) => {
                    let (second, second_size) = sum(1);
                    let activated = match activation {
                        Activation::Silu => first / (1.0 + (-first).exp()),
                        Activation::Gelu => {
                            let inner = 0.7978845608 * (first + 0.044715 * first.powi(3));
                            0.5 * first * (1.0 + inner.tanh())
                        }
                    };
                    size = (size + 1.0) * (second_size + 1.0);
                    activated * second
                }
            };
            if case.accumulate {
                expected += before[token * rows + row].value();
            }
            let tolerance = T::ROUNDING * expected.abs()
                + (2e-6 + weight_rounding) * size
                + 1e-6 * f64::from(larger.min(1.0));
            let value = found[token * rows + row].value();
            assert!(
                (value - expected).abs() <= tolerance,
                "{format} [{rows}, {cols}] token {token} of {tokens}, row {row}: {value}, expected \
                 {expected} ± {tolerance}"
            );
        }
    }
}

fn tokens(tokens: usize) -> Case {
    Case { tokens, ..Case::default() }
}

#[test]
fn gemv_multiplies_every_format_at_every_simd_width() {
    let devices = common::devices();
    for (i, format) in Format::ALL.into_iter().enumerate() {
        // Every device has a share of the formats, every format is on two devices.
        for device in [&devices[i % devices.len()], &devices[(i + 1) % devices.len()]] {
            check::<f32>(&**device, format, 19, 256, tokens(1 + i % 3), 0.0, |list, w, x, y, e| {
                gemv(list, w, x, y, 1 + i % 3, e)
            });
        }
    }
}

#[test]
fn gemm_multiplies_every_format() {
    for device in common::devices_of_width(32) {
        for (i, format) in Format::ALL.into_iter().enumerate() {
            let count = [1, 7, 9][i % 3];
            // Floats of another width than f16 are rounded to it; codes are exact.
            let rounding = match format {
                Format::F32 | Format::BF16 => 1.0 / 2048.0,
                _ => 0.0,
            };
            check::<f16>(&*device, format, 19, 256, tokens(count), rounding, |list, w, x, y, e| {
                linear(list, device.properties(), w, x, y, count, e)
            });
        }
    }
}

#[test]
fn columns_that_fill_no_block_and_rows_that_fill_no_tile() {
    let format: Format = "int4-g32".parse().unwrap();
    for device in common::devices_of_width(32) {
        for (rows, cols) in [(1, 32), (16, 96), (33, 160), (50, 224)] {
            for count in [1, 2, 8, 17] {
                check::<f32>(
                    &*device,
                    format,
                    rows,
                    cols,
                    tokens(count),
                    0.0,
                    |list, w, x, y, e| gemv(list, w, x, y, count, e),
                );
                // Where there are many tokens, weights may be rounded to f16.
                let rounding = if count > 16 { 1.0 / 1024.0 } else { 0.0 };
                check::<f16>(
                    &*device,
                    format,
                    rows,
                    cols,
                    tokens(count),
                    rounding,
                    |list, w, x, y, e| linear(list, device.properties(), w, x, y, count, e),
                );
            }
        }
    }
}

/// The shapes that an autotuner may try, each with its own path through the kernel.
#[test]
fn every_shape_of_gemm_gives_the_same_product() {
    let shape = |tiles, row_blocks, row_groups, k_groups, depth, staged| GemmShape {
        tiles,
        row_blocks,
        row_groups,
        k_groups,
        depth,
        staged,
        splits: 1,
        wide: false,
        stages: 2,
        prescaled: false,
        batched: false,
        ring: 0,
    };
    let shapes = [
        shape(1, 1, 1, 2, 1, false),
        shape(1, 2, 2, 1, 4, false),
        shape(1, 1, 1, 4, 2, true),
        shape(2, 2, 1, 2, 2, true),
        shape(4, 1, 2, 1, 1, true),
        GemmShape { wide: true, ..shape(1, 1, 1, 2, 2, false) },
        GemmShape { wide: true, stages: 3, ..shape(2, 2, 2, 1, 1, true) },
        GemmShape { wide: true, stages: 4, prescaled: true, ..shape(2, 2, 1, 1, 2, true) },
        // Row groups that are no power of two, as whole waves want them.
        GemmShape { wide: true, stages: 3, ..shape(2, 1, 7, 2, 1, true) },
        GemmShape { stages: 3, ..shape(2, 2, 3, 1, 1, true) },
        GemmShape { wide: true, ..shape(2, 1, 14, 2, 1, true) },
        // SIMD-groups along k that are no power of two.
        GemmShape { wide: true, ..shape(2, 2, 1, 3, 1, true) },
        shape(2, 1, 1, 7, 1, true),
        GemmShape { splits: 3, ..shape(1, 1, 1, 1, 2, false) },
        GemmShape { wide: true, ring: 2, ..shape(1, 1, 1, 2, 1, false) },
        GemmShape { wide: true, ring: 8, ..shape(1, 2, 1, 1, 1, false) },
        GemmShape { wide: true, ring: 4, splits: 2, ..shape(1, 1, 1, 1, 1, false) },
        GemmShape { splits: 2, stages: 4, ..shape(2, 1, 1, 1, 1, true) },
    ];
    let (rows, cols) = (72, 640);
    for device in common::devices_of_width(32) {
        for name in ["int4-g128", "fp4-g128"] {
            let format: Format = name.parse().unwrap();
            for shape in shapes {
                let count = shape.tiles as usize * 8 + 3;
                let partial = common::output::<f32>(&*device, shape.splits as usize * rows * count);
                let rounding = if shape.prescaled { 1.0 / 1024.0 } else { 0.0 };
                check::<f16>(
                    &*device,
                    format,
                    rows,
                    cols,
                    tokens(count),
                    rounding,
                    |list, w, x, y, e| {
                        let partial = (shape.splits > 1).then(|| partial.view_mut().unwrap());
                        gemm(list, shape, w, x, y, count, e, partial)
                    },
                );
            }
        }
    }
}

/// Activations of bf16 may be larger than f16 reaches, or smaller: products by matrix fragments take them as they are.
#[test]
fn activations_of_bf16_keep_their_range() {
    for device in common::devices_of_width(32) {
        let teams = device.properties().multiplies_in_teams();
        for (i, name) in
            ["int4-g128", "fp4-g32", "q8_0", "q4_k", "bf16", "f32", "fp8-g128", "mxfp4"]
                .into_iter()
                .enumerate()
        {
            let Ok(format) = name.parse::<Format>() else { continue };
            for (doublings, count) in [(40, 1), (-40, 3), (18, 20)] {
                let case = Case { doublings, ..tokens(count) };
                // Weights that are no codes are rounded to bf16, and so are scaled ones.
                let rounding = 1.0 / 128.0;
                check::<bf16>(&*device, format, 19, 256, case, rounding, |list, w, x, y, e| {
                    let batched = count > 16 && w.allows_batched() && (teams || i % 2 == 0);
                    let shape = if batched {
                        batch(4, 1, 1, 1, 3)
                    } else {
                        GemmShape::choose(device.properties(), w, count, false, 0)
                    };
                    gemm(list, shape, w, x, y, count, e, None)
                });
            }
        }
    }
}

/// A shape of `gemm_batch`.
fn batch(tiles: u32, row_blocks: u32, k_groups: u32, depth: u32, stages: u32) -> GemmShape {
    GemmShape {
        tiles,
        row_blocks,
        row_groups: 4,
        k_groups,
        depth,
        staged: true,
        splits: 1,
        wide: false,
        stages,
        prescaled: true,
        batched: true,
        ring: 0,
    }
}

#[test]
fn every_shape_of_gemm_batch_gives_the_same_product() {
    let shapes = [
        batch(1, 1, 1, 1, 3),
        batch(2, 1, 4, 2, 4),
        batch(4, 2, 2, 4, 4),
        batch(8, 1, 1, 2, 3),
        batch(16, 1, 1, 2, 4),
        GemmShape { row_groups: 8, ..batch(2, 1, 2, 4, 3) },
        GemmShape { splits: 3, ..batch(1, 1, 2, 1, 3) },
    ];
    let (rows, cols) = (72, 328);
    let format: Format = "int4-g128".parse().unwrap();
    let padded: Format = "int4-g32".parse().unwrap();
    for device in common::devices_of_width(32) {
        for (i, shape) in shapes.into_iter().enumerate() {
            // Sixteen tiles need more threadgroup memory than every device has.
            if shape.threadgroup_bytes() > device.properties().threadgroup_bytes {
                continue;
            }
            let count = shape.tiles as usize * 8 - 5 + 8 * (i % 2);
            let partial = common::output::<f32>(&*device, shape.splits as usize * rows * count);
            // Columns that end within a block, for formats whose groups allow it.
            let (format, cols) = if i % 2 == 0 { (format, 640) } else { (padded, cols - 8) };
            check::<f16>(
                &*device,
                format,
                rows,
                cols,
                tokens(count),
                1.0 / 1024.0,
                |list, w, x, y, e| {
                    let partial = (shape.splits > 1).then(|| partial.view_mut().unwrap());
                    gemm(list, shape, w, x, y, count, e, partial)
                },
            );
        }
    }
}

#[test]
fn gemm_batch_multiplies_every_format_whose_weights_fit_f16() {
    for device in common::devices_of_width(32) {
        let mut multiplied = 0;
        for (i, format) in Format::ALL.into_iter().enumerate() {
            let shape = batch([1, 2][i % 2], 1, 1, 1, 3);
            let count = [7, 9][i % 2];
            let owned = matrix(format, 19, 256);
            let weights = FragmentWeights::upload(&*device, "weights", &[owned.view()]).unwrap();
            if !weights.allows_batched() {
                let x = device.upload_new("x", &vec![f16::ONE; 256 * count]).unwrap();
                let y = common::output::<f16>(&*device, 19 * count);
                let (mut list, e) = (CommandList::new("refused"), Epilogue::default());
                let (x, y) = (x.view(), y.view_mut().unwrap());
                let error = gemm(&mut list, shape, &weights, x, y, count, e, None).unwrap_err();
                assert!(error.to_string().contains("which the kernel does not have"), "{error}");
                continue;
            }
            multiplied += 1;
            // Each weight is rounded to f16, where there is a scale that is not f16 after that was, and a minimum.
            let rounding = 3.0 / 1024.0;
            check::<f16>(&*device, format, 19, 256, tokens(count), rounding, |list, w, x, y, e| {
                gemm(list, shape, w, x, y, count, e, None)
            });
        }
        assert!(multiplied > 20, "{multiplied}");
    }
}

#[test]
fn gemm_batch_finishes_its_sums() {
    let format: Format = "q4_0".parse().unwrap();
    let cases = [
        Case { bias: true, ..tokens(3) },
        Case { accumulate: true, ..tokens(9) },
        Case { gated: Some(Activation::Silu), ..tokens(5) },
        Case { gated: Some(Activation::Gelu), bias: true, accumulate: true, ..tokens(17) },
    ];
    for device in common::devices_of_width(32) {
        for case in cases {
            let row_blocks = if case.gated.is_some() { 2 } else { 1 };
            for splits in [1, 2] {
                let shape = GemmShape { splits, ..batch(2, row_blocks, 2, 2, 3) };
                let partial = common::output::<f32>(&*device, 2 * 2 * 35 * case.tokens);
                let rounding = 1.0 / 512.0;
                check::<bf16>(&*device, format, 35, 320, case, rounding, |list, w, x, y, e| {
                    let partial = (splits > 1).then(|| partial.view_mut().unwrap());
                    gemm(list, shape, w, x, y, case.tokens, e, partial)
                });
            }
        }
    }
}

#[test]
fn bias_gate_and_residual_are_part_of_the_product() {
    let format: Format = "q4_0".parse().unwrap();
    let cases = [
        Case { bias: true, ..tokens(3) },
        Case { accumulate: true, ..tokens(2) },
        Case { gated: Some(Activation::Silu), ..tokens(1) },
        Case { gated: Some(Activation::Gelu), bias: true, accumulate: true, ..tokens(9) },
    ];
    for device in common::devices() {
        for case in cases {
            check::<f32>(&*device, format, 35, 128, case, 0.0, |list, w, x, y, e| {
                gemv(list, w, x, y, case.tokens, e)
            });
            check::<bf16>(&*device, format, 35, 128, case, 0.0, |list, w, x, y, e| {
                linear(list, device.properties(), w, x, y, case.tokens, e)
            });
        }
    }
}

#[test]
fn nothing_happens_without_tokens() {
    let format: Format = "q8_0".parse().unwrap();
    for device in common::devices() {
        check::<f16>(&*device, format, 16, 64, tokens(0), 0.0, |list, w, x, y, e| {
            linear(list, device.properties(), w, x, y, 0, e)
        });
    }
}

#[test]
fn extreme_scales_neither_overflow_nor_vanish() {
    // MXFP4's scales reach from 2^-127 to 2^127; f32 sums hold what f16 weights could not.
    let (rows, cols) = (16, 64);
    for exponent in [-100, -30, 30, 100] {
        let size = 2f32.powi(exponent);
        let values: Vec<f32> = numbers(1, rows * cols).iter().map(|v| v * size).collect();
        let owned = encode(Format::MXFP4, rows, cols, &values).unwrap();
        let decoded = owned.view().decode();
        for device in common::devices_of_width(32) {
            let weights = FragmentWeights::upload(&*device, "weights", &[owned.view()]).unwrap();
            let x = vec![0.5f32; cols];
            let x_buffer = device.upload_new("x", &x).unwrap();
            let y = device.allocate::<f32>("y", rows, AccessPattern::DEVICE_ONLY).unwrap();
            let mut list = CommandList::new("extreme");
            gemv(
                &mut list,
                &weights,
                x_buffer.view(),
                y.view_mut().unwrap(),
                1,
                Epilogue::default(),
            )
            .unwrap();
            device.run(list).unwrap();
            for (row, found) in device.download_all(&y).unwrap().into_iter().enumerate() {
                let expected: f64 =
                    decoded[row * cols..][..cols].iter().map(|&w| f64::from(w) * 0.5).sum();
                let size: f64 =
                    decoded[row * cols..][..cols].iter().map(|&w| f64::from(w.abs())).sum();
                assert!((f64::from(found) - expected).abs() <= 1e-5 * size, "2^{exponent} {row}");
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let format: Format = "q4_0".parse().unwrap();
    let device = common::emulated(32, true);
    let owned = matrix(format, 16, 64);
    let weights = FragmentWeights::upload(&*device, "weights", &[owned.view()]).unwrap();
    let x = device.upload_new("x", &[f16::ONE; 100]).unwrap();
    let y = common::output::<f16>(&*device, 32);
    let mut list = CommandList::new("wrong");
    let error = gemv(&mut list, &weights, x.view(), y.view_mut().unwrap(), 2, Epilogue::default())
        .unwrap_err();
    assert!(error.to_string().contains("x has 100 elements, expected 2 × 64"), "{error}");
    let gated = Epilogue { gated: Some(Activation::Silu), ..Epilogue::default() };
    let error = gemv(&mut list, &weights, x.view(), y.view_mut().unwrap(), 1, gated).unwrap_err();
    assert!(error.to_string().contains("1 matrices, expected 2"), "{error}");
}
