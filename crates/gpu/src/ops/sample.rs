//! Sampling, arg-max, softmax and log-probabilities: `logits.metal`, `sample.metal` and `sample_choose.metal`.

use std::marker::PhantomData;

use marlin_backend::SamplingSettings;
use marlin_kernels::logits::{
    ArgMaxBlocks, LogitsArgs, LogitsPrepare, Softmax, SoftmaxApply, SoftmaxArgs, SoftmaxBlocks,
    TokenLogProbability,
};
use marlin_kernels::sample::{ArgMaxChoose, SampleArgs, SampleCandidates, SampleHistogram};
use marlin_kernels::sample_choose::{SampleChoose, SampleChooseArgs};
use marlin_kernels::{Atomic, Element, Grid, View, ViewMut};
use marlin_placement::AccessPattern;

use super::lengths::{expect_at_least, expect_len, refuse};
use crate::{Buffer, CommandList, Device, GpuError};

/// Logits that one threadgroup looks at: `SAMPLE_BLOCK` of `sampler_settings.h`.
pub const BLOCK: usize = 1024;

/// Classes of the histogram: `SAMPLE_BINS` of `sampler_settings.h`.
const BINS: usize = 1024;

/// Candidates that are listed; where more are left, the last step goes through the whole row.
const CAPACITY: usize = 4096;

/// The largest vocabulary: sums of 2¹⁹ weights fit 64 bits in units of 2⁻⁴⁴.
pub const MAX_VOCABULARY: usize = 1 << 19;

/// Threads of a threadgroup over a block.
const THREADS: u32 = 256;

/// Threads of the last step: at least one for each of 256 digits. More shorten the way through a row whose
/// candidates overflow the list; few candidates would rather have fewer barriers to wait at.
const CHOOSE_THREADS: u32 = 512;

/// 32-bit words of a sequence's settings in device memory.
pub const SETTINGS_WORDS: usize = 10;

/// A sequence's settings as `sampler_settings.h` reads them.
pub fn settings_record(settings: &SamplingSettings) -> [u32; SETTINGS_WORDS] {
    [
        settings.temperature.to_bits(),
        settings.top_k,
        settings.top_p.to_bits(),
        // min-p above 1 would leave no token at all.
        if settings.min_p > 0.0 { settings.min_p.min(1.0).ln() } else { f32::NEG_INFINITY }
            .to_bits(),
        settings.repeat_penalty.to_bits(),
        settings.presence_penalty.to_bits(),
        settings.frequency_penalty.to_bits(),
        settings.repeat_last_n,
        settings.seed as u32,
        (settings.seed >> 32) as u32,
    ]
}

/// What the steps of sampling leave for one another, for a number of output rows.
#[derive(Debug)]
pub struct SampleScratch {
    /// Rows of an arg-max.
    outputs: usize,
    /// Rows of sampling, which keeps a row of logits for each.
    sampled: usize,
    vocabulary: usize,
    /// The logits after the softcap and the penalties, `[outputs, vocabulary]`.
    adjusted: Buffer<f32>,
    maxima: Buffer<f32>,
    indices: Buffer<u32>,
    masses: Buffer<u64>,
    histogram: Buffer<u32>,
    counts: Buffer<u32>,
    keys: Buffer<u32>,
    tokens: Buffer<u32>,
}

impl SampleScratch {
    /// Memory for up to `outputs` rows of `vocabulary` logits: about 4 bytes a logit.
    ///
    /// # Errors
    /// A vocabulary of none or more than [`MAX_VOCABULARY`]; no memory.
    #[track_caller]
    pub fn new(device: &dyn Device, outputs: usize, vocabulary: usize) -> Result<Self, GpuError> {
        Self::with_rows(device, outputs, outputs, vocabulary)
    }

