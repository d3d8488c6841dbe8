use half::f16;

use super::*;
use crate::{AffineRow, e8m0, encode, fp4, fp8};

/// Decodes an element as the module's documentation says it lies, by table and slot, not by the
/// packer's code.
fn value(layout: &FragmentLayout, m: &FragmentMatrix, row: usize, k: usize) -> f32 {
    let (rb, r, kb, c) = (row / 16, row % 16, k / 64, k % 64);
    let (g, h, s, t, i) = (r % 8, r / 8, c / 16, c % 16 / 4, c % 4);
    let (slot, p, odd) = (4 * g + t, (4 * s + i) / 2, (4 * s + i) % 2);
    let block = &m.codes[(rb * layout.blocks() + kb) * layout.block_bytes()..];
    let word = |plane: usize, chunk_words: usize, w: usize| {
        let at = plane + 4 * ((w / chunk_words * 32 + slot) * chunk_words + w % chunk_words);
        u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
    };
    let two = |plane| word(plane, 2, h) >> (2 * p + 16 * odd) & 3;
    let one = |plane| word(plane, 1, 0) >> (p + 8 * h + 16 * odd) & 1;
    let four = || word(0, 4, 2 * h + p / 4) >> (4 * (p % 4) + 16 * odd) & 15;
    let apart = || {
        let half = word(0, 4, 2 * h + p / 4) >> (16 * odd);
        let (sign, rest) = [(15, 9), (12, 6), (14, 3), (13, 0)][p % 4];
        (half >> sign & 1) << 3 | half >> rest & 7
    };
    let eight = || word(0, 4, 4 * h + p / 2) >> (8 * (p % 2) + 16 * odd) & 255;
    let sixteen = || (word(0, 4, 8 * h + p) >> (16 * odd)) as u16;
    let code = match layout.code {
        FragmentCode::F16 => return f16::from_bits(sixteen()).to_f32(),
        FragmentCode::Bf16 => return half::bf16::from_bits(sixteen()).to_f32(),
        FragmentCode::F32 => return f32::from_bits(word(0, 4, 16 * h + 2 * p + odd)),
        FragmentCode::U2 => two(0),
        FragmentCode::U3 => two(0) | one(256) << 2,
        FragmentCode::U4 => four(),
        FragmentCode::Fp4 => apart(),
        FragmentCode::U5 => four() | one(512) << 4,
        FragmentCode::U6 => four() | two(512) << 4,
        FragmentCode::U8 | FragmentCode::Fp8 => eight(),
    };
    let v = match layout.code {
        FragmentCode::Fp4 => fp4::E2M1[code as usize],
        FragmentCode::Fp8 => fp8::decode_e4m3(code as u8),
        _ => code as f32 - layout.offset as f32,
    };
    let at = (rb * layout.groups() + k / layout.group) * 16 + 2 * g + h;
    let half_at = |b: &[u8], i: usize| f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32();
    let float_at = |b: &[u8], i: usize| {
        f32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]])
    };
    let supers = layout.padded_cols() / 256;
    let s_at = (rb * supers + k / 256) * layout.super_values() + 2 * g + h;
    let scale = match layout.scale {
        FragmentScale::None => 1.0,
        FragmentScale::F16 => half_at(&m.scales, at),
        FragmentScale::F32 => float_at(&m.scales, at),
        FragmentScale::E8M0 => e8m0::decode_e8m0(m.scales[at]),
        FragmentScale::E4M3 => fp8::decode_e4m3(m.scales[at]),
        FragmentScale::SuperBlock => half_at(&m.supers, s_at) * f32::from(m.scales[at] as i8),
    };
    let min = match layout.min {
        FragmentMin::None => 0.0,
        FragmentMin::F16 => half_at(&m.mins, at),
        FragmentMin::F32 => float_at(&m.mins, at),
        FragmentMin::SuperBlock => -half_at(&m.supers, s_at + 16) * f32::from(m.mins[at]),
    };
    (scale * v + min) * layout.factor
}

