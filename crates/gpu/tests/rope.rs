//! Rotary embedding and the norms of heads against their formulas in f64.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_backend::RopeStyle;
use marlin_gpu::ops::norm::NormWeight;
use marlin_gpu::ops::rope::{HeadLayout, HeadValues, Heads, Rotation, rope};
use marlin_gpu::{CommandList, Device, GpuError};
use values::{Float, Random, assert_near, inverse_frequencies};

const EPSILON: f32 = 1e-6;
const OFFSET: f32 = 1.0;

/// What is done to heads.
#[derive(Clone, Copy, Debug)]
struct Shape {
    head_dim: usize,
    pairs: usize,
    q_heads: usize,
    k_heads: usize,
    style: RopeStyle,
    q_norm: bool,
    k_norm: bool,
    magnitude: f32,
    /// Elements between a token's last head and the next token's first.
    gap: usize,
}

const PLAIN: Shape = Shape {
    head_dim: 64,
    pairs: 32,
    q_heads: 4,
    k_heads: 2,
    style: RopeStyle::HalfSplit,
    q_norm: false,
    k_norm: false,
    magnitude: 1.0,
    gap: 0,
};

/// One head's values after norm and rotation, each with the length of its pair.
fn reference(
    shape: &Shape,
    head: &[f64],
    norm: Option<&[f32]>,
    position: u32,
    frequencies: &[f32],
) -> Vec<(f64, f64)> {
    let mut x = head.to_vec();
    if let Some(weight) = norm {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        for (x, w) in x.iter_mut().zip(weight) {
            *x *= scale * (f64::from(*w) + f64::from(OFFSET));
        }
    }
    let mut out: Vec<(f64, f64)> = x.iter().map(|v| (*v, v.abs())).collect();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (first, second) = match shape.style {
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            RopeStyle::HalfSplit => (i, i + shape.pairs),
        };
        let (sin, cos) = (f64::from(position) * f64::from(*frequency)).sin_cos();
        let (a, b) = (x[first], x[second]);
        let magnitude = f64::from(shape.magnitude);
        let length = a.hypot(b) * magnitude;
        out[first] = ((a * cos - b * sin) * magnitude, length);
        out[second] = ((a * sin + b * cos) * magnitude, length);
    }
    out
}

fn check<T: Float>(device: &dyn Device, shape: Shape, positions: &[u32]) -> Result<(), GpuError> {
    let Shape { head_dim, pairs, .. } = shape;
    let mut random = Random::new(head_dim as u64);
    let frequencies = inverse_frequencies(pairs);
    let layout = |heads: usize| HeadLayout {
        heads,
        first: 0,
        token_stride: heads * head_dim + shape.gap,
        head_stride: head_dim,
    };
    let layouts = [layout(shape.q_heads), layout(shape.k_heads)];
    let before = layouts.map(|l| random.elements::<T>(positions.len() * l.token_stride, 1.0));
    let weights = [0, 1].map(|_| random.elements::<f32>(head_dim, 0.2));

    let q = device.upload_new("q", &before[0])?;
    let k = device.upload_new("k", &before[1])?;
    let w = [device.upload_new("q norm", &weights[0])?, device.upload_new("k norm", &weights[1])?];
    let norm = |i: usize, wanted: bool| {
        wanted.then(|| NormWeight { weight: w[i].view(), epsilon: EPSILON, offset: OFFSET })
    };
    let p = device.upload_new("positions", positions)?;
    let f = device.upload_new("frequencies", &frequencies)?;
    let mut list = CommandList::new("rope");
    rope(
        &mut list,
        device.properties(),
        HeadValues::Apart { q: q.view_mut()?, k: k.view_mut()? },
        Heads { layout: layouts[0], norm: norm(0, shape.q_norm) },
        Heads { layout: layouts[1], norm: norm(1, shape.k_norm) },
        p.view(),
        Rotation {
            head_dim,
            style: shape.style,
            inverse_frequencies: f.view(),
            magnitude: shape.magnitude,
        },
    )?;
    device.run(list)?;

    let after = [device.download_all(&q)?, device.download_all(&k)?];
    for (i, normed) in [shape.q_norm, shape.k_norm].into_iter().enumerate() {
        let HeadLayout { heads, token_stride, .. } = layouts[i];
        for (token, position) in positions.iter().enumerate() {
            let row = token * token_stride..(token + 1) * token_stride;
            let (before, after) = (&before[i][row.clone()], &after[i][row]);
            for head in 0..heads {
                let at = head * head_dim..(head + 1) * head_dim;
                let x: Vec<f64> = before[at.clone()].iter().map(|v| f64::from(v.f32())).collect();
                let weight = normed.then_some(&weights[i][..]);
                let expected = reference(&shape, &x, weight, *position, &frequencies);
                for (found, (expected, length)) in after[at].iter().zip(expected) {
                    let what = format!("{shape:?}, position {position}, head {head}");
                    assert_near(*found, expected, 1e-6 * length, what);
                }
            }
            assert_eq!(after[heads * head_dim..], before[heads * head_dim..], "{shape:?}");
        }
    }
    Ok(())
}

const POSITIONS: [u32; 5] = [0, 1, 77, 4095, 131_071];

