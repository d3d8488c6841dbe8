//! Rotation, cache writing and attention as one dispatch, against the two that it replaces.

mod common;
#[path = "common/sequences.rs"]
mod sequences;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_backend::RopeStyle;
use marlin_gpu::ops::attention::{Attention, DecodeShape, workspace_len};
use marlin_gpu::ops::attention_append::{AttentionAppend, can_append};
use marlin_gpu::ops::kv_cache::{KvLayout, KvStorage, NO_SEQUENCE};
use marlin_gpu::ops::rope::Rotation;
use marlin_gpu::ops::rope_append::{HeadRows, QkvValues, RopeAppend};
use marlin_gpu::{Buffer, CommandList, Device, GpuError};
use marlin_placement::AccessPattern;
use sequences::{Blocks, upload_tokens};
use values::{Float, Random, inverse_frequencies};

#[derive(Clone, Copy, Debug)]
struct Case {
    head_dim: usize,
    q_heads: usize,
    kv_heads: usize,
    paged: bool,
    /// Elements between a token's last head and the next token's first.
    gap: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    splits: u32,
}

const PLAIN: Case = Case {
    head_dim: 64,
    q_heads: 4,
    kv_heads: 2,
    paged: false,
    gap: 0,
    window: None,
    softcap: None,
    splits: 1,
};

/// Three sequences' tokens, and one that is not there. The second is its sequence's first token.
const TOKENS: [(u32, u32); 4] = [(2, 33), (0, 0), (NO_SEQUENCE, 7), (1, 191)];
/// Blocks of a sequence: 192 positions, or three pages of two blocks.
const BLOCKS: u32 = 6;
const PAGES: [u32; 9] = [6, 1, 3, 4, 0, 2, 5, 7, 8];
const CACHE_BLOCKS: usize = 18;

struct Start<T> {
    rows: Vec<T>,
    cache: Vec<[u32; 4]>,
    frequencies: Vec<f32>,
    /// Where queries, keys and values are.
    places: [HeadRows; 3],
}

impl<T: Float> Start<T> {
    fn new(case: &Case) -> Self {
        let mut random = Random::new(case.head_dim as u64);
        let (q, kv) = (case.q_heads * case.head_dim, case.kv_heads * case.head_dim);
        let stride = q + 2 * kv + case.gap;
        let layout = layout(case);
        // Keys and values of f16, in whatever order.
        let halves = random.elements::<f16>(8 * layout.block_pieces() * CACHE_BLOCKS, 1.0);
        let word = |pair: &[f16]| u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        let cache = halves
            .chunks_exact(8)
            .map(|piece| {
                [word(&piece[..2]), word(&piece[2..4]), word(&piece[4..6]), word(&piece[6..])]
            })
            .collect();
        Self {
            rows: random.elements(TOKENS.len() * stride, 2.0),
            cache,
            frequencies: inverse_frequencies(case.head_dim / 2),
            places: [0, q, q + kv].map(|first| HeadRows { first, stride }),
        }
    }
}

fn layout(case: &Case) -> KvLayout {
    KvLayout::new(KvStorage::F16, case.kv_heads as u32, case.head_dim as u32).unwrap()
}

