//! The key/value cache and attention over it, against sums in f64.

mod common;

use half::{bf16, f16};
use marlin_formats::{Format, encode, fp4::E2M1};
use marlin_gpu::ops::attention::{Attention, DecodeShape, RowShape, decode_splits, workspace_len};
use marlin_gpu::ops::kv_cache::{
    AppendKv, KV_BLOCK, KvAddressing, KvLayout, KvStorage, NO_SEQUENCE,
};
use marlin_gpu::{Buffer, Command, CommandList, Device, GpuError, Region};
use marlin_kernels::Element;
use marlin_placement::AccessPattern;

/// An element type of activations.
trait Real: Element {
    /// Largest relative rounding error, with room for the sums' own.
    const TOLERANCE: f64;
    fn of(x: f32) -> Self;
    fn value(self) -> f32;
}

macro_rules! real {
    ($($ty:ty: $tolerance:literal, $of:expr, $value:expr;)*) => {$(
        impl Real for $ty {
            const TOLERANCE: f64 = $tolerance;
            fn of(x: f32) -> Self {
                $of(x)
            }
            fn value(self) -> f32 {
                $value(self)
            }
        }
    )*};
}
real! {
    f16: 2e-3, f16::from_f32, f16::to_f32;
    bf16: 8e-3, bf16::from_f32, bf16::to_f32;
    f32: 2e-5, |x| x, |x| x;
}

/// Numbers between -1 and 1 (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values<T: Real>(&mut self, n: usize, factor: f32) -> Vec<T> {
        (0..n).map(|_| T::of(self.next() * factor)).collect()
    }
}

/// What a cache keeps of one head's values at one position.
fn kept(storage: KvStorage, x: &[f32]) -> Vec<f32> {
    match storage {
        KvStorage::F32 => x.to_vec(),
        KvStorage::F16 => {
            x.iter().map(|&x| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32()).collect()
        }
        KvStorage::Int8 => {
            let (codes, scale) = int8(x);
            codes.iter().map(|&c| f32::from(c) * scale).collect()
        }
        KvStorage::Fp4 => {
            let (codes, scales) = fp4(x);
            (0..x.len()).map(|i| E2M1[usize::from(codes[i])] * scales[i / 32].to_f32()).collect()
        }
    }
}

/// Codes and scale of one head and position.
fn int8(x: &[f32]) -> (Vec<i8>, f32) {
    let scale = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    (x.iter().map(|x| (x * inverse).round_ties_even() as i8).collect(), scale)
}

/// Codes and scales as `marlin-formats` has them, the last group padded with zeros.
fn fp4(x: &[f32]) -> (Vec<u8>, Vec<f16>) {
    let mut padded = x.to_vec();
    padded.resize(x.len().next_multiple_of(32), 0.0);
    let matrix = encode(Format::FP4_G32, 1, padded.len(), &padded).unwrap();
    let codes = matrix.data.iter().flat_map(|b| [b & 15, b >> 4]).collect();
    let scales = matrix.scales.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    (codes, scales)
}

/// A cache with sequences in it.
struct Filled<'d, T> {
    device: &'d dyn Device,
    layout: KvLayout,
    cache: Buffer<[u32; 4]>,
    table: Option<Buffer<u32>>,
    pages: Vec<u32>,
    stride: u32,
    /// By sequence, then position: `kv_heads · head_dim`.
    keys: Vec<Vec<Vec<T>>>,
    values: Vec<Vec<Vec<T>>>,
    /// The same as the cache keeps them.
    kept_keys: Vec<Vec<Vec<f32>>>,
    kept_values: Vec<Vec<Vec<f32>>>,
}

const BLOCKS_PER_PAGE: u32 = 2;
/// Elements between the rows of keys and values past what they need.
const GAP: usize = 8;

