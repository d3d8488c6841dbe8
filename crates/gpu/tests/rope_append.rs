//! Rotation and cache writing as one dispatch, against the two ops that it replaces.

mod common;
#[path = "common/sequences.rs"]
mod sequences;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_backend::RopeStyle;
use marlin_gpu::ops::kv_cache::{AppendKv, KvLayout, KvStorage, NO_SEQUENCE};
use marlin_gpu::ops::norm::NormWeight;
use marlin_gpu::ops::rope::{HeadLayout, HeadValues, Heads, Rotation, rope};
use marlin_gpu::ops::rope_append::{HeadRows, QkvValues, RopeAppend};
use marlin_gpu::{Buffer, Command, CommandList, Device, GpuError, Region};
use sequences::{Blocks, upload_tokens};
use values::{Float, Random, inverse_frequencies};

/// What is done.
#[derive(Clone, Copy, Debug)]
struct Case {
    storage: KvStorage,
    head_dim: usize,
    pairs: usize,
    q_heads: usize,
    kv_heads: usize,
    style: RopeStyle,
    q_norm: bool,
    k_norm: bool,
    paged: bool,
    /// Queries, keys and values in the rows of one product.
    together: bool,
    /// Elements between a token's last head and the next token's first.
    gap: usize,
}

const PLAIN: Case = Case {
    storage: KvStorage::F16,
    head_dim: 64,
    pairs: 32,
    q_heads: 4,
    kv_heads: 2,
    style: RopeStyle::HalfSplit,
    q_norm: false,
    k_norm: false,
    paged: false,
    together: true,
    gap: 0,
};

/// Two sequences' tokens, and one that is not there.
const TOKENS: [(u32, u32); 5] = [(1, 0), (0, 33), (NO_SEQUENCE, 7), (0, 34), (1, 95)];
/// Blocks of a sequence: 96 positions, or two pages of two blocks.
const BLOCKS: u32 = 3;
const PAGES: [u32; 4] = [6, 1, 3, 4];
const CACHE_BLOCKS: usize = 18;

/// The memory that both ways start from.
struct Start<T> {
    /// Queries, keys and values where they are together; otherwise queries.
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    weights: [Vec<f32>; 2],
    frequencies: Vec<f32>,
    /// Where queries, keys and values are.
    rows: [HeadRows; 3],
}

impl<T: Float> Start<T> {
    fn new(case: &Case) -> Self {
        let mut random = Random::new(case.head_dim as u64);
        let (q, kv) = (case.q_heads * case.head_dim, case.kv_heads * case.head_dim);
        let mut elements = |stride: usize| random.elements::<T>(TOKENS.len() * stride, 2.0);
        let apart = |width: usize| HeadRows { first: 0, stride: width + case.gap };
        let stride = q + 2 * kv + case.gap;
        let (rows, values) = if case.together {
            let place = |first| HeadRows { first, stride };
            ([place(0), place(q), place(q + kv)], [elements(stride), vec![], vec![]])
        } else {
            let rows = [apart(q), apart(kv), apart(kv)];
            (rows, rows.map(|r| elements(r.stride)))
        };
        let [q, k, v] = values;
        let weights = [0, 1].map(|_| random.elements::<f32>(case.head_dim, 0.5));
        Self { q, k, v, weights, frequencies: inverse_frequencies(case.pairs), rows }
    }
}

