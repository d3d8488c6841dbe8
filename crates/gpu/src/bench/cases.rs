//! The kernels that are measured, with the shapes of large models.

use std::sync::Arc;

use half::f16;
use marlin_backend::{SamplingSettings, philox4x32};
use marlin_formats::Format;
use marlin_formats::fragment::{FragmentLayout, FragmentMatrix, FragmentMin, FragmentScale};
use marlin_placement::AccessPattern;

use super::{Ceilings, timing};
use crate::ops::attention::{Attention, DecodeShape, workspace_len};
use crate::ops::gemm_batch;
use crate::ops::hadamard::{HadamardSize, hadamard};
use crate::ops::kv_cache::{KV_BLOCK, KvAddressing, KvLayout, KvStorage};
use crate::ops::linear::{Epilogue, FragmentWeights, GemmShape, gemm, gemv};
use crate::ops::sample::{SETTINGS_WORDS, Sample, SampleScratch, arg_max, sample, settings_record};
use crate::{Buffer, Device, GpuError, tuning};

/// Bytes of operands to rotate among: several times the largest second-level cache (50 MB on an H100).
const ROTATED_BYTES: usize = 400 << 20;

/// Which kernels are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Products by matrix fragments.
    Gemm,
    /// Products in f32.
    Gemv,
    /// Decode attention.
    Attention,
    /// The choice of a token.
    Sample,
    /// Hadamard transforms.
    Hadamard,
}

impl Selection {
    /// Every kernel.
    pub const ALL: [Self; 5] =
        [Self::Gemm, Self::Gemv, Self::Attention, Self::Sample, Self::Hadamard];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gemm => "gemm",
            Self::Gemv => "gemv",
            Self::Attention => "attention",
            Self::Sample => "sample",
            Self::Hadamard => "hadamard",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The kernels.
    pub kernels: Vec<Selection>,
    /// Weight formats of products.
    pub formats: Vec<Format>,
    /// Columns and rows of products.
    pub shapes: Vec<(usize, usize)>,
    /// Tokens of products.
    pub tokens: Vec<usize>,
    /// Positions of attention.
    pub context: usize,
    /// Logits of a choice.
    pub vocabulary: usize,
    /// Whether every division of a product is tried, and the fastest measured as well.
    pub tuned: bool,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct KernelResult {
    /// The kernel.
    pub kernel: &'static str,
    /// Number format of weights, cache or activations.
    pub format: String,
    /// The sizes, in words.
    pub shape: String,
    /// Median time of one run.
    pub microseconds: f64,
    /// Bytes that must move.
    pub bytes: f64,
    /// Multiply-adds counted twice.
    pub flops: f64,
    /// Share of the floor: the time that the bytes take at the measured ceiling (of copying for
    /// what writes as much as it reads, of reading otherwise), over the time measured.
    pub floor: f64,
}

/// Measures everything that `options` names; `each` sees every result as it comes.
///
/// # Errors
/// No room, or the device failed.
pub fn run(
    device: &dyn Device,
    options: &BenchOptions,
    ceilings: &Ceilings,
    mut each: impl FnMut(&KernelResult),
) -> Result<Vec<KernelResult>, GpuError> {
    let mut results = Vec::new();
    let mut keep = |result: KernelResult| {
        each(&result);
        results.push(result);
    };
    let products: Vec<_> = options
        .kernels
        .iter()
        .copied()
        .filter(|k| matches!(k, Selection::Gemm | Selection::Gemv))
        .collect();
    if !products.is_empty() {
        for &format in &options.formats {
            for &(columns, rows) in &options.shapes {
                product(device, options, &products, format, rows, columns, ceilings, &mut keep)?;
            }
        }
    }
    for kernel in &options.kernels {
        match kernel {
            Selection::Gemm | Selection::Gemv => {}
            Selection::Attention => attention(device, options.context, ceilings, &mut keep)?,
            Selection::Sample => choice(device, options.vocabulary, ceilings, &mut keep)?,
            Selection::Hadamard => transform(device, ceilings, &mut keep)?,
        }
    }
    Ok(results)
}

fn random_bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    let mut counter = 0u32;
    while out.len() < len {
        // Four words of random numbers, spread to 64 bytes by cheap mixing: their quality does not
        // matter, that they are not all zeros does.
        for word in philox4x32([counter, seed, 0, 0], [1, 2]) {
            for rotation in 0..4 {
                out.extend(word.rotate_left(rotation * 7).to_le_bytes());
            }
        }
        counter += 1;
    }
    out.truncate(len);
    out
}

