//! What a ledger holds at one moment.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use super::book::Book;
use super::buffer::{BufferState, ByKernel};
use super::tally::{Kind, TallyState};
use super::trace::{RecordedStep, Source};
use super::{Direction, Phase};
use crate::{AccessPattern, Device, StorageMode};

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

/// Accesses of one kernel to a buffer in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessLine {
    /// The kernel or op.
    pub kernel: &'static str,
    /// When.
    pub phase: Phase,
    /// Dispatches that read the buffer.
    pub reads: u64,
    /// Dispatches that wrote it.
    pub writes: u64,
}

/// One buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferLine {
    /// What it is for.
    pub name: String,
    /// Where it lives.
    pub mode: StorageMode,
    /// How it was said to be used.
    pub pattern: AccessPattern,
    /// Its size.
    pub bytes: u64,
    /// The phase that made it.
    pub phase: Phase,
    /// Whether it still exists.
    pub live: bool,
    /// When it was made, in nanoseconds since the ledger was.
    pub made_ns: u64,
    /// When it was freed.
    pub freed_ns: Option<u64>,
    /// Host writes observed.
    pub host_writes: u64,
    /// Bytes written by the host.
    pub host_write_bytes: u64,
    /// Host reads observed.
    pub host_reads: u64,
    /// Bytes read by the host.
    pub host_read_bytes: u64,
    /// Host reads by [`Phase`], and their bytes.
    pub host_reads_by_phase: [(u64, u64); 3],
    /// Host writes by [`Phase`], and their bytes.
    pub host_writes_by_phase: [(u64, u64); 3],
    /// Kernels that used it, as far as the device says.
    pub accesses: Vec<AccessLine>,
    /// `file:line:column` of the code that made it.
    pub site: String,
}

/// The steps of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepLine {
    /// Steps.
    pub steps: u64,
    /// Tokens that they computed, all sequences together.
    pub tokens: u64,
    /// Tokens that were sampled.
    pub outputs: u64,
}

/// What an event of a traced step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// A copy.
    Copy(Direction),
    /// A kernel or op.
    Dispatch,
    /// The host waits for the device.
    Wait,
    /// Commands were handed to the device.
    Submission,
    /// The device's own time for a submission.
    DeviceTime,
    /// The host writes a buffer.
    HostWrite,
    /// The host reads a buffer.
    HostRead,
}

/// One event of a traced step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// What.
    pub kind: TraceKind,
    /// The kernel, the reason, or the buffer.
    pub label: String,
    /// Nanoseconds since the step began.
    pub start_ns: u64,
    /// How long it took, where that was measured.
    pub took_ns: Option<u64>,
    /// Bytes.
    pub bytes: u64,
    /// `file:line:column` of the code that asked, or that made the buffer.
    pub site: String,
}

/// A decode step, event by event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepTrace {
    /// When it began, in nanoseconds since the ledger was made.
    pub start_ns: u64,
    /// Until the next step began, or until the end of its last event.
    pub took_ns: u64,
    /// In the order of their beginnings.
    pub events: Vec<TraceEvent>,
    /// Events that there was no room for.
    pub dropped: u64,
}

/// Everything a ledger holds at one moment.
#[derive(Clone, Debug)]
pub struct LedgerReport {
    /// What memory the device has.
    pub memory: Device,
    /// Nanoseconds since the ledger was made.
    pub elapsed_ns: u64,
    /// Steps by [`Phase`]; [`Phase::Load`] has none.
    pub steps: [StepLine; 3],
    /// Buffers in the order of their creation.
    pub buffers: Vec<BufferLine>,
    /// Copies.
    pub copies: Vec<CopyLine>,
    /// Dispatches by kernel.
    pub dispatches: Vec<EventLine>,
    /// Waits of the host on the device.
    pub waits: Vec<EventLine>,
    /// Lists of commands handed to the device.
    pub submissions: Vec<EventLine>,
    /// The decode step that was traced last, if one was.
    pub trace: Option<StepTrace>,
}

impl Default for LedgerReport {
    fn default() -> Self {
        Self {
            memory: Device::Unified,
            elapsed_ns: 0,
            steps: Default::default(),
            buffers: Vec::new(),
            copies: Vec::new(),
            dispatches: Vec::new(),
            waits: Vec::new(),
            submissions: Vec::new(),
            trace: None,
        }
    }
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

    /// Bytes that the host got from the device during `phase`: copies, and reads of shared memory.
    pub fn read_back_bytes(&self, phase: Phase) -> u64 {
        let in_place = self.buffers.iter().map(|b| b.host_reads_by_phase[phase as usize].1);
        self.copied_bytes(phase, Direction::DeviceToHost) + in_place.sum::<u64>()
    }

    /// Submissions during `phase`.
    pub fn submissions(&self, phase: Phase) -> u64 {
        self.submissions.iter().filter(|s| s.phase == phase).map(|s| s.count).sum()
    }

    /// Dispatches during `phase`.
    pub fn dispatches(&self, phase: Phase) -> u64 {
        self.dispatches.iter().filter(|d| d.phase == phase).map(|d| d.count).sum()
    }

    /// Waits during `phase`.
    pub fn waits(&self, phase: Phase) -> u64 {
        self.waits.iter().filter(|w| w.phase == phase).map(|w| w.count).sum()
    }

    /// The steps of `phase`.
    pub fn steps(&self, phase: Phase) -> StepLine {
        self.steps[phase as usize]
    }
}

