//! The foreign layouts as bijections: whatever codes, scales and zero points go in come out again.

use half::f16;
use marlin_formats::layouts::compressed_tensors::{
    self as ct, PackedConfig, PackedTensors, Strategy as Scales,
};
use marlin_formats::layouts::{FloatType, Floats, Imported, Tensor, awq, gptq};
use marlin_formats::{Code, Format, Group, GroupFormat, Matrix, OwnedMatrix, ScaleType};
use proptest::prelude::*;

/// A matrix of random integer codes, zero points and f16 scales.
fn any_integers(rows: usize, cols: usize) -> impl Strategy<Value = OwnedMatrix> {
    let code = prop::sample::select(vec![Code::Int2, Code::Int3, Code::Int4, Code::Int8]);
    let group = prop::sample::select(vec![Group::Size(16), Group::Size(32), Group::Channel]);
    (code, group, any::<bool>()).prop_flat_map(move |(code, group, zero)| {
        let format = Format::Group(GroupFormat {
            code,
            group: if cols.is_multiple_of(32) { group } else { Group::Channel },
            scale: if code == Code::Int8 { ScaleType::F32 } else { ScaleType::F16 },
            zero,
            tensor_scale: false,
        });
        let sizes = format.sizes(rows, cols).expect("a format that exists");
        let grid = sizes.scales / if code == Code::Int8 { 4 } else { 2 };
        (
            prop::collection::vec(any::<u8>(), sizes.data),
            prop::collection::vec(1u16..0x7c00, grid),
            prop::collection::vec(any::<u8>(), sizes.zeros),
        )
            .prop_map(move |(data, scales, zeros)| {
                let scale_bytes = scales.iter().flat_map(|bits| {
                    let scale = f16::from_bits(*bits);
                    match code {
                        Code::Int8 => scale.to_f32().to_le_bytes().to_vec(),
                        _ => scale.to_le_bytes().to_vec(),
                    }
                });
                OwnedMatrix {
                    format,
                    rows,
                    cols,
                    data,
                    scales: scale_bytes.collect(),
                    zeros,
                    tensor_scale: 1.0,
                }
            })
    })
}

fn bits_and_group(matrix: &OwnedMatrix) -> (u32, Option<usize>) {
    match matrix.format {
        Format::Group(g) => match g.group {
            Group::Size(size) => (g.code.bits(), Some(size.into())),
            _ => (g.code.bits(), None),
        },
        other => panic!("{other}"),
    }
}

fn find<'a>(tensors: &'a [Tensor<'_>], name: &str) -> Option<&'a [u8]> {
    tensors.iter().find(|t| t.name == name).map(|t| &*t.data)
}

/// Equal in every code, scale and zero point. Zero points that all happen to be the middle one come
/// back as a symmetric format, of the same values.
fn same(found: &Imported<'_>, expected: &OwnedMatrix) -> bool {
    let found = found.view();
    if found.zeros.len() == expected.zeros.len() {
        // Bits after a row's last code are not part of it.
        found.format == expected.format
            && found.scales == expected.scales
            && found.decode() == expected.decode()
    } else {
        found.decode() == expected.decode()
    }
}

fn read_gptq<'a>(
    matrix: &OwnedMatrix,
    zero_point: gptq::ZeroPoint,
    tensors: &[Tensor<'_>],
) -> Imported<'a> {
    let (bits, group_size) = bits_and_group(matrix);
    let config =
        gptq::Config { rows: matrix.rows, cols: matrix.cols, bits, group_size, zero_point };
    let part = |name| find(tensors, name).expect(name);
    let tensors = gptq::Tensors {
        qweight: part("qweight"),
        qzeros: part("qzeros"),
        scales: Floats::new(FloatType::F16, part("scales")),
        g_idx: Some(part("g_idx")),
    };
    gptq::unpack(&config, &tensors).expect("what was just packed")
}

