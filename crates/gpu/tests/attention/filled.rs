//! A cache with sequences in it, and what it keeps of them.

use half::f16;
use marlin_formats::{Format, encode, fp4::E2M1};
use marlin_gpu::ops::kv_cache::{AppendKv, KV_BLOCK, KvLayout, KvStorage, NO_SEQUENCE};
use marlin_gpu::{Buffer, Command, CommandList, Device, GpuError, Region};
use marlin_placement::AccessPattern;

use crate::sequences::{Blocks, upload_tokens};
use crate::values::{Float, Random};

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
pub(crate) fn int8(x: &[f32]) -> (Vec<i8>, f32) {
    let scale = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    (x.iter().map(|x| (x * inverse).round_ties_even() as i8).collect(), scale)
}

/// Codes and scales as `marlin-formats` has them, the last group padded with zeros.
pub(crate) fn fp4(x: &[f32]) -> (Vec<u8>, Vec<f16>) {
    let mut padded = x.to_vec();
    padded.resize(x.len().next_multiple_of(32), 0.0);
    let matrix = encode(Format::FP4_G32, 1, padded.len(), &padded).unwrap();
    let codes = matrix.data.iter().flat_map(|b| [b & 15, b >> 4]).collect();
    let scales = matrix.scales.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    (codes, scales)
}

/// A cache with sequences in it.
pub(crate) struct Filled<'d, T> {
    pub(crate) device: &'d dyn Device,
    pub(crate) layout: KvLayout,
    pub(crate) cache: Buffer<[u32; 4]>,
    pub(crate) blocks: Blocks,
    /// By sequence, then position: `kv_heads · head_dim`.
    pub(crate) keys: Vec<Vec<Vec<T>>>,
    pub(crate) values: Vec<Vec<Vec<T>>>,
    /// The same as the cache keeps them.
    pub(crate) kept_keys: Vec<Vec<Vec<f32>>>,
    pub(crate) kept_values: Vec<Vec<Vec<f32>>>,
}

const BLOCKS_PER_PAGE: u32 = 2;
/// Elements between the rows of keys and values past what they need.
pub(crate) const GAP: usize = 8;

impl<'d, T: Float> Filled<'d, T> {
    pub(crate) fn new(
        device: &'d dyn Device,
        layout: KvLayout,
        lengths: &[usize],
        paged: bool,
        factor: f32,
    ) -> Result<Self, GpuError> {
        let mut random = Random::new(7);
        let width = (layout.kv_heads() * layout.head_dim()) as usize;
        let mut side = || -> Vec<Vec<Vec<T>>> {
            lengths
                .iter()
                .map(|&n| (0..n).map(|_| random.uniforms(width, factor)).collect())
                .collect()
        };
        let (keys, values) = (side(), side());
        let most = lengths.iter().copied().max().unwrap_or(0).max(1) as u32;
        let per_sequence = most.div_ceil(KV_BLOCK);
        let (blocks, count) = if paged {
            let pages_per_sequence = per_sequence.div_ceil(BLOCKS_PER_PAGE);
            let count = pages_per_sequence * lengths.len() as u32;
            // Pages in reverse, with holes.
            let pages: Vec<u32> = (0..count).map(|i| 2 * (count - 1 - i) + 1).collect();
            let blocks = Blocks::paged(device, &pages, pages_per_sequence, BLOCKS_PER_PAGE)?;
            (blocks, 2 * count * BLOCKS_PER_PAGE)
        } else {
            (Blocks::Contiguous(per_sequence), per_sequence * lengths.len() as u32)
        };
        let pieces = layout.block_pieces() * count as usize;
        let cache = device.allocate("cache", pieces, AccessPattern::DEVICE_ONLY)?;
        let kept = |side: &Vec<Vec<Vec<T>>>| -> Vec<Vec<Vec<f32>>> {
            let row = |row: &Vec<T>| {
                let row: Vec<f32> = row.iter().map(|x| x.f32()).collect();
                row.chunks(layout.head_dim() as usize)
                    .flat_map(|head| kept(layout.storage(), head))
                    .collect()
            };
            side.iter().map(|sequence| sequence.iter().map(row).collect()).collect()
        };
        let (kept_keys, kept_values) = (kept(&keys), kept(&values));
        let filled = Self { device, layout, cache, blocks, keys, values, kept_keys, kept_values };

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

    pub(crate) fn append(&self, tokens: &[(u32, u32)]) -> Result<(), GpuError> {
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
        let (sequences, positions) = upload_tokens(self.device, tokens)?;
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
            addressing: self.blocks.addressing(),
        }
        .encode(self.device.properties(), &mut commands)?;
        self.device.run(commands).map(|_| ())
    }
}
