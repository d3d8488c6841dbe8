//! Multi-head latent attention, step by step, against sums in f64.

mod common;
#[path = "common/sequences.rs"]
mod sequences;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_formats::fragment::{FragmentLayout, FragmentMatrix};
use marlin_formats::{Format, OwnedMatrix, encode};
use marlin_gpu::ops::attention::workspace_len;
use marlin_gpu::ops::kv_cache::{KV_BLOCK, NO_SEQUENCE};
use marlin_gpu::ops::mla::{
    LatentLayout, MlaAppendKv, MlaAttention, MlaFused, MlaHeads, MlaWeights, latent_splits,
};
use marlin_gpu::{Buffer, CommandList, Device, GpuError};
use marlin_kernels::rope::{Rope, RopeArgs, RopeConstants};
use marlin_kernels::{Grid, View, ViewMut};
use sequences::{Blocks, upload_tokens};
use values::{Random, inverse_frequencies};

/// A matrix on a device and as f64.
struct Placed {
    layout: FragmentLayout,
    codes: Buffer<u32>,
    scales: Buffer<u8>,
    mins: Option<Buffer<u8>>,
    values: Vec<f64>,
}

impl Placed {
    fn new(device: &dyn Device, format: Format, rows: usize, cols: usize, seed: u64) -> Self {
        let matrix: OwnedMatrix =
            encode(format, rows, cols, &Random::new(seed).uniforms::<f32>(rows * cols, 1.0))
                .unwrap();
        let layout = FragmentLayout::new(format, rows, cols, matrix.tensor_scale).unwrap();
        let FragmentMatrix { codes, scales, mins, .. } = layout.pack(&matrix.view()).unwrap();
        let words: Vec<u32> =
            codes.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let mins = (!mins.is_empty()).then(|| device.upload_new("mins", &mins).unwrap());
        Self {
            layout,
            codes: device.upload_new("codes", &words).unwrap(),
            scales: device.upload_new("scales", &scales).unwrap(),
            mins,
            values: matrix.decode().iter().map(|&x| f64::from(x)).collect(),
        }
    }

    fn weights(&self) -> MlaWeights<'_> {
        MlaWeights {
            layout: &self.layout,
            codes: self.codes.view(),
            scales: self.scales.view(),
            mins: self.mins.as_ref().map(|m| m.view()),
        }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.layout.cols..][..self.layout.cols]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn rms_norm(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let scale = (dot(x, x) / x.len() as f64 + epsilon).sqrt();
    x.iter().zip(weight).map(|(x, w)| x / scale * f64::from(*w)).collect()
}

/// Every value within `tolerance` of the largest.
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * largest,
            "{what}: value {i} is {found}, expected {expected}"
        );
    }
}

/// hidden → latent → out, with group sizes of their own, for shapes with and without padding.
#[test]
fn the_two_stage_projection_is_two_products_with_a_norm_between() {
    let cases = [
        (Format::INT4_G128, Format::INT4_G32, 256, 128, 80, 5, true),
        (Format::FP4_G32, Format::FP4_G64, 96, 64, 40, 1, false),
        ("int4-asym-g64".parse().unwrap(), "int4-asym-g32".parse().unwrap(), 192, 96, 33, 9, true),
        (Format::MXFP4, Format::MXFP4, 64, 32, 16, 4, false),
    ];
    for device in common::devices() {
        for (format_a, format_b, hidden, latent, rows, tokens, normed) in cases {
            let a = Placed::new(&*device, format_a, latent, hidden, 1);
            let b = Placed::new(&*device, format_b, rows, latent, 2);
            let x = Random::new(3).uniforms::<f32>(tokens * hidden, 1.0);
            let weight = Random::new(4).uniforms::<f32>(latent, 1.0);
            let x_buffer = device.upload_new("x", &x).unwrap();
            let weight_buffer = device.upload_new("norm", &weight).unwrap();
            for shares in [1, 3] {
                let out = common::output::<f32>(&*device, tokens * rows);
                let mut commands = CommandList::new("fused");
                MlaFused {
                    a: a.weights(),
                    b: b.weights(),
                    norm: normed.then(|| (weight_buffer.view(), 1e-5)),
                    x: x_buffer.view(),
                    x_stride: hidden as u32,
                    tokens: tokens as u32,
                    out: out.view_mut().unwrap(),
                    out_stride: rows as u32,
                    shares,
                }
                .encode(device.properties(), &mut commands)
                .unwrap();
                device.run(commands).unwrap();
                let found = wide(&device.download_all(&out).unwrap());
                for t in 0..tokens {
                    let x = wide(&x[t * hidden..][..hidden]);
                    let mut c: Vec<f64> = (0..latent).map(|r| dot(a.row(r), &x)).collect();
                    if normed {
                        c = rms_norm(&c, &weight, 1e-5);
                    }
                    let expected: Vec<f64> = (0..rows).map(|r| dot(b.row(r), &c)).collect();
                    let what = format!("{format_a} {shares} shares, token {t}");
                    assert_close(&found[t * rows..][..rows], &expected, 1e-5, &what);
                }
            }
        }
    }
}

