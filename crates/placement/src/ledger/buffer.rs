//! Buffers' entries.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::Phase;
use super::book::{Book, Counts};
use super::trace::Source;
use crate::{AccessPattern, StorageMode, policy};

/// Reads and writes by kernel and phase.
pub(super) type ByKernel = BTreeMap<(&'static str, Phase), (u64, u64)>;

/// [`BufferState::freed_ns`] of a buffer that exists.
const LIVE: u64 = u64::MAX;

pub(super) struct BufferState {
    /// Its place in the book.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) mode: StorageMode,
    pub(super) pattern: AccessPattern,
    pub(super) bytes: u64,
    pub(super) phase: Phase,
    pub(super) site: &'static Location<'static>,
    pub(super) made_ns: u64,
    freed_ns: AtomicU64,
    pub(super) host_writes: [Counts; 3],
    pub(super) host_reads: [Counts; 3],
    /// Of recordings that are gone.
    pub(super) past: Mutex<ByKernel>,
}

impl BufferState {
    pub(super) fn freed_ns(&self) -> Option<u64> {
        Some(self.freed_ns.load(Relaxed)).filter(|&at| at != LIVE)
    }
}

/// One buffer's entry; dropping it marks the buffer as freed.
pub struct BufferTally {
    book: Arc<Book>,
    pub(super) state: Arc<BufferState>,
}

impl BufferTally {
    pub(super) fn new(
        book: &Arc<Book>,
        name: String,
        pattern: AccessPattern,
        bytes: u64,
        site: &'static Location<'static>,
    ) -> Self {
        let state = book.add_buffer(|index| BufferState {
            index,
            name,
            mode: policy(&pattern, Some(bytes)).mode,
            pattern,
            bytes,
            phase: book.phase(),
            site,
            made_ns: book.now(),
            freed_ns: AtomicU64::new(LIVE),
            host_writes: Default::default(),
            host_reads: Default::default(),
            past: Mutex::default(),
        });
        Self { book: book.clone(), state }
    }

    /// The mode that the policy chose.
    pub fn mode(&self) -> StorageMode {
        self.state.mode
    }

    /// Counts a host write of `bytes` bytes.
    #[inline]
    pub fn host_wrote(&self, bytes: u64) {
        if cfg!(feature = "ledger") {
            let moment = self.book.moment();
            self.state.host_writes[moment.phase()].add(bytes);
            if moment.is_traced() {
                self.trace(Source::HostWrite(self.state.index), bytes);
            }
        }
    }

    /// Counts a host read of `bytes` bytes.
    #[inline]
    pub fn host_read(&self, bytes: u64) {
        if cfg!(feature = "ledger") {
            let moment = self.book.moment();
            self.state.host_reads[moment.phase()].add(bytes);
            if moment.is_traced() {
                self.trace(Source::HostRead(self.state.index), bytes);
            }
        }
    }

    #[cold]
    fn trace(&self, source: Source, bytes: u64) {
        self.book.tracer.push(source, self.book.now(), None, bytes);
    }
}

impl Drop for BufferTally {
    fn drop(&mut self) {
        self.state.freed_ns.store(self.book.now(), Relaxed);
    }
}
