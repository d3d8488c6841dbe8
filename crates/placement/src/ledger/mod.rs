//! The ledger: what was allocated, copied, submitted, dispatched and waited for, by phase and call
//! site.

mod access;
mod book;
mod buffer;
mod report;
mod tally;
#[cfg(all(test, feature = "ledger"))]
mod tests;
mod trace;

use std::panic::Location;
use std::sync::Arc;

use crate::{AccessPattern, Device};
use book::Book;
use tally::Kind;

pub use access::{AccessTally, Accesses};
pub use buffer::BufferTally;
pub use report::{
    AccessLine, BufferLine, CopyLine, EventLine, LedgerReport, StepLine, StepTrace, TraceEvent,
    TraceKind,
};
pub use tally::{Started, Tally};

/// The part of a run that an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[repr(u8)]
pub enum Phase {
    /// Opening the model and placing its weights; making sessions.
    Load = 0,
    /// Steps with several tokens of one sequence.
    Prefill = 1,
    /// Steps with one token per sequence.
    Decode = 2,
}

impl Phase {
    /// All phases in the order of a run.
    pub const ALL: [Self; 3] = [Self::Load, Self::Prefill, Self::Decode];

    /// The name as it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Direction {
    /// Upload.
    HostToDevice,
    /// Read-back.
    DeviceToHost,
    /// Within host memory, repacking included.
    HostToHost,
    /// Within device memory (a blit).
    DeviceToDevice,
}

impl Direction {
    /// All directions.
    pub const ALL: [Self; 4] =
        [Self::HostToDevice, Self::DeviceToHost, Self::HostToHost, Self::DeviceToDevice];

    /// The name as it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostToDevice => "host→device",
            Self::DeviceToHost => "device→host",
            Self::HostToHost => "host→host",
            Self::DeviceToDevice => "device→device",
        }
    }
}

/// The book of one model's run, shared by its backend and its sessions.
///
/// Always on. Registering an entry takes a lock and may allocate; counting does neither,
/// so a steady decode step can be counted without disturbing it.
pub struct Ledger {
    book: Arc<Book>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// An empty ledger in [`Phase::Load`], of a device that shares the host's memory.
    pub fn new() -> Self {
        Self::for_memory(Device::Unified)
    }

    /// An empty ledger in [`Phase::Load`], of a device with this memory.
    pub fn for_memory(memory: Device) -> Self {
        Self { book: Arc::new(Book::new(memory)) }
    }

    /// Says what memory the device has, where the ledger was made before the device.
    pub fn set_memory(&self, memory: Device) {
        self.book.set_memory(memory);
    }

    /// What memory the device has.
    pub fn memory(&self) -> Device {
        self.book.memory()
    }

    /// Sets the phase that later events belong to, outside of steps.
    pub fn enter(&self, phase: Phase) {
        self.book.enter(phase);
    }

    /// A step begins: later events belong to `phase`. The step computes `tokens` tokens and samples
    /// after `outputs` of them; in [`Phase::Decode`] both are the number of sequences.
    pub fn begin_step(&self, phase: Phase, tokens: u64, outputs: u64) {
        self.book.begin_step(phase, tokens, outputs);
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.book.phase()
    }

    /// Records the next decode step event by event: from its [`begin_step`](Self::begin_step) to the
    /// next one, or to the [`report`](Self::report). A step that was traced before stays in the
    /// report until the next one begins.
    ///
    /// The memory for it is allocated here, once; without a trace, counting an event looks at a bit
    /// of a byte that it reads anyway.
    pub fn trace_next_step(&self) {
        self.book.trace_next_step();
    }

    /// A counter for copies in one direction, for one reason, made at the caller's line.
    #[track_caller]
    pub fn copies(&self, direction: Direction, reason: &'static str) -> Tally {
        self.copies_at(direction, reason, Location::caller())
    }

    /// As [`copies`](Self::copies), asked for at `site`.
    pub fn copies_at(
        &self,
        direction: Direction,
        reason: &'static str,
        site: &'static Location<'static>,
    ) -> Tally {
        self.book.tally(Kind::Copy(direction), reason, site)
    }

    /// A counter for the dispatches of one kernel or op.
    #[track_caller]
    pub fn dispatches(&self, kernel: &'static str) -> Tally {
        self.dispatches_at(kernel, Location::caller())
    }

    /// As [`dispatches`](Self::dispatches), asked for at `site`.
    pub fn dispatches_at(&self, kernel: &'static str, site: &'static Location<'static>) -> Tally {
        self.book.tally(Kind::Dispatch, kernel, site)
    }

    /// A counter for waits of the host on the device.
    #[track_caller]
    pub fn waits(&self, reason: &'static str) -> Tally {
        self.book.tally(Kind::Wait, reason, Location::caller())
    }

    /// A counter for submissions: lists of commands that were handed to the device.
    #[track_caller]
    pub fn submissions(&self, label: &'static str) -> Tally {
        self.book.tally(Kind::Submission, label, Location::caller())
    }

    /// A counter for runs of a prepared list of dispatches that touch `accesses` each time.
    pub fn accesses(&self, accesses: Accesses) -> AccessTally {
        AccessTally::new(self.book.clone(), accesses)
    }

    /// Enters a buffer of `bytes` bytes. The mode is the policy's answer for `pattern`.
    #[track_caller]
    pub fn buffer(
        &self,
        name: impl Into<String>,
        pattern: AccessPattern,
        bytes: u64,
    ) -> BufferTally {
        self.buffer_at(name, pattern, bytes, Location::caller())
    }

    /// As [`buffer`](Self::buffer), made at `site`: for what sits between the code that asked and
    /// the ledger.
    pub fn buffer_at(
        &self,
        name: impl Into<String>,
        pattern: AccessPattern,
        bytes: u64,
        site: &'static Location<'static>,
    ) -> BufferTally {
        BufferTally::new(&self.book, name.into(), pattern, bytes, site)
    }

    /// What was counted so far.
    pub fn report(&self) -> LedgerReport {
        report::of(&self.book)
    }
}