/// Queries and the cache afterwards.
fn run<T: Float>(
    device: &dyn Device,
    case: &Case,
    start: &Start<T>,
    fused: bool,
) -> Result<(Vec<T>, Vec<[u32; 4]>), GpuError> {
    let Case { head_dim, q_heads, kv_heads, .. } = *case;
    let layout = KvLayout::new(case.storage, kv_heads as u32, head_dim as u32)?;
    let cache: Buffer<[u32; 4]> = common::output(device, layout.block_pieces() * CACHE_BLOCKS);
    let q = device.upload_new("q", &start.q)?;
    let apart = |name, values: &Vec<T>| match case.together {
        true => device.upload_new(name, &[T::of(0.0)]),
        false => device.upload_new(name, values),
    };
    let (k, v) = (apart("k", &start.k)?, apart("v", &start.v)?);
    let (sequences, positions) = upload_tokens(device, &TOKENS)?;
    let blocks = match case.paged {
        true => Blocks::paged(device, &PAGES, 2, 2)?,
        false => Blocks::Contiguous(BLOCKS),
    };
    let frequencies = device.upload_new("frequencies", &start.frequencies)?;
    let weights = [
        device.upload_new("q norm", &start.weights[0])?,
        device.upload_new("k norm", &start.weights[1])?,
    ];
    let norm = |i: usize, wanted: bool| {
        wanted.then(|| NormWeight { weight: weights[i].view(), epsilon: 1e-5, offset: 0.5 })
    };
    let addressing = blocks.addressing();
    let rotation = Rotation {
        head_dim,
        style: case.style,
        inverse_frequencies: frequencies.view(),
        magnitude: 1.125,
    };
    let mut list = CommandList::new("rope and append");
    let bytes = (cache.len() * 16) as u64;
    let region = Region { allocation: cache.allocation().clone(), offset: 0, bytes };
    list.push(Command::Fill { region, value: 0 });
    let [q_rows, k_rows, v_rows] = start.rows;
    if fused {
        RopeAppend {
            values: match case.together {
                true => QkvValues::Together(q.view_mut()?),
                false => QkvValues::Apart { q: q.view_mut()?, k: k.view(), v: v.view() },
            },
            q_heads: q_heads as u32,
            q: q_rows,
            k: k_rows,
            v: v_rows,
            q_norm: norm(0, case.q_norm),
            k_norm: norm(1, case.k_norm),
            rotation,
            sequences: sequences.view(),
            positions: positions.view(),
            cache: cache.view_mut()?,
            layout,
            addressing,
        }
        .encode(device.properties(), &mut list)?;
    } else {
        let heads = |rows: HeadRows, heads: usize, norm| Heads {
            layout: HeadLayout {
                heads,
                first: rows.first,
                token_stride: rows.stride,
                head_stride: head_dim,
            },
            norm,
        };
        let values = match case.together {
            true => HeadValues::Together(q.view_mut()?),
            false => HeadValues::Apart { q: q.view_mut()?, k: k.view_mut()? },
        };
        rope(
            &mut list,
            device.properties(),
            values,
            heads(q_rows, q_heads, norm(0, case.q_norm)),
            heads(k_rows, kv_heads, norm(1, case.k_norm)),
            positions.view(),
            rotation,
        )?;
        let (keys, values) = match case.together {
            true => (q.slice(k_rows.first..q.len())?, q.slice(v_rows.first..q.len())?),
            false => (k.view(), v.view()),
        };
        AppendKv {
            keys,
            key_stride: k_rows.stride as u32,
            values,
            value_stride: v_rows.stride as u32,
            sequences: sequences.view(),
            positions: positions.view(),
            cache: cache.view_mut()?,
            layout,
            addressing,
        }
        .encode(device.properties(), &mut list)?;
    }
    device.run(list)?;
    Ok((device.download_all(&q)?, device.download_all(&cache)?))
}

fn check<T: Float>(device: &dyn Device, case: &Case) {
    let start = Start::<T>::new(case);
    let (q, cache) = run(device, case, &start, true).unwrap();
    let (mut expected_q, expected_cache) = run(device, case, &start, false).unwrap();
    if case.together {
        // Keys go into the cache alone.
        let [_, k, _] = start.rows;
        for token in 0..TOKENS.len() {
            let keys = k.first + token * k.stride;
            let keys = keys..keys + case.kv_heads * case.head_dim;
            expected_q[keys.clone()].copy_from_slice(&start.q[keys]);
        }
    }
    let width = device.properties().simd_width;
    assert!(q == expected_q, "queries: {case:?}, width {width}");
    assert!(cache == expected_cache, "cache: {case:?}, width {width}");
    assert!(cache.iter().any(|piece| *piece != [0; 4]), "nothing written: {case:?}");
}

/// Every storage with what models have: partial rotation, norms, pairs side by side, rows that start anywhere, pages.
#[test]
fn queries_and_cache_are_those_of_rotating_and_then_appending() {
    let interleaved = Case { style: RopeStyle::Interleaved, ..PLAIN };
    let cases = [
        PLAIN,
        Case { head_dim: 128, pairs: 64, q_heads: 8, kv_heads: 2, paged: true, ..PLAIN },
        Case { together: false, gap: 3, ..PLAIN },
        Case { head_dim: 80, pairs: 16, q_norm: true, paged: true, ..PLAIN },
        Case { head_dim: 80, pairs: 20, k_norm: true, together: false, ..PLAIN },
        Case { head_dim: 72, pairs: 36, q_norm: true, gap: 1, ..interleaved },
        Case { head_dim: 256, pairs: 128, kv_heads: 1, q_norm: true, k_norm: true, ..PLAIN },
        Case { head_dim: 8, pairs: 4, q_heads: 1, kv_heads: 1, ..interleaved },
        Case { pairs: 0, q_norm: true, k_norm: true, ..PLAIN },
    ];
    for device in common::devices() {
        for storage in KvStorage::ALL {
            for case in cases {
                let case = Case { storage, ..case };
                check::<f16>(&*device, &case);
                if storage == KvStorage::F16 {
                    check::<bf16>(&*device, &case);
                }
                if storage == KvStorage::F32 {
                    check::<f32>(&*device, &case);
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = common::emulated(32, true);
    let refused = |change: &dyn Fn(&mut Case, &mut Start<f16>), needle: &str| {
        let mut case = PLAIN;
        let mut start = Start::<f16>::new(&case);
        change(&mut case, &mut start);
        let error = run(&*device, &case, &start, true).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    refused(&|_, start| start.frequencies = vec![1.0; 33], "33 pairs of heads of 64 values");
    refused(
        &|_, start| start.q.truncate(2500),
        "v has 2500 elements for 5 rows of 128, 512 apart from 384",
    );
    refused(&|_, start| start.rows[1].stride = 100, "100 apart");
    refused(
        &|case, start| {
            case.k_norm = true;
            start.weights[1] = vec![1.0; 63];
        },
        "k's norm has 63 elements, expected 64",
    );
}
