//! Memory of the CPU backend. Every buffer says how it is accessed; the policy places it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use marlin_backend::BackendError;
use marlin_placement::{AccessPattern, BufferTally, Ledger};

/// A cache line, and a whole number of any vector.
const ALIGNMENT: usize = 64;
/// A huge page of x86-64 and AArch64.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a region of weights: a matrix of a small model is less than a huge page, so several
/// share a region. One that is larger has a region of its own.
const REGION: usize = 32 << 20;

/// Zeroed bytes of the process. Pages that are never touched take no memory.
struct Region {
    /// What the allocator gave.
    base: NonNull<u8>,
    layout: Layout,
    /// The first aligned byte of it.
    data: NonNull<u8>,
}

// SAFETY: a region owns its memory; access through the raw pointers of its buffers is the
// executor's business, which hands out disjoint parts between barriers.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `len` bytes, aligned, in huge pages where they are asked for and the system has them:
    /// streaming reads then miss the TLB once per 2 MiB instead of once per 4 KiB.
    fn new(len: usize, huge: bool) -> Option<Self> {
        let alignment = if huge { HUGE_PAGE } else { ALIGNMENT };
        // Aligned here and not by the allocator, which would write zeros to every page of an
        // over-aligned block, while pages fresh from the system are zero already.
        let layout = Layout::from_size_align(len.checked_add(alignment)?, 1).ok()?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let offset = base.as_ptr().align_offset(alignment).min(alignment);
        // SAFETY: the offset is at most `alignment`, which is how much longer the block is.
        let data = unsafe { base.add(offset) };
        if huge {
            advise_huge(data, len);
        }
        Some(Self { base, layout, data })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// A region for one buffer alone, and its beginning.
fn own_region(len: usize, huge: bool) -> Option<(Arc<Region>, NonNull<u8>)> {
    let region = Arc::new(Region::new(len, huge)?);
    let data = region.data;
    Some((region, data))
}

/// Where weights are put, one after the other in regions of huge pages. A region lives as long
/// as any weight in it.
#[derive(Default)]
pub(crate) struct WeightMemory {
    /// The region that is being filled, and how far it is.
    current: Mutex<Option<(Arc<Region>, usize)>>,
}

impl WeightMemory {
    /// A place for `len` bytes, a multiple of the alignment.
    fn place(&self, len: usize) -> Option<(Arc<Region>, NonNull<u8>)> {
        if len > REGION / 2 {
            return own_region(len, true);
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, start) = match &*current {
            Some((region, used)) if used + len <= REGION => (region.clone(), *used),
            _ => (Arc::new(Region::new(REGION, true)?), 0),
        };
        // SAFETY: start + len is at most the region's size.
        let data = unsafe { region.data.add(start) };
        *current = Some((region.clone(), start + len));
        Some((region, data))
    }

    /// A buffer of `bytes` zeroed bytes (at least one), which will all be written.
    #[track_caller]
    pub(crate) fn buffer(
        &self,
        ledger: &Ledger,
        name: impl Into<String>,
        bytes: usize,
    ) -> Result<Buffer, BackendError> {
        let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
        Buffer::build(ledger, name.into(), pattern, bytes, |len| self.place(len))
    }
}

/// Zeroed, aligned bytes. Pages that are never touched take no memory: a KV cache for a long
/// context costs what the text so far needs.
pub(crate) struct Buffer {
    /// Keeps the memory.
    _region: Arc<Region>,
    data: NonNull<u8>,
    len: usize,
    tally: BufferTally,
}

// SAFETY: as for `Region`, of which a buffer is a part that nobody else has.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `bytes` zeroed bytes (at least one), placed by the policy and entered in the ledger.
    #[track_caller]
    pub(crate) fn new(
        ledger: &Ledger,
        name: impl Into<String>,
        pattern: AccessPattern,
        bytes: usize,
    ) -> Result<Self, BackendError> {
        Self::build(ledger, name.into(), pattern, bytes, |len| own_region(len, false))
    }

    /// As [`new`](Self::new), in huge pages if it is long enough for some: for memory that is streamed
    /// through.
    #[track_caller]
    pub(crate) fn in_huge_pages(
        ledger: &Ledger,
        name: impl Into<String>,
        pattern: AccessPattern,
        bytes: usize,
    ) -> Result<Self, BackendError> {
        let allocate = |len| own_region(len, len >= 2 * HUGE_PAGE);
        Self::build(ledger, name.into(), pattern, bytes, allocate)
    }

    /// As many floats as `values` has, with padding of zeros at the end.
    #[track_caller]
    pub(crate) fn of_floats(
        ledger: &Ledger,
        name: impl Into<String>,
        values: &[f32],
    ) -> Result<Self, BackendError> {
        let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
        let buffer = Self::new(ledger, name, pattern, size_of_val(values))?;
        // SAFETY: the buffer is this long, aligned for any vector, and nobody else has it yet.
        unsafe { buffer.as_ptr::<f32>().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Ok(buffer)
    }

    /// All of it as floats.
    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: as for `bytes`; the memory is aligned for any vector.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len / 4) }
    }

    #[track_caller]
    fn build(
        ledger: &Ledger,
        name: String,
        pattern: AccessPattern,
        bytes: usize,
        allocate: impl FnOnce(usize) -> Option<(Arc<Region>, NonNull<u8>)>,
    ) -> Result<Self, BackendError> {
        let len = bytes.max(1).checked_next_multiple_of(ALIGNMENT);
        let Some((len, (region, data))) = len.and_then(|len| Some((len, allocate(len)?))) else {
            return Err(BackendError::OutOfMemory { what: name, bytes: bytes as u64 });
        };
        let tally = ledger.buffer(name, pattern, bytes as u64);
        Ok(Self { _region: region, data, len, tally })
    }

    pub(crate) fn as_ptr<T>(&self) -> *mut T {
        self.data.as_ptr().cast()
    }

    /// Bytes, rounded up to the alignment.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn tally(&self) -> &BufferTally {
        &self.tally
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is initialised (zeroed) and lives as long as `self`; callers
        // that write through `as_ptr` do so at other times (weights are written once, at
        // load, before they are shared).
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge(data: NonNull<u8>, size: usize) {
    // SAFETY: the range is our own allocation; the advice changes no contents. Failure
    // means ordinary pages, which work too.
    unsafe {
        libc::madvise(data.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_data: NonNull<u8>, _size: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_share_regions_and_do_not_overlap() {
        let (memory, ledger) = (WeightMemory::default(), Ledger::new());
        let sizes = [1, 64, 100, 5 << 20, 20 << 20, 14 << 20, 14 << 20, 40 << 20, 3];
        let buffers: Vec<Buffer> =
            sizes.iter().map(|&n| memory.buffer(&ledger, "w", n).unwrap()).collect();
        let mut ranges: Vec<_> =
            buffers.iter().map(|b| (b.as_ptr::<u8>() as usize, b.len())).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        for (buffer, size) in buffers.iter().zip(sizes) {
            assert!(
                buffer.len() >= size && (buffer.as_ptr::<u8>() as usize).is_multiple_of(ALIGNMENT)
            );
            assert!(buffer.bytes().iter().all(|&b| b == 0));
            // SAFETY: the buffer is this long.
            unsafe { buffer.as_ptr::<u8>().write_bytes(0xff, buffer.len()) };
        }
    }

    #[test]
    fn a_region_outlives_whoever_filled_it() {
        let (memory, ledger) = (WeightMemory::default(), Ledger::new());
        let first = memory.buffer(&ledger, "a", 1000).unwrap();
        let second = memory.buffer(&ledger, "b", 1000).unwrap();
        drop(first);
        drop(memory);
        assert!(second.bytes().iter().all(|&b| b == 0));
    }
}
