//! The ledger: what was allocated, copied, waited for and dispatched, by phase and call site.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{AccessPattern, StorageMode, policy};

/// The part of a run that an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Copy(Direction),
    Dispatch,
    Wait,
}

#[derive(Default)]
struct Counts {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    fn add(&self, bytes: u64) {
        self.count.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.bytes.load(Relaxed))
    }
}

struct TallyState {
    kind: Kind,
    label: &'static str,
    site: &'static Location<'static>,
    by_phase: [Counts; 3],
}

/// A counter registered once and counted often: two relaxed additions an event, no lock
/// and no allocation.
#[derive(Clone)]
pub struct Tally {
    phase: Arc<AtomicU8>,
    state: Arc<TallyState>,
}

impl Tally {
    /// Counts one event of `bytes` bytes in the current phase.
    #[inline]
    pub fn record(&self, bytes: u64) {
        if cfg!(feature = "ledger") {
            let phase = usize::from(self.phase.load(Relaxed));
            self.state.by_phase[phase].add(bytes);
        }
    }
}

struct BufferState {
    name: String,
    mode: StorageMode,
    pattern: AccessPattern,
    bytes: u64,
    phase: Phase,
    site: &'static Location<'static>,
    live: AtomicBool,
    host_writes: Counts,
    host_reads: Counts,
}

/// One buffer's entry; dropping it marks the buffer as freed.
pub struct BufferTally(Arc<BufferState>);

impl BufferTally {
    /// The mode that the policy chose.
    pub fn mode(&self) -> StorageMode {
        self.0.mode
    }

    /// Counts a host write of `bytes` bytes.
    #[inline]
    pub fn host_wrote(&self, bytes: u64) {
        if cfg!(feature = "ledger") {
            self.0.host_writes.add(bytes);
        }
    }

    /// Counts a host read of `bytes` bytes.
    #[inline]
    pub fn host_read(&self, bytes: u64) {
        if cfg!(feature = "ledger") {
            self.0.host_reads.add(bytes);
        }
    }
}

impl Drop for BufferTally {
    fn drop(&mut self) {
        self.0.live.store(false, Relaxed);
    }
}

/// The book of one model's run, shared by its backend and its sessions.
///
/// Always on. Registering an entry takes a lock and may allocate; counting does neither,
/// so a steady decode step can be counted without disturbing it.
pub struct Ledger {
    phase: Arc<AtomicU8>,
    tallies: Mutex<Vec<Arc<TallyState>>>,
    buffers: Mutex<Vec<Arc<BufferState>>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// An empty ledger in [`Phase::Load`].
    pub fn new() -> Self {
        Self {
            phase: Arc::new(AtomicU8::new(Phase::Load as u8)),
            tallies: Mutex::default(),
            buffers: Mutex::default(),
        }
    }

    /// Sets the phase that later events belong to.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Relaxed))]
    }

    /// A counter for copies in one direction, for one reason, made at the caller's line.
    #[track_caller]
    pub fn copies(&self, direction: Direction, reason: &'static str) -> Tally {
        self.tally(Kind::Copy(direction), reason, Location::caller())
    }

    /// A counter for the dispatches of one kernel or op.
    #[track_caller]
    pub fn dispatches(&self, kernel: &'static str) -> Tally {
        self.tally(Kind::Dispatch, kernel, Location::caller())
    }

    /// A counter for waits of the host on the device.
    #[track_caller]
    pub fn waits(&self, reason: &'static str) -> Tally {
        self.tally(Kind::Wait, reason, Location::caller())
    }

    fn tally(&self, kind: Kind, label: &'static str, site: &'static Location<'static>) -> Tally {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let found =
            tallies.iter().find(|t| t.kind == kind && t.label == label && t.site == site).cloned();
        let state = found.unwrap_or_else(|| {
            let state = Arc::new(TallyState { kind, label, site, by_phase: Default::default() });
            tallies.push(state.clone());
            state
        });
        Tally { phase: self.phase.clone(), state }
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
        let state = Arc::new(BufferState {
            name: name.into(),
            mode: policy(&pattern, Some(bytes)).mode,
            pattern,
            bytes,
            phase: self.phase(),
            site,
            live: AtomicBool::new(true),
            host_writes: Counts::default(),
            host_reads: Counts::default(),
        });
        if cfg!(feature = "ledger") {
            self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(state.clone());
        }
        BufferTally(state)
    }

    /// What was counted so far.
    pub fn report(&self) -> LedgerReport {
        let mut report = LedgerReport::default();
        for t in self.tallies.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for phase in Phase::ALL {
                let (count, bytes) = t.by_phase[phase as usize].read();
                if count == 0 {
                    continue;
                }
                let site = t.site.to_string();
                let event = EventLine { phase, label: t.label, count, bytes, site };
                match t.kind {
                    Kind::Copy(direction) => report.copies.push(CopyLine { direction, event }),
                    Kind::Dispatch => report.dispatches.push(event),
                    Kind::Wait => report.waits.push(event),
                }
            }
        }
        for b in self.buffers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (host_writes, host_write_bytes) = b.host_writes.read();
            let (host_reads, host_read_bytes) = b.host_reads.read();
            report.buffers.push(BufferLine {
                name: b.name.clone(),
                mode: b.mode,
                pattern: b.pattern,
                bytes: b.bytes,
                phase: b.phase,
                live: b.live.load(Relaxed),
                host_writes,
                host_write_bytes,
                host_reads,
                host_read_bytes,
                site: b.site.to_string(),
            });
        }
        report
    }
}