    /// Memory for the arg-max of up to `outputs` rows, of which up to `sampled` are sampled from.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[track_caller]
    pub fn with_rows(
        device: &dyn Device,
        outputs: usize,
        sampled: usize,
        vocabulary: usize,
    ) -> Result<Self, GpuError> {
        if vocabulary == 0 || vocabulary > MAX_VOCABULARY {
            return Err(refuse(
                "sample",
                format!("a vocabulary of {vocabulary}, expected 1 to {MAX_VOCABULARY}"),
            ));
        }
        let outputs = outputs.max(sampled);
        let blocks = vocabulary.div_ceil(BLOCK);
        let scratch = AccessPattern::DEVICE_ONLY;
        Ok(Self {
            outputs,
            sampled,
            vocabulary,
            adjusted: device.allocate("sample.adjusted", sampled * vocabulary, scratch)?,
            maxima: device.allocate("sample.maxima", outputs * blocks, scratch)?,
            indices: device.allocate("sample.indices", outputs * blocks, scratch)?,
            masses: device.allocate("sample.masses", 2 * sampled * blocks, scratch)?,
            histogram: device.allocate("sample.histogram", sampled * BINS, scratch)?,
            counts: device.allocate("sample.counts", sampled, scratch)?,
            keys: device.allocate("sample.keys", sampled * CAPACITY, scratch)?,
            tokens: device.allocate("sample.candidates", sampled * CAPACITY, scratch)?,
        })
    }

    /// Bytes that [`with_rows`](Self::with_rows) takes.
    pub fn bytes(outputs: usize, sampled: usize, vocabulary: usize) -> usize {
        let blocks = vocabulary.div_ceil(BLOCK);
        let row = 4 * vocabulary + 16 * blocks + 4 * BINS + 4 + 8 * CAPACITY;
        sampled * row + 8 * outputs.max(sampled) * blocks
    }

    /// Bytes that it holds.
    pub fn held_bytes(&self) -> u64 {
        Self::bytes(self.outputs, self.sampled, self.vocabulary) as u64
    }

    fn blocks(&self) -> usize {
        self.vocabulary.div_ceil(BLOCK)
    }

    fn args(&self) -> SampleArgs {
        SampleArgs {
            vocabulary: self.vocabulary as u32,
            blocks: self.blocks() as u32,
            capacity: CAPACITY as u32,
            // Bits that the last token needs, at least one.
            token_bits: (usize::BITS - (self.vocabulary - 1).leading_zeros()).max(1),
        }
    }

    fn check_rows(kernel: &str, rows: usize, most: usize) -> Result<(), GpuError> {
        if rows > most {
            return Err(refuse(kernel, format!("{rows} output rows, expected at most {most}")));
        }
        Ok(())
    }
}

/// What sampling reads and writes.
#[derive(Clone, Copy)]
pub struct Sample<'a, T> {
    /// `[rows, vocabulary]`.
    pub logits: View<'a, T>,
    /// `[rows, 2]`: each row's sequence slot, and the position of the token that the logits follow.
    /// A slot occurs once at most.
    pub outputs: View<'a, u32>,
    /// `[slots, SETTINGS_WORDS]`, each made by [`settings_record`].
    pub settings: View<'a, u32>,
    /// `[slots, history_length]`, kept by [`begin_step`](super::step::begin_step).
    pub history: View<'a, u32>,
    /// Tokens of a slot's history.
    pub history_length: usize,
    /// `[slots]`: random numbers drawn so far, counted up on the device.
    pub draws: ViewMut<'a, u64>,
    /// `[rows]`: the chosen tokens.
    pub tokens: ViewMut<'a, u32>,
    /// `[slots]`: the same by slot, for [`begin_step`](super::step::begin_step).
    pub sampled: ViewMut<'a, u32>,
    /// `cap · tanh(logit / cap)` before everything else (Gemma 2).
    pub softcap: Option<f32>,
}