/// Turns pairs (x[2i], x[2i + 1]) by position · frequency.
fn turned(x: &[f64], position: u32, frequencies: &[f32]) -> Vec<f64> {
    let mut out = x.to_vec();
    for (i, &f) in frequencies.iter().enumerate() {
        let (sin, cos) = (f64::from(position) * f64::from(f)).sin_cos();
        out[2 * i] = x[2 * i] * cos - x[2 * i + 1] * sin;
        out[2 * i + 1] = x[2 * i] * sin + x[2 * i + 1] * cos;
    }
    out
}

/// A layer's shape.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    layout: LatentLayout,
    splits: u32,
    paged: bool,
}

const EPSILON: f32 = 1e-6;

/// Everything between the projections and the output, as a decoding step runs it: rotation, append, absorbed queries,
/// attention in the latent space, expansion; expected is the attention over keys and values made the plain way.
fn decode(device: &dyn Device, shape: Shape, lengths: &[usize]) -> Result<(), GpuError> {
    let Shape { heads, key_dim, value_dim, layout, splits, paged } = shape;
    let (latent, rope) = (layout.latent as usize, layout.rope as usize);
    let kv_b = Placed::new(device, Format::INT4_G32, heads * (key_dim + value_dim), latent, 9);
    let frequencies = inverse_frequencies(rope / 2);
    let weight: Vec<f32> = Random::new(5).uniforms(latent, 1.0);
    let frequencies_buffer = device.upload_new("frequencies", &frequencies)?;
    let weight_buffer = device.upload_new("norm", &weight)?;

    // All tokens go into the cache; the last of each sequence asks.
    let mut tokens: Vec<(u32, u32)> = Vec::new();
    for (s, &length) in lengths.iter().enumerate() {
        tokens.extend((0..length as u32).map(|p| (s as u32, p)));
    }
    tokens.push((NO_SEQUENCE, 0));
    let mut random = Random::new(6);
    let x: Vec<f32> = random.uniforms(tokens.len() * (latent + rope), 1.0);
    let askers: Vec<usize> = (0..tokens.len())
        .filter(|&i| tokens.get(i + 1).is_none_or(|n| n.0 != tokens[i].0))
        .collect();
    let q: Vec<f32> = random.uniforms(askers.len() * heads * (key_dim + rope), 1.0);

    let stride = lengths.iter().map(|&l| (l as u32).div_ceil(KV_BLOCK)).max().unwrap_or(1);
    let count = stride as usize * lengths.len();
    let pages: Vec<u32> = (0..count as u32).rev().collect();
    let blocks = match paged {
        false => Blocks::Contiguous(stride),
        true => Blocks::paged(device, &pages, stride, 1)?,
    };
    let addressing = blocks.addressing();
    let cache = common::output::<[u32; 4]>(device, count * layout.block_elements() / 8);
    let (sequences, positions) = upload_tokens(device, &tokens)?;
    let asking: Vec<(u32, u32)> = askers.iter().map(|&i| tokens[i]).collect();
    let (asking_sequences, asking_positions) = upload_tokens(device, &asking)?;
    let count = asking.len() as u32;
    let x_buffer = device.upload_new("x", &x)?;
    let q_buffer = device.upload_new("q", &q)?;
    let absorbed = common::output::<f32>(device, askers.len() * heads * (latent + rope));
    let attended = common::output::<f32>(device, askers.len() * heads * latent);
    let out = common::output::<f32>(device, askers.len() * heads * value_dim);
    let needed = workspace_len(count, heads as u32, splits, layout.latent);
    let workspace = common::output::<f32>(device, needed);
    let kv_heads = MlaHeads {
        weights: kv_b.weights(),
        heads: heads as u32,
        key_dim: key_dim as u32,
        value_dim: value_dim as u32,
        layout,
    };

    let mut commands = CommandList::new("mla");
    // The rotary parts: of all tokens' keys, and of the asking tokens' queries, where they lie.
    for (buffer, positions, tokens, heads, offset, width) in [
        (&x_buffer, &positions, tokens.len(), 1, latent, latent + rope),
        (&q_buffer, &asking_positions, askers.len(), heads, key_dim, key_dim + rope),
    ] {
        let none = common::output::<f32>(device, 1);
        commands.launch(
            Rope {
                q: buffer.slice_mut(offset..buffer.len())?,
                k: Some(none.view_mut()?),
                positions: positions.view(),
                inverse_frequencies: frequencies_buffer.view(),
                q_weight: None,
                k_weight: None,
                args: RopeArgs {
                    q_heads: heads as u32,
                    q_first: 0,
                    k_first: 0,
                    k_heads: 0,
                    head_dim: rope as u32,
                    pairs: rope as u32 / 2,
                    q_token_stride: (heads * width) as u32,
                    q_head_stride: width as u32,
                    k_token_stride: 0,
                    k_head_stride: 0,
                    magnitude: 1.0,
                    q_epsilon: 0.0,
                    k_epsilon: 0.0,
                    q_offset: 0.0,
                    k_offset: 0.0,
                },
                constants: RopeConstants {
                    interleaved: true,
                    q_norm: false,
                    k_norm: false,
                    together: false,
                },
                elements: std::marker::PhantomData,
            },
            Grid::xy(tokens as u32, 1, 128),
        );
    }
    MlaAppendKv {
        x: x_buffer.view(),
        x_stride: layout.width(),
        norm: Some((weight_buffer.view(), EPSILON)),
        sequences: sequences.view(),
        positions: positions.view(),
        cache: ViewMut::<f16>::new(cache.allocation(), 0, cache.len() * 8)?,
        layout,
        addressing,
    }
    .encode(device.properties(), &mut commands)?;
    kv_heads.absorb(count, q_buffer.view(), absorbed.view_mut()?, &mut commands)?;
    MlaAttention {
        query: absorbed.view(),
        heads: heads as u32,
        cache: cache.view(),
        layout,
        addressing,
        sequences: asking_sequences.view(),
        positions: asking_positions.view(),
        scale: 0.2,
        splits,
        workspace: workspace.view_mut()?,
        out: attended.view_mut()?,
    }
    .encode(device.properties(), &mut commands)?;
    kv_heads.expand(count, attended.view(), out.view_mut()?, &mut commands)?;
    device.run(commands)?;
    let found = wide(&device.download_all(&out)?);

    // Cached latents and rotary keys of every token.
    let cached: Vec<(Vec<f64>, Vec<f64>)> = tokens
        .iter()
        .enumerate()
        .map(|(i, &(_, position))| {
            let row = wide(&x[i * (latent + rope)..][..latent + rope]);
            let f16_of = |x: f64| f16::from_f64(x).to_f64();
            let c = rms_norm(&row[..latent], &weight, f64::from(EPSILON));
            let r = turned(&row[latent..], position, &frequencies);
            (c.into_iter().map(f16_of).collect(), r.into_iter().map(f16_of).collect())
        })
        .collect();
    for (a, &asker) in askers.iter().enumerate() {
        let (sequence, position) = tokens[asker];
        for h in 0..heads {
            let found = &found[(a * heads + h) * value_dim..][..value_dim];
            if sequence == NO_SEQUENCE {
                assert!(found.iter().all(|&x| x == 0.0), "a token that is not there");
                continue;
            }
            let q = wide(&q[(a * heads + h) * (key_dim + rope)..][..key_dim + rope]);
            let q_rope = turned(&q[key_dim..], position, &frequencies);
            let first = h * (key_dim + value_dim);
            let seen: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].0 == sequence).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|&i| {
                    let (c, r) = &cached[i];
                    let key: Vec<f64> = (0..key_dim).map(|d| dot(kv_b.row(first + d), c)).collect();
                    f64::from(0.2f32) * (dot(&q[..key_dim], &key) + dot(&q_rope, r))
                })
                .collect();
            let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - greatest).exp()).sum();
            let mut expected = vec![0.0; value_dim];
            for (&i, score) in seen.iter().zip(&scores) {
                let p = (score - greatest).exp() / total;
                for (d, e) in expected.iter_mut().enumerate() {
                    *e += p * dot(kv_b.row(first + key_dim + d), &cached[i].0);
                }
            }
            let width = device.properties().simd_width;
            let what = format!("{shape:?} width {width}, sequence {sequence}, head {h}");
            // A cached value that falls on the other side of a rounding to f16 is off by 2^-11 of itself.
            assert_close(found, &expected, 1e-3, &what);
        }
    }
    Ok(())
}

