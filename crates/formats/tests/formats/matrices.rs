//! Names, sizes, checks, packed bits and views: what every format has in common.

use marlin_formats::{
    AffineRow, Code, Format, FormatError, Group, GroupFormat, Matrix, Part, ScaleType, StridedView,
    encode, encode_strided, pack,
};
use proptest::prelude::*;

fn any_group_format() -> impl Strategy<Value = GroupFormat> {
    let code = prop::sample::select(vec![
        Code::Fp4,
        Code::Int2,
        Code::Int3,
        Code::Int4,
        Code::Int8,
        Code::Fp8,
    ]);
    let group = prop_oneof![
        (1u16..40).prop_map(|n| Group::Size(8 * n)),
        Just(Group::Channel),
        (1u16..200, 1u16..200).prop_map(|(rows, cols)| Group::Block { rows, cols }),
    ];
    let scale = prop::sample::select(vec![
        ScaleType::F16,
        ScaleType::F32,
        ScaleType::E8M0,
        ScaleType::E4M3,
    ]);
    (code, group, scale, any::<bool>(), any::<bool>()).prop_map(
        |(code, group, scale, zero, tensor_scale)| GroupFormat {
            code,
            group,
            scale,
            zero,
            tensor_scale,
        },
    )
}

fn any_format() -> impl Strategy<Value = Format> {
    prop_oneof![
        prop::sample::select(Format::ALL.to_vec()),
        any_group_format().prop_map(Format::Group),
    ]
}

#[test]
fn named_formats_have_these_names() {
    for (format, name) in [
        (Format::BF16, "bf16"),
        (Format::FP4_G32, "fp4-g32"),
        (Format::MXFP4, "mxfp4"),
        (Format::NVFP4, "nvfp4"),
        (Format::INT4_G128, "int4-g128"),
        (Format::INT4_ASYM_G128, "int4-asym-g128"),
        (Format::INT4_CHANNEL, "int4-channel"),
        (Format::INT3_ASYM_G64, "int3-asym-g64"),
        (Format::INT2_G32, "int2-g32"),
        (Format::INT8_CHANNEL, "int8-channel"),
        (Format::FP8_BLOCK, "fp8-block"),
    ] {
        assert_eq!(format.to_string(), name);
    }
    assert_eq!("Q4_K".parse(), "q4-k".parse::<Format>());
    let names: std::collections::HashSet<String> =
        Format::ALL.iter().map(Format::to_string).collect();
    assert_eq!(names.len(), Format::ALL.len(), "no two formats share a name");
}

#[test]
fn unknown_names_are_refused() {
    for name in [
        "",
        "q4",
        "int5-g32",
        "int4",
        "int4-g",
        "int4-gx",
        "int4-g32-f16-f16",
        "int4-g99999",
        "int4-block12",
        "int4-asym",
        "fp4-g32-scaled-x",
        "-",
        "mxfp4-g32",
    ] {
        let error = name.parse::<Format>().expect_err(name);
        assert_eq!(error, FormatError::UnknownName(name.into()));
    }
}

#[test]
fn bits_per_element_count_scales_and_zero_points() {
    for (name, bits) in [
        ("f16", 16.0),
        ("q4_0", 4.5),
        ("q8_0", 8.5),
        ("q2_k", 2.625),
        ("q3_k", 3.4375),
        ("q4_k", 4.5),
        ("q5_k", 5.5),
        ("q6_k", 6.5625),
        ("mxfp4", 4.25),
        ("mxfp4_ggml", 4.25),
        ("nvfp4", 4.5),
        ("int4-g128", 4.125),
        ("int4-asym-g128", 4.15625),
        ("int3-g64", 3.25),
        ("int2-g32", 2.5),
        ("int8-channel", 8.0 + 32.0 / 4096.0),
        ("fp8-block", 8.0 + 32.0 / 16384.0),
    ] {
        let format: Format = name.parse().expect(name);
        assert_eq!(format.bits_per_element(4096, 4096), Ok(bits), "{name}");
    }
}

#[test]
fn formats_without_meaning_are_refused() {
    for name in
        ["fp4-asym-g32", "fp8-asym-channel", "int4-g32-e8m0", "int4-g0", "int4-g20", "fp8-block0x8"]
    {
        let format: Format = name.parse().expect(name);
        let error = format.sizes(64, 640).expect_err(name);
        assert!(matches!(error, FormatError::InvalidFormat { .. }), "{error}");
        assert!(encode(format, 1, 640, &[0.0; 640]).is_err(), "{name}");
    }
}

#[test]
fn a_scale_per_tensor_is_refused_where_it_would_be_ignored() {
    let error = Matrix::new(Format::MXFP4, 1, 32, &[0; 16], &[0; 1], &[], 2.0).expect_err("2");
    assert_eq!(error, FormatError::TensorScale { format: Format::MXFP4, found: 2.0 });
    assert!(Matrix::new(Format::NVFP4, 1, 16, &[0; 8], &[0; 1], &[], 2.0).is_ok());
}