proptest! {
    #[test]
    fn gptq_round_trips(matrix in any_integers(32, 96), v2 in any::<bool>()) {
        let zero_point = if v2 { gptq::ZeroPoint::Plain } else { gptq::ZeroPoint::MinusOne };
        let packed = gptq::pack(&matrix.view(), zero_point, None).expect("integers");
        let again = read_gptq(&matrix, zero_point, &packed);
        prop_assert_eq!(&again.column_order, &None);
        prop_assert!(same(&again, &matrix));
    }

    #[test]
    fn gptq_keeps_the_order_of_columns(
        matrix in any_integers(32, 64),
        order in Just((0..64).collect::<Vec<u32>>()).prop_shuffle(),
    ) {
        let packed = gptq::pack(&matrix.view(), gptq::ZeroPoint::MinusOne, Some(&order)).expect("integers");
        let again = read_gptq(&matrix, gptq::ZeroPoint::MinusOne, &packed);
        // Columns of a group may change places among themselves; every column of the file keeps its
        // values.
        let in_file_order = |matrix: Matrix<'_>, order: &[u32]| {
            let mut out = vec![0.0; 32 * 64];
            for (i, x) in matrix.decode().into_iter().enumerate() {
                out[i / 64 * 64 + order[i % 64] as usize] = x;
            }
            out
        };
        let unordered: Vec<u32> = (0..64).collect();
        let found = again.column_order.as_deref().unwrap_or(&unordered);
        prop_assert_eq!(in_file_order(again.view(), found), in_file_order(matrix.view(), &order));
    }

    #[test]
    fn awq_round_trips(matrix in any_integers(24, 64)) {
        let (bits, group_size) = bits_and_group(&matrix);
        let packed = awq::pack(&matrix.view());
        prop_assert_eq!(packed.is_ok(), bits == 4, "AWQ is a 4-bit layout");
        let Ok(packed) = packed else {
            return Ok(());
        };
        let part = |name| find(&packed, name).expect(name);
        let tensors = awq::Tensors {
            qweight: part("qweight"),
            qzeros: part("qzeros"),
            scales: Floats::new(FloatType::F16, part("scales")),
        };
        let config = awq::Config { rows: 24, cols: 64, group_size };
        prop_assert!(same(&awq::unpack(&config, &tensors).expect("just packed"), &matrix));
    }

    /// Rows and columns that do not fill words included.
    #[test]
    fn compressed_tensors_round_trips(
        matrix in (1usize..20, prop::sample::select(vec![32, 64, 5, 43]))
            .prop_flat_map(|(rows, cols)| any_integers(rows, cols)),
    ) {
        let (bits, group_size) = bits_and_group(&matrix);
        let strategy = group_size.map_or(Scales::Channel, |size| Scales::Group(size as u16));
        let packed = ct::pack(&matrix.view()).expect("integers");
        let part = |name| find(&packed, name).expect(name);
        let scale_type = if bits == 8 { FloatType::F32 } else { FloatType::F16 };
        let scale = Floats::new(scale_type, part("weight_scale"));
        let zeros = find(&packed, "weight_zero_point");
        let (rows, cols) = (matrix.rows, matrix.cols);
        let again = if ct::compressor(matrix.format) == Some("int-quantized") {
            ct::unpack_int8(rows, cols, strategy, part("weight"), scale, zeros)
        } else {
            let tensors = PackedTensors {
                weight_packed: part("weight_packed"),
                weight_scale: scale,
                weight_zero_point: zeros,
                weight_g_idx: None,
            };
            ct::unpack_integers(&PackedConfig { rows, cols, bits, strategy }, &tensors)
        };
        prop_assert!(same(&again.expect("just packed"), &matrix));
    }

    /// Shapes that a hostile file may claim: refused, or of the size of the tensors that are there.
    #[test]
    fn claimed_shapes_are_checked_before_anything_is_allocated(
        rows in prop_oneof![0usize..40, any::<usize>()],
        cols in prop_oneof![0usize..40, any::<usize>()],
        bits in 0u32..12,
        group in prop_oneof![Just(None), (0usize..70).prop_map(Some), any::<usize>().prop_map(Some)],
        len in 0usize..64,
    ) {
        let bytes = vec![0x35; len];
        let floats = Floats::new(FloatType::BF16, &bytes);
        let size = group.unwrap_or(16) as u16;
        let found = [
            gptq::unpack(
                &gptq::Config { rows, cols, bits, group_size: group, zero_point: gptq::ZeroPoint::Plain },
                &gptq::Tensors { qweight: &bytes, qzeros: &bytes, scales: floats, g_idx: Some(&bytes) },
            ),
            awq::unpack(
                &awq::Config { rows, cols, group_size: group },
                &awq::Tensors { qweight: &bytes, qzeros: &bytes, scales: floats },
            ),
            ct::unpack_integers(
                &PackedConfig { rows, cols, bits, strategy: Scales::Group(size) },
                &PackedTensors {
                    weight_packed: &bytes,
                    weight_scale: floats,
                    weight_zero_point: Some(&bytes),
                    weight_g_idx: None,
                },
            ),
            ct::unpack_int8(rows, cols, Scales::Group(size), &bytes, floats, Some(&bytes)),
            ct::unpack_fp8(rows, cols, Scales::Block(size, size), &bytes, floats),
            ct::unpack_nvfp4(rows, cols, &bytes, &bytes, ct::GlobalScale::Divisor(1.0)),
            marlin_formats::layouts::mxfp4::unpack(rows, cols, &bytes, &bytes),
        ];
        for imported in found.into_iter().flatten() {
            prop_assert!(imported.data.len() <= 8 * len.max(1));
        }
    }
}
