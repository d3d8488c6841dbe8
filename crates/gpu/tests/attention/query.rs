//! What attention over a cache gives, against sums in f64.

use half::{bf16, f16};
use marlin_gpu::ops::attention::{Attention, DecodeShape, RowShape, workspace_len};
use marlin_gpu::ops::kv_cache::NO_SEQUENCE;
use marlin_gpu::{CommandList, GpuError};

use crate::common;
use crate::filled::{Filled, GAP};
use crate::sequences::upload_tokens;
use crate::values::{Float, Random};

/// An element type of queries.
pub(crate) trait Tolerance: Float {
    /// Largest relative rounding error, with room for the sums' own.
    const TOLERANCE: f64;
}

impl Tolerance for f16 {
    const TOLERANCE: f64 = 2e-3;
}

impl Tolerance for bf16 {
    const TOLERANCE: f64 = 8e-3;
}

impl Tolerance for f32 {
    const TOLERANCE: f64 = 2e-5;
}

/// What is asked of a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    /// Query heads per key head.
    pub(crate) group: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
    pub(crate) softcap: Option<f32>,
    pub(crate) splits: u32,
    /// By `attention_short`.
    pub(crate) short: bool,
    pub(crate) tiled: bool,
    /// Largest magnitude of a query.
    pub(crate) factor: f32,
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
pub(crate) fn last(lengths: &[usize], n: usize) -> Vec<(u32, u32)> {
    let run = |(s, &l): (usize, &usize)| {
        (l.saturating_sub(n)..l).map(|p| (s as u32, p as u32)).collect::<Vec<_>>()
    };
    lengths.iter().enumerate().flat_map(run).collect()
}

impl<T: Tolerance> Filled<'_, T> {
    /// Runs attention for `tokens` and compares with sums in f64.
    pub(crate) fn attend(&self, query: &Query, tokens: &[(u32, u32)]) -> Result<(), GpuError> {
        let layout = self.layout;
        let (dim, group) = (layout.head_dim() as usize, query.group);
        let heads = layout.kv_heads() as usize * group;
        let mut random = Random::new(11);
        let q: Vec<T> = random.uniforms(tokens.len() * (heads * dim + GAP), query.factor);
        let out = self.run(query, tokens, &q)?;
        for (t, &(sequence, position)) in tokens.iter().enumerate() {
            for h in 0..heads {
                let at = t * (heads * dim + GAP) + h * dim;
                let got = &out[t * heads * dim + h * dim..][..dim];
                if sequence == NO_SEQUENCE {
                    assert!(got.iter().all(|x| x.f32() == 0.0), "a token that is not there");
                    continue;
                }
                let expected =
                    self.reference(query, &q[at..at + dim], sequence as usize, position, h / group);
                let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (d, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let error = (f64::from(got.f32()) - expected).abs();
                    let allowed = T::TOLERANCE * largest.max(1e-3);
                    assert!(
                        error <= allowed,
                        "{layout:?} {query:?} width {}: sequence {sequence} position {position} \
                         head {h} value {d}: {} instead of {expected}",
                        self.device.properties().simd_width,
                        got.f32()
                    );
                }
            }
        }
        Ok(())
    }

    pub(crate) fn run(
        &self,
        query: &Query,
        tokens: &[(u32, u32)],
        q: &[T],
    ) -> Result<Vec<T>, GpuError> {
        let (device, layout) = (self.device, self.layout);
        let heads = layout.kv_heads() * query.group as u32;
        let width = heads * layout.head_dim();
        let (sequences, positions) = upload_tokens(device, tokens)?;
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
            addressing: self.blocks.addressing(),
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
                    q.iter().zip(&key).map(|(q, k)| f64::from(q.f32()) * f64::from(*k)).sum();
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
