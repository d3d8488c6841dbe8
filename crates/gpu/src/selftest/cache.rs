//! Keys and values into the cache, and attention over it.

use half::f16;
use marlin_formats::{Format, encode};

use super::values::{Real, compare, output, run as run_list, values, wide};
use super::{Checked, Problem, Runner};
use crate::ops::attention::{Attention, DecodeShape, RowShape, workspace_len};
use crate::ops::kv_cache::{AppendKv, KvAddressing, KvLayout, KvStorage};
use crate::{Command, Device, Region};

const KV_HEADS: usize = 2;
const GROUP: usize = 3;
const DIM: usize = 64;
const POSITIONS: usize = 150;
const BLOCKS: u32 = 5;
const WIDTH: usize = KV_HEADS * DIM;

/// How the context is gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// One token.
    Decode,
    /// One token, the context in three parts.
    Split,
    /// The same by the kernel for short contexts.
    Short,
    /// The last forty tokens together.
    Prefill,
}

pub(super) fn run(device: &dyn Device, runner: &mut Runner<'_>) {
    for storage in KvStorage::ALL {
        for how in [How::Decode, How::Split, How::Short, How::Prefill] {
            let name = |ty: &str| format!("{how:?}, cache of {storage:?}, queries of {ty}");
            runner.check("attention", name("f16"), || attends::<f16>(device, storage, how));
            runner.check("attention", name("f32"), || attends::<f32>(device, storage, how));
        }
    }
}

/// What the cache keeps of a head's values.
fn kept(storage: KvStorage, x: &[f64]) -> Result<Vec<f64>, Problem> {
    Ok(match storage {
        KvStorage::F32 => x.to_vec(),
        KvStorage::F16 => x.iter().map(|x| f16::from_f64(*x).to_f64()).collect(),
        KvStorage::Int8 => {
            let scale = x.iter().fold(0.0f64, |m, x| m.max(x.abs())) as f32 / 127.0;
            let code = |x: &f64| (*x as f32 * (1.0 / scale)).round_ties_even();
            x.iter().map(|x| f64::from(code(x) * scale)).collect()
        }
        KvStorage::Fp4 => {
            let narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
            let matrix = encode(Format::FP4_G32, 1, x.len(), &narrow)?;
            matrix.view().decode().iter().map(|x| f64::from(*x)).collect()
        }
    })
}

fn attends<T: Real>(device: &dyn Device, storage: KvStorage, how: How) -> Checked {
    let properties = device.properties();
    let layout = KvLayout::new(storage, KV_HEADS as u32, DIM as u32)?;
    let [keys, values_]: [Vec<T>; 2] = [21, 22].map(|seed| values(seed, POSITIONS * WIDTH));
    let cache = output::<[u32; 4]>(device, "cache", layout.block_pieces() * BLOCKS as usize)?;
    let addressing = KvAddressing::Contiguous { blocks: BLOCKS };
    let (k, v) = (device.upload_new("keys", &keys)?, device.upload_new("values", &values_)?);
    let every: Vec<u32> = (0..POSITIONS as u32).collect();
    let places = device.upload_new("positions", &every)?;
    let sequences = device.upload_new("sequences", &[0u32; POSITIONS])?;
    run_list(device, "fill", |list| {
        let region = Region {
            allocation: cache.allocation().clone(),
            offset: 0,
            bytes: cache.len() as u64 * 16,
        };
        list.push(Command::Fill { region, value: 0 });
        AppendKv {
            keys: k.view(),
            key_stride: WIDTH as u32,
            values: v.view(),
            value_stride: WIDTH as u32,
            sequences: sequences.view(),
            positions: places.view(),
            cache: cache.view_mut()?,
            layout,
            addressing,
        }
        .encode(properties, list)
    })?;

    let heads = KV_HEADS * GROUP;
    let count = if how == How::Prefill { 40 } else { 1 };
    let first = POSITIONS - count;
    let splits = if matches!(how, How::Split | How::Short) { 3 } else { 1 };
    let query: Vec<T> = values(23, count * heads * DIM);
    let scale = 0.3f32;
    let q = device.upload_new("query", &query)?;
    let out = output::<T>(device, "out", query.len())?;
    let workspace = output::<f32>(
        device,
        "workspace",
        workspace_len(count as u32, heads as u32, splits, DIM as u32),
    )?;
    let shape = RowShape::prefill::<T>(&layout, GROUP as u32, properties);
    let tokens: Vec<(u32, u32)> = (first as u32..POSITIONS as u32).map(|p| (0, p)).collect();
    let tiles = match how {
        How::Prefill => Some(device.upload_new("tiles", &shape.tiles(&tokens))?),
        How::Decode | How::Split | How::Short => None,
    };
    run_list(device, "attention", |list| {
        Attention {
            query: q.view(),
            query_stride: (heads * DIM) as u32,
            heads: heads as u32,
            cache: cache.view(),
            layout,
            addressing,
            sequences: sequences.slice(first..POSITIONS)?,
            positions: places.slice(first..POSITIONS)?,
            tiles: tiles.as_ref().map(|tiles| (tiles.view(), shape)),
            scale,
            window: None,
            softcap: None,
            shape: DecodeShape { splits, short: how == How::Short },
            workspace: workspace.view_mut()?,
            out: out.view_mut()?,
            out_stride: (heads * DIM) as u32,
        }
        .encode(properties, list)
    })?;

    let keep = |side: &[T]| -> Result<Vec<Vec<f64>>, Problem> {
        wide(side).chunks(DIM).map(|head| kept(storage, head)).collect()
    };
    let (keys, values_) = (keep(&keys)?, keep(&values_)?);
    let mut expected = Vec::new();
    for (token, position) in (first..POSITIONS).enumerate() {
        for head in 0..heads {
            let q = wide(&query[(token * heads + head) * DIM..][..DIM]);
            let at = |position: usize| position * KV_HEADS + head / GROUP;
            let rows: Vec<usize> = (0..=position).map(at).collect();
            expected.extend(softmax_mean(&q, &keys, &values_, &rows, f64::from(scale)));
        }
    }
    // Probabilities pass through f16 where matrix fragments multiply them.
    let allowed = 4.0 * T::ROUNDING + if T::NAME == "f32" { 2e-5 } else { 2e-3 };
    Ok(compare(&device.download_all(&out)?, &expected, allowed))
}

/// The mean of `values` weighted by the softmax of `scale · q · keys`, over `rows` of both.
pub(super) fn softmax_mean(
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    rows: &[usize],
    scale: f64,
) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> = rows.iter().map(|row| scale * dot(q, &keys[*row])).collect();
    let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (row, weight) in rows.iter().zip(&weights) {
        for (out, value) in out.iter_mut().zip(&values[*row]) {
            *out += weight / total * value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::softmax_mean;

    #[test]
    fn the_reference_is_a_mean_of_what_is_seen() {
        let rows = [vec![1.0, 0.0], vec![0.0, 1.0]];
        assert_eq!(softmax_mean(&[0.0, 0.0], &rows, &rows, &[0, 1], 1.0), [0.5, 0.5]);
        assert_eq!(softmax_mean(&[9.0, 3.0], &rows, &rows, &[1], 1.0), [0.0, 1.0]);
    }
}