/// Events of one kind, label, site and phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLine {
    /// When.
    pub phase: Phase,
    /// The kernel, or the reason.
    pub label: &'static str,
    /// How many.
    pub count: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// `file:line:column` of the code that asked.
    pub site: String,
}

/// Copies of one direction, reason, site and phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyLine {
    /// Which way.
    pub direction: Direction,
    /// The rest.
    pub event: EventLine,
}

/// One buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferLine {
    /// What it is for.
    pub name: String,
    /// Where the policy put it.
    pub mode: StorageMode,
    /// How it was said to be used.
    pub pattern: AccessPattern,
    /// Its size.
    pub bytes: u64,
    /// The phase that made it.
    pub phase: Phase,
    /// Whether it still exists.
    pub live: bool,
    /// Host writes observed.
    pub host_writes: u64,
    /// Bytes written by the host.
    pub host_write_bytes: u64,
    /// Host reads observed.
    pub host_reads: u64,
    /// Bytes read by the host.
    pub host_read_bytes: u64,
    /// `file:line:column` of the code that made it.
    pub site: String,
}

/// Everything a ledger holds at one moment.
#[derive(Clone, Debug, Default)]
pub struct LedgerReport {
    /// Buffers in the order of their creation.
    pub buffers: Vec<BufferLine>,
    /// Copies.
    pub copies: Vec<CopyLine>,
    /// Dispatches by kernel.
    pub dispatches: Vec<EventLine>,
    /// Waits of the host on the device.
    pub waits: Vec<EventLine>,
}

impl LedgerReport {
    /// Buffers made during `phase`.
    pub fn allocations(&self, phase: Phase) -> usize {
        self.buffers.iter().filter(|b| b.phase == phase).count()
    }

    /// Bytes copied during `phase` in `direction`.
    pub fn copied_bytes(&self, phase: Phase, direction: Direction) -> u64 {
        self.copies
            .iter()
            .filter(|c| c.direction == direction && c.event.phase == phase)
            .map(|c| c.event.bytes)
            .sum()
    }
}

#[cfg(all(test, feature = "ledger"))]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_in_the_phase_in_which_they_happen() {
        let ledger = Ledger::new();
        let readback = ledger.copies(Direction::DeviceToHost, "sampled token");
        readback.record(100);
        ledger.enter(Phase::Decode);
        readback.record(4);
        readback.record(4);
        let report = ledger.report();
        assert_eq!(report.copied_bytes(Phase::Load, Direction::DeviceToHost), 100);
        assert_eq!(report.copied_bytes(Phase::Decode, Direction::DeviceToHost), 8);
        assert_eq!(report.copied_bytes(Phase::Decode, Direction::HostToDevice), 0);
        let decode = report.copies.iter().find(|c| c.event.phase == Phase::Decode);
        assert_eq!(decode.map(|c| c.event.count), Some(2));
    }

    #[test]
    fn one_line_of_code_is_one_entry_however_often_it_registers() {
        let ledger = Ledger::new();
        for _ in 0..3 {
            ledger.dispatches("rms_norm").record(0);
        }
        let report = ledger.report();
        assert_eq!(report.dispatches.len(), 1);
        assert_eq!(report.dispatches[0].count, 3);
        assert!(report.dispatches[0].site.contains("ledger.rs"));
    }

    #[test]
    fn buffers_carry_the_mode_of_the_policy_and_know_when_they_are_freed() {
        let ledger = Ledger::new();
        let kv = ledger.buffer("kv cache", AccessPattern::DEVICE_ONLY, 1 << 20);
        let token = ledger.buffer("token", AccessPattern::READ_BACK, 4);
        token.host_read(4);
        assert_eq!(kv.mode(), StorageMode::Private);
        drop(kv);
        let report = ledger.report();
        assert_eq!(report.allocations(Phase::Load), 2);
        assert!(!report.buffers[0].live);
        assert!(report.buffers[1].live);
        assert_eq!(report.buffers[1].mode, StorageMode::Shared);
        assert_eq!((report.buffers[1].host_reads, report.buffers[1].host_read_bytes), (1, 4));
    }

    #[test]
    fn threads_count_into_the_same_entry() {
        let ledger = Ledger::new();
        let tally = ledger.dispatches("gemv");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| tally.record(2)));
            }
        });
        let report = ledger.report();
        assert_eq!((report.dispatches[0].count, report.dispatches[0].bytes), (4000, 8000));
    }
}
