//! Attention of single tokens: every kernel that there is for it, and which is chosen.

use half::{bf16, f16};
use marlin_gpu::ops::attention::{DecodeShape, decode_splits};
use marlin_gpu::ops::kv_cache::{KvStorage, NO_SEQUENCE};

use crate::filled::Filled;
use crate::query::{Query, last};
use crate::{common, layout};

/// Every storage and every head size, at every SIMD width; contexts with whole, cut and single blocks.
#[test]
fn decoding_agrees_with_the_definition() {
    let lengths = [1, 32, 33, 75];
    for device in common::devices() {
        for storage in KvStorage::ALL {
            for (dim, kv_heads, group) in
                [(8, 1, 1), (64, 2, 3), (80, 1, 4), (96, 1, 2), (128, 2, 4), (256, 1, 9)]
            {
                let layout = layout(storage, kv_heads, dim);
                let filled = Filled::<f32>::new(&*device, layout, &lengths, false, 1.0).unwrap();
                let query = Query { group, ..Query::default() };
                filled.attend(&query, &last(&lengths, 1)).unwrap();
            }
        }
    }
}

#[test]
fn a_split_context_gives_the_same_as_a_whole_one() {
    let lengths = [5, 170];
    for device in common::devices() {
        // More splits than blocks leave some without a position; 70 of 256 values are more than one round of
        // a reduction.
        for (storage, dim, splits) in [
            (KvStorage::F16, 64, 2),
            (KvStorage::F16, 80, 7),
            (KvStorage::Int8, 64, 3),
            (KvStorage::Fp4, 64, 40),
            (KvStorage::F16, 256, 70),
        ] {
            for paged in [false, true] {
                let filled =
                    Filled::<f16>::new(&*device, layout(storage, 2, dim), &lengths, paged, 1.0)
                        .unwrap();
                let query = Query { splits, ..Query::default() };
                filled.attend(&query, &last(&lengths, 1)).unwrap();
            }
        }
    }
}

