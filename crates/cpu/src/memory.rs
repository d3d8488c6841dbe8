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

/// Zeroed, aligned bytes. Pages that are never touched take no memory.
pub(crate) struct Buffer {
    data: NonNull<u8>,
    layout: Layout,
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
        let size = bytes.max(1).checked_next_multiple_of(ALIGNMENT).ok_or_else(out_of_memory)?;
        let alignment = if size >= HUGE { 2 << 20 } else { ALIGNMENT };
        let layout = Layout::from_size_align(size, alignment).map_err(|_| out_of_memory())?;
        // SAFETY: the layout's size is not zero.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        if size >= HUGE {
            advise_huge(data, size);
        }
        let tally = ledger.buffer(name, pattern, bytes as u64);
        Ok(Self { data, layout, tally })
    }

    pub(crate) fn as_ptr<T>(&self) -> *mut T {
        self.data.as_ptr().cast()
    }

    /// Bytes, rounded up to the alignment.
    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    pub(crate) fn tally(&self) -> &BufferTally {
        &self.tally
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is initialised (zeroed) and lives as long as `self`; callers
        // that write through `as_ptr` do so at other times (weights are written once, at
        // load, before they are shared).
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.data.as_ptr(), self.layout) }
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