/// What comes out, and the cache afterwards.
fn run<T: Float>(
    device: &dyn Device,
    case: &Case,
    start: &Start<T>,
    fused: bool,
) -> Result<(Vec<T>, Vec<[u32; 4]>), GpuError> {
    let layout = layout(case);
    let heads = case.q_heads as u32;
    let width = case.q_heads * case.head_dim;
    let tokens = TOKENS.len();
    let rows = device.upload_new("rows", &start.rows)?;
    let cache = device.upload_new("cache", &start.cache)?;
    let (sequences, positions) = upload_tokens(device, &TOKENS)?;
    let blocks = match case.paged {
        true => Blocks::paged(device, &PAGES, 3, 2)?,
        false => Blocks::Contiguous(BLOCKS),
    };
    let frequencies = device.upload_new("frequencies", &start.frequencies)?;
    let out: Buffer<T> = common::output(device, tokens * width);
    let shape = DecodeShape { splits: case.splits, short: true };
    let needed = workspace_len(tokens as u32, heads, case.splits, layout.head_dim());
    let workspace = device.allocate::<f32>("workspace", needed, AccessPattern::DEVICE_ONLY)?;
    let addressing = blocks.addressing();
    let rotation = Rotation {
        head_dim: case.head_dim,
        style: RopeStyle::HalfSplit,
        inverse_frequencies: frequencies.view(),
        magnitude: 1.125,
    };
    let mut list = CommandList::new("append and attend");
    let [q, k, v] = start.places;
    if fused {
        AttentionAppend {
            rows: rows.view(),
            heads,
            q,
            k,
            v,
            rotation,
            sequences: sequences.view(),
            positions: positions.view(),
            cache: cache.view_mut()?,
            layout,
            addressing,
            scale: 0.2,
            window: case.window,
            softcap: case.softcap,
            shape,
            workspace: workspace.view_mut()?,
            out: out.view_mut()?,
            out_stride: width as u32,
        }
        .encode(device.properties(), &mut list)?;
    } else {
        RopeAppend {
            values: QkvValues::Together(rows.view_mut()?),
            q_heads: heads,
            q,
            k,
            v,
            q_norm: None,
            k_norm: None,
            rotation,
            sequences: sequences.view(),
            positions: positions.view(),
            cache: cache.view_mut()?,
            layout,
            addressing,
        }
        .encode(device.properties(), &mut list)?;
        Attention {
            query: rows.view(),
            query_stride: q.stride as u32,
            heads,
            cache: cache.view(),
            layout,
            addressing,
            sequences: sequences.view(),
            positions: positions.view(),
            tiles: None,
            scale: 0.2,
            window: case.window,
            softcap: case.softcap,
            shape,
            workspace: workspace.view_mut()?,
            out: out.view_mut()?,
            out_stride: width as u32,
        }
        .encode(device.properties(), &mut list)?;
    }
    device.run(list)?;
    Ok((device.download_all(&out)?, device.download_all(&cache)?))
}

fn check<T: Float>(device: &dyn Device, case: &Case) {
    let width = device.properties().simd_width;
    let shape = DecodeShape { splits: case.splits, short: true };
    let (heads, pairs) = (case.q_heads as u32, case.head_dim / 2);
    let style = RopeStyle::HalfSplit;
    if !can_append(&layout(case), heads, style, pairs, shape, device.properties()) {
        return;
    }
    let start = Start::<T>::new(case);
    let (out, cache) = run(device, case, &start, true).unwrap();
    let (expected, expected_cache) = run(device, case, &start, false).unwrap();
    for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
        // The same arithmetic; compilers may fuse it differently.
        let error = (found.f32() - expected.f32()).abs();
        let bound = 4.0 * T::HALF_ULP as f32 * expected.f32().abs() + 1e-4;
        assert!(error <= bound, "{i}: {found:?}, expected {expected:?}: {case:?}, width {width}");
    }
    assert!(cache == expected_cache, "cache: {case:?}, width {width}");
    assert!(cache != start.cache, "nothing written: {case:?}");
}

#[test]
fn one_dispatch_does_what_rotating_appending_and_attending_do() {
    let cases = [
        PLAIN,
        Case { head_dim: 128, q_heads: 8, kv_heads: 2, paged: true, ..PLAIN },
        Case { gap: 3, window: Some(40), ..PLAIN },
        Case { gap: 8, window: Some(1), ..PLAIN },
        Case { softcap: Some(20.0), splits: 3, paged: true, ..PLAIN },
        Case { head_dim: 128, q_heads: 6, kv_heads: 1, splits: 2, ..PLAIN },
        Case { head_dim: 192, q_heads: 3, kv_heads: 3, ..PLAIN },
        Case { head_dim: 256, q_heads: 2, kv_heads: 1, window: Some(100), splits: 2, ..PLAIN },
    ];
    for device in common::devices() {
        for case in &cases {
            check::<f16>(&*device, case);
            check::<bf16>(&*device, case);
            check::<f32>(&*device, case);
        }
    }
}

#[test]
fn what_the_kernel_does_not_have_is_refused() {
    let device = common::emulated(32, true);
    let refused = |change: &dyn Fn(&mut Case, &mut Start<f16>), needle: &str| {
        let mut case = PLAIN;
        let mut start = Start::<f16>::new(&case);
        change(&mut case, &mut start);
        let error = run(&*device, &case, &start, true).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    refused(
        &|_, start| start.frequencies.truncate(31),
        "31 pairs (HalfSplit) of heads of 64 values",
    );
    refused(&|_, start| start.rows.truncate(2000), "v has 2000 elements for 4 rows of 128");
    refused(&|_, start| start.places[1].stride = 600, "600 apart from 256 on");
    refused(&|case, _| case.window = Some(0), "a window of 0 positions");
}
