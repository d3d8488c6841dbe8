//! Memory of the CPU backend. Every buffer says how it is accessed; the policy places it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use marlin_backend::BackendError;
use marlin_placement::{AccessPattern, BufferTally, Ledger};

/// A cache line, and a whole number of any vector.
const ALIGNMENT: usize = 64;
/// From this size on, huge pages are asked for: streaming reads then miss the TLB once per
/// 2 MiB instead of once per 4 KiB.
const HUGE: usize = 4 << 20;
/// A huge page of x86-64 and AArch64.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed, aligned bytes. Pages that are never touched take no memory: a KV cache for a long
/// context costs what the text so far needs.
pub(crate) struct Buffer {
    /// What the allocator gave.
    base: NonNull<u8>,
    layout: Layout,
    /// The first aligned byte of it.
    data: NonNull<u8>,
    len: usize,
    tally: BufferTally,
}

// SAFETY: a buffer owns its memory; access through the raw pointer is the executor's
// business, which hands out disjoint parts between barriers.
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
        let name = name.into();
        let out_of_memory =
            || BackendError::OutOfMemory { what: name.clone(), bytes: bytes as u64 };
        let len = bytes.max(1).checked_next_multiple_of(ALIGNMENT).ok_or_else(out_of_memory)?;
        // Only where all of it will be used: a huge page is touched whole.
        let huge = len >= HUGE && pattern.initial_data;
        let alignment = if huge { HUGE_PAGE } else { ALIGNMENT };
        // Aligned here and not by the allocator, which would write zeros to every page of an
        // over-aligned block, while pages fresh from the system are zero already.
        let size = len.checked_add(alignment).ok_or_else(out_of_memory)?;
        let layout = Layout::from_size_align(size, 1).map_err(|_| out_of_memory())?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        let offset = base.as_ptr().align_offset(alignment).min(alignment);
        // SAFETY: the offset is at most `alignment`, which is how much longer the block is.
        let data = unsafe { base.add(offset) };
        if huge {
            advise_huge(data, len);
        }
        let tally = ledger.buffer(name, pattern, bytes as u64);
        Ok(Self { base, layout, data, len, tally })
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

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
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
