//! Pinned memory between the host's and the device's.

use std::sync::{Arc, Mutex};

use super::buffer::{Pinned, lock};
use super::context::Context;
use super::driver::{DevicePointer, Handle};
use crate::GpuError;

/// Bytes of a slot: at the bus's 25 to 50 GB/s some 100 µs, long against the cost of a copy's start.
const SLOT_BYTES: usize = 4 << 20;
/// One core copies some 7 GB/s into pinned memory, so that several must work at once to keep the bus busy.
const MAX_SLOTS: usize = 8;
/// Slots of the ring that small copies take turns in: two would let host and bus work at once, the others
/// smooth over pauses of either.
const RING_SLOTS: usize = 4;
/// From this many bytes on it pays to start threads.
const LARGE_BYTES: usize = 32 << 20;

struct Slot {
    memory: Pinned,
    /// Recorded after the last copy from the slot; not there while nothing is in flight.
    done: Option<Handle>,
}

/// A ring of pinned slots. Bytes are copied into the current slot and from there, in the order of the stream, to the
/// device; small copies share a slot.
pub(super) struct Staging {
    context: Arc<Context>,
    slots: Vec<Slot>,
    current: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: context.clone(), slots: Vec::new(), current: 0, used: 0 }
    }

    /// Makes at least `count` slots.
    fn grow(&mut self, count: usize) -> Result<(), GpuError> {
        while self.slots.len() < count {
            let memory = Pinned::new(&self.context, SLOT_BYTES)?;
            self.slots.push(Slot { memory, done: None });
        }
        Ok(())
    }

    /// As many slots as threads can fill at once, all of them idle.
    fn idle_slots(&mut self) -> Result<&mut [Slot], GpuError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.grow(RING_SLOTS)?;
        self.grow(cores.min(MAX_SLOTS))?;
        self.context.synchronize()?;
        for slot in &mut self.slots {
            if let Some(event) = slot.done.take() {
                self.context.recycle(event);
            }
        }
        self.used = 0;
        Ok(&mut self.slots)
    }

    /// Room in the current slot, if need be in the next one after waiting for it: the slot's index, and
    /// the range in it.
    fn reserve(&mut self, wanted: usize) -> Result<(usize, std::ops::Range<usize>), GpuError> {
        self.grow(1)?;
        // Sixteen bytes keep the copies aligned.
        let start = self.used.next_multiple_of(16);
        if start + wanted.min(SLOT_BYTES) <= SLOT_BYTES {
            let end = (start + wanted).min(SLOT_BYTES);
            self.used = end;
            return Ok((self.current, start..end));
        }
        // What was copied from the current slot is done when the stream gets here.
        let event = self.context.event()?;
        self.context.record(event)?;
        self.slots[self.current].done = Some(event);
        self.grow(RING_SLOTS)?;
        self.current = (self.current + 1) % RING_SLOTS;
        if let Some(event) = self.slots[self.current].done.take() {
            let code = self.context.wait(event);
            self.context.recycle(event);
            self.context.driver.check("cuEventSynchronize", code)?;
        }
        let end = wanted.min(SLOT_BYTES);
        self.used = end;
        Ok((self.current, 0..end))
    }

    /// Copies `bytes` to the device in the order of the stream. Returns when they may be reused.
    pub(super) fn upload(
        &mut self,
        mut destination: DevicePointer,
        mut bytes: &[u8],
    ) -> Result<(), GpuError> {
        if bytes.len() >= LARGE_BYTES {
            return self.upload_large(destination, bytes);
        }
        self.context.enter()?;
        while !bytes.is_empty() {
            let (slot, range) = self.reserve(bytes.len())?;
            let (now, later) = bytes.split_at(range.len());
            // SAFETY: `reserve` waited for every copy from this part of the slot, and `&mut self`
            // keeps other threads out; copies in flight read other parts.
            let staged = unsafe { self.slots[slot].memory.bytes_mut(range) };
            staged.copy_from_slice(now);
            let driver = self.context.driver;
            // SAFETY: the caller checked that the destination has room; the slot is not written again
            // before the copy is done.
            let code = unsafe {
                (driver.copy_to_device)(
                    destination,
                    staged.as_ptr().cast(),
                    staged.len(),
                    self.context.stream(),
                )
            };
            driver.check("cuMemcpyHtoDAsync", code)?;
            destination += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Copies device memory to `out`, after everything on the stream.
    pub(super) fn download(
        &mut self,
        mut source: DevicePointer,
        mut out: &mut [u8],
    ) -> Result<(), GpuError> {
        if out.len() >= LARGE_BYTES {
            return self.download_large(source, out);
        }
        self.context.enter()?;
        while !out.is_empty() {
            let (slot, range) = self.reserve(out.len())?;
            let (now, later) = out.split_at_mut(range.len());
            // SAFETY: as in `upload`; the device writes the slot only before `synchronize` returns.
            let staged = unsafe { self.slots[slot].memory.bytes_mut(range) };
            let driver = self.context.driver;
            // SAFETY: the caller checked that the source has as many bytes.
            let code = unsafe {
                (driver.copy_to_host)(
                    staged.as_mut_ptr().cast(),
                    source,
                    staged.len(),
                    self.context.stream(),
                )
            };
            driver.check("cuMemcpyDtoHAsync", code)?;
            self.context.synchronize()?;
            now.copy_from_slice(staged);
            source += now.len() as u64;
            out = later;
        }
        Ok(())
    }

    /// As `upload`, by one thread a slot.
    fn upload_large(&mut self, destination: DevicePointer, bytes: &[u8]) -> Result<(), GpuError> {
        let context = self.context.clone();
        let chunks = Mutex::new(bytes.chunks(SLOT_BYTES).enumerate());
        each_slot(&context, self.idle_slots()?, |memory, event| {
            // A `while let` on the lock itself would hold it during the copy.
            let next = || lock(&chunks).next();
            while let Some((index, chunk)) = next() {
                let target = destination + (index * SLOT_BYTES) as u64;
                // SAFETY: this thread alone has the slot, and waited for its last copy.
                let staged = unsafe { memory.bytes_mut(0..chunk.len()) };
                staged.copy_from_slice(chunk);
                let (driver, stream) = (context.driver, context.stream());
                // SAFETY: the caller checked that the destination has room; the slot is not written
                // again before the wait below.
                let code = unsafe {
                    (driver.copy_to_device)(target, staged.as_ptr().cast(), staged.len(), stream)
                };
                driver.check("cuMemcpyHtoDAsync", code)?;
                context.record(event)?;
                driver.check("cuEventSynchronize", context.wait(event))?;
            }
            Ok(())
        })
    }

    /// As `download`, by one thread a slot.
    fn download_large(&mut self, source: DevicePointer, out: &mut [u8]) -> Result<(), GpuError> {
        let context = self.context.clone();
        let chunks = Mutex::new(out.chunks_mut(SLOT_BYTES).enumerate());
        each_slot(&context, self.idle_slots()?, |memory, event| {
            let next = || lock(&chunks).next();
            while let Some((index, chunk)) = next() {
                let from = source + (index * SLOT_BYTES) as u64;
                // SAFETY: this thread alone has the slot; the device writes it before the wait below.
                let staged = unsafe { memory.bytes_mut(0..chunk.len()) };
                let (driver, stream) = (context.driver, context.stream());
                // SAFETY: the caller checked that the source has as many bytes.
                let code = unsafe {
                    (driver.copy_to_host)(staged.as_mut_ptr().cast(), from, staged.len(), stream)
                };
                driver.check("cuMemcpyDtoHAsync", code)?;
                context.record(event)?;
                driver.check("cuEventSynchronize", context.wait(event))?;
                chunk.copy_from_slice(staged);
            }
            Ok(())
        })
    }
}

/// Runs `work` with every slot's memory and an event, each on a thread of its own; the first error, if
/// there is one.
fn each_slot(
    context: &Context,
    slots: &mut [Slot],
    work: impl Fn(&mut Pinned, Handle) -> Result<(), GpuError> + Sync,
) -> Result<(), GpuError> {
    let run = |memory: &mut Pinned| {
        context.enter()?;
        let event = context.event()?;
        let result = work(memory, event);
        context.recycle(event);
        result
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            slots.iter_mut().map(|slot| scope.spawn(|| run(&mut slot.memory))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}
