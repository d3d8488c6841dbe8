//! Packings against tensors that the projects which define them have packed and decoded.

use crate::fixture::{Fixture, assert_same};
use half::bf16;
use marlin_formats::layouts::compressed_tensors::{
    self as ct, GlobalScale, PackedConfig, PackedTensors, Strategy,
};
use marlin_formats::layouts::{FloatType, Floats, Imported, Tensor, awq, gptq, mxfp4};
use marlin_formats::{Format, FormatError, Matrix, encode};

fn reference() -> Fixture {
    Fixture::open("formats_packing.safetensors")
}

/// The decoded matrix with its columns in the order of the file.
fn in_file_order(imported: &Imported<'_>) -> Vec<f32> {
    let values = imported.view().decode();
    let Some(order) = &imported.column_order else {
        return values;
    };
    let mut out = vec![f32::NAN; values.len()];
    for (i, value) in values.iter().enumerate() {
        let (row, col) = (i / imported.cols, i % imported.cols);
        out[row * imported.cols + order[col] as usize] = *value;
    }
    out
}

fn check_tensors(tensors: &[Tensor<'_>], reference: &Fixture, prefix: &str) {
    for tensor in tensors {
        let name = format!("{prefix}.{}", tensor.name);
        assert_eq!(*tensor.data, reference.bytes(&name), "{name}");
        assert_eq!(tensor.shape, reference.shape(&name), "{name}");
    }
}

const GPTQ: [(&str, u32, &str); 5] = [
    ("gptq_int4_sym", 4, "int4-g32"),
    ("gptq_int4_asym_act_order", 4, "int4-asym-g32"),
    ("gptq_int8_sym", 8, "int8-g32"),
    ("gptq_int3_asym", 3, "int3-asym-g32"),
    ("gptq_int2_asym", 2, "int2-asym-g32"),
];

fn gptq_config(bits: u32) -> gptq::Config {
    gptq::Config {
        rows: 32,
        cols: 128,
        bits,
        group_size: Some(32),
        zero_point: gptq::ZeroPoint::MinusOne,
    }
}

#[test]
fn gptq_reads_what_auto_gptq_packs_and_packs_it_again() {
    let reference = reference();
    for (name, bits, format) in GPTQ {
        let part = |tensor: &str| reference.bytes(&format!("{name}.{tensor}"));
        let (qweight, qzeros, scales, g_idx) =
            (part("qweight"), part("qzeros"), part("scales"), part("g_idx"));
        let tensors = gptq::Tensors {
            qweight: &qweight,
            qzeros: &qzeros,
            scales: Floats::new(FloatType::F16, &scales),
            g_idx: Some(&g_idx),
        };
        let imported = gptq::unpack(&gptq_config(bits), &tensors).expect(name);
        assert_eq!(imported.format.to_string(), format, "{name}");
        assert_eq!(imported.column_order.is_some(), name.contains("act_order"));
        let expected = reference.floats(&format!("{name}.weight"));
        assert_same(&in_file_order(&imported), &expected, name);

        let order = imported.column_order.as_deref();
        let packed = gptq::pack(&imported.view(), gptq::ZeroPoint::MinusOne, order).expect(name);
        check_tensors(&packed, &reference, name);
    }
}

#[test]
fn gptq_v2_stores_the_zero_point_itself() {
    let src: Vec<f32> = (0..32 * 64).map(|i| ((i * 37 % 101) as f32).sin()).collect();
    for format in [Format::INT4_ASYM_G32, Format::INT4_G32, Format::INT3_ASYM_G64] {
        let matrix = encode(format, 32, 64, &src).expect("encodes");
        let pack = |zero_point| gptq::pack(&matrix.view(), zero_point, None).expect("packs");
        let (v1, v2) = (pack(gptq::ZeroPoint::MinusOne), pack(gptq::ZeroPoint::Plain));
        assert_ne!(v1[1].data, v2[1].data, "qzeros");
        let (Format::Group(group), [qweight, qzeros, scales, g_idx]) = (format, &v2[..]) else {
            panic!("{format}: {v2:?}");
        };
        let config = gptq::Config {
            rows: 32,
            cols: 64,
            bits: group.code.bits(),
            group_size: Some(group.group_cols(64)),
            zero_point: gptq::ZeroPoint::Plain,
        };
        let tensors = gptq::Tensors {
            qweight: &qweight.data,
            qzeros: &qzeros.data,
            scales: Floats::new(FloatType::F16, &scales.data),
            g_idx: Some(&g_idx.data),
        };
        let again = gptq::unpack(&config, &tensors).expect("unpacks");
        assert_eq!(again.view(), matrix.view(), "{format}");
    }
}

#[test]
fn gptq_refuses_uneven_groups_and_short_tensors() {
    let reference = reference();
    let part = |tensor: &str| reference.bytes(&format!("gptq_int4_sym.{tensor}"));
    let (qweight, qzeros, scales, mut g_idx) =
        (part("qweight"), part("qzeros"), part("scales"), part("g_idx"));
    let tensors = gptq::Tensors {
        qweight: &qweight[4..],
        qzeros: &qzeros,
        scales: Floats::new(FloatType::F16, &scales),
        g_idx: None,
    };
    let error = gptq::unpack(&gptq_config(4), &tensors).expect_err("too short");
    assert!(matches!(error, FormatError::LayoutLength { tensor: "qweight", .. }));

    for (value, message) in [(1i32, "group 0 31 columns"), (4, "below 4"), (-1, "below 4")] {
        g_idx[..4].copy_from_slice(&value.to_le_bytes());
        let tensors = gptq::Tensors { qweight: &qweight, g_idx: Some(&g_idx), ..tensors };
        let error = gptq::unpack(&gptq_config(4), &tensors).expect_err("g_idx");
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn gptq_refuses_an_order_that_is_no_permutation() {
    let matrix = encode(Format::INT4_G32, 8, 32, &[0.5; 256]).expect("encodes");
    let repeated = [0u32; 32];
    let long: Vec<u32> = (0..33).collect();
    for order in [&repeated[..], &long, &[], &[99; 32]] {
        let packed = gptq::pack(&matrix.view(), gptq::ZeroPoint::Plain, Some(order));
        assert!(packed.is_err(), "{order:?}");
    }
}

#[test]
fn awq_reads_what_autoawq_packs_and_packs_it_again() {
    let reference = reference();
    let part = |tensor: &str| reference.bytes(&format!("awq_int4.{tensor}"));
    let (qweight, qzeros, scales) = (part("qweight"), part("qzeros"), part("scales"));
    let config = awq::Config { rows: 32, cols: 128, group_size: Some(32) };
    let tensors = awq::Tensors {
        qweight: &qweight,
        qzeros: &qzeros,
        scales: Floats::new(FloatType::F16, &scales),
    };
    let imported = awq::unpack(&config, &tensors).expect("unpacks");
    assert_eq!(imported.format, Format::INT4_ASYM_G32);
    let expected = reference.floats("awq_int4.weight");
    assert_same(&imported.view().decode(), &expected, "awq_int4");
    let packed = awq::pack(&imported.view()).expect("packs");
    check_tensors(&packed, &reference, "awq_int4");
}

#[test]
fn compressed_tensors_packed_integers() {
    let reference = reference();
    for (name, bits, strategy, format) in [
        ("ct_int4_group_sym", 4, Strategy::Group(64), "int4-g64"),
        ("ct_int4_group_asym", 4, Strategy::Group(64), "int4-asym-g64"),
        ("ct_int4_channel_sym", 4, Strategy::Channel, "int4-channel"),
        ("ct_int8_group_sym", 8, Strategy::Group(64), "int8-g64"),
    ] {
        let part = |tensor: &str| reference.bytes(&format!("{name}.{tensor}"));
        let (packed, scale) = (part("weight_packed"), part("weight_scale"));
        let zero_name = format!("{name}.weight_zero_point");
        let zeros = reference.contains(&zero_name).then(|| reference.bytes(&zero_name));
        let config = PackedConfig { rows: 32, cols: 256, bits, strategy };
        let tensors = PackedTensors {
            weight_packed: &packed,
            weight_scale: Floats::new(FloatType::BF16, &scale),
            weight_zero_point: zeros.as_deref(),
            weight_g_idx: None,
        };
        let imported = ct::unpack_integers(&config, &tensors).expect(name);
        assert_eq!(imported.format.to_string(), format, "{name}");
        let expected = reference.floats(&format!("{name}.weight"));
        assert_same(&imported.view().decode(), &expected, name);

        let mut again = ct::pack(&imported.view()).expect(name);
        // The file's scales are bf16; ours are wider.
        again.retain(|tensor| tensor.name != "weight_scale");
        check_tensors(&again, &reference, name);
    }
}

#[test]
fn compressed_tensors_activation_order() {
    let cols = 64;
    let codes: Vec<u8> = (0..32u8).map(|i| i.wrapping_mul(37)).collect();
    let scales: Vec<u8> =
        [bf16::from_f32(0.5), bf16::from_f32(0.25)].iter().flat_map(|s| s.to_le_bytes()).collect();
    let g_idx: Vec<u8> = (0..cols).flat_map(|c: i32| (c % 2).to_le_bytes()).collect();
    let config = PackedConfig { rows: 1, cols: 64, bits: 4, strategy: Strategy::Group(32) };
    let tensors = PackedTensors {
        weight_packed: &codes,
        weight_scale: Floats::new(FloatType::BF16, &scales),
        weight_zero_point: None,
        weight_g_idx: Some(&g_idx),
    };
    let imported = ct::unpack_integers(&config, &tensors).expect("unpacks");
    let expected: Vec<f32> = (0..64)
        .map(|c| {
            let code = codes[c / 2] >> (4 * (c % 2)) & 15;
            (f32::from(code) - 8.0) * [0.5, 0.25][c % 2]
        })
        .collect();
    assert_same(&in_file_order(&imported), &expected, "actorder");
}

#[test]
fn compressed_tensors_int8_and_fp8_are_borrowed() {
    let reference = reference();
    let weight = reference.bytes("ct_int8_channel.weight_int8");
    let expected = reference.floats("ct_int8_channel.weight");
    let scale = reference.bytes("ct_int8_channel.weight_scale");
    let floats = Floats::new(FloatType::BF16, &scale);
    let imported =
        ct::unpack_int8(32, 256, Strategy::Channel, &weight, floats, None).expect("int8");
    assert_eq!(imported.format, Format::INT8_CHANNEL);
    assert_same(&imported.view().decode(), &expected, "ct_int8_channel");
    assert_eq!(imported.data.as_ptr(), weight.as_ptr(), "not copied");

    for (name, rows, strategy, format) in [
        ("ct_fp8_channel", 32, Strategy::Channel, Format::FP8_CHANNEL),
        ("ct_fp8_block", 160, Strategy::Block(128, 128), Format::FP8_BLOCK),
    ] {
        let weight = reference.bytes(&format!("{name}.weight_fp8"));
        let expected = reference.floats(&format!("{name}.weight"));
        let scale = reference.bytes(&format!("{name}.weight_scale"));
        let floats = Floats::new(FloatType::F32, &scale);
        let imported = ct::unpack_fp8(rows, 256, strategy, &weight, floats).expect(name);
        assert_eq!(imported.format, format);
        assert_same(&imported.view().decode(), &expected, name);
        assert_eq!(imported.data.as_ptr(), weight.as_ptr(), "not copied");
        let again = ct::pack(&imported.view()).expect(name);
        assert_eq!(*again[0].data, weight, "{name}");
        assert_eq!(*again[1].data, scale, "{name}");
    }
}

#[test]
fn compressed_tensors_asymmetric_int8() {
    let weight: Vec<u8> = [-128i8, -5, 0, 127].map(|x| x as u8).to_vec();
    let scales: Vec<u8> = [0.5f32, 2.0].iter().flat_map(|s| s.to_le_bytes()).collect();
    let zeros = [-3i8 as u8, 100];
    let floats = Floats::new(FloatType::F32, &scales);
    let imported = ct::unpack_int8(2, 2, Strategy::Channel, &weight, floats, Some(&zeros))
        .expect("asymmetric");
    assert_eq!(imported.format, Format::INT8_ASYM_CHANNEL);
    assert_eq!(imported.view().decode(), [-62.5, -1.0, -200.0, 54.0]);
    let again = ct::pack(&imported.view()).expect("packs");
    let named = |name: &str| again.iter().find(|t| t.name == name).expect(name);
    assert_eq!(*named("weight").data, weight);
    assert_eq!(*named("weight_zero_point").data, zeros);
}

#[test]
fn one_fp8_scale_per_tensor_is_repeated_for_every_row() {
    let scale = 0.25f32.to_le_bytes();
    let floats = Floats::new(FloatType::F32, &scale);
    // 0x38 is 1, 0x40 is 2.
    let weight = [0x38, 0x40, 0xb8, 0xc0, 0x00, 0x7e];
    let imported = ct::unpack_fp8(3, 2, Strategy::Tensor, &weight, floats).expect("unpacks");
    assert_eq!(imported.format, Format::FP8_CHANNEL);
    assert_eq!(imported.view().decode(), [0.25, 0.5, -0.25, -0.5, 0.0, 112.0]);
}

#[test]
fn nvfp4_is_borrowed_and_encodes_as_compressed_tensors_does() {
    let reference = reference();
    let packed = reference.bytes("ct_nvfp4.weight_packed");
    let scale = reference.bytes("ct_nvfp4.weight_scale");
    let divisor = reference.floats("ct_nvfp4.weight_global_scale")[0];
    let imported =
        ct::unpack_nvfp4(32, 256, &packed, &scale, GlobalScale::Divisor(divisor)).expect("unpacks");
    assert_eq!(imported.data.as_ptr(), packed.as_ptr(), "not copied");
    let expected = reference.floats("ct_nvfp4.weight");
    let found = imported.view().decode();
    // They divide the group's scale by the divisor, we multiply by its reciprocal: two roundings.
    for (f, e) in found.iter().zip(&expected) {
        assert!((f - e).abs() <= e.abs() * 2.0f32.powi(-22), "{f} {e}");
    }

    let src = reference.floats("ct_nvfp4.source");
    let ours = encode(Format::NVFP4, 32, 256, &src).expect("encodes");
    assert_eq!(ours.scales, scale, "the same scales, rounded the same way");
    assert!((ours.tensor_scale * divisor - 1.0).abs() < 1e-6);
    assert_eq!(ours.data, packed);
}

#[test]
fn nvfp4_refuses_a_global_scale_that_scales_nothing() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        for global in [GlobalScale::Divisor(scale), GlobalScale::Multiplier(scale)] {
            let imported = ct::unpack_nvfp4(1, 16, &[0; 8], &[0; 1], global);
            assert!(imported.is_err(), "{global:?}");
        }
    }
}

#[test]
fn mxfp4_of_compressed_tensors_and_gpt_oss_is_borrowed() {
    let reference = reference();
    for (prefix, cols, blocks, scales) in [
        ("ct_mxfp4", 256, "weight_packed", "weight_scale"),
        ("gpt_oss_mxfp4", 128, "blocks", "scales"),
    ] {
        let blocks = reference.bytes(&format!("{prefix}.{blocks}"));
        let scales = reference.bytes(&format!("{prefix}.{scales}"));
        let imported = mxfp4::unpack(32, cols, &blocks, &scales).expect(prefix);
        assert_eq!(imported.data.as_ptr(), blocks.as_ptr(), "not copied");
        let found = imported.view().decode();
        let expected = reference.floats(&format!("{prefix}.weight"));
        // transformers and compressed-tensors lose the sign of −0 on the way; no value differs.
        assert_eq!(found, expected, "{prefix}");
    }
}

#[test]
fn mxfp4_between_ggml_and_the_native_layout() {
    let ggml = Fixture::open("formats_ggml.safetensors");
    for label in ["MXFP4", "MXFP4.random"] {
        let bytes = ggml.bytes(&format!("{label}.bytes"));
        let format = "mxfp4_ggml".parse().expect("a format");
        let blocks = Matrix::plain(format, 2, 512, &bytes).expect("a matrix");
        let native = mxfp4::from_ggml(&blocks).expect("ggml's block");
        assert_eq!(native.decode(), blocks.decode(), "{label}");
        let again = mxfp4::to_ggml(&native.view()).expect("finite scales");
        assert_eq!(again.data, bytes, "{label}");
    }
    let nan = Matrix::new(Format::MXFP4, 1, 32, &[0; 16], &[0xff], &[], 1.0).expect("a matrix");
    let error = mxfp4::to_ggml(&nan).expect_err("NaN");
    assert!(error.to_string().contains("NaN"), "{error}");
}
