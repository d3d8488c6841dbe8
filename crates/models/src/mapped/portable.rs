//! Mappings where the system puts them.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// A whole file, read-only.
#[derive(Debug)]
pub(super) struct Mapping(Mmap);

impl Mapping {
    /// Maps the first `len` bytes of `file`.
    ///
    /// # Safety
    /// Nobody changes or truncates the file while it is mapped.
    pub(super) unsafe fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { memmap2::MmapOptions::new().len(len).map(file) }.map(Self)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Lets the system drop the pages that lie in `range`, which is inside the mapping.
    #[allow(unused_variables, reason = "only Unix takes this advice")]
    pub(super) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        // SAFETY: the range is inside the mapping, which is of a file and never written to: pages that are dropped
        // come back with the same contents when they are next read, by whomever.
        let advised = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.0.unchecked_advise_range(advice, range.start, range.len())
        };
        // A system that does not take the advice keeps the pages, which is as well.
        #[cfg(unix)]
        advised.ok();
    }
}