#[test]
fn nibbles_lie_low_first_and_three_bit_codes_fill_three_words() {
    let mut packed = [0; 2];
    pack::pack(4, &[1, 2, 3, 4], &mut packed);
    assert_eq!(packed, [0x21, 0x43]);

    let codes: Vec<u8> = (0..32).map(|i| i % 8).collect();
    let mut packed = [0; 12];
    pack::pack(3, &codes, &mut packed);
    let word =
        |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    // Code 10 straddles words 0 and 1, code 21 words 1 and 2.
    let first = (0..10).fold(0, |w, i| w | u32::from(codes[i]) << (3 * i));
    assert_eq!(word(0), first | u32::from(codes[10] & 3) << 30);
    assert_eq!(word(4) & 1, u32::from(codes[10] >> 2));
}

#[test]
fn mxfp4_decodes_by_hand() {
    // Scale 2^(128 − 127) = 2; nibbles 0x2 (1.0), 0xf (−6), 0x1 (0.5), the rest 0.
    let mut data = [0; 16];
    (data[0], data[1]) = (0xf2, 0x01);
    let matrix = Matrix::new(Format::MXFP4, 1, 32, &data, &[128], &[], 1.0).expect("a matrix");
    let values = matrix.decode();
    assert_eq!(values[..4], [2.0, -12.0, 1.0, 0.0]);
    let nan = Matrix::new(Format::MXFP4, 1, 32, &data, &[255], &[], 1.0).expect("a matrix");
    assert!(nan.decode().iter().all(|x| x.is_nan()), "E8M0 255 is NaN");
}

#[test]
fn tiles_at_the_edge_are_cut_short() {
    // 130 × 200: a grid of 2 × 2 tiles.
    let src: Vec<f32> = (0..130 * 200).map(|i| if i < 128 * 200 { 1.0 } else { 100.0 }).collect();
    let matrix = encode(Format::FP8_BLOCK, 130, 200, &src).expect("encodes");
    assert_eq!(matrix.scales.len(), 4 * 4);
    let scale = |i: usize| marlin_formats::group::read_scale(ScaleType::F32, &matrix.scales, i);
    assert_eq!([scale(0), scale(1)], [1.0 / 448.0; 2]);
    assert_eq!([scale(2), scale(3)], [100.0 / 448.0; 2]);
    let mut row = AffineRow::default();
    let int8 = encode(Format::INT8_BLOCK, 130, 200, &src).expect("encodes");
    int8.view().affine_row(129, &mut row);
    assert_eq!(row.scales.len(), 2);
}