pub(super) fn of(book: &Book) -> LedgerReport {
    let mut report = LedgerReport {
        memory: book.memory(),
        elapsed_ns: book.now(),
        steps: std::array::from_fn(|i| StepLine {
            steps: book.steps[i].steps.load(Relaxed),
            tokens: book.steps[i].tokens.load(Relaxed),
            outputs: book.steps[i].outputs.load(Relaxed),
        }),
        ..LedgerReport::default()
    };
    let (tallies, buffers) = (book.tallies(), book.buffers());
    for tally in &tallies {
        for phase in Phase::ALL {
            let (count, bytes) = tally.by_phase[phase as usize].read();
            if count == 0 {
                continue;
            }
            let event =
                EventLine { phase, label: tally.label, count, bytes, site: tally.site.to_string() };
            match tally.kind {
                Kind::Copy(direction) => report.copies.push(CopyLine { direction, event }),
                Kind::Dispatch => report.dispatches.push(event),
                Kind::Wait => report.waits.push(event),
                Kind::Submission => report.submissions.push(event),
            }
        }
    }
    report.buffers = buffers.iter().map(|buffer| buffer_line(buffer)).collect();
    device_accesses(book, &buffers, &mut report.buffers);
    report.trace = book.tracer.step().map(|step| {
        let site_of = |index: usize| tallies.get(index).map(|t| &**t);
        step_trace(&step, site_of, |index| buffers.get(index).map(|b| &**b))
    });
    report
}

fn buffer_line(buffer: &BufferState) -> BufferLine {
    let by_phase = |counts: &[super::book::Counts; 3]| std::array::from_fn(|i| counts[i].read());
    let sum = |by_phase: &[(u64, u64); 3]| {
        by_phase.iter().fold((0, 0), |(count, bytes), one| (count + one.0, bytes + one.1))
    };
    let (writes, reads) = (by_phase(&buffer.host_writes), by_phase(&buffer.host_reads));
    let ((host_writes, host_write_bytes), (host_reads, host_read_bytes)) =
        (sum(&writes), sum(&reads));
    BufferLine {
        name: buffer.name.clone(),
        mode: buffer.mode,
        pattern: buffer.pattern,
        bytes: buffer.bytes,
        phase: buffer.phase,
        live: buffer.freed_ns().is_none(),
        made_ns: buffer.made_ns,
        freed_ns: buffer.freed_ns(),
        host_writes,
        host_write_bytes,
        host_reads,
        host_read_bytes,
        host_reads_by_phase: reads,
        host_writes_by_phase: writes,
        accesses: Vec::new(),
        site: buffer.site.to_string(),
    }
}

/// Multiplies what each prepared list touches by its runs.
fn device_accesses(book: &Book, buffers: &[std::sync::Arc<BufferState>], lines: &mut [BufferLine]) {
    let mut counts: Vec<ByKernel> = buffers
        .iter()
        .map(|buffer| buffer.past.lock().unwrap_or_else(PoisonError::into_inner).clone())
        .collect();
    for state in book.accesses() {
        state.expand(|buffer, kernel, phase, reads, writes| {
            // A buffer that was made after `buffers` was taken is not in this report.
            if let Some(count) = counts.get_mut(buffer.index) {
                let entry = count.entry((kernel, phase)).or_default();
                entry.0 += reads;
                entry.1 += writes;
            }
        });
    }
    for (line, counts) in lines.iter_mut().zip(counts) {
        line.accesses = counts
            .into_iter()
            .map(|((kernel, phase), (reads, writes))| AccessLine { kernel, phase, reads, writes })
            .collect();
    }
}

fn step_trace<'a>(
    step: &RecordedStep,
    tally: impl Fn(usize) -> Option<&'a TallyState>,
    buffer: impl Fn(usize) -> Option<&'a BufferState>,
) -> StepTrace {
    let events: Vec<TraceEvent> = step
        .events
        .iter()
        .filter_map(|event| {
            let (kind, label, site) = match event.source {
                Source::Tally(index) | Source::Device(index) => {
                    let tally = tally(index)?;
                    let kind = match (event.source, tally.kind) {
                        (Source::Device(_), _) => TraceKind::DeviceTime,
                        (_, Kind::Copy(direction)) => TraceKind::Copy(direction),
                        (_, Kind::Dispatch) => TraceKind::Dispatch,
                        (_, Kind::Wait) => TraceKind::Wait,
                        (_, Kind::Submission) => TraceKind::Submission,
                    };
                    (kind, tally.label.to_owned(), tally.site)
                }
                Source::HostWrite(index) | Source::HostRead(index) => {
                    let buffer = buffer(index)?;
                    let kind = match event.source {
                        Source::HostWrite(_) => TraceKind::HostWrite,
                        _ => TraceKind::HostRead,
                    };
                    (kind, buffer.name.clone(), buffer.site)
                }
            };
            Some(TraceEvent {
                kind,
                label,
                start_ns: event.start.saturating_sub(step.start),
                took_ns: event.took,
                bytes: event.bytes,
                site: site.to_string(),
            })
        })
        .collect();
    let last = events.iter().map(|e| e.start_ns + e.took_ns.unwrap_or(0)).max().unwrap_or(0);
    StepTrace {
        start_ns: step.start,
        took_ns: step.end.map_or(last, |end| end.saturating_sub(step.start)),
        events,
        dropped: step.dropped,
    }
}