fn shapes() -> Vec<Shape> {
    let interleaved = Shape { style: RopeStyle::Interleaved, ..PLAIN };
    vec![
        PLAIN,
        interleaved,
        // Partial rotation (Phi, StableLM), odd pairs, whole heads of 128 and 256.
        Shape { head_dim: 80, pairs: 16, q_norm: true, ..PLAIN },
        Shape { head_dim: 80, pairs: 16, k_norm: true, ..interleaved },
        Shape { head_dim: 7, pairs: 3, q_heads: 1, k_heads: 1, q_norm: true, ..PLAIN },
        Shape { head_dim: 128, pairs: 64, q_heads: 9, k_heads: 3, gap: 5, ..PLAIN },
        Shape { head_dim: 256, pairs: 128, q_norm: true, k_norm: true, gap: 64, ..PLAIN },
        // YaRN's attention factor; norms alone; queries alone.
        Shape { magnitude: 1.25, ..interleaved },
        Shape { pairs: 0, q_norm: true, k_norm: true, ..PLAIN },
        Shape { k_heads: 0, ..PLAIN },
    ]
}

fn every_shape<T: Float>() -> Result<(), GpuError> {
    for device in common::devices() {
        for shape in shapes() {
            check::<T>(&*device, shape, &POSITIONS)?;
        }
    }
    Ok(())
}

#[test]
fn heads_of_f16() -> Result<(), GpuError> {
    every_shape::<f16>()
}

#[test]
fn heads_of_bf16() -> Result<(), GpuError> {
    every_shape::<bf16>()
}

#[test]
fn heads_of_f32() -> Result<(), GpuError> {
    every_shape::<f32>()
}

#[test]
fn many_tokens_and_none() -> Result<(), GpuError> {
    for device in common::devices() {
        let positions: Vec<u32> = (0..150).map(|i| i * 31).collect();
        check::<f32>(&*device, Shape { q_heads: 3, k_heads: 1, ..PLAIN }, &positions)?;
        check::<f32>(&*device, PLAIN, &[])?;
    }
    Ok(())
}

#[test]
fn layouts_that_do_not_fit_are_refused() -> Result<(), GpuError> {
    let device = common::emulated(32, true);
    let (q, k) = (device.upload_new("q", &[0.0f32; 64])?, device.upload_new("k", &[0.0f32; 63])?);
    let p = device.upload_new("positions", &[0u32])?;
    let f = device.upload_new("frequencies", &[1.0f32; 33])?;
    let heads = Heads { layout: HeadLayout::contiguous(1, 64), norm: None };
    let attempt = |pairs: usize| {
        let mut list = CommandList::new("rope");
        let rotation = Rotation {
            head_dim: 64,
            style: RopeStyle::HalfSplit,
            inverse_frequencies: f.slice(0..pairs)?,
            magnitude: 1.0,
        };
        let values = HeadValues::Apart { q: q.view_mut()?, k: k.view_mut()? };
        rope(&mut list, device.properties(), values, heads, heads, p.view(), rotation)
    };
    let error = attempt(32).unwrap_err().to_string();
    assert!(error.contains("k has 63 elements, its layout takes 64"), "{error}");
    let error = attempt(33).unwrap_err().to_string();
    assert!(error.contains("33 pairs, expected at most half of 64"), "{error}");
    Ok(())
}

/// Queries and keys as parts of one product's rows; the values between them stay.
#[test]
fn heads_of_one_product() -> Result<(), GpuError> {
    const TOKENS: usize = 6;
    let (head_dim, q_heads, k_heads) = (32, 3, 2);
    // Queries, keys and values of a token.
    let stride = (q_heads + 2 * k_heads) * head_dim;
    let frequencies: Vec<f32> = (0..16).map(|i| 0.7f32.powi(i)).collect();
    let shape = Shape { head_dim, pairs: 16, q_heads, k_heads, ..PLAIN };
    for device in common::devices() {
        let before: Vec<f16> = Random::new(5).elements(TOKENS * stride, 1.0);
        let rows = device.upload_new("q, k, v", &before)?;
        let positions: Vec<u32> = (0..TOKENS as u32).map(|i| 100 + i).collect();
        let p = device.upload_new("positions", &positions)?;
        let f = device.upload_new("frequencies", &frequencies)?;
        let heads = |first: usize, heads: usize| Heads {
            layout: HeadLayout {
                heads,
                first: first * head_dim,
                token_stride: stride,
                head_stride: head_dim,
            },
            norm: None,
        };
        let rotation = Rotation {
            head_dim,
            style: RopeStyle::HalfSplit,
            inverse_frequencies: f.view(),
            magnitude: 1.0,
        };
        let mut list = CommandList::new("rope");
        let (q, k) = (heads(0, q_heads), heads(q_heads, k_heads));
        let values = HeadValues::Together(rows.view_mut()?);
        rope(&mut list, device.properties(), values, q, k, p.view(), rotation)?;
        device.run(list)?;

        let after = device.download_all(&rows)?;
        for (token, (before, after)) in before.chunks(stride).zip(after.chunks(stride)).enumerate()
        {
            let rotated = (q_heads + k_heads) * head_dim;
            let pairs = before[..rotated].chunks(head_dim).zip(after[..rotated].chunks(head_dim));
            for (head, (before, after)) in pairs.enumerate() {
                let x: Vec<f64> = before.iter().map(|v| f64::from(v.f32())).collect();
                let expected = reference(&shape, &x, None, positions[token], &frequencies);
                for (found, (expected, length)) in after.iter().zip(expected) {
                    let what = format!("token {token}, head {head}");
                    assert_near(*found, expected, 1e-6 * length, what);
                }
            }
            assert_eq!(after[rotated..], before[rotated..], "values stay");
        }
    }
    Ok(())
}
