//! 16-bit arithmetic of the emulated device against the `half` crate.

mod common;

use half::{bf16, f16};
use marlin_gpu::Device;
use marlin_kernels::Grid;
use marlin_kernels::test_kernels::arithmetic::{CombineHalves, ConvertHalves, RoundFloats};

fn device() -> Box<dyn Device> {
    common::emulated(32, true)
}

fn every_half() -> Vec<f16> {
    (0..=u16::MAX).map(f16::from_bits).collect()
}

fn assert_half(found: f16, expected: f16, what: &str) {
    let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
    assert!(same, "{what}: found {found} ({found:?}), expected {expected}");
}

#[test]
fn every_half_has_its_value_and_comes_back() {
    let device = device();
    let halves = every_half();
    let x = device.upload_new("x", &halves).unwrap();
    let values = common::output::<f32>(&*device, halves.len());
    let back = common::output::<f16>(&*device, halves.len());
    let launcher = ConvertHalves {
        x: x.view(),
        values: values.view_mut().unwrap(),
        back: back.view_mut().unwrap(),
    };
    common::run(&*device, launcher, Grid::x(256, 256)).unwrap();
    let values = device.download_all(&values).unwrap();
    let back = device.download_all(&back).unwrap();
    for ((half, value), back) in halves.iter().zip(values).zip(back) {
        let expected = half.to_f32();
        let same = value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan());
        assert!(same, "{half:?}: found {value}, expected {expected}");
        assert_half(back, *half, "back");
    }
}

/// Numbers around every rounding boundary of the halves, and random bits.
fn floats() -> Vec<f32> {
    let mut out = Vec::new();
    for half in every_half().into_iter().step_by(3) {
        let bits = half.to_f32().to_bits();
        // Half a unit in the last place of a normal half, one less and one more.
        for offset in [0_u32, 0xfff, 0x1000, 0x1001] {
            out.push(f32::from_bits(bits.wrapping_add(offset)));
        }
    }
    let mut state = 1_u32;
    while out.len() < 131_072 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.push(f32::from_bits(state));
    }
    // Between the subnormal halves, where the unit in the last place is 2^-24.
    out.extend((0..8192).map(|i| (i as f32 + 0.5) * 2.0_f32.powi(-25)));
    out.truncate(out.len() / 256 * 256);
    out
}

#[test]
fn floats_are_rounded_to_nearest_even() {
    let device = device();
    let floats = floats();
    let x = device.upload_new("x", &floats).unwrap();
    let halves = common::output::<f16>(&*device, floats.len());
    let brains = common::output::<bf16>(&*device, floats.len());
    let launcher = RoundFloats {
        x: x.view(),
        halves: halves.view_mut().unwrap(),
        brains: brains.view_mut().unwrap(),
    };
    common::run(&*device, launcher, Grid::x(floats.len() as u32 / 256, 256)).unwrap();
    let halves = device.download_all(&halves).unwrap();
    let brains = device.download_all(&brains).unwrap();
    for ((value, half), brain) in floats.iter().zip(halves).zip(brains) {
        assert_half(half, f16::from_f32(*value), &format!("{value:e}"));
        let expected = bf16::from_f32(*value);
        let same = brain == expected && brain.to_bits() == expected.to_bits()
            || (brain.is_nan() && expected.is_nan());
        assert!(same, "{value:e}: found {brain}, expected {expected}");
    }
}

/// `a · b + c` rounded once: all three are multiples of 2^-24 below 2^17, so the sum is exact in 128
/// bits.
fn fused(a: f16, b: f16, c: f16) -> f16 {
    let fixed = |h: f16| (h.to_f64() * 2.0_f64.powi(24)) as i128;
    let sum = fixed(a) * fixed(b) + (fixed(c) << 24); // In units of 2^-48.
    if sum == 0 {
        return f16::from_f64(a.to_f64() * b.to_f64() + c.to_f64());
    }
    let magnitude = sum.unsigned_abs();
    // The last place that the result has: 11 bits, or down to 2^-24.
    let bits = 128 - magnitude.leading_zeros();
    let drop = bits.saturating_sub(11).max(24);
    let kept = magnitude >> drop;
    let rest = magnitude & ((1 << drop) - 1);
    let middle = 1_u128 << (drop - 1);
    let up = rest > middle || (rest == middle && kept & 1 == 1);
    let rounded = (kept + u128::from(up)) as f64 * 2.0_f64.powi(drop as i32 - 48);
    f16::from_f64(if sum < 0 { -rounded } else { rounded })
}

#[test]
fn sums_differences_products_and_fused_products_are_rounded_once() {
    let device = device();
    let mut state = 7_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f16::from_bits((state >> 40) as u16)
    };
    let count = 1 << 17;
    let mut a = Vec::new();
    let mut b = Vec::new();
    let mut c = Vec::new();
    for i in 0..count {
        let (x, y, z) = (next(), next(), next());
        a.push(x);
        b.push(y);
        // Every second sum cancels or lies near a rounding boundary of the product.
        c.push(if i % 2 == 0 { z } else { f16::from_f32(-x.to_f32() * y.to_f32() * 0.999) });
    }
    let buffers = [&a, &b, &c].map(|v| device.upload_new("operand", v).unwrap());
    let out = common::output::<f16>(&*device, count * 4);
    let launcher = CombineHalves {
        a: buffers[0].view(),
        b: buffers[1].view(),
        c: buffers[2].view(),
        out: out.view_mut().unwrap(),
    };
    common::run(&*device, launcher, Grid::x(count as u32 / 256, 256)).unwrap();
    let result = device.download_all(&out).unwrap();
    for (i, row) in result.chunks(4).enumerate() {
        let (x, y, z) = (a[i], b[i], c[i]);
        let what = format!("{x} and {y} and {z}");
        // f64 holds sum and product exactly, so one rounding follows.
        assert_half(row[0], f16::from_f64(x.to_f64() + y.to_f64()), &what);
        assert_half(row[1], f16::from_f64(x.to_f64() - y.to_f64()), &what);
        assert_half(row[2], f16::from_f64(x.to_f64() * y.to_f64()), &what);
        if x.is_finite() && y.is_finite() && z.is_finite() {
            assert_half(row[3], fused(x, y, z), &what);
        } else {
            assert_half(row[3], f16::from_f64(x.to_f64() * y.to_f64() + z.to_f64()), &what);
        }
    }
}