fn random_halves(len: usize, seed: u32) -> Vec<f16> {
    random_bytes(len, seed).iter().map(|&b| f16::from_f32(f32::from(b as i8) / 64.0)).collect()
}

/// A matrix with random codes, and scales that keep the products finite.
fn random_matrix(layout: &FragmentLayout) -> FragmentMatrix {
    let [codes, scales, mins, supers] = layout.sizes();
    let repeat =
        |bytes: &[u8], len: usize| -> Vec<u8> { bytes.iter().copied().cycle().take(len).collect() };
    let small = f16::from_f32(0.01).to_le_bytes();
    let scale = match layout.scale {
        FragmentScale::None => vec![],
        FragmentScale::F16 => repeat(&small, scales),
        FragmentScale::F32 => repeat(&0.01f32.to_le_bytes(), scales),
        FragmentScale::E8M0 => repeat(&[120], scales),
        FragmentScale::E4M3 => repeat(&[0x20, 0x28], scales),
        FragmentScale::SuperBlock => repeat(&[3, 17, 250], scales),
    };
    let min = match layout.min {
        FragmentMin::None => vec![],
        FragmentMin::F16 => repeat(&small, mins),
        FragmentMin::F32 => repeat(&(-0.05f32).to_le_bytes(), mins),
        FragmentMin::SuperBlock => repeat(&[5, 40], mins),
    };
    // Random bits are no floats to multiply with; one tame number is.
    let codes = if layout.scale == FragmentScale::None {
        repeat(&small, codes)
    } else {
        random_bytes(codes, 1)
    };
    FragmentMatrix { codes, scales: scale, mins: min, supers: repeat(&small, supers) }
}