/// The kernel for short contexts, whole and split: every storage, heads that fill no power of two, groups in several parts,
/// pages, and more rounds than one.
#[test]
fn short_contexts_agree_with_the_definition() {
    let lengths = [1, 32, 33, 170];
    for device in common::devices() {
        for storage in KvStorage::ALL {
            for (dim, kv_heads, group, splits) in [
                (8, 1, 1, 1),
                (64, 2, 3, 2),
                (80, 1, 5, 3),
                (96, 1, 2, 1),
                (128, 2, 4, 5),
                (256, 1, 9, 2),
            ] {
                let layout = layout(storage, kv_heads, dim);
                let paged = splits % 2 == 0;
                let mut tokens = last(&lengths, 1);
                tokens.insert(2, (NO_SEQUENCE, 0));
                let query = Query { group, splits, short: true, ..Query::default() };
                let filled = Filled::<f32>::new(&*device, layout, &lengths, paged, 1.0).unwrap();
                filled.attend(&query, &tokens).unwrap();
                if dim == 64 {
                    let filled =
                        Filled::<bf16>::new(&*device, layout, &lengths, paged, 1.0).unwrap();
                    filled.attend(&query, &tokens).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_window_hides_earlier_positions_and_a_softcap_bends_scores() {
    let lengths = [100];
    for device in common::devices() {
        for (window, splits) in [(1, 1), (32, 1), (33, 2), (64, 5), (1000, 1)] {
            let filled =
                Filled::<f16>::new(&*device, layout(KvStorage::F16, 1, 64), &lengths, true, 1.0)
                    .unwrap();
            for short in [false, true] {
                let query = Query {
                    window: Some(window),
                    softcap: Some(0.8),
                    splits,
                    short,
                    factor: 4.0,
                    ..Query::default()
                };
                filled.attend(&query, &[(0, 99), (0, 31), (0, 32), (0, 64), (0, 0)]).unwrap();
            }
        }
    }
}

/// Scores far apart: one position takes all the weight, and nothing overflows.
#[test]
fn extreme_scores_stay_finite() {
    for device in common::devices() {
        let filled =
            Filled::<f32>::new(&*device, layout(KvStorage::F16, 1, 64), &[67], false, 6e4).unwrap();
        for short in [false, true] {
            let query = Query { factor: 1e6, splits: 2, short, ..Query::default() };
            filled.attend(&query, &last(&[67], 1)).unwrap();
            // All scores alike: the mean.
            let query = Query { scale: 0.0, short, ..Query::default() };
            filled.attend(&query, &last(&[67], 1)).unwrap();
        }
    }
}

#[test]
fn a_batch_without_tokens_runs_nothing() {
    for device in common::devices_of_width(32) {
        let filled =
            Filled::<f16>::new(&*device, layout(KvStorage::F16, 1, 64), &[2], false, 1.0).unwrap();
        filled.append(&[]).unwrap();
        assert!(filled.run(&Query::default(), &[], &[]).unwrap().is_empty());
    }
}

/// A long context is divided until the device is busy; a short one is not.
#[test]
fn splits_follow_the_context() {
    for device in common::devices_of_width(32) {
        let (layout, mut properties) =
            (layout(KvStorage::F16, 8, 128), device.properties().clone());
        properties.compute_units = 132;
        assert_eq!(decode_splits(&layout, 32, 1, 100, &properties), 1);
        assert_eq!(decode_splits(&layout, 32, 1, 1 << 15, &properties), 66);
        assert_eq!(decode_splits(&layout, 64, 1, 1 << 15, &properties), 49);
        assert_eq!(decode_splits(&layout, 32, 40, 1 << 15, &properties), 1);
        assert_eq!(decode_splits(&layout, 32, 4, 1 << 15, &properties), 16);
        assert_eq!(decode_splits(&layout, 32, 1 << 10, 1 << 15, &properties), 1);
    }
}

/// A short context is one whole for each head, then as many parts as there are compute units; with tokens in plenty, and where a
/// context is long, the kernel is the one that reads every byte once.
#[test]
fn short_contexts_have_a_kernel_of_their_own() {
    for device in common::devices_of_width(32) {
        let (layout, mut properties) =
            (layout(KvStorage::F16, 8, 128), device.properties().clone());
        properties.compute_units = 132;
        let choose = |tokens, context| {
            let DecodeShape { splits, short } =
                DecodeShape::choose(&layout, 32, tokens, context, &properties);
            (splits, short)
        };
        assert_eq!(choose(1, 1), (1, true));
        assert_eq!(choose(1, 512), (1, true));
        assert_eq!(choose(1, 1024), (16, true));
        assert_eq!(choose(1, 1 << 14), (16, true));
        assert_eq!(choose(4, 1 << 12), (4, true));
        assert_eq!(choose(4, 1 << 14), (16, false));
        assert_eq!(choose(1, 1 << 15), (66, false));
        assert_eq!(choose(40, 256), (1, false));
    }
}

/// Whatever does not fit is refused before it reaches the device, with both numbers.
#[test]
fn lengths_that_do_not_fit_are_refused() {
    for device in common::devices_of_width(32) {
        let filled =
            Filled::<f16>::new(&*device, layout(KvStorage::F16, 1, 64), &[2], false, 1.0).unwrap();
        let refused = |query: Query, tokens: &[(u32, u32)], q: usize, needle: &str| {
            let q = vec![f16::ZERO; q];
            let error = filled.run(&query, tokens, &q).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        };
        let plain = Query::default();
        refused(plain, &[(0, 1)], 100, "100 elements for 1 rows of 256");
        refused(Query { window: Some(0), ..plain }, &[(0, 1)], 264, "window of 0");
        refused(Query { splits: 0, ..plain }, &[(0, 1)], 264, "0 splits");
        refused(Query { splits: 4000, ..plain }, &[(0, 1)], 264, "4000 splits");
        refused(
            Query { splits: 2, tiled: true, ..plain },
            &[(0, 1)],
            264,
            "2 splits with tiles, expected 1",
        );
        refused(Query { group: 0, ..plain }, &[(0, 1)], 264, "0 query heads");
    }
}
