//! One decode step, event by event.

use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use super::Phase;

/// Events of a step that there is room for: a dense model of a hundred layers has some thousand.
const CAPACITY: usize = 1 << 14;
/// [`Slot::took`] where nobody measured.
const UNKNOWN: u64 = u64::MAX;

/// What an event belongs to, by its place in the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Tally(usize),
    /// The device's time for an event of this tally.
    Device(usize),
    HostWrite(usize),
    HostRead(usize),
}

impl Source {
    /// Never 0.
    fn pack(self) -> u64 {
        let (tag, index) = match self {
            Self::Tally(index) => (1, index),
            Self::Device(index) => (2, index),
            Self::HostWrite(index) => (3, index),
            Self::HostRead(index) => (4, index),
        };
        (index as u64) << 3 | tag
    }

    fn unpack(word: u64) -> Option<Self> {
        let index = usize::try_from(word >> 3).ok()?;
        Some(match word & 7 {
            1 => Self::Tally(index),
            2 => Self::Device(index),
            3 => Self::HostWrite(index),
            4 => Self::HostRead(index),
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Slot {
    start: AtomicU64,
    took: AtomicU64,
    bytes: AtomicU64,
    /// Written last; 0 while the slot is empty.
    source: AtomicU64,
}

/// An event as it was recorded; times in nanoseconds of the book's clock.
pub(super) struct Recorded {
    pub(super) source: Source,
    pub(super) start: u64,
    pub(super) took: Option<u64>,
    pub(super) bytes: u64,
}

/// A step as it was recorded.
pub(super) struct RecordedStep {
    pub(super) start: u64,
    /// When the next step began; `None` if there was none yet.
    pub(super) end: Option<u64>,
    pub(super) events: Vec<Recorded>,
    /// Events that there was no room for.
    pub(super) dropped: u64,
}

#[derive(Default)]
pub(super) struct Tracer {
    slots: OnceLock<Box<[Slot]>>,
    next: AtomicUsize,
    armed: AtomicBool,
    running: AtomicBool,
    /// 0 before the first traced step.
    start: AtomicU64,
    /// 0 while the step lasts.
    end: AtomicU64,
}

impl Tracer {
    pub(super) fn arm(&self) {
        self.slots.get_or_init(|| (0..CAPACITY).map(|_| Slot::default()).collect());
        self.armed.store(true, Relaxed);
    }

    /// A step of `phase` begins, or the host does something else; returns whether to trace from
    /// here on.
    #[inline]
    pub(super) fn turn(&self, phase: Phase, now: impl FnOnce() -> u64) -> bool {
        if !self.armed.load(Relaxed) && !self.running.load(Relaxed) {
            return false;
        }
        self.turn_slowly(phase, now())
    }

    #[cold]
    fn turn_slowly(&self, phase: Phase, now: u64) -> bool {
        if self.running.swap(false, Relaxed) {
            self.end.store(now.max(1), Relaxed);
        }
        let Some(slots) = self.slots.get() else { return false };
        if phase != Phase::Decode || !self.armed.swap(false, Relaxed) {
            return false;
        }
        for slot in slots.iter().take(self.next.load(Relaxed)) {
            slot.source.store(0, Relaxed);
        }
        self.next.store(0, Relaxed);
        self.end.store(0, Relaxed);
        self.start.store(now.max(1), Relaxed);
        self.running.store(true, Relaxed);
        true
    }

    pub(super) fn push(&self, source: Source, start: u64, took: Option<u64>, bytes: u64) {
        let Some(slots) = self.slots.get() else { return };
        // More than there is room for are only counted.
        if let Some(slot) = slots.get(self.next.fetch_add(1, Relaxed)) {
            slot.start.store(start, Relaxed);
            slot.took.store(took.unwrap_or(UNKNOWN), Relaxed);
            slot.bytes.store(bytes, Relaxed);
            slot.source.store(source.pack(), Release);
        }
    }

    /// The last step that was traced, in the order of its events' beginnings.
    pub(super) fn step(&self) -> Option<RecordedStep> {
        let slots = self.slots.get()?;
        let start = Some(self.start.load(Relaxed)).filter(|&at| at != 0)?;
        let count = self.next.load(Relaxed);
        let mut events: Vec<Recorded> = slots
            .iter()
            .take(count)
            .filter_map(|slot| {
                let source = Source::unpack(slot.source.load(Acquire))?;
                let took = Some(slot.took.load(Relaxed)).filter(|&took| took != UNKNOWN);
                let (start, bytes) = (slot.start.load(Relaxed), slot.bytes.load(Relaxed));
                Some(Recorded { source, start, took, bytes })
            })
            .collect();
        events.sort_by_key(|event| event.start);
        Some(RecordedStep {
            start,
            end: Some(self.end.load(Relaxed)).filter(|&at| at != 0),
            events,
            dropped: count.saturating_sub(CAPACITY) as u64,
        })
    }
}