impl<'d, T: Real> Filled<'d, T> {
    fn new(
        device: &'d dyn Device,
        layout: KvLayout,
        lengths: &[usize],
        paged: bool,
        factor: f32,
    ) -> Result<Self, GpuError> {
        let mut random = Random(7);
        let width = (layout.kv_heads() * layout.head_dim()) as usize;
        let mut side = || -> Vec<Vec<Vec<T>>> {
            lengths
                .iter()
                .map(|&n| (0..n).map(|_| random.values(width, factor)).collect())
                .collect()
        };
        let (keys, values) = (side(), side());
        let most = lengths.iter().copied().max().unwrap_or(0).max(1) as u32;
        let mut stride = most.div_ceil(KV_BLOCK);
        let mut blocks = stride * lengths.len() as u32;
        let mut pages = Vec::new();
        if paged {
            stride = stride.div_ceil(BLOCKS_PER_PAGE);
            let count = stride * lengths.len() as u32;
            // Pages in reverse, with holes.
            pages = (0..count).map(|i| 2 * (count - 1 - i) + 1).collect();
            blocks = 2 * count * BLOCKS_PER_PAGE;
        }
        let pieces = layout.block_pieces() * blocks as usize;
        let cache = device.allocate("cache", pieces, AccessPattern::DEVICE_ONLY)?;
        let table = paged.then(|| device.upload_new("pages", &pages)).transpose()?;
        let kept = |side: &Vec<Vec<Vec<T>>>| -> Vec<Vec<Vec<f32>>> {
            let row = |row: &Vec<T>| {
                let row: Vec<f32> = row.iter().map(|x| x.value()).collect();
                row.chunks(layout.head_dim() as usize)
                    .flat_map(|head| kept(layout.storage(), head))
                    .collect()
            };
            side.iter().map(|sequence| sequence.iter().map(row).collect()).collect()
        };
        let (kept_keys, kept_values) = (kept(&keys), kept(&values));
        let filled = Self {
            device,
            layout,
            cache,
            table,
            pages,
            stride,
            keys,
            values,
            kept_keys,
            kept_values,
        };

        let mut commands = CommandList::new("fill");
        // f16 needs no zeros: leavings of another sequence may be anything, NaN included.
        let value = if layout.storage() == KvStorage::F16 { 0xff } else { 0 };
        commands.push(Command::Fill {
            region: Region {
                allocation: filled.cache.allocation().clone(),
                offset: 0,
                bytes: pieces as u64 * 16,
            },
            value,
        });
        device.run(commands)?;
        // Every other token is padding, and is given NaN.
        let mut tokens = Vec::new();
        for (sequence, &length) in lengths.iter().enumerate() {
            for position in 0..length {
                tokens.push((sequence as u32, position as u32));
                tokens.push((NO_SEQUENCE, u32::MAX));
            }
        }
        filled.append(&tokens)?;
        Ok(filled)
    }

    fn addressing(&self) -> KvAddressing<'_> {
        match &self.table {
            None => KvAddressing::Contiguous { blocks: self.stride },
            Some(table) => KvAddressing::Paged {
                table: table.view(),
                pages_per_sequence: self.stride,
                blocks_per_page: BLOCKS_PER_PAGE,
            },
        }
    }

    fn append(&self, tokens: &[(u32, u32)]) -> Result<(), GpuError> {
        let width = (self.layout.kv_heads() * self.layout.head_dim()) as usize;
        let rows = |side: &Vec<Vec<Vec<T>>>, gap: usize| -> Vec<T> {
            let mut out = Vec::new();
            for &(sequence, position) in tokens {
                match side.get(sequence as usize) {
                    Some(s) => out.extend_from_slice(&s[position as usize]),
                    None => out.extend(vec![T::of(f32::NAN); width]),
                }
                out.extend(vec![T::of(f32::NAN); gap]);
            }
            out
        };
        let keys = self.device.upload_new("keys", &rows(&self.keys, GAP))?;
        let values = self.device.upload_new("values", &rows(&self.values, 0))?;
        let (sequences, positions): (Vec<u32>, Vec<u32>) = tokens.iter().copied().unzip();
        let sequences = self.device.upload_new("sequences", &sequences)?;
        let positions = self.device.upload_new("positions", &positions)?;
        let mut commands = CommandList::new("append");
        AppendKv {
            keys: keys.view(),
            key_stride: (width + GAP) as u32,
            values: values.view(),
            value_stride: width as u32,
            sequences: sequences.view(),
            positions: positions.view(),
            cache: self.cache.view_mut()?,
            layout: self.layout,
            addressing: self.addressing(),
        }
        .encode(self.device.properties(), &mut commands)?;
        self.device.run(commands).map(|_| ())
    }

    /// Index of a block in the cache, as `kv_cache.h` says.
    fn physical(&self, sequence: usize, block: usize) -> usize {
        let stride = self.stride as usize;
        match self.table {
            None => sequence * stride + block,
            Some(_) => {
                let page = self.pages[sequence * stride + block / BLOCKS_PER_PAGE as usize];
                page as usize * BLOCKS_PER_PAGE as usize + block % BLOCKS_PER_PAGE as usize
            }
        }
    }

    /// Runs attention for `tokens` and compares with sums in f64.
    fn attend(&self, query: &Query, tokens: &[(u32, u32)]) -> Result<(), GpuError> {
        let layout = self.layout;
        let (dim, group) = (layout.head_dim() as usize, query.group);
        let heads = layout.kv_heads() as usize * group;
        let mut random = Random(11);
        let q: Vec<T> = random.values(tokens.len() * (heads * dim + GAP), query.factor);
        let out = self.run(query, tokens, &q)?;
        for (t, &(sequence, position)) in tokens.iter().enumerate() {
            for h in 0..heads {
                let at = t * (heads * dim + GAP) + h * dim;
                let got = &out[t * heads * dim + h * dim..][..dim];
                if sequence == NO_SEQUENCE {
                    assert!(got.iter().all(|x| x.value() == 0.0), "a token that is not there");
                    continue;
                }
                let expected =
                    self.reference(query, &q[at..at + dim], sequence as usize, position, h / group);
                let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (d, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let error = (f64::from(got.value()) - expected).abs();
                    let allowed = T::TOLERANCE * largest.max(1e-3);
                    assert!(
                        error <= allowed,
                        "{layout:?} {query:?} width {}: sequence {sequence} position {position} \
                         head {h} value {d}: {} instead of {expected}",
                        self.device.properties().simd_width,
                        got.value()
                    );
                }
            }
        }
        Ok(())
    }

    fn run(&self, query: &Query, tokens: &[(u32, u32)], q: &[T]) -> Result<Vec<T>, GpuError> {
        let (device, layout) = (self.device, self.layout);
        let heads = layout.kv_heads() * query.group as u32;
        let width = heads * layout.head_dim();
        let (sequences, positions): (Vec<u32>, Vec<u32>) = tokens.iter().copied().unzip();
        let sequences = device.upload_new("sequences", &sequences)?;
        let positions = device.upload_new("positions", &positions)?;
        let shape = RowShape::prefill::<T>(&layout, query.group as u32, device.properties());
        let tiles =
            query.tiled.then(|| device.upload_new("tiles", &shape.tiles(tokens))).transpose()?;
        let needed = workspace_len(tokens.len() as u32, heads, query.splits, layout.head_dim());
        let workspace = common::output::<f32>(device, needed);
        let out = common::output::<T>(device, tokens.len() * width as usize);
        let q = device.upload_new("query", q)?;
        let mut commands = CommandList::new("attention");
        Attention {
            query: q.view(),
            query_stride: width + GAP as u32,
            heads,
            cache: self.cache.view(),
            layout,
            addressing: self.addressing(),
            sequences: sequences.view(),
            positions: positions.view(),
            tiles: tiles.as_ref().map(|t| (t.view(), shape)),
            scale: query.scale,
            window: query.window,
            softcap: query.softcap,
            shape: DecodeShape { splits: query.splits, short: query.short },
            workspace: workspace.view_mut()?,
            out: out.view_mut()?,
            out_stride: width,
        }
        .encode(device.properties(), &mut commands)?;
        device.run(commands)?;
        device.download_all(&out)
    }

    fn reference(
        &self,
        query: &Query,
        q: &[T],
        sequence: usize,
        position: u32,
        head: usize,
    ) -> Vec<f64> {
        let dim = self.layout.head_dim() as usize;
        let first = query.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let of = |side: &Vec<Vec<Vec<f32>>>, j: u32| -> Vec<f32> {
            side[sequence][j as usize][head * dim..][..dim].to_vec()
        };
        let scores: Vec<f64> = (first..=position)
            .map(|j| {
                let key = of(&self.kept_keys, j);
                let dot: f64 =
                    q.iter().zip(&key).map(|(q, k)| f64::from(q.value()) * f64::from(*k)).sum();
                let score = dot * f64::from(query.scale);
                query.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; dim];
        for (j, weight) in (first..=position).zip(&weights) {
            for (out, v) in out.iter_mut().zip(of(&self.kept_values, j)) {
                *out += weight / total * f64::from(v);
            }
        }
        out
    }
}