/// Appends the choice of the next token after each of `rows` rows, in four dispatches. The settings lie
/// in device memory, so that one recording serves all of them; the order of the filters is
/// that of [`SamplingSettings`].
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn sample<T: Element>(
    list: &mut CommandList,
    rows: usize,
    io: Sample<'_, T>,
    scratch: &SampleScratch,
) -> Result<(), GpuError> {
    let kernel = "sample";
    SampleScratch::check_rows(kernel, rows, scratch.sampled)?;
    expect_len(kernel, "logits", io.logits.len(), rows * scratch.vocabulary)?;
    expect_len(kernel, "outputs", io.outputs.len(), 2 * rows)?;
    expect_len(kernel, "tokens", io.tokens.len(), rows)?;
    let slots = io.draws.len();
    expect_len(kernel, "sampled", io.sampled.len(), slots)?;
    expect_len(kernel, "settings", io.settings.len(), slots * SETTINGS_WORDS)?;
    expect_len(kernel, "history", io.history.len(), slots * io.history_length)?;
    expect_at_least(kernel, "tokens of a history", io.history_length, 1)?;
    let blocks = scratch.blocks();
    let args = scratch.args();
    let grid = Grid::xy(blocks as u32, rows as u32, THREADS);
    list.launch(
        LogitsPrepare {
            logits: io.logits,
            outputs: io.outputs,
            settings: io.settings,
            history: io.history,
            adjusted: scratch.adjusted.view_mut()?,
            maxima: scratch.maxima.view_mut()?,
            indices: scratch.indices.view_mut()?,
            histogram: scratch.histogram.view_mut()?,
            counts: scratch.counts.view_mut()?,
            args: LogitsArgs {
                vocabulary: scratch.vocabulary as u32,
                blocks: blocks as u32,
                history_length: io.history_length as u32,
                softcap: io.softcap.unwrap_or(0.0),
            },
            elements: PhantomData::<(T,)>,
        },
        grid,
    );
    list.launch(
        SampleHistogram {
            adjusted: scratch.adjusted.view(),
            maxima: scratch.maxima.view(),
            outputs: io.outputs,
            settings: io.settings,
            histogram: atomics(&scratch.histogram)?,
            masses: scratch.masses.view_mut()?,
            args,
        },
        grid,
    );
    list.launch(
        SampleCandidates {
            adjusted: scratch.adjusted.view(),
            maxima: scratch.maxima.view(),
            outputs: io.outputs,
            settings: io.settings,
            histogram: scratch.histogram.view(),
            masses: scratch.masses.view(),
            counts: atomics(&scratch.counts)?,
            keys: scratch.keys.view_mut()?,
            tokens: scratch.tokens.view_mut()?,
            args,
        },
        grid,
    );
    list.launch(
        SampleChoose {
            adjusted: scratch.adjusted.view(),
            maxima: scratch.maxima.view(),
            indices: scratch.indices.view(),
            masses: scratch.masses.view(),
            counts: scratch.counts.view(),
            keys: scratch.keys.view_mut()?,
            candidate_tokens: scratch.tokens.view_mut()?,
            outputs: io.outputs,
            settings: io.settings,
            draws: io.draws,
            tokens: io.tokens,
            sampled: io.sampled,
            args: SampleChooseArgs {
                vocabulary: args.vocabulary,
                blocks: args.blocks,
                capacity: args.capacity,
                token_bits: args.token_bits,
            },
        },
        Grid::x(rows as u32, CHOOSE_THREADS),
    );
    Ok(())
}

/// The same words, to be counted up by several threads.
fn atomics(buffer: &Buffer<u32>) -> Result<ViewMut<'_, Atomic>, GpuError> {
    Ok(ViewMut::new(buffer.allocation(), 0, buffer.len())?)
}

/// Appends the most likely token of each of `rows` rows, without settings: two dispatches. `outputs`, `tokens` and
/// `sampled` are those of [`Sample`].
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn arg_max<T: Element>(
    list: &mut CommandList,
    rows: usize,
    logits: View<'_, T>,
    outputs: View<'_, u32>,
    tokens: ViewMut<'_, u32>,
    sampled: ViewMut<'_, u32>,
    scratch: &SampleScratch,
) -> Result<(), GpuError> {
    let kernel = "arg_max";
    expect_len(kernel, "outputs", outputs.len(), 2 * rows)?;
    SampleScratch::check_rows(kernel, rows, scratch.outputs)?;
    expect_len(kernel, "logits", logits.len(), rows * scratch.vocabulary)?;
    expect_len(kernel, "tokens", tokens.len(), rows)?;
    let blocks = scratch.blocks() as u32;
    list.launch(
        ArgMaxBlocks {
            logits,
            maxima: scratch.maxima.view_mut()?,
            indices: scratch.indices.view_mut()?,
            args: LogitsArgs {
                vocabulary: scratch.vocabulary as u32,
                blocks,
                history_length: 0,
                softcap: 0.0,
            },
            elements: PhantomData::<(T,)>,
        },
        Grid::xy(blocks, rows as u32, THREADS),
    );
    list.launch(
        ArgMaxChoose {
            maxima: scratch.maxima.view(),
            indices: scratch.indices.view(),
            outputs,
            tokens,
            sampled,
            args: scratch.args(),
        },
        Grid::x(rows as u32, THREADS),
    );
    Ok(())
}

/// Blocks' maxima and sums, for [`softmax_in_blocks`] and [`log_probabilities`].
#[derive(Debug)]
pub struct SoftmaxScratch {
    maxima: Buffer<f32>,
    sums: Buffer<f32>,
}

