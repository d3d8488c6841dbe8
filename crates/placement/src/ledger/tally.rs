//! Counters of events.

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::Direction;
use super::book::{Book, Counts};
use super::trace::Source;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Copy(Direction),
    Dispatch,
    Wait,
    Submission,
}

pub(super) struct TallyState {
    /// Its place in the book.
    pub(super) index: usize,
    pub(super) kind: Kind,
    pub(super) label: &'static str,
    pub(super) site: &'static Location<'static>,
    pub(super) by_phase: [Counts; 3],
}

impl TallyState {
    pub(super) fn new(
        index: usize,
        kind: Kind,
        label: &'static str,
        site: &'static Location<'static>,
    ) -> Self {
        Self { index, kind, label, site, by_phase: Default::default() }
    }
}

/// A counter registered once and counted often: two relaxed additions an event, no lock
/// and no allocation.
#[derive(Clone)]
pub struct Tally {
    book: Arc<Book>,
    state: Arc<TallyState>,
}

/// When an event began, for [`Tally::record_since`]; nothing unless the step is traced.
#[derive(Clone, Copy, Debug)]
pub struct Started(Option<u64>);

impl Tally {
    pub(super) fn new(book: Arc<Book>, state: Arc<TallyState>) -> Self {
        Self { book, state }
    }

    /// The kernel, or the reason.
    pub fn label(&self) -> &'static str {
        self.state.label
    }

    /// Counts one event of `bytes` bytes in the current phase.
    #[inline]
    pub fn record(&self, bytes: u64) {
        if cfg!(feature = "ledger") {
            let moment = self.book.moment();
            self.state.by_phase[moment.phase()].add(bytes);
            if moment.is_traced() {
                self.trace(bytes, None);
            }
        }
    }

    /// An event begins that [`record_since`](Self::record_since) will count: so that a traced step
    /// knows how long it took. Reads a clock only then.
    #[inline]
    pub fn start(&self) -> Started {
        if cfg!(feature = "ledger") && self.book.moment().is_traced() {
            return Started(Some(self.book.now()));
        }
        Started(None)
    }

    /// Counts one event of `bytes` bytes that began at `started`.
    #[inline]
    pub fn record_since(&self, started: Started, bytes: u64) {
        if cfg!(feature = "ledger") {
            let moment = self.book.moment();
            self.state.by_phase[moment.phase()].add(bytes);
            if moment.is_traced() {
                self.trace(bytes, started.0);
            }
        }
    }

    /// Tells a traced step how long the device took for an event that was counted before, and has
    /// just ended. Counts nothing.
    #[inline]
    pub fn device_took(&self, time: Duration) {
        if cfg!(feature = "ledger") && self.book.moment().is_traced() {
            self.trace_device(time);
        }
    }

    #[cold]
    fn trace(&self, bytes: u64, started: Option<u64>) {
        let now = self.book.now();
        let start = started.unwrap_or(now).min(now);
        let took = started.map(|_| now - start);
        self.book.tracer.push(Source::Tally(self.state.index), start, took, bytes);
    }

    #[cold]
    fn trace_device(&self, time: Duration) {
        let took = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let start = self.book.now().saturating_sub(took);
        self.book.tracer.push(Source::Device(self.state.index), start, Some(took), 0);
    }
}