/// What is asked of a cache.
#[derive(Clone, Copy, Debug)]
struct Query {
    /// Query heads per key head.
    group: usize,
    scale: f32,
    window: Option<u32>,
    softcap: Option<f32>,
    splits: u32,
    /// By `attention_short`.
    short: bool,
    tiled: bool,
    /// Largest magnitude of a query.
    factor: f32,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            group: 4,
            scale: 0.35,
            window: None,
            softcap: None,
            splits: 1,
            short: false,
            tiled: false,
            factor: 1.0,
        }
    }
}

/// The last `n` tokens of every sequence.
fn last(lengths: &[usize], n: usize) -> Vec<(u32, u32)> {
    let run = |(s, &l): (usize, &usize)| {
        (l.saturating_sub(n)..l).map(|p| (s as u32, p as u32)).collect::<Vec<_>>()
    };
    lengths.iter().enumerate().flat_map(run).collect()
}

fn layout(storage: KvStorage, kv_heads: u32, head_dim: u32) -> KvLayout {
    KvLayout::new(storage, kv_heads, head_dim).unwrap()
}

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
    let (physical, p) = (filled.physical(sequence, position / block), position % block);
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

/// Runs of several sequences, not starting at 0, with a token that is not there between them; by matrix fragments where
/// the device has them and activations are of 16 bits, plainly elsewhere.
fn prefill<T: Real>(storage: KvStorage, dim: u32, query: &Query, device: &dyn Device) {
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
fn a_batch_without_tokens_runs_nothing() {
    for device in common::devices_of_width(32) {
        let filled =
            Filled::<f16>::new(&*device, layout(KvStorage::F16, 1, 64), &[2], false, 1.0).unwrap();
        filled.append(&[]).unwrap();
        assert!(filled.run(&Query::default(), &[], &[]).unwrap().is_empty());
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
    assert!(KvLayout::new(KvStorage::F16, 1, 12).is_err());
    assert!(KvLayout::new(KvStorage::F16, 1, 264).is_err());
    assert!(KvLayout::new(KvStorage::F16, 0, 64).is_err());
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
            "expected 1 to 1 (1 with tiles)",
        );
        refused(Query { group: 0, ..plain }, &[(0, 1)], 264, "0 query heads");
    }
}