#[test]
fn every_element_of_every_format_lies_where_the_table_says() {
    for format in Format::ALL {
        for (rows, cols) in [(1, 256), (17, 768), (40, 512)] {
            let values: Vec<f32> =
                (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
            let owned = encode(format, rows, cols, &values).unwrap();
            let matrix = owned.view();
            let layout = FragmentLayout::new(format, rows, cols, matrix.tensor_scale)
                .unwrap_or_else(|| panic!("{format} has no layout"));
            let packed = layout.pack(&matrix).unwrap();
            let mut expected = vec![0.0; cols];
            for row in 0..rows {
                matrix.decode_row(row, &mut expected);
                for (k, &e) in expected.iter().enumerate() {
                    let found = value(&layout, &packed, row, k);
                    assert!((found - e).abs() <= 1e-6, "{format} ({row}, {k}): {found}, {e}");
                }
            }
        }
    }
}

#[test]
fn columns_past_the_end_are_padding() {
    let format: Format = "int4-g64".parse().unwrap();
    let values = vec![0.25; 3 * 128];
    let owned = encode(format, 3, 128, &values).unwrap();
    let layout = FragmentLayout::new(format, 3, 128, 1.0).unwrap();
    let packed = layout.pack(&owned.view()).unwrap();
    assert_eq!(layout.sizes(), [2 * 512, 2 * 32, 0, 0]);
    for row in 3..16 {
        assert_eq!(value(&layout, &packed, row, 5), 0.0, "row {row}");
    }
}

#[test]
fn another_matrix_is_refused() {
    let format: Format = "q4_0".parse().unwrap();
    let owned = encode(format, 16, 64, &vec![0.5; 1024]).unwrap();
    let layout = FragmentLayout::new(format, 16, 128, 1.0).unwrap();
    let error = layout.pack(&owned.view()).unwrap_err().to_string();
    assert!(error.contains("[16, 64]") && error.contains("[16, 128]"), "{error}");
}

/// A matrix that is packed in slices is the one that is packed at once, and matrices packed one after the other are
/// the matrix of their rows.
#[test]
fn slices_and_stacks_are_parts_of_the_whole() {
    for format in Format::ALL {
        let (rows, cols) = (16 * 5 + 3, 256);
        let values: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        let owned = encode(format, rows, cols, &values).unwrap();
        let matrix = owned.view();
        let Some(layout) = FragmentLayout::new(format, rows, cols, matrix.tensor_scale) else {
            continue;
        };
        let whole = layout.pack(&matrix).unwrap();
        let mut joined = FragmentMatrix::default();
        let mut slice = FragmentMatrix::default();
        for row_blocks in [0..2, 2..3, 3..6] {
            layout.pack_row_blocks(&matrix, row_blocks, &mut slice).unwrap();
            joined.codes.extend(&slice.codes);
            joined.scales.extend(&slice.scales);
            joined.mins.extend(&slice.mins);
            joined.supers.extend(&slice.supers);
        }
        assert_eq!(joined, whole, "{format}");
        assert!(layout.pack_row_blocks(&matrix, 5..7, &mut slice).is_err(), "{format}");
        let above = FragmentLayout { rows: 32, ..layout };
        let stacked = above.stacked(&layout);
        assert_eq!(stacked, Some(FragmentLayout { rows: 32 + rows, ..layout }), "{format}");
        // Rows that end within a row block leave a gap.
        assert_eq!(layout.stacked(&above), None, "{format}");
    }
}

/// What a device does that keeps weights in another order: it must find what was in the file.
#[test]
fn rows_come_back_as_they_were_packed() {
    use crate::tile::{TileLayout, TileScratch};
    for format in Format::ALL {
        for (rows, cols) in [(1, 256), (35, 768)] {
            let values: Vec<f32> =
                (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
            let owned = encode(format, rows, cols, &values).unwrap();
            let matrix = owned.view();
            let layout = FragmentLayout::new(format, rows, cols, matrix.tensor_scale).unwrap();
            let packed = layout.pack(&matrix).unwrap();
            let sections = [&packed.codes[..], &packed.scales, &packed.mins, &packed.supers];
            let fragments =
                Fragments::new(format, rows, cols, matrix.tensor_scale, sections).unwrap();
            for (found, expected) in fragments.decode().iter().zip(matrix.decode()) {
                assert!((found - expected).abs() <= 1e-6, "{format}: {found}, {expected}");
            }
            if format.affine().is_none() {
                let mut data = vec![0; matrix.data.len()];
                let row_bytes = matrix.row_bytes();
                for (row, out) in data.chunks_exact_mut(row_bytes).enumerate() {
                    fragments.copy_row_data(row, out);
                }
                assert_eq!(data, matrix.data, "{format}");
                continue;
            }
            let (mut expected, mut found) = (AffineRow::default(), AffineRow::default());
            for row in 0..rows {
                matrix.affine_row(row, &mut expected);
                fragments.affine_row(row, &mut found);
                assert_eq!(found, expected, "{format}, row {row}");
            }
            let tiles = TileLayout::new(format, rows, cols, matrix.tensor_scale).unwrap();
            let mut scratch = TileScratch::default();
            let [mut expected, mut found] = [(); 2].map(|()| vec![0xaa; tiles.tile_bytes()]);
            for tile in 0..tiles.tiles() {
                tiles.pack_tile(&matrix, tile, &mut expected, &mut scratch).unwrap();
                tiles.pack_tile_of_fragments(&fragments, tile, &mut found, &mut scratch).unwrap();
                assert_eq!(found, expected, "{format}, tile {tile}");
            }
        }
    }
}

#[test]
fn sections_of_another_size_are_refused() {
    let format: Format = "q4_0".parse().unwrap();
    let sizes = FragmentLayout::new(format, 17, 64, 1.0).unwrap().sizes();
    let bytes = sizes.map(|len| vec![0; len + 1]);
    let sections = |longer: usize| -> [&[u8]; 4] {
        std::array::from_fn(|i| &bytes[i][..sizes[i] + usize::from(i == longer)])
    };
    assert!(Fragments::new(format, 17, 64, 1.0, sections(4)).is_ok());
    for longer in 0..4 {
        let error = Fragments::new(format, 17, 64, 1.0, sections(longer)).unwrap_err().to_string();
        assert!(error.contains("q4_0") && error.contains("[17, 64]"), "{error}");
    }
    // Sizes from files: whatever they are, there is no panic.
    for (rows, cols) in [(usize::MAX, 64), (1 << 40, 1 << 40), (1, usize::MAX - 63), (3, 65)] {
        assert!(FragmentLayout::checked(format, rows, cols, 1.0).is_err(), "[{rows}, {cols}]");
    }
    assert!(FragmentLayout::checked(format, 1, 64, f32::NAN).is_err());
}
