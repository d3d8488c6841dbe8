//! Shared memory between the host's and private memory.

use std::ops::Range;
use std::sync::Arc;

use super::api::{Api, BlitEncoder, BufferMode, CommandBuffer, Status};
use super::commands::{BLIT_ALIGNMENT, DEVICE_REMOVED};
use super::context::Context;
use super::encoding::no_encoder;
use crate::GpuError;

/// Bytes of a slot: at 100 GB/s some 40 µs, long against the cost of a command buffer.
const SLOT_BYTES: usize = 4 << 20;
/// Slots: host and device work at once, with room for pauses of either.
const SLOTS: usize = 4;
/// Where a slot's parts begin.
const ALIGNMENT: usize = 16;
/// What offsets and sizes of blits must be multiples of.
const WORD: usize = BLIT_ALIGNMENT as usize;

struct Slot<A: Api> {
    buffer: A::Buffer,
    /// Blits that may still read or write it.
    under_way: Vec<A::CommandBuffer>,
}

/// A copy from the current slot that no command buffer has yet.
struct Waiting<A: Api> {
    from: Range<usize>,
    to: A::Buffer,
    offset: usize,
}

/// A ring of slots. Small uploads share a slot and a command buffer, which is committed when the slot is full or when
/// something is submitted that could need them.
pub(super) struct Staging<A: Api> {
    context: Arc<Context<A>>,
    slots: Vec<Slot<A>>,
    current: usize,
    used: usize,
    waiting: Vec<Waiting<A>>,
}

impl<A: Api> Staging<A> {
    pub(super) fn new(context: &Arc<Context<A>>) -> Self {
        let (slots, waiting) = (Vec::new(), Vec::new());
        Self { context: context.clone(), slots, current: 0, used: 0, waiting }
    }

    /// Makes at least `count` slots.
    fn grow(&mut self, count: usize) -> Result<(), GpuError> {
        while self.slots.len() < count {
            let label = format!("staging {}", self.slots.len());
            let buffer = self.context.buffer(&label, SLOT_BYTES as u64, BufferMode::Shared)?;
            self.slots.push(Slot { buffer, under_way: Vec::new() });
        }
        Ok(())
    }

    /// Room in the current slot, if need be in the next one after waiting for it: the range in it.
    fn reserve(&mut self, wanted: usize) -> Result<Range<usize>, GpuError> {
        self.grow(1)?;
        let start = self.used.next_multiple_of(ALIGNMENT);
        if start + wanted.min(SLOT_BYTES) <= SLOT_BYTES {
            self.used = start + wanted.min(SLOT_BYTES);
            return Ok(start..self.used);
        }
        self.flush()?;
        self.grow(SLOTS)?;
        self.current = (self.current + 1) % SLOTS;
        self.settle(self.current)?;
        self.used = wanted.min(SLOT_BYTES);
        Ok(0..self.used)
    }

    /// Waits for a slot's blits.
    fn settle(&mut self, slot: usize) -> Result<(), GpuError> {
        let under_way = std::mem::take(&mut self.slots[slot].under_way);
        for command_buffer in &under_way {
            command_buffer.wait();
        }
        under_way.iter().try_for_each(|blit| check(&self.context, blit))
    }

    /// Copies `bytes` to private memory of `capacity` bytes, after everything that was submitted. Returns when they may
    /// be reused.
    pub(super) fn upload(
        &mut self,
        to: &A::Buffer,
        capacity: u64,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let end = offset + bytes.len();
        let (word, word_end) = (offset / WORD * WORD, end.next_multiple_of(WORD));
        // Behind the last byte buffers have room for a whole word, which nobody reads.
        let whole = word == offset && (word_end == end || end as u64 == capacity);
        if whole || bytes.is_empty() {
            return self.upload_words(to, offset, bytes);
        }
        let mut words = vec![0; word_end - word];
        let (first, last) = (word, word_end - WORD);
        self.download(to, first, &mut words[..WORD])?;
        self.download(to, last, &mut words[last - first..])?;
        words[offset - word..][..bytes.len()].copy_from_slice(bytes);
        self.upload_words(to, word, &words)
    }

