//! Attention stages, and the partial sums that they keep.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use marlin_backend::{BackendError, ExecutorOptions, Rope, RopeStyle};
use marlin_placement::{AccessPattern, Ledger};

use super::plan::{AttentionPlan, NormPlan, Plan, StageKind};
use super::{CpuExecutor, Run};
use crate::kernels::attention::{AttendCall, CHUNK, NOTHING_SEEN, SPAN};
use crate::kernels::prefetch::Ahead;
use crate::memory::Buffer;
use crate::pool::Worker;

/// Most query rows of one item: with more, their sums leave the first-level cache.
const ITEM_ROWS: usize = 64;

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

/// Consecutive tokens of one item of a prompt: all query heads of a head of keys look at them
/// together, so that keys and values are converted once for all.
fn item_tokens(plan: &AttentionPlan) -> usize {
    let group = plan.spec.heads / plan.spec.kv_heads;
    (ITEM_ROWS / group / 8 * 8).clamp(8, 32)
}

/// Rows of queries that one item may have.
fn max_rows(plan: &AttentionPlan) -> usize {
    plan.spec.heads / plan.spec.kv_heads * item_tokens(plan)
}

/// Floats of attention scratch that a thread needs for any stage of `plan`.
pub(super) fn scratch_floats(plan: &Plan) -> usize {
    attention_plans(plan)
        .map(|a| {
            let dim = a.spec.head_dim.next_multiple_of(16);
            // Queries and sums, their softmax, a key and a value, a chunk as f32.
            max_rows(a) * (2 * dim + 17) + 2 * dim + 2 * CHUNK * dim
        })
        .max()
        .unwrap_or(0)
}

