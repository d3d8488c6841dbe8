//! Which kernels touch which buffers, known when a list of dispatches is prepared.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};

use super::Phase;
use super::book::Book;
use super::buffer::{BufferState, BufferTally};

/// How often one run of a list of dispatches reads and writes which buffers.
#[derive(Default)]
pub struct Accesses {
    uses: Vec<Use>,
    known: HashMap<(usize, &'static str), usize>,
}

struct Use {
    buffer: Arc<BufferState>,
    kernel: &'static str,
    reads: u64,
    writes: u64,
}

impl Accesses {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `kernel` reads the buffer.
    pub fn reads(&mut self, buffer: &BufferTally, kernel: &'static str) {
        self.entry(buffer, kernel).reads += 1;
    }

    /// `kernel` writes the buffer.
    pub fn writes(&mut self, buffer: &BufferTally, kernel: &'static str) {
        self.entry(buffer, kernel).writes += 1;
    }

    fn entry(&mut self, buffer: &BufferTally, kernel: &'static str) -> &mut Use {
        let next = self.uses.len();
        let index = *self.known.entry((buffer.state.index, kernel)).or_insert(next);
        if index == next {
            let buffer = buffer.state.clone();
            self.uses.push(Use { buffer, kernel, reads: 0, writes: 0 });
        }
        &mut self.uses[index]
    }
}

pub(super) struct AccessState {
    uses: Vec<Use>,
    runs: [AtomicU64; 3],
}

impl AccessState {
    /// Calls `each` with buffer, kernel, phase, reads and writes of all runs so far.
    pub(super) fn expand(&self, mut each: impl FnMut(&BufferState, &'static str, Phase, u64, u64)) {
        for phase in Phase::ALL {
            let runs = self.runs[phase as usize].load(Relaxed);
            if runs > 0 {
                for one in &self.uses {
                    each(&one.buffer, one.kernel, phase, runs * one.reads, runs * one.writes);
                }
            }
        }
    }
}

/// A counter of runs; each counts every access of the list. One relaxed addition a run: what it
/// stands for is worked out when somebody asks.
pub struct AccessTally {
    book: Arc<Book>,
    state: Arc<AccessState>,
}

impl AccessTally {
    pub(super) fn new(book: Arc<Book>, accesses: Accesses) -> Self {
        let state = Arc::new(AccessState { uses: accesses.uses, runs: Default::default() });
        if cfg!(feature = "ledger") {
            book.add_accesses(state.clone());
        }
        Self { book, state }
    }

    /// Counts one run in the current phase.
    #[inline]
    pub fn record(&self) {
        if cfg!(feature = "ledger") {
            self.state.runs[self.book.moment().phase()].fetch_add(1, Relaxed);
        }
    }
}

impl Drop for AccessTally {
    /// Adds its runs to the buffers, so that a program which prepares many lists keeps no more than
    /// one entry for each buffer and kernel.
    fn drop(&mut self) {
        self.book.remove_accesses(&self.state);
        self.state.expand(|buffer, kernel, phase, reads, writes| {
            let mut past = buffer.past.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = past.entry((kernel, phase)).or_default();
            entry.0 += reads;
            entry.1 += writes;
        });
    }
}
