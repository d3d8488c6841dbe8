//! What lies in a cache, and where.

use half::f16;
use marlin_gpu::ops::kv_cache::{KV_BLOCK, KvLayout, KvStorage};

use crate::filled::{Filled, fp4, int8};
use crate::query::{Query, last};
use crate::{common, layout};

/// Keys and values, codes and scales lie where `kv_cache.h` says, bit for bit.
#[test]
fn the_cache_has_the_layout_that_the_header_describes() {
    for device in common::devices() {
        for storage in KvStorage::ALL {
            for (dim, paged) in [(8, false), (72, true), (128, false), (256, true)] {
                let layout = layout(storage, 2, dim);
                let filled = Filled::<f32>::new(&*device, layout, &[37, 1], paged, 3.0).unwrap();
                let pieces = device.download_all(&filled.cache).unwrap();
                let bytes: &[u8] = bytemuck::cast_slice(&pieces);
                for (sequence, length) in [(0, 37), (1, 1)] {
                    for position in 0..length {
                        check_position(&filled, bytes, sequence, position);
                    }
                }
            }
        }
    }
}

fn check_position(filled: &Filled<'_, f32>, bytes: &[u8], sequence: usize, position: usize) {
    let layout = filled.layout;
    let dim = layout.head_dim() as usize;
    let head_bytes = layout.block_pieces() * 16 / layout.kv_heads() as usize;
    let block = KV_BLOCK as usize;
    let (physical, p) = (filled.blocks.physical(sequence, position / block), position % block);
    for head in 0..layout.kv_heads() as usize {
        let base = (physical * layout.kv_heads() as usize + head) * head_bytes;
        let base = &bytes[base..base + head_bytes];
        let elements = layout.storage().piece_elements() as usize;
        let (unit, key_row) = (elements.min(8), dim.div_ceil(elements));
        let per_piece = elements / unit;
        let values = key_row * block * 16;
        let scales = values + dim * block * 16 / elements;
        let key = &filled.keys[sequence][position][head * dim..][..dim];
        let value = &filled.values[sequence][position][head * dim..][..dim];
        let key_at = |d: usize| ((d / elements) * block + p, d % elements);
        let value_at = |d: usize| {
            (values / 16 + p / per_piece * (dim / unit) + d / unit, p % per_piece * unit + d % unit)
        };
        let f32_at = |at: usize| f32::from_le_bytes(base[at..at + 4].try_into().unwrap());
        let f16_at = |at: usize| f16::from_le_bytes(base[at..at + 2].try_into().unwrap());
        for (x, place, scales) in [
            (key, &key_at as &dyn Fn(usize) -> (usize, usize), scales),
            (value, &value_at, scales + (head_bytes - scales) / 2),
        ] {
            for d in 0..dim {
                let (piece, i) = place(d);
                match layout.storage() {
                    KvStorage::F32 => assert_eq!(f32_at(piece * 16 + 4 * i), x[d]),
                    KvStorage::F16 => assert_eq!(f16_at(piece * 16 + 2 * i), f16::from_f32(x[d])),
                    KvStorage::Int8 => assert_eq!(base[piece * 16 + i] as i8, int8(x).0[d]),
                    KvStorage::Fp4 => {
                        let byte = base[piece * 16 + i / 2];
                        assert_eq!((byte >> (4 * (i % 2))) & 15, fp4(x).0[d], "value {d} of {x:?}");
                    }
                }
            }
            match layout.storage() {
                KvStorage::Int8 => assert_eq!(f32_at(scales + 4 * p), int8(x).1),
                KvStorage::Fp4 => {
                    for (g, &scale) in fp4(x).1.iter().enumerate() {
                        assert_eq!(f16_at(scales + 2 * (g * block + p)), scale);
                    }
                }
                KvStorage::F16 | KvStorage::F32 => {}
            }
        }
    }
}

#[test]
fn values_past_the_range_of_f16_are_kept_at_its_end() {
    for device in common::devices_of_width(32) {
        let filled =
            Filled::<f32>::new(&*device, layout(KvStorage::F16, 1, 64), &[3], false, 1e6).unwrap();
        filled.attend(&Query { scale: 1e-9, ..Query::default() }, &last(&[3], 1)).unwrap();
    }
}

/// Zeros have a scale of zero and come back as zeros.
#[test]
fn keys_and_values_of_zero_are_kept_as_zero() {
    for device in common::devices_of_width(32) {
        for storage in KvStorage::ALL {
            let filled =
                Filled::<f16>::new(&*device, layout(storage, 1, 64), &[5], false, 0.0).unwrap();
            filled.attend(&Query::default(), &last(&[5], 1)).unwrap();
        }
    }
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    assert!(KvLayout::new(KvStorage::F16, 1, 12).is_err());
    assert!(KvLayout::new(KvStorage::F16, 1, 264).is_err());
    assert!(KvLayout::new(KvStorage::F16, 0, 64).is_err());
}
