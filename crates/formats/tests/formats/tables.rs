//! Element formats against the tables of their specifications, by way of ml_dtypes.

use crate::fixture::{Fixture, assert_same};
use marlin_formats::{e8m0, fp4, fp8};

fn reference() -> Fixture {
    Fixture::open("formats_tables.safetensors")
}

#[test]
fn e2m1_values() {
    assert_same(&fp4::E2M1, &reference().floats("e2m1"), "e2m1");
    let doubled = fp4::E2M1_DOUBLED.map(|x| f32::from(x) / 2.0);
    assert!(doubled.iter().zip(fp4::E2M1).all(|(a, b)| *a == b));
}

#[test]
fn e4m3_values() {
    let codes: Vec<f32> = (0..=255).map(fp8::decode_e4m3).collect();
    assert_same(&codes, &reference().floats("e4m3fn"), "e4m3fn");
}

#[test]
fn e8m0_values() {
    let codes: Vec<f32> = (0..=255).map(e8m0::decode_e8m0).collect();
    assert_same(&codes, &reference().floats("e8m0"), "e8m0");
}

fn check_rounding(name: &str, encode: fn(f32) -> u8) {
    let reference = reference();
    let values = reference.floats(&format!("{name}.round.f32"));
    let codes = reference.bytes(&format!("{name}.round.code"));
    for (x, code) in values.iter().zip(codes) {
        assert_eq!(encode(*x), code, "{name}: {x}");
    }
}

#[test]
fn e2m1_rounds_to_nearest_even() {
    check_rounding("e2m1", fp4::encode_e2m1);
}

#[test]
fn e4m3_rounds_to_nearest_even() {
    check_rounding("e4m3fn", fp8::encode_e4m3);
}

#[test]
fn every_code_survives_decoding_and_encoding() {
    for code in 0..16 {
        assert_eq!(fp4::encode_e2m1(fp4::E2M1[usize::from(code)]), code);
    }
    for code in 0..=255 {
        assert_eq!(fp8::encode_e4m3(fp8::decode_e4m3(code)), code);
    }
    for code in 0..=254 {
        assert_eq!(e8m0::encode_e8m0(e8m0::decode_e8m0(code), 0), code);
    }
}

#[test]
fn out_of_range_values_saturate() {
    for (x, code) in [(5.1, 7), (1e30, 7), (f32::INFINITY, 7), (f32::NAN, 7)] {
        assert_eq!(fp4::encode_e2m1(x), code, "{x}");
        if !x.is_nan() {
            assert_eq!(fp4::encode_e2m1(-x), code | 8, "-{x}");
        }
    }
    for x in [449.0, 464.0, 480.0, 1e30, f32::INFINITY] {
        assert_eq!(fp8::encode_e4m3(x), 0x7e, "{x}");
        assert_eq!(fp8::encode_e4m3(-x), 0xfe, "-{x}");
    }
    assert_eq!(fp8::encode_e4m3(f32::NAN) & 0x7f, 0x7f);
    assert_eq!(fp8::encode_e4m3(f32::MIN_POSITIVE / 2.0), 0);
    assert_eq!(fp8::encode_e4m3(-0.0), 0x80);
}

/// OCP Microscaling 1.0, §6.3: the scale is the largest power of two not above amax, divided by the
/// element's largest power of two.
#[test]
fn mx_scale_is_a_floor() {
    for (amax, exponent) in [
        (1.0f32, -2),
        (4.0, 0),
        (7.999_999_5, 0),
        (8.0, 1),
        (6.0, 0),
        (f32::MAX, 125),
        (f32::MIN_POSITIVE, -127), // −128 is clamped
        (f32::from_bits(1), -127),
    ] {
        let code = e8m0::encode_e8m0(amax, 2);
        assert_eq!(i32::from(code) - 127, exponent, "{amax:e}");
    }
    assert_eq!(e8m0::encode_e8m0(0.0, 2), 0);
}