    /// Copies whole words; the last may have bytes of anything behind `bytes`.
    fn upload_words(
        &mut self,
        to: &A::Buffer,
        mut offset: usize,
        mut bytes: &[u8],
    ) -> Result<(), GpuError> {
        while !bytes.is_empty() {
            let range = self.reserve(bytes.len())?;
            let (now, later) = bytes.split_at(range.len());
            self.context.api.write(&self.slots[self.current].buffer, range.start, now);
            let from = range.start..range.start + range.len().next_multiple_of(WORD);
            self.waiting.push(Waiting { from, to: to.clone(), offset });
            offset += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Commits the copies that wait, in one command buffer.
    pub(super) fn flush(&mut self) -> Result<(), GpuError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        let slot = &mut self.slots[self.current];
        let from = &slot.buffer;
        let command_buffer = blit(&self.context, "upload", |encoder| {
            for copy in &waiting {
                encoder.copy(from, copy.from.start, &copy.to, copy.offset, copy.from.len());
            }
        })?;
        slot.under_way.push(command_buffer);
        Ok(())
    }

    /// Copies device memory to `out`, after everything that was submitted.
    pub(super) fn download(
        &mut self,
        from: &A::Buffer,
        offset: usize,
        mut out: &mut [u8],
    ) -> Result<(), GpuError> {
        self.flush()?;
        // Whole words around what is asked for.
        let (mut word, end) = (offset / WORD * WORD, (offset + out.len()).next_multiple_of(WORD));
        let mut before = offset - word;
        while !out.is_empty() {
            let range = self.reserve(end - word)?;
            let slot = &self.slots[self.current].buffer;
            let command_buffer = blit(&self.context, "download", |encoder| {
                encoder.copy(from, word, slot, range.start, range.len());
            })?;
            command_buffer.wait();
            check(&self.context, &command_buffer)?;
            let (now, later) = out.split_at_mut(out.len().min(range.len() - before));
            self.context.api.read(slot, range.start + before, now);
            word += range.len();
            before = 0;
            out = later;
        }
        Ok(())
    }

    /// The error of an upload that failed since it was last asked for, if there is one; waits for those under way.
    pub(super) fn take_failure(&mut self) -> Result<(), GpuError> {
        let mut result = Ok(());
        for slot in 0..self.slots.len() {
            result = result.and(self.settle(slot));
        }
        result
    }
}

/// Encodes copies into a command buffer and commits it.
fn blit<A: Api>(
    context: &Context<A>,
    label: &str,
    encode: impl FnOnce(&mut <A::CommandBuffer as CommandBuffer<A>>::Blit),
) -> Result<A::CommandBuffer, GpuError> {
    context.residency.commit(&context.api);
    context.api.pooled(|| {
        // One that retains: the destination may be dropped before the copy is done.
        let command_buffer =
            context.api.command_buffer(label).ok_or_else(|| no_encoder("command buffer"))?;
        let mut encoder = command_buffer.blit(label).ok_or_else(|| no_encoder("blit encoder"))?;
        encode(&mut encoder);
        encoder.end();
        command_buffer.commit();
        Ok(command_buffer)
    })
}

/// What became of a blit.
fn check<A: Api>(
    context: &Context<A>,
    command_buffer: &impl CommandBuffer<A>,
) -> Result<(), GpuError> {
    match command_buffer.status() {
        Status::Failed(failure) if failure.code == DEVICE_REMOVED => Err(GpuError::Lost {
            device: context.properties.name.clone(),
            reason: format!("a staged copy stopped: {} (code {})", failure.message, failure.code),
        }),
        Status::Failed(failure) => {
            let reason = format!("{} (code {})", failure.message, failure.code);
            Err(GpuError::Driver { call: "MTLCommandBuffer of a staged copy", reason })
        }
        Status::Pending | Status::Completed(_) => Ok(()),
    }
}
