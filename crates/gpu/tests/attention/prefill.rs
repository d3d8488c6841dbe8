//! Attention of runs of tokens, in tiles.

use half::{bf16, f16};
use marlin_gpu::Device;
use marlin_gpu::ops::attention::RowShape;
use marlin_gpu::ops::kv_cache::{KvStorage, NO_SEQUENCE};

use crate::filled::Filled;
use crate::query::{Query, Tolerance, last};
use crate::{common, layout};

/// Runs of several sequences, not starting at 0, with a token that is not there between them; by matrix fragments where
/// the device has them and activations are of 16 bits, plainly elsewhere.
fn prefill<T: Tolerance>(storage: KvStorage, dim: u32, query: &Query, device: &dyn Device) {
    let lengths = [40, 3, 71];
    let mut tokens: Vec<(u32, u32)> = last(&lengths, 18);
    tokens.insert(18, (NO_SEQUENCE, 0));
    let filled = Filled::<T>::new(device, layout(storage, 2, dim), &lengths, true, 1.0).unwrap();
    filled.attend(&Query { tiled: true, ..*query }, &tokens).unwrap();
}

#[test]
fn prefill_in_tiles_sees_only_earlier_positions() {
    for device in common::devices() {
        for (storage, group, window) in [
            (KvStorage::F16, 1, None),
            (KvStorage::F16, 4, Some(9)),
            (KvStorage::Int8, 3, None),
            (KvStorage::Fp4, 8, None),
        ] {
            let query = Query { group, window, ..Query::default() };
            prefill::<bf16>(storage, 64, &query, &*device);
        }
        prefill::<f32>(KvStorage::F32, 64, &Query::default(), &*device);
    }
}

/// Every storage and head size by matrix fragments; head sizes that do not fill a fragment, groups that do not
/// fill a threadgroup's rows.
#[test]
fn prefill_by_fragments_agrees_with_the_definition() {
    for device in common::devices_of_width(32) {
        for storage in KvStorage::ALL {
            for (dim, group) in [(8, 1), (40, 17), (72, 5), (80, 2), (128, 4), (192, 1), (256, 2)] {
                let (layout, properties) = (layout(storage, 2, dim), device.properties());
                let shape = RowShape::prefill::<f16>(&layout, group as u32, properties);
                assert_eq!(shape.fragments, dim <= 192);
                let query =
                    Query { group, softcap: (dim == 80).then_some(1.5), ..Query::default() };
                prefill::<f16>(storage, dim, &query, &*device);
            }
        }
    }
}

/// A tile holds consecutive positions of one sequence, and no more than fit.
#[test]
fn tiles_end_where_runs_of_tokens_do() {
    let shape = RowShape { heads: 4, tokens: 2, fragments: false };
    let tokens = [(0, 5), (0, 6), (0, 7), (1, 8), (1, 9), (1, 11)];
    assert_eq!(shape.tiles(&tokens), [0, 2, 2, 1, 3, 2, 5, 1]);
    assert!(shape.tiles(&[]).is_empty());
}
