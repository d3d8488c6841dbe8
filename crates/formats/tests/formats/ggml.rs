//! ggml's formats against gguf-py and ggml itself.

use crate::fixture::{Fixture, assert_same};
use marlin_formats::{AffineRow, Format, GgmlType, Matrix, encode};

const ROWS: usize = 2;
const COLS: usize = 512;

fn reference() -> Fixture {
    Fixture::open("formats_ggml.safetensors")
}

fn ggml_name(format: Format) -> String {
    match format {
        Format::Ggml(GgmlType::MxFp4) => "MXFP4".into(),
        other => other.to_string().to_uppercase(),
    }
}

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|f| f.ggml_id().is_some())
}

#[test]
fn decodes_as_gguf_does_to_the_bit() {
    let reference = reference();
    for format in formats() {
        let name = ggml_name(format);
        for label in [name.clone(), format!("{name}.random")] {
            let bytes = reference.bytes(&format!("{label}.bytes"));
            let matrix = Matrix::plain(format, ROWS, COLS, &bytes).expect(&label);
            let expected = reference.floats(&format!("{label}.f32"));
            assert_same(&matrix.decode(), &expected, &label);
        }
    }
}

#[test]
fn encodes_simple_types_as_gguf_does_to_the_bit() {
    let reference = reference();
    for format in formats().filter(|f| f.block() != 256) {
        let name = ggml_name(format);
        let src = reference.floats(&format!("{name}.src"));
        let found = encode(format, ROWS, COLS, &src).expect(&name);
        let expected = reference.bytes(&format!("{name}.bytes"));
        let block = format.row_bytes(format.block().max(32));
        for (i, (f, e)) in found.data.chunks(block).zip(expected.chunks(block)).enumerate() {
            assert_eq!(f, e, "{name}, block {i}");
        }
    }
}

/// The search need not find ggml's codes, but is to lose no accuracy to it.
#[test]
fn k_quants_are_as_accurate_as_ggmls_own() {
    let reference = reference();
    for format in formats().filter(|f| f.block() == 256) {
        let name = ggml_name(format);
        let src = reference.floats(&format!("{name}.src"));
        let theirs = reference.floats(&format!("{name}.f32"));
        let ours = encode(format, ROWS, COLS, &src).expect(&name).decode();
        for row in 0..ROWS {
            let error = |values: &[f32]| -> f64 {
                let range = row * COLS..(row + 1) * COLS;
                values[range.clone()]
                    .iter()
                    .zip(&src[range])
                    .map(|(a, b)| f64::from(a - b).powi(2))
                    .sum::<f64>()
                    .sqrt()
            };
            let (ours, theirs) = (error(&ours), error(&theirs));
            println!("{name} row {row}: ours {ours:.5}, ggml {theirs:.5}");
            assert!(ours <= 1.001 * theirs, "{name} row {row}: {ours} > {theirs}");
        }
    }
}

#[test]
fn integer_view_gives_the_decoded_values_to_the_bit() {
    let reference = reference();
    for format in formats() {
        let Some(affine) = format.affine() else {
            continue;
        };
        let name = format!("{}.random", ggml_name(format));
        let bytes = reference.bytes(&format!("{name}.bytes"));
        let matrix = Matrix::plain(format, ROWS, COLS, &bytes).expect(&name);
        let expected = reference.floats(&format!("{name}.f32"));
        let mut row = AffineRow::default();
        for (r, expected) in expected.chunks(COLS).enumerate() {
            matrix.affine_row(r, &mut row);
            let group = affine.group.expect("ggml's groups are parts of a row");
            let found: Vec<f32> = (0..COLS)
                .map(|k| {
                    let value = row.scales[k / group] * affine.values.of(row.codes[k]) as f32;
                    match row.mins.get(k / group) {
                        Some(min) => value + min,
                        None => value,
                    }
                })
                .collect();
            assert_same(&found, expected, &name);
            for (g, scale) in row.sub_scales.iter().enumerate() {
                let per_super = row.sub_scales.len() / row.super_scales.len();
                let product = row.super_scales[g / per_super].to_f32() * f32::from(*scale);
                assert_eq!(product.to_bits(), row.scales[g].to_bits(), "{name}");
            }
            for (g, min) in row.sub_mins.iter().enumerate() {
                let per_super = row.sub_mins.len() / row.super_mins.len();
                let product = -(row.super_mins[g / per_super].to_f32() * f32::from(*min));
                assert_eq!(product.to_bits(), row.mins[g].to_bits(), "{name}");
            }
        }
    }
}

#[test]
fn type_ids_are_ggmls() {
    let ids = [
        ("f32", 0),
        ("f16", 1),
        ("q4_0", 2),
        ("q4_1", 3),
        ("q5_0", 6),
        ("q5_1", 7),
        ("q8_0", 8),
        ("q2_k", 10),
        ("q3_k", 11),
        ("q4_k", 12),
        ("q5_k", 13),
        ("q6_k", 14),
        ("bf16", 30),
        ("mxfp4_ggml", 39),
    ];
    assert_eq!(ids.len(), formats().count());
    for (name, id) in ids {
        let format: Format = name.parse().expect(name);
        assert_eq!(format.ggml_id(), Some(id), "{name}");
        assert_eq!(Format::from_ggml_id(id), Some(format), "{name}");
    }
    assert_eq!(Format::from_ggml_id(16), None, "IQ2_XXS is not one of ours");
    assert_eq!(Format::MXFP4.ggml_id(), None, "another layout of the same numbers");
}
