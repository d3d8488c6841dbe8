//! Attention stages, and the memory that they keep: the KV cache and partial sums.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use marlin_backend::{BackendError, CacheInfo, ExecutorOptions, KvFormat, Rope, RopeStyle};
use marlin_placement::{AccessPattern, Ledger};

use super::plan::{AttentionPlan, NormPlan, Plan, StageKind};
use super::{CpuExecutor, Run};
use crate::kernels::attention::{AttendCall, KvHead, MAX_ROWS};
use crate::memory::Buffer;
use crate::pool::Worker;

/// Positions of one item when a single token looks back: small enough to share a long
/// context among threads, and fixed, so that the result does not depend on their number.
const SPAN: usize = 256;

/// Keys and values of all layers and slots.
pub(super) struct KvCache {
    layers: Vec<Layer>,
    element: usize,
    scaled: bool,
    /// Positions per slot, rounded up to 16.
    positions: usize,
}

struct Layer {
    info: CacheInfo,
    /// `head_dim` rounded up to 16.
    dim: usize,
    keys: Buffer,
    values: Buffer,
    key_scales: Buffer,
    value_scales: Buffer,
}

impl KvCache {
    pub(super) fn new(
        ledger: &Ledger,
        caches: &[CacheInfo],
        options: &ExecutorOptions,
    ) -> Result<Self, BackendError> {
        let (element, scaled) = match options.kv {
            KvFormat::F32 => (4, false),
            KvFormat::F16 => (2, false),
            KvFormat::Q8 => (1, true),
        };
        let positions = options.context.next_multiple_of(16);
        let layers = caches
            .iter()
            .map(|&info| {
                let dim = info.head_dim.next_multiple_of(16);
                let heads = options.max_sequences * info.kv_heads;
                let too_large = || BackendError::OutOfMemory {
                    what: format!(
                        "a KV cache of {} positions and {} sequences",
                        options.context, options.max_sequences
                    ),
                    bytes: u64::MAX,
                };
                let rows = heads.checked_mul(positions).ok_or_else(too_large)?;
                let bytes = rows
                    .checked_mul(dim)
                    .and_then(|n| n.checked_mul(element))
                    .ok_or_else(too_large)?;
                let scales = if scaled { rows * 4 } else { 0 };
                let buffer =
                    |name, bytes| Buffer::new(ledger, name, AccessPattern::DEVICE_ONLY, bytes);
                Ok(Layer {
                    info,
                    dim,
                    keys: buffer("kv.keys", bytes)?,
                    values: buffer("kv.values", bytes)?,
                    key_scales: buffer("kv.key_scales", scales)?,
                    value_scales: buffer("kv.value_scales", scales)?,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { layers, element, scaled, positions })
    }

    fn head(&self, layer: usize, sequence: usize, kv_head: usize) -> KvHead {
        let layer = &self.layers[layer];
        let row = (sequence * layer.info.kv_heads + kv_head) * self.positions;
        let at = row * layer.dim * self.element;
        let scales = if self.scaled { row } else { 0 };
        // SAFETY: sequence and head are in range, so the offsets are within the buffers.
        unsafe {
            KvHead {
                keys: layer.keys.as_ptr::<u8>().add(at),
                values: layer.values.as_ptr::<u8>().add(at),
                key_scales: layer.key_scales.as_ptr::<f32>().add(scales),
                value_scales: layer.value_scales.as_ptr::<f32>().add(scales),
                dim: layer.dim,
            }
        }
    }

    /// The buffers of one layer that hold anything.
    pub(super) fn buffers(&self, layer: usize) -> impl Iterator<Item = &Buffer> {
        let layer = &self.layers[layer];
        let scales = [&layer.key_scales, &layer.value_scales];
        [&layer.keys, &layer.values].into_iter().chain(scales.into_iter().filter(|_| self.scaled))
    }

    /// Bytes that one token at `position` reads, all layers together.
    pub(super) fn bytes_per_token(&self, position: usize) -> u64 {
        self.layers
            .iter()
            .map(|layer| {
                let seen = (position + 1).min(layer.info.window.unwrap_or(usize::MAX));
                let row = layer.info.head_dim * self.element + if self.scaled { 4 } else { 0 };
                2 * (seen * layer.info.kv_heads * row) as u64
            })
            .sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|l| l.keys.len() + l.values.len() + l.key_scales.len() + l.value_scales.len())
            .sum()
    }
}

/// Where the spans of one long look-back leave their sums until the last one adds them up.
pub(super) struct PartialSums {
    /// `[sequences][heads][spans]` of maximum, sum, and `dim` weighted values.
    sums: Buffer,
    spans: usize,
    /// Floats of one entry.
    entry: usize,
    heads: usize,
    /// Spans done, for each sequence and head of keys.
    done: Vec<AtomicU32>,
    kv_heads: usize,
}

impl PartialSums {
    pub(super) fn new(
        ledger: &Ledger,
        plan: &Plan,
        options: &ExecutorOptions,
    ) -> Result<Self, BackendError> {
        let (mut heads, mut kv_heads, mut dim) = (0, 0, 0);
        for spec in attention_plans(plan).map(|a| &a.spec) {
            heads = heads.max(spec.heads);
            kv_heads = kv_heads.max(spec.kv_heads);
            dim = dim.max(spec.head_dim.next_multiple_of(16));
        }
        // A window may straddle one span more.
        let spans = options.context.div_ceil(SPAN) + 1;
        let entry = dim + 16;
        let bytes = options.max_sequences * heads * spans * entry * 4;
        let sums = Buffer::new(ledger, "attention.partial", AccessPattern::DEVICE_ONLY, bytes)?;
        let done = (0..options.max_sequences * kv_heads).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { sums, spans, entry, heads, done, kv_heads })
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.sums
    }

    fn entry(&self, sequence: usize, head: usize, span: usize) -> *mut f32 {
        let at = ((sequence * self.heads + head) * self.spans + span) * self.entry;
        // SAFETY: all three are in range.
        unsafe { self.sums.as_ptr::<f32>().add(at) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.sums.len()
    }
}

fn attention_plans(plan: &Plan) -> impl Iterator<Item = &AttentionPlan> {
    plan.stages.iter().filter_map(|stage| match &stage.kind {
        StageKind::Attention(plan) => Some(&**plan),
        _ => None,
    })
}

/// Rows of queries that one item may have.
fn max_rows(plan: &AttentionPlan) -> usize {
    (plan.spec.heads / plan.spec.kv_heads).max(MAX_ROWS)
}

/// Floats of attention scratch that a thread needs for any stage of `plan`.
pub(super) fn scratch_floats(plan: &Plan) -> usize {
    attention_plans(plan)
        .map(|a| {
            let dim = a.spec.head_dim.next_multiple_of(16);
            // Queries and sums, a key and a value, maxima and sums.
            max_rows(a) * (2 * dim + 2) + 2 * dim
        })
        .max()
        .unwrap_or(0)
}

/// A thread's scratch, taken apart.
struct Rows {
    queries: *mut f32,
    acc: *mut f32,
    max: *mut f32,
    sum: *mut f32,
    key: *mut f32,
    value: *mut f32,
}

/// Positions that a query at `position` sees.
fn visible(plan: &AttentionPlan, position: usize) -> (usize, usize) {
    let from = plan.spec.window.map_or(0, |w| (position + 1).saturating_sub(w));
    (from, position + 1)
}

/// Spans of a single token's look-back.
fn spans(plan: &AttentionPlan, position: usize) -> Range<usize> {
    let (from, to) = visible(plan, position);
    from / SPAN..(to - 1) / SPAN + 1
}

impl CpuExecutor {
    /// Runs an attention stage over the step's runs.
    pub(super) fn attention(&self, stage: usize, plan: &AttentionPlan, worker: Worker<'_>) {
        let AttentionSize { heads, kv_heads, .. } = AttentionSize::of(plan);
        // Tokens that see each other must all be in the cache before any of them looks;
        // single tokens are appended by the item that needs them last.
        let appended: usize = self.runs.iter().filter(|r| r.len > 1).map(|r| r.len).sum();
        if appended > 0 {
            self.cursors.share(2 * stage, worker.index, appended, 4, |range| {
                for i in range {
                    let token = self.nth_of_long_runs(i);
                    for kv_head in 0..kv_heads {
                        self.append(plan, token, kv_head, worker.index);
                    }
                }
            });
            worker.barrier.wait();
        }
        let items_of = |run: &Run| {
            if run.len == 1 {
                kv_heads * spans(plan, run.position).len()
            } else {
                heads * run.len.div_ceil(MAX_ROWS)
            }
        };
        let items: usize = self.runs.iter().map(items_of).sum();
        self.cursors.share(2 * stage + 1, worker.index, items, 1, |range| {
            for item in range {
                let mut item = item;
                for run in &self.runs {
                    let count = items_of(run);
                    if item >= count {
                        item -= count;
                        continue;
                    }
                    if run.len == 1 {
                        let n = spans(plan, run.position).len();
                        self.look_back(plan, run, item / n, item % n, worker.index);
                    } else {
                        let n = run.len.div_ceil(MAX_ROWS);
                        // Later blocks look back further: begin with them.
                        self.look_around(plan, run, item / n, n - 1 - item % n, worker.index);
                    }
                    break;
                }
            }
        });
    }

    /// Batch index of token `i` among those of runs longer than one.
    fn nth_of_long_runs(&self, mut i: usize) -> usize {
        for run in self.runs.iter().filter(|r| r.len > 1) {
            if i < run.len {
                return run.start + i;
            }
            i -= run.len;
        }
        unreachable!("i is below the sum of the runs' lengths")
    }

    fn rows(&self, plan: &AttentionPlan, thread: usize) -> Rows {
        let (rows, dim) = (max_rows(plan), plan.spec.head_dim.next_multiple_of(16));
        let base = self.threads[thread].attention.as_ptr::<f32>();
        // SAFETY: `scratch_floats` counted exactly these.
        unsafe {
            Rows {
                queries: base,
                acc: base.add(rows * dim),
                max: base.add(2 * rows * dim),
                sum: base.add(2 * rows * dim + rows),
                key: base.add(2 * rows * (dim + 1)),
                value: base.add(2 * rows * (dim + 1) + dim),
            }
        }
    }

    /// Copies a head's vector, norms and rotates it, multiplies it by `factor` and pads it.
    #[allow(clippy::too_many_arguments, reason = "queries, keys and values differ in all of these")]
    fn prepare_head(
        &self,
        plan: &AttentionPlan,
        from: *const f32,
        norm: Option<&NormPlan>,
        rotate: bool,
        token: usize,
        factor: f32,
        to: *mut f32,
    ) {
        let dim = plan.spec.head_dim;
        // SAFETY: `from` has head_dim floats and `to` the padded number.
        let head = unsafe {
            std::ptr::copy_nonoverlapping(from, to, dim);
            std::slice::from_raw_parts_mut(to, dim.next_multiple_of(16))
        };
        head[dim..].fill(0.0);
        if let Some(norm) = norm {
            let weight = norm.weight.as_ptr::<f32>();
            // SAFETY: the norm's weight is head_dim long (checked when the program was made).
            unsafe { (self.inner.kernels.rms_norm)(to, weight, norm.eps, norm.offset, to, dim) }
        }
        if let (Some(index), true) = (plan.rope, rotate) {
            let rope = &self.plan.ropes[index];
            let pairs = rope.inverse_frequencies.len();
            // SAFETY: the step's table has a row of cosines and sines for every token.
            let table = unsafe {
                let start = self.rotations[index].as_ptr::<f32>().add(token * 2 * pairs);
                std::slice::from_raw_parts(start, 2 * pairs)
            };
            rotate_head(head, rope, table);
        }
        if factor != 1.0 {
            head.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Puts a token's key and value into the cache.
    fn append(&self, plan: &AttentionPlan, token: usize, kv_head: usize, thread: usize) {
        let rows = self.rows(plan, thread);
        let dim = plan.spec.head_dim;
        let (k, k_width) = self.activations.get(plan.k);
        let (v, v_width) = self.activations.get(plan.v);
        let step = &self.tokens[token];
        let head = self.kv.head(plan.cache, step.sequence as usize, kv_head);
        // SAFETY: the token's rows have a vector for each head; the position is within the
        // context; each position and head is appended by one thread.
        unsafe {
            let key = k.add(token * k_width + kv_head * dim);
            self.prepare_head(plan, key, plan.k_norm.as_ref(), true, token, 1.0, rows.key);
            let value = v.add(token * v_width + kv_head * dim);
            self.prepare_head(plan, value, None, false, token, 1.0, rows.value);
            (plan.append)(&head, step.position as usize, rows.key, rows.value);
        }
    }

    /// Prepares the query of (token, head) as row `row` and clears its sums.
    fn prepare_query(
        &self,
        plan: &AttentionPlan,
        rows: &Rows,
        row: usize,
        token: usize,
        head: usize,
    ) {
        let dim = plan.spec.head_dim;
        let padded = dim.next_multiple_of(16);
        let (q, width) = self.activations.get(plan.q);
        // SAFETY: the row is below `max_rows`, the head one of the token's.
        unsafe {
            let from = q.add(token * width + head * dim);
            let to = rows.queries.add(row * padded);
            self.prepare_head(plan, from, plan.q_norm.as_ref(), true, token, plan.spec.scale, to);
            *rows.max.add(row) = f32::NEG_INFINITY;
            *rows.sum.add(row) = 0.0;
            rows.acc.add(row * padded).write_bytes(0, padded);
        }
    }

    /// Writes `acc / sum` to the output of (token, head).
    fn write_head(
        &self,
        plan: &AttentionPlan,
        token: usize,
        head: usize,
        acc: *const f32,
        sum: f32,
    ) {
        let dim = plan.spec.head_dim;
        let (out, width) = self.activations.get(plan.out);
        let inverse = 1.0 / sum;
        // SAFETY: the row of the token has a place for the head, written by one thread.
        unsafe {
            let to = out.add(token * width + head * dim);
            for i in 0..dim {
                *to.add(i) = *acc.add(i) * inverse;
            }
        }
    }

    /// One token, one head of keys, one span of positions; the query heads that share the
    /// key head go together.
    fn look_back(
        &self,
        plan: &AttentionPlan,
        run: &Run,
        kv_head: usize,
        index: usize,
        thread: usize,
    ) {
        let AttentionSize { heads, kv_heads, dim } = AttentionSize::of(plan);
        let group = heads / kv_heads;
        let rows = self.rows(plan, thread);
        let all = spans(plan, run.position);
        let span = all.start + index;
        if span + 1 == all.end {
            self.append(plan, run.start, kv_head, thread);
        }
        for row in 0..group {
            self.prepare_query(plan, &rows, row, run.start, kv_head * group + row);
        }
        let seen = visible(plan, run.position);
        let mut first = 0;
        while first < group {
            let count = (group - first).min(MAX_ROWS);
            // SAFETY: rows first..first + count are prepared; the range is in the cache.
            unsafe {
                (plan.attend)(&AttendCall {
                    head: self.kv.head(plan.cache, run.sequence, kv_head),
                    queries: rows.queries.add(first * dim),
                    visible: &[seen; MAX_ROWS][..count],
                    range: (span * SPAN, (span + 1) * SPAN),
                    softcap: plan.spec.softcap.unwrap_or(0.0),
                    max: rows.max.add(first),
                    sum: rows.sum.add(first),
                    acc: rows.acc.add(first * dim),
                });
            }
            first += count;
        }
        // SAFETY: rows are below `max_rows`; entries belong to this item until it counts
        // itself as done, and to the last one afterwards.
        unsafe {
            if all.len() == 1 {
                for row in 0..group {
                    let acc = rows.acc.add(row * dim);
                    self.write_head(
                        plan,
                        run.start,
                        kv_head * group + row,
                        acc,
                        *rows.sum.add(row),
                    );
                }
                return;
            }
            for row in 0..group {
                let entry = self.partials.entry(run.sequence, kv_head * group + row, index);
                *entry = *rows.max.add(row);
                *entry.add(1) = *rows.sum.add(row);
                std::ptr::copy_nonoverlapping(rows.acc.add(row * dim), entry.add(16), dim);
            }
            let done = &self.partials.done[run.sequence * self.partials.kv_heads + kv_head];
            // Release what was written; whoever comes last acquires all of it.
            if done.fetch_add(1, Ordering::AcqRel) as usize + 1 < all.len() {
                return;
            }
            done.store(0, Ordering::Relaxed);
            for row in 0..group {
                let head = kv_head * group + row;
                self.combine(plan, run, head, all.len(), rows.acc);
            }
        }
    }

    /// Adds up the spans of one head, in their order, whoever finished first.
    ///
    /// # Safety
    /// All spans must be done, and `acc` writable for the padded head.
    unsafe fn combine(
        &self,
        plan: &AttentionPlan,
        run: &Run,
        head: usize,
        spans: usize,
        acc: *mut f32,
    ) {
        let dim = plan.spec.head_dim.next_multiple_of(16);
        // SAFETY: entries of all spans are complete.
        unsafe {
            let entry = |span| self.partials.entry(run.sequence, head, span).cast_const();
            let max = (0..spans).map(|s| *entry(s)).fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            acc.write_bytes(0, dim);
            for s in 0..spans {
                let weight = (*entry(s) - max).exp();
                sum += weight * *entry(s).add(1);
                (self.inner.kernels.axpy)(weight, entry(s).add(16), acc, dim);
            }
            self.write_head(plan, run.start, head, acc, sum);
        }
    }

    /// Up to eight consecutive tokens of a run and one query head.
    fn look_around(
        &self,
        plan: &AttentionPlan,
        run: &Run,
        head: usize,
        block: usize,
        thread: usize,
    ) {
        let AttentionSize { heads, kv_heads, dim } = AttentionSize::of(plan);
        let rows = self.rows(plan, thread);
        let first = block * MAX_ROWS;
        let count = (run.len - first).min(MAX_ROWS);
        let mut seen = [(0, 0); MAX_ROWS];
        for (row, seen) in seen.iter_mut().enumerate().take(count) {
            self.prepare_query(plan, &rows, row, run.start + first + row, head);
            *seen = visible(plan, run.position + first + row);
        }
        // SAFETY: rows 0..count are prepared; all positions up to the last are in the cache.
        unsafe {
            (plan.attend)(&AttendCall {
                head: self.kv.head(plan.cache, run.sequence, head / (heads / kv_heads)),
                queries: rows.queries,
                visible: &seen[..count],
                range: (0, usize::MAX),
                softcap: plan.spec.softcap.unwrap_or(0.0),
                max: rows.max,
                sum: rows.sum,
                acc: rows.acc,
            });
            for row in 0..count {
                let acc = rows.acc.add(row * dim);
                self.write_head(plan, run.start + first + row, head, acc, *rows.sum.add(row));
            }
        }
    }
}

/// The sizes that items are made of.
struct AttentionSize {
    heads: usize,
    kv_heads: usize,
    /// Padded.
    dim: usize,
}

impl AttentionSize {
    fn of(plan: &AttentionPlan) -> Self {
        let spec = &plan.spec;
        Self { heads: spec.heads, kv_heads: spec.kv_heads, dim: spec.head_dim.next_multiple_of(16) }
    }
}

/// Turns the pairs of a head by the angles whose cosines and sines are in `table`.
fn rotate_head(head: &mut [f32], rope: &Rope, table: &[f32]) {
    let pairs = rope.inverse_frequencies.len();
    let (cos, sin) = table.split_at(pairs);
    match rope.style {
        RopeStyle::HalfSplit => {
            let (low, rest) = head.split_at_mut(pairs);
            let high = &mut rest[..pairs];
            for i in 0..pairs {
                let (a, b) = (low[i], high[i]);
                low[i] = a * cos[i] - b * sin[i];
                high[i] = a * sin[i] + b * cos[i];
            }
        }
        RopeStyle::Interleaved => {
            for (i, pair) in head[..2 * pairs].chunks_exact_mut(2).enumerate() {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * cos[i] - b * sin[i];
                pair[1] = a * sin[i] + b * cos[i];
            }
        }
    }
}
