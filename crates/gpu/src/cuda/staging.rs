//! Pinned memory between the host's and the device's.

use std::sync::Arc;

use super::buffer::Pinned;
use super::context::Context;
use super::driver::{DevicePointer, Handle};
use crate::GpuError;

/// Bytes of a slot: at the bus's 25 to 50 GB/s some 100 µs, long against the cost of a copy's start.
const SLOT_BYTES: usize = 4 << 20;
/// Two would let host and bus work at once; the others smooth over pauses of either.
const SLOTS: usize = 4;

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

    /// Room in the current slot, if need be in the next one after waiting for it: the slot's index, and
    /// the range in it.
    fn reserve(&mut self, wanted: usize) -> Result<(usize, std::ops::Range<usize>), GpuError> {
        if self.slots.is_empty() {
            for _ in 0..SLOTS {
                let memory = Pinned::new(&self.context, SLOT_BYTES)?;
                self.slots.push(Slot { memory, done: None });
            }
        }
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
        self.current = (self.current + 1) % self.slots.len();
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
}