#[allow(clippy::too_many_arguments, reason = "a product has so many parts")]
fn product(
    device: &dyn Device,
    options: &BenchOptions,
    kernels: &[Selection],
    format: Format,
    rows: usize,
    columns: usize,
    ceilings: &Ceilings,
    keep: &mut impl FnMut(KernelResult),
) -> Result<(), GpuError> {
    let refuse = |reason: String| GpuError::Launch { kernel: "gemm".to_owned(), reason };
    let layout = FragmentLayout::new(format, rows, columns, 1.0)
        .ok_or_else(|| refuse(format!("{format} has no fragment layout")))?;
    let packed = random_matrix(&layout);
    let copies = (ROTATED_BYTES / layout.bytes().max(1)).clamp(2, 40);
    let weights = (0..copies)
        .map(|i| {
            FragmentWeights::from_packed(device, &format!("weights {i}"), layout, 1, &packed)
                .map(Arc::new)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let most = options.tokens.iter().copied().max().unwrap_or(1);
    let x = device.upload_new("x", &random_halves(most * columns, 2))?;
    let y = device.upload_new("y", &vec![f16::ZERO; most * rows])?;
    let room = gemm_batch::partial_room(device.properties(), &layout, most).max(1);
    let partial = device.allocate::<f32>("partial sums", room, AccessPattern::DEVICE_ONLY)?;
    for &tokens in &options.tokens {
        for &kernel in kernels {
            if kernel == Selection::Gemv && tokens > 8 {
                continue;
            }
            let runs = copies.max(20);
            let measure = |shape: GemmShape| {
                timing::median(device, kernel.name(), runs, |list, run| {
                    let weights = &weights[run % copies];
                    let x = x.slice(0..tokens * columns)?;
                    let y = y.slice_mut(0..tokens * rows)?;
                    if kernel == Selection::Gemv {
                        return gemv(list, weights, x, y, tokens, Epilogue::default());
                    }
                    let partial = (shape.splits > 1).then(|| partial.view_mut()).transpose()?;
                    gemm(list, shape, weights, x, y, tokens, Epilogue::default(), partial)
                })
            };
            let bytes = (layout.bytes() + 2 * tokens * (rows + columns)) as f64;
            let mut keep = |time, how: &str| {
                keep(result(
                    kernel,
                    format.to_string(),
                    format!("M={tokens} K={columns} N={rows}{how}"),
                    time,
                    bytes,
                    2.0 * (tokens * rows * columns) as f64,
                    ceilings.read_bytes_per_s,
                ));
            };
            let default = GemmShape::choose(device.properties(), &weights[0], tokens, false, room);
            keep(measure(default)?, "");
            if options.tuned && kernel == Selection::Gemm {
                let operands = tuning::Operands { x: &x, y: &y, partial: &partial };
                let best = tuning::measure(device, &weights, tokens, false, &operands)?;
                if let Some(best) = best {
                    keep(measure(best.shape)?, &format!(", {}", best.shape));
                }
            }
        }
    }
    Ok(())
}

fn result(
    kernel: Selection,
    format: String,
    shape: String,
    time: std::time::Duration,
    bytes: f64,
    flops: f64,
    ceiling: f64,
) -> KernelResult {
    let seconds = time.as_secs_f64();
    KernelResult {
        kernel: kernel.name(),
        format,
        shape,
        microseconds: seconds * 1e6,
        bytes,
        flops,
        floor: bytes / ceiling / seconds,
    }
}

/// One token of 32 query heads over 8 key heads of 128 values.
fn attention(
    device: &dyn Device,
    context: usize,
    ceilings: &Ceilings,
    keep: &mut impl FnMut(KernelResult),
) -> Result<(), GpuError> {
    let (heads, kv_heads, head_dim) = (32u32, 8u32, 128u32);
    for (storage, name) in
        [(KvStorage::F16, "f16"), (KvStorage::Int8, "int8"), (KvStorage::Fp4, "fp4")]
    {
        let layout = KvLayout::new(storage, kv_heads, head_dim)?;
        let blocks = (context as u32).div_ceil(KV_BLOCK);
        let pieces = blocks as usize * layout.block_pieces();
        let copies = (ROTATED_BYTES / (pieces * 16)).clamp(2, 40);
        // Bytes whose f16, int8 and fp4 readings are all small and finite.
        let bytes: Vec<u8> = random_bytes(pieces * 16, 3).iter().map(|b| b & 0xb7).collect();
        let caches = (0..copies)
            .map(|i| device.upload_bytes::<[u32; 4]>(&format!("cache {i}"), &bytes))
            .collect::<Result<Vec<_>, _>>()?;
        let query = device.upload_new("query", &random_halves((heads * head_dim) as usize, 4))?;
        let out = device.upload_new("out", &vec![f16::ZERO; (heads * head_dim) as usize])?;
        let sequences = device.upload_new("sequences", &[0u32])?;
        let positions = device.upload_new("positions", &[context as u32 - 1])?;
        let shape = DecodeShape::choose(&layout, heads, 1, context as u32, device.properties());
        let workspace = device.allocate::<f32>(
            "workspace",
            workspace_len(1, heads, shape.splits, head_dim),
            marlin_placement::AccessPattern::DEVICE_ONLY,
        )?;
        let time = timing::median(device, "attention", copies.max(10), |list, run| {
            Attention {
                query: query.view(),
                query_stride: heads * head_dim,
                heads,
                cache: caches[run % copies].view(),
                layout,
                addressing: KvAddressing::Contiguous { blocks },
                sequences: sequences.view(),
                positions: positions.view(),
                tiles: None,
                scale: 0.088,
                window: None,
                softcap: None,
                shape,
                workspace: workspace.view_mut()?,
                out: out.view_mut()?,
                out_stride: heads * head_dim,
            }
            .encode(device.properties(), list)
        })?;
        keep(result(
            Selection::Attention,
            name.to_owned(),
            format!("decode, {context} positions, {heads} over {kv_heads} heads of {head_dim}"),
            time,
            layout.bytes(context as u64) as f64,
            4.0 * f64::from(heads * head_dim) * context as f64,
            ceilings.read_bytes_per_s,
        ));
    }
    Ok(())
}

/// One sequence's token from f32 logits.
fn choice(
    device: &dyn Device,
    vocabulary: usize,
    ceilings: &Ceilings,
    keep: &mut impl FnMut(KernelResult),
) -> Result<(), GpuError> {
    let values: Vec<f32> = random_bytes(2 * vocabulary, 5)
        .chunks_exact(2)
        .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 3000.0)
        .collect();
    let copies = (ROTATED_BYTES / (vocabulary * 4)).clamp(2, 40);
    let logits = (0..copies)
        .map(|i| device.upload_new(&format!("logits {i}"), &values))
        .collect::<Result<Vec<Buffer<f32>>, _>>()?;
    let scratch = SampleScratch::new(device, 1, vocabulary)?;
    let tokens = device.upload_new("tokens", &[0u32])?;
    let sampled = device.upload_new("sampled", &[0u32])?;
    let outputs = device.upload_new("outputs", &[0u32, 10])?;
    let history_length = SamplingSettings::MAX_REPEAT_LAST_N as usize;
    let history = device.upload_new("history", &vec![7u32; history_length])?;
    let draws = device.upload_new("draws", &[0u64])?;
    let bytes = (4 * vocabulary) as f64;
    let greedy = timing::median(device, "arg_max", copies, |list, run| {
        let (outputs, by_slot) = (outputs.view(), sampled.view_mut()?);
        let logits = logits[run % copies].view();
        arg_max(list, 1, logits, outputs, tokens.view_mut()?, by_slot, &scratch)
    })?;
    let shape = |what: &str| format!("{what}, {vocabulary} logits");
    let name = "f32".to_owned();
    let ceiling = ceilings.read_bytes_per_s;
    keep(result(Selection::Sample, name.clone(), shape("arg-max"), greedy, bytes, 0.0, ceiling));
    let filtered = SamplingSettings {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.1,
        ..SamplingSettings::GREEDY
    };
    let unfiltered = SamplingSettings { temperature: 1.0, ..SamplingSettings::GREEDY };
    for (what, settings) in
        [("top-k 40, top-p, min-p, penalty", filtered), ("temperature alone", unfiltered)]
    {
        let record: [u32; SETTINGS_WORDS] = settings_record(&settings);
        let record = device.upload_new("settings", &record)?;
        let time = timing::median(device, "sample", copies, |list, run| {
            let io = Sample {
                logits: logits[run % copies].view(),
                outputs: outputs.view(),
                settings: record.view(),
                history: history.view(),
                history_length,
                draws: draws.view_mut()?,
                tokens: tokens.view_mut()?,
                sampled: sampled.view_mut()?,
                softcap: None,
            };
            sample(list, 1, io, &scratch)
        })?;
        keep(result(Selection::Sample, name.clone(), shape(what), time, bytes, 0.0, ceiling));
    }
    Ok(())
}

/// 4096 transforms of 4096 values in place.
fn transform(
    device: &dyn Device,
    ceilings: &Ceilings,
    keep: &mut impl FnMut(KernelResult),
) -> Result<(), GpuError> {
    let size = 4096usize;
    let elements = size * size;
    let copies = (ROTATED_BYTES / (2 * elements)).clamp(2, 40);
    let values = random_halves(elements, 6);
    let buffers = (0..copies)
        .map(|i| device.upload_new(&format!("x {i}"), &values))
        .collect::<Result<Vec<_>, _>>()?;
    let transform = HadamardSize::new(size)?;
    let time = timing::median(device, "hadamard", copies, |list, run| {
        hadamard(list, device.properties(), transform, true, buffers[run % copies].view_mut()?)
    })?;
    keep(result(
        Selection::Hadamard,
        "f16".to_owned(),
        format!("{size} × {size}, in place"),
        time,
        4.0 * elements as f64,
        (elements * size.ilog2() as usize) as f64,
        ceilings.copy_bytes_per_s,
    ));
    Ok(())
}
