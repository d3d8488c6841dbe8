//! What a ledger and its entries share.

use std::panic::Location;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Phase;
use super::access::AccessState;
use super::buffer::BufferState;
use super::tally::{Kind, Tally, TallyState};
use super::trace::Tracer;
use crate::Device;

/// The bit of [`Book::word`] that says that a step is being traced; the phase is in the lower bits.
const TRACING: u8 = 0x80;

/// A phase and whether to trace, as one relaxed load of a byte gives them.
#[derive(Clone, Copy)]
pub(super) struct Moment(u8);

impl Moment {
    /// Index into counters by phase.
    #[inline]
    pub(super) fn phase(self) -> usize {
        usize::from(self.0 & !TRACING)
    }

    #[inline]
    pub(super) fn is_traced(self) -> bool {
        self.0 & TRACING != 0
    }
}

/// A number of events and of bytes.
#[derive(Default)]
pub(super) struct Counts {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    #[inline]
    pub(super) fn add(&self, bytes: u64) {
        self.count.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn read(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.bytes.load(Relaxed))
    }
}

/// Steps of a phase.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) steps: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) outputs: AtomicU64,
}

/// Everything that is entered.
pub(super) struct Book {
    word: AtomicU8,
    discrete: AtomicU8,
    epoch: Instant,
    pub(super) steps: [Steps; 3],
    tallies: Mutex<Vec<Arc<TallyState>>>,
    buffers: Mutex<Vec<Arc<BufferState>>>,
    accesses: Mutex<Vec<Arc<AccessState>>>,
    pub(super) tracer: Tracer,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one push or one removal: nothing is left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    pub(super) fn new(memory: Device) -> Self {
        let book = Self {
            word: AtomicU8::new(Phase::Load as u8),
            discrete: AtomicU8::new(0),
            epoch: Instant::now(),
            steps: Default::default(),
            tallies: Mutex::default(),
            buffers: Mutex::default(),
            accesses: Mutex::default(),
            tracer: Tracer::default(),
        };
        book.set_memory(memory);
        book
    }

    pub(super) fn set_memory(&self, memory: Device) {
        self.discrete.store(u8::from(memory == Device::Discrete), Relaxed);
    }

    pub(super) fn memory(&self) -> Device {
        if self.discrete.load(Relaxed) == 0 { Device::Unified } else { Device::Discrete }
    }

    /// Nanoseconds since the book was opened.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    #[inline]
    pub(super) fn moment(&self) -> Moment {
        Moment(self.word.load(Relaxed))
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[self.moment().phase()]
    }

    pub(super) fn enter(&self, phase: Phase) {
        let traced = self.tracer.turn(phase, || self.now());
        self.word.store(phase as u8 | if traced { TRACING } else { 0 }, Relaxed);
    }

    pub(super) fn begin_step(&self, phase: Phase, tokens: u64, outputs: u64) {
        self.enter(phase);
        if cfg!(feature = "ledger") {
            let steps = &self.steps[phase as usize];
            steps.steps.fetch_add(1, Relaxed);
            steps.tokens.fetch_add(tokens, Relaxed);
            steps.outputs.fetch_add(outputs, Relaxed);
        }
    }

    pub(super) fn trace_next_step(&self) {
        if cfg!(feature = "ledger") {
            self.tracer.arm();
        }
    }

    pub(super) fn tally(
        self: &Arc<Self>,
        kind: Kind,
        label: &'static str,
        site: &'static Location<'static>,
    ) -> Tally {
        let mut tallies = lock(&self.tallies);
        let found =
            tallies.iter().find(|t| t.kind == kind && t.label == label && t.site == site).cloned();
        let state = found.unwrap_or_else(|| {
            let state = Arc::new(TallyState::new(tallies.len(), kind, label, site));
            tallies.push(state.clone());
            state
        });
        Tally::new(self.clone(), state)
    }

    /// Enters what `make` makes of the next index.
    pub(super) fn add_buffer(&self, make: impl FnOnce(usize) -> BufferState) -> Arc<BufferState> {
        let mut buffers = lock(&self.buffers);
        let state = Arc::new(make(buffers.len()));
        if cfg!(feature = "ledger") {
            buffers.push(state.clone());
        }
        state
    }

    pub(super) fn add_accesses(&self, state: Arc<AccessState>) {
        lock(&self.accesses).push(state);
    }

    pub(super) fn remove_accesses(&self, state: &Arc<AccessState>) {
        lock(&self.accesses).retain(|other| !Arc::ptr_eq(other, state));
    }

    pub(super) fn tallies(&self) -> Vec<Arc<TallyState>> {
        lock(&self.tallies).clone()
    }

    pub(super) fn buffers(&self) -> Vec<Arc<BufferState>> {
        lock(&self.buffers).clone()
    }

    pub(super) fn accesses(&self) -> Vec<Arc<AccessState>> {
        lock(&self.accesses).clone()
    }
}