impl SoftmaxScratch {
    /// Memory for up to `rows` rows of `columns` values.
    ///
    /// # Errors
    /// No memory.
    #[track_caller]
    pub fn new(device: &dyn Device, rows: usize, columns: usize) -> Result<Self, GpuError> {
        let blocks = rows * columns.div_ceil(BLOCK);
        Ok(Self {
            maxima: device.allocate("softmax.maxima", blocks, AccessPattern::DEVICE_ONLY)?,
            sums: device.allocate("softmax.sums", blocks, AccessPattern::DEVICE_ONLY)?,
        })
    }
}

/// The shape of a softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxShape {
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub columns: usize,
    /// Factor on the values: 1 / temperature.
    pub scale: f32,
}

impl SoftmaxShape {
    fn args(&self) -> SoftmaxArgs {
        SoftmaxArgs {
            columns: self.columns as u32,
            blocks: self.columns.div_ceil(BLOCK) as u32,
            scale: self.scale,
        }
    }

    fn blocks_grid(&self) -> Grid {
        Grid::xy(self.columns.div_ceil(BLOCK) as u32, self.rows as u32, THREADS)
    }
}

/// Appends `out = softmax(scale · x)` of each row, one threadgroup a row: for rows of up to a few
/// thousand values.
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn softmax<T: Element>(
    list: &mut CommandList,
    shape: SoftmaxShape,
    x: View<'_, T>,
    out: ViewMut<'_, f32>,
) -> Result<(), GpuError> {
    expect_len("softmax", "x", x.len(), shape.rows * shape.columns)?;
    expect_len("softmax", "out", out.len(), shape.rows * shape.columns)?;
    list.launch(
        Softmax { x, out, args: shape.args(), elements: PhantomData::<(T,)> },
        Grid::x(shape.rows as u32, THREADS),
    );
    Ok(())
}

/// Appends the same in two passes, many threadgroups a row: for vocabularies.
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn softmax_in_blocks<T: Element>(
    list: &mut CommandList,
    shape: SoftmaxShape,
    x: View<'_, T>,
    out: ViewMut<'_, f32>,
    scratch: &SoftmaxScratch,
) -> Result<(), GpuError> {
    expect_len("softmax_apply", "out", out.len(), shape.rows * shape.columns)?;
    softmax_blocks(list, shape, x, scratch)?;
    list.launch(
        SoftmaxApply {
            x,
            maxima: scratch.maxima.view(),
            sums: scratch.sums.view(),
            out,
            args: shape.args(),
            elements: PhantomData::<(T,)>,
        },
        shape.blocks_grid(),
    );
    Ok(())
}

/// Appends the logarithm of the softmax at one token of each row, in two dispatches. With the model's own logits and a
/// scale of 1 these are the log-probabilities that an API reports.
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn log_probabilities<T: Element>(
    list: &mut CommandList,
    shape: SoftmaxShape,
    x: View<'_, T>,
    tokens: View<'_, u32>,
    out: ViewMut<'_, f32>,
    scratch: &SoftmaxScratch,
) -> Result<(), GpuError> {
    expect_len("token_log_probability", "tokens", tokens.len(), shape.rows)?;
    expect_len("token_log_probability", "out", out.len(), shape.rows)?;
    softmax_blocks(list, shape, x, scratch)?;
    list.launch(
        TokenLogProbability {
            x,
            maxima: scratch.maxima.view(),
            sums: scratch.sums.view(),
            tokens,
            out,
            args: shape.args(),
            elements: PhantomData::<(T,)>,
        },
        Grid::x(shape.rows as u32, THREADS),
    );
    Ok(())
}

fn softmax_blocks<T: Element>(
    list: &mut CommandList,
    shape: SoftmaxShape,
    x: View<'_, T>,
    scratch: &SoftmaxScratch,
) -> Result<(), GpuError> {
    expect_len("softmax_blocks", "x", x.len(), shape.rows * shape.columns)?;
    let blocks = shape.rows * shape.columns.div_ceil(BLOCK);
    expect_at_least("softmax_blocks", "blocks of scratch", scratch.maxima.len(), blocks)?;
    list.launch(
        SoftmaxBlocks {
            x,
            maxima: scratch.maxima.view_mut()?,
            sums: scratch.sums.view_mut()?,
            args: shape.args(),
            elements: PhantomData::<(T,)>,
        },
        shape.blocks_grid(),
    );
    Ok(())
}