#[test]
fn decoding_with_absorbed_weights_equals_attention_over_expanded_keys_and_values() {
    for device in common::devices() {
        for (heads, key_dim, value_dim, latent, rope, splits, paged) in [
            (1, 16, 32, 32, 8, 1, false),
            (5, 32, 16, 64, 16, 3, true),
            (17, 16, 16, 96, 64, 1, true),
            (2, 16, 16, 512, 64, 40, false),
        ] {
            let layout = LatentLayout { latent, rope };
            let shape = Shape { heads, key_dim, value_dim, layout, splits, paged };
            decode(&*device, shape, &[1, 34, 7]).unwrap();
        }
    }
}

/// Half-precision activations: the same kernels, compiled for them.
#[test]
fn the_projection_runs_on_every_element_type() {
    let (hidden, latent, rows) = (64, 32, 16);
    for device in common::devices_of_width(32) {
        let a = Placed::new(&*device, Format::INT4_G32, latent, hidden, 1);
        let b = Placed::new(&*device, Format::INT4_G32, rows, latent, 2);
        let x = Random::new(3).uniforms::<f32>(hidden, 1.0);
        let expected = |x: &[f64]| -> Vec<f64> {
            let c: Vec<f64> = (0..latent).map(|r| dot(a.row(r), x)).collect();
            (0..rows).map(|r| dot(b.row(r), &c)).collect()
        };
        macro_rules! check {
            ($ty:ty, $of:expr, $to:expr, $tolerance:literal) => {{
                let x: Vec<$ty> = x.iter().map(|&x| $of(x)).collect();
                let buffer = device.upload_new("x", &x).unwrap();
                let out = common::output::<$ty>(&*device, rows);
                let mut commands = CommandList::new("fused");
                let view: View<'_, $ty> = buffer.view();
                MlaFused {
                    a: a.weights(),
                    b: b.weights(),
                    norm: None,
                    x: view,
                    x_stride: hidden as u32,
                    tokens: 1,
                    out: out.view_mut().unwrap(),
                    out_stride: rows as u32,
                    shares: 1,
                }
                .encode(device.properties(), &mut commands)
                .unwrap();
                device.run(commands).unwrap();
                let found: Vec<f64> =
                    device.download_all(&out).unwrap().iter().map(|&x| $to(x)).collect();
                let x: Vec<f64> = x.iter().map(|&x| $to(x)).collect();
                assert_close(&found, &expected(&x), $tolerance, stringify!($ty));
            }};
        }
        check!(f16, f16::from_f32, f16::to_f64, 1e-3);
        check!(bf16, bf16::from_f32, bf16::to_f64, 8e-3);
    }
}