proptest! {
    #[test]
    fn names_round_trip(format in any_format()) {
        prop_assert_eq!(format.to_string().parse::<Format>(), Ok(format));
    }

    #[test]
    fn packed_codes_round_trip(bits in 1u32..=8, codes in prop::collection::vec(any::<u8>(), 0..70)) {
        let codes: Vec<u8> = codes.iter().map(|c| c & ((1u16 << bits) - 1) as u8).collect();
        let mut packed = vec![0xff; pack::packed_bytes(bits, codes.len())];
        pack::pack(bits, &codes, &mut packed);
        let mut again = vec![0; codes.len()];
        pack::unpack(bits, &packed, &mut again);
        prop_assert_eq!(&again, &codes);

        let mut one_by_one = vec![0; packed.len()];
        for (i, code) in codes.iter().enumerate() {
            pack::set(bits, &mut one_by_one, i, 0xff);
            pack::set(bits, &mut one_by_one, i, *code);
            prop_assert_eq!(pack::get(bits, &packed, i), *code);
        }
        prop_assert_eq!(one_by_one, packed);
    }

    /// Any bytes of the right length are a matrix; nothing in them can make decoding panic.
    #[test]
    fn any_bytes_decode(
        format in any_format(),
        rows in 0usize..5,
        blocks in 0usize..4,
        seed in any::<u64>(),
    ) {
        let cols = blocks * format.block().max(1) + if format.block() == 1 { 3 } else { 0 };
        let Ok(sizes) = format.sizes(rows, cols) else {
            return Ok(());
        };
        let mut state = seed;
        let mut bytes = |n: usize| -> Vec<u8> {
            (0..n).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            }).collect()
        };
        let (data, scales, zeros) = (bytes(sizes.data), bytes(sizes.scales), bytes(sizes.zeros));
        let matrix = Matrix::new(format, rows, cols, &data, &scales, &zeros, 1.0).expect("right lengths");
        let values = matrix.decode();
        prop_assert_eq!(values.len(), rows * cols);

        let Some(affine) = format.affine() else {
            return Ok(());
        };
        let mut row = AffineRow::default();
        for r in 0..rows {
            matrix.affine_row(r, &mut row);
            prop_assert_eq!(row.codes.len(), cols);
            prop_assert!(row.codes.iter().all(|c| u32::from(*c) < 1 << affine.bits));
            prop_assert_eq!(row.mins.len(), if affine.has_min { row.scales.len() } else { 0 });
            for k in 0..cols {
                let g = k / affine.group.unwrap_or(cols);
                let product = row.scales[g] * affine.values.of(row.codes[k]) as f32;
                let (found, expected) = (product + row.mins.get(g).unwrap_or(&0.0), values[r * cols + k]);
                // The minimum is a product of its own; beside it the value may have cancelled.
                let slack = 4.0 * f32::EPSILON * (product.abs() + expected.abs()) + f32::MIN_POSITIVE;
                let same = found == expected
                    || (found - expected).abs() <= slack
                    // So large a scale that the product overflows before the minimum brings it
                    // back.
                    || !found.is_finite() && (!expected.is_finite() || row.scales[g].abs() > 1e36);
                prop_assert!(same, "{}: {} {}", format, found, expected);
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused(
        format in any_format(),
        rows in 1usize..4,
        off in prop::sample::select(vec![-1isize, 1, 100]),
        part in 0usize..3,
    ) {
        let cols = 2 * format.block();
        let Ok(sizes) = format.sizes(rows, cols) else {
            return Ok(());
        };
        let mut lengths: [usize; 3] = [sizes.data, sizes.scales, sizes.zeros];
        let Some(wrong) = lengths[part].checked_add_signed(off) else {
            return Ok(());
        };
        let expected = std::mem::replace(&mut lengths[part], wrong);
        let bytes = lengths.map(|n| vec![0; n]);
        let error = Matrix::new(format, rows, cols, &bytes[0], &bytes[1], &bytes[2], 1.0)
            .expect_err("a wrong length");
        prop_assert_eq!(error, FormatError::Length {
            format,
            part: [Part::Data, Part::Scales, Part::Zeros][part],
            rows,
            cols,
            expected,
            found: wrong,
        });
    }

    #[test]
    fn impossible_shapes_are_refused(format in any_format(), rows in any::<usize>(), cols in any::<usize>()) {
        // Whatever the shape, sizes neither panic nor wrap around.
        if let Ok(sizes) = format.sizes(rows, cols) {
            prop_assert!(sizes.data as u128 <= 8 * rows as u128 * cols as u128);
        }
        let block = format.block();
        if block > 1 {
            let error = format.sizes(1, block + 1).expect_err("a broken block");
            let expected = matches!(
                error,
                FormatError::ColumnsNotDivisible { .. } | FormatError::InvalidFormat { .. }
            );
            prop_assert!(expected, "{}", error);
        }
    }

    #[test]
    fn strided_views_encode_as_their_copies_do(
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..5,
        negative in any::<(bool, bool)>(),
        transposed in any::<bool>(),
        gap in 0usize..3,
        seed in prop::collection::vec(-4.0f32..4.0, 61),
    ) {
        let cols = if format.block() == 1 { 37 } else { 2 * format.block() };
        // A larger matrix, of which every (1 + gap)th element of every row is seen.
        let (inner, outer) = if transposed { (rows, cols) } else { (cols, rows) };
        let pitch = inner * (1 + gap) + 5;
        let data: Vec<f32> = (0..outer * pitch + 7).map(|i| seed[i % 61] + (i / 61) as f32 * 1e-3).collect();
        let (mut row_stride, mut col_stride) = (pitch as isize, 1 + gap as isize);
        if transposed {
            (row_stride, col_stride) = (col_stride, row_stride);
        }
        let mut offset = 3;
        if negative.0 {
            offset += row_stride as usize * (rows - 1);
            row_stride = -row_stride;
        }
        if negative.1 {
            offset += col_stride as usize * (cols - 1);
            col_stride = -col_stride;
        }
        let view = StridedView::new(&data, rows, cols, offset, row_stride, col_stride).expect("inside");
        let copy: Vec<f32> = (0..rows * cols).map(|i| view.get(i / cols, i % cols)).collect();
        prop_assert_eq!(encode_strided(format, view), encode(format, rows, cols, &copy));
    }

    #[test]
    fn views_that_leave_their_slice_are_refused(
        len in 0usize..20,
        (rows, cols) in (1usize..5, 1usize..5),
        offset in 0usize..20,
        (row_stride, col_stride) in (-6isize..6, -6isize..6),
    ) {
        let data = vec![0.0f32; len];
        let inside = (0..rows).all(|r| (0..cols).all(|c| {
            let at = offset as isize + r as isize * row_stride + c as isize * col_stride;
            (0..len as isize).contains(&at)
        }));
        let view = StridedView::new(&data, rows, cols, offset, row_stride, col_stride);
        prop_assert_eq!(view.is_ok(), inside);
        prop_assert!(StridedView::new(&data, usize::MAX, usize::MAX, 0, isize::MAX, isize::MAX).is_err());
    }

    #[test]
    fn sources_of_another_length_are_refused(rows in 0usize..4, extra in 1usize..4) {
        let src = vec![0.0; rows * 32 + extra];
        let error = encode(Format::F32, rows, 32, &src).expect_err("too long");
        let (expected, found) = (rows * 32, src.len());
        prop_assert_eq!(error, FormatError::ElementCount { rows, cols: 32, expected, found });
    }
}