/// A thread's scratch, taken apart.
struct Rows {
    queries: *mut f32,
    acc: *mut f32,
    /// 16 lanes a row.
    sum: *mut f32,
    key: *mut f32,
    value: *mut f32,
    chunk: *mut f32,
    max: *mut f32,
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
        let AttentionSize { kv_heads, .. } = AttentionSize::of(plan);
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
                kv_heads * run.len.div_ceil(item_tokens(plan))
            }
        };
        let items: usize = self.runs.iter().map(items_of).sum();
        // The run and head whose queries this thread has prepared.
        let mut prepared = None;
        self.cursors.share(2 * stage + 1, worker.index, items, 1, |range| {
            for item in range {
                let mut item = item;
                for (r, run) in self.runs.iter().enumerate() {
                    let count = items_of(run);
                    if item >= count {
                        item -= count;
                        continue;
                    }
                    if run.len == 1 {
                        let n = spans(plan, run.position).len();
                        let known = prepared.replace((r, item / n)) == Some((r, item / n));
                        self.look_back(plan, run, item / n, item % n, known, worker.index);
                    } else {
                        let n = run.len.div_ceil(item_tokens(plan));
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
            let acc = base.add(rows * dim);
            let sum = acc.add(rows * dim);
            let key = sum.add(rows * 16);
            let chunk = key.add(2 * dim);
            let max = chunk.add(2 * CHUNK * dim);
            Rows { queries: base, acc, sum, key, value: key.add(dim), chunk, max }
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
        let (span, index) = (step.position as usize / SPAN, step.position as usize % SPAN);
        let head = self.kv.head(plan.cache, step.sequence as usize, kv_head, span);
        // SAFETY: the token's rows have a vector for each head; the position is within the
        // context; each position and head is appended by one thread.
        unsafe {
            let key = k.add(token * k_width + kv_head * dim);
            self.prepare_head(plan, key, plan.k_norm.as_ref(), true, token, 1.0, rows.key);
            let value = v.add(token * v_width + kv_head * dim);
            self.prepare_head(plan, value, None, false, token, 1.0, rows.value);
            (plan.append)(&head, index, rows.key, rows.value);
        }
    }

    /// Prepares the query of (token, head) as row `row`.
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
        }
    }

    /// Clears the sums of the first `count` rows.
    fn clear(rows: &Rows, count: usize, dim: usize) {
        // SAFETY: the caller has so many rows.
        unsafe {
            std::slice::from_raw_parts_mut(rows.max, count).fill(NOTHING_SEEN);
            rows.sum.write_bytes(0, count * 16);
            rows.acc.write_bytes(0, count * dim);
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
    /// key head go together. `prepared`: their queries are there from the span before.
    fn look_back(
        &self,
        plan: &AttentionPlan,
        run: &Run,
        kv_head: usize,
        index: usize,
        prepared: bool,
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
        if !prepared {
            for row in 0..group {
                self.prepare_query(plan, &rows, row, run.start, kv_head * group + row);
            }
        }
        Self::clear(&rows, group, dim);
        // SAFETY: the group's rows are prepared, and the span is in the cache. Entries belong
        // to this item until it counts itself as done, and to the last one afterwards.
        unsafe {
            let mut call = self.call(plan, run, &rows, kv_head, span, group);
            if self.inner.prefetch_distance != 0 {
                // The items of a thread are neighbours, for the most part.
                let next = if span + 1 < all.end {
                    Some((kv_head, span + 1))
                } else {
                    (kv_head + 1 < kv_heads).then_some((kv_head + 1, all.start))
                };
                let place = |(head, span)| self.kv.head(plan.cache, run.sequence, head, span);
                call.ahead = self.kv.ahead(plan.cache, &call.head, next.map(place));
            }
            (plan.attend)(&call);
            if all.len() == 1 {
                for row in 0..group {
                    let (acc, sum) = (rows.acc.add(row * dim), lanes_sum(rows.sum, row));
                    self.write_head(plan, run.start, kv_head * group + row, acc, sum);
                }
                return;
            }
            for row in 0..group {
                let entry = self.partials.entry(run.sequence, kv_head * group + row, index);
                *entry = *rows.max.add(row);
                *entry.add(1) = lanes_sum(rows.sum, row);
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

    /// The call for `count` rows of a run, beginning with its first token, and one span.
    fn call(
        &self,
        plan: &AttentionPlan,
        run: &Run,
        rows: &Rows,
        kv_head: usize,
        span: usize,
        count: usize,
    ) -> AttendCall {
        AttendCall {
            head: self.kv.head(plan.cache, run.sequence, kv_head, span),
            first: span * SPAN,
            rows: count,
            tokens: 1,
            position: run.position,
            window: plan.spec.window.unwrap_or(usize::MAX),
            queries: rows.queries,
            softcap: plan.spec.softcap.unwrap_or(0.0),
            max: rows.max,
            sum: rows.sum,
            acc: rows.acc,
            scratch: rows.chunk,
            ahead: Ahead::NOTHING,
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

    /// Some consecutive tokens of a run and all query heads of a head of keys.
    fn look_around(
        &self,
        plan: &AttentionPlan,
        run: &Run,
        kv_head: usize,
        block: usize,
        thread: usize,
    ) {
        let AttentionSize { heads, kv_heads, dim } = AttentionSize::of(plan);
        let group = heads / kv_heads;
        let rows = self.rows(plan, thread);
        let first = block * item_tokens(plan);
        let tokens = (run.len - first).min(item_tokens(plan));
        let count = group * tokens;
        let row_of =
            |row: usize| (run.start + first + row % tokens, kv_head * group + row / tokens);
        for row in 0..count {
            let (token, head) = row_of(row);
            self.prepare_query(plan, &rows, row, token, head);
        }
        Self::clear(&rows, count, dim);
        let position = run.position + first;
        for span in visible(plan, position).0 / SPAN..(position + tokens - 1) / SPAN + 1 {
            let call = self.call(plan, run, &rows, kv_head, span, count);
            // SAFETY: rows 0..count are prepared; all positions up to the last are in the cache.
            unsafe { (plan.attend)(&AttendCall { tokens, position, ..call }) }
        }
        for row in 0..count {
            let (token, head) = row_of(row);
            // SAFETY: the row is one of those prepared above.
            unsafe {
                let (acc, sum) = (rows.acc.add(row * dim), lanes_sum(rows.sum, row));
                self.write_head(plan, token, head, acc, sum);
            }
        }
    }
}

/// The sum of a row's sixteen lanes.
///
/// # Safety
/// `sums` must have the row.
unsafe fn lanes_sum(sums: *const f32, row: usize) -> f32 {
    // SAFETY: forwarded from the caller.
    unsafe { std::slice::from_raw_parts(sums.add(16 * row), 16).iter().sum() }
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