/// What does not fit is refused with both numbers.
#[test]
fn shapes_that_do_not_fit_are_refused() {
    for device in common::devices_of_width(32) {
        let a = Placed::new(&*device, Format::INT4_G32, 32, 64, 1);
        let b = Placed::new(&*device, Format::INT4_G32, 16, 64, 2);
        let fp4 = Placed::new(&*device, Format::FP4_G32, 16, 32, 2);
        let x = device.upload_new("x", &[0f32; 64]).unwrap();
        let out = common::output::<f32>(&*device, 64);
        for (second, tokens, needle) in
            [(&b, 1, "as many columns of B"), (&fp4, 1, "same format"), (&fp4, 2, "same format")]
        {
            let mut commands = CommandList::new("refused");
            let error = MlaFused {
                a: a.weights(),
                b: second.weights(),
                norm: None,
                x: x.view(),
                x_stride: 64,
                tokens,
                out: out.view_mut().unwrap(),
                out_stride: 16,
                shares: 1,
            }
            .encode(device.properties(), &mut commands)
            .unwrap_err()
            .to_string();
            assert!(error.contains(needle), "{error}");
        }
        let heads = MlaHeads {
            weights: b.weights(),
            heads: 1,
            key_dim: 16,
            value_dim: 16,
            layout: LatentLayout { latent: 64, rope: 8 },
        };
        let mut commands = CommandList::new("refused");
        let error = heads
            .absorb(1, x.view(), out.view_mut().unwrap(), &mut commands)
            .unwrap_err()
            .to_string();
        assert!(error.contains("16×64 for 1 heads of 16 + 16 rows"), "{error}");
        assert!(latent_splits(16, 1, 1 << 15, device.properties()) >= 1);
    }
}
