//! How much memory reading a file takes, and how much it may.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;

/// Counts what each thread allocates.
struct Counting;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Bytes held now; negative after freeing what was there before.
    held: isize,
    /// Most bytes held at once.
    peak: isize,
    /// Bytes of the largest allocation.
    largest: usize,
}

thread_local! {
    static MEMORY: Cell<Memory> = const { Cell::new(Memory { held: 0, peak: 0, largest: 0 }) };
}

fn count(grown: isize, allocated: usize) {
    // A thread that is ending has no counters any more, and nothing that we measure.
    let _ = MEMORY.try_with(|memory| {
        let mut now = memory.get();
        now.held += grown;
        now.peak = now.peak.max(now.held);
        now.largest = now.largest.max(allocated);
        memory.set(now);
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize, layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize), 0);
        // SAFETY: the caller's promise about `pointer` and `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize, size);
        // SAFETY: the caller's promise about `pointer`, `layout` and `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` returns, and the memory that it took.
pub(crate) fn measured<T>(work: impl FnOnce() -> T) -> (T, Memory) {
    MEMORY.set(Memory::default());
    let result = work();
    (result, MEMORY.get())
}

/// How much memory a file may cost.
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes for any file, however small: regular expressions, hash tables' smallest sizes.
    base: usize,
    /// Bytes for each byte of the file.
    per_byte: usize,
}

/// Headers: no more than a few structures per entry, and an entry has at least a dozen bytes.
pub(crate) const HEADER: Budget = Budget { base: 64 << 10, per_byte: 32 };
/// Tokenizers: hash tables of short strings, and the automata of pre-tokenisers.
pub(crate) const TOKENIZER: Budget = Budget { base: 4 << 20, per_byte: 256 };

pub(crate) fn check_memory(
    memory: Memory,
    budget: Budget,
    file_bytes: usize,
) -> Result<(), TestCaseError> {
    let limit = budget.base + budget.per_byte * file_bytes;
    prop_assert!(memory.largest <= limit, "{memory:?} for {file_bytes} bytes");
    prop_assert!(memory.peak <= limit as isize, "{memory:?} for {file_bytes} bytes");
    Ok(())
}
