//! A device that runs the kernels on the CPU and is stricter than hardware.
//!
//! What a GPU would silently get wrong is an error here, named by kernel, buffer and index:
//!
//! | mistake | reported |
//! |---|---|
//! | the host touches `Private` memory, or memory of a submission in flight | by [`Device::read`], [`Device::write`] |
//! | a `Managed` write without [`Device::did_modify`] | the kernel does not see it |
//! | adoption of unaligned memory | by [`Device::adopt_at`] |
//! | one range bound as input and output, wrong SIMD width, too many threads | by [`Device::record`] |
//! | out of bounds of a view, misaligned, read before written, input written | by [`Submission::wait`] |
//! | two threads' accesses with no barrier between, one of them a write | by [`Submission::wait`] |
//! | threads that wait for each other at different places | by [`Submission::wait`] |
//! | an asynchronous copy read before it was waited for | by [`Submission::wait`] |
//! | memory that commands write, touched before `wait_for_previous` | by [`Submission::wait`] |
//!
//! A launch runs when it is submitted, one threadgroup after the other, and counts as in flight
//! until it is waited for. Threads of a threadgroup are fibers that change places at barriers and
//! SIMD-group operations only.
//!
//! Not caught: a kernel that never ends; a stack past 96 KiB a thread, which stops the process;
//! uninitialised `thread` variables and arrays, and reads past their ends; reads past an array in
//! inline arguments; a race across the moment when the checks' clock starts again, once in two million
//! barriers; results that depend on the order of a floating-point reduction.

mod execute;
mod memory;
mod recording;
mod submission;

use std::fmt;
use std::ops::Range;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use marlin_backend::HostBytes;
use marlin_kernels::{Allocation, HostState, PipelineKey};
use marlin_placement::{AccessPattern, Device as Memory, Direction, Ledger, StorageMode, Tally};

use crate::device::{Device, DeviceProperties, Recording, Submission};
use crate::{CommandList, GpuError};
use memory::EmulatedAllocation;
use recording::EmulatedRecording;

/// Page size of Apple's 64-bit systems, in bytes: `newBufferWithBytesNoCopy` wants address and length to be
/// multiples of it (Metal API reference, `MTLDevice`).
pub const ADOPTION_ALIGNMENT: usize = 16384;

/// Apple's limits (Metal Feature Set Tables, Apple4 and later).
pub(crate) const MAX_THREADS: u32 = 1024;
pub(crate) const THREADGROUP_BYTES: u32 = 32768;

/// What an emulated device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedOptions {
    /// Threads in a SIMD-group: 8, 16, 32 or 64.
    pub simd_width: u32,
    /// Whether it shares the host's memory.
    pub unified: bool,
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// The most bytes of one allocation.
    pub max_buffer_bytes: u64,
    /// Submissions that run before the device is lost: every one after them fails, as when a GPU is unplugged, reset or
    /// given to somebody else. `None` never loses it.
    pub lost_after: Option<u64>,
}

impl Default for EmulatedOptions {
    fn default() -> Self {
        Self {
            simd_width: 32,
            unified: true,
            total_bytes: 16 << 30,
            max_buffer_bytes: u64::MAX,
            lost_after: None,
        }
    }
}

/// The device.
pub struct Emulated {
    properties: DeviceProperties,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    uploads: Tally,
    modifies: Tally,
    downloads: Tally,
    waits: Tally,
    submissions: Tally,
}

/// What recordings and submissions share with their device.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Held whenever bytes of any allocation of the device are touched.
    execution: Mutex<Execution>,
    /// Of allocations.
    used_bytes: Arc<AtomicU64>,
    submissions: AtomicU64,
    lost_after: Option<u64>,
}

/// Fibers, and the moment that the checks count from.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) state: HostState,
    pub(crate) clock: u32,
    pub(crate) generation: u32,
}

impl fmt::Debug for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.properties.fmt(f)
    }
}

impl Shared {
    /// An error once the device is lost, which a submission finds out.
    pub(crate) fn check_present(&self) -> Result<(), GpuError> {
        match self.lost_after {
            Some(after) if self.submissions.load(Ordering::Relaxed) > after => Err(lost(after)),
            _ => Ok(()),
        }
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Execution> {
        self.execution.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Said of a device after it has run so many submissions.
fn lost(after: u64) -> GpuError {
    let reason = format!("submission {} did not come back", after + 1);
    GpuError::Lost { device: "emulated".to_owned(), reason }
}

impl Emulated {
    /// A device, with a ledger of its own.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] for a SIMD width that is not 8, 16, 32 or 64, or without memory for
    /// its fibers.
    pub fn new(options: EmulatedOptions) -> Result<Self, GpuError> {
        Self::with_ledger(options, Arc::new(Ledger::new()))
    }

    /// A device that counts in `ledger`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_ledger(options: EmulatedOptions, ledger: Arc<Ledger>) -> Result<Self, GpuError> {
        let unavailable = |reason: String| GpuError::Unavailable { device: "emulated", reason };
        if !matches!(options.simd_width, 8 | 16 | 32 | 64) {
            return Err(unavailable(format!(
                "a SIMD-group of {} threads was asked for, expected 8, 16, 32 or 64",
                options.simd_width
            )));
        }
        let state = HostState::new()
            .ok_or_else(|| unavailable("the system has no memory for its fibers".to_owned()))?;
        let memory = if options.unified { Memory::Unified } else { Memory::Discrete };
        ledger.set_memory(memory);
        Ok(Self {
            properties: DeviceProperties {
                name: "emulated".to_owned(),
                kind: "emulated",
                architecture: "host".to_owned(),
                memory,
                total_bytes: options.total_bytes,
                simd_width: options.simd_width,
                max_threads: MAX_THREADS,
                threadgroup_bytes: THREADGROUP_BYTES,
                compute_units: 1,
                adoption_alignment: ADOPTION_ALIGNMENT,
                max_buffer_bytes: options.max_buffer_bytes,
            },
            shared: Arc::new(Shared {
                execution: Mutex::new(Execution { state, clock: 0, generation: 0 }),
                used_bytes: Arc::default(),
                submissions: AtomicU64::new(0),
                lost_after: options.lost_after,
            }),
            uploads: ledger.copies(Direction::HostToDevice, "upload"),
            modifies: ledger.copies(Direction::HostToDevice, "did_modify"),
            downloads: ledger.copies(Direction::DeviceToHost, "download"),
            waits: ledger.waits("submission"),
            submissions: ledger.submissions("command list"),
            ledger,
        })
    }

    fn find<'a>(
        &self,
        allocation: &'a Arc<dyn Allocation>,
    ) -> Result<&'a EmulatedAllocation, GpuError> {
        memory::find(&self.shared, allocation)
    }

    /// The allocation, if the host may `access` it now.
    fn reachable<'a>(
        &self,
        allocation: &'a Arc<dyn Allocation>,
        access: &'static str,
    ) -> Result<&'a EmulatedAllocation, GpuError> {
        self.shared.check_present()?;
        let found = self.find(allocation)?;
        if found.mode() == StorageMode::Private {
            let (label, mode) = (found.label().to_owned(), found.mode());
            return Err(GpuError::HostAccess { access, label, mode });
        }
        if let Some(submission) = found.in_flight() {
            let label = found.label().to_owned();
            return Err(GpuError::InFlight { access, label, submission });
        }
        Ok(found)
    }
}

impl Device for Emulated {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn free_bytes(&self) -> Result<u64, GpuError> {
        self.shared.check_present()?;
        let used = self.shared.used_bytes.load(Ordering::Relaxed);
        Ok(self.properties.total_bytes.saturating_sub(used))
    }

    fn allocate_at(
        &self,
        label: &str,
        bytes: u64,
        pattern: AccessPattern,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        self.shared.check_present()?;
        let used = self.shared.used_bytes.load(Ordering::Relaxed);
        let total = self.properties.total_bytes;
        let free = total.saturating_sub(used).min(self.properties.max_buffer_bytes);
        if bytes > free {
            return Err(GpuError::OutOfMemory {
                label: label.to_owned(),
                needed: bytes,
                free,
                total,
            });
        }
        let tally = self.ledger.buffer_at(label, pattern, bytes, site);
        let allocation = EmulatedAllocation::new(
            &self.shared,
            label,
            bytes,
            pattern,
            tally,
            self.properties.memory,
        );
        Ok(Arc::new(allocation))
    }

    fn adopt_at(
        &self,
        label: &str,
        bytes: HostBytes,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        self.shared.check_present()?;
        let refuse = |reason: String| GpuError::NotAdoptable { label: label.to_owned(), reason };
        if self.properties.memory == Memory::Discrete {
            return Err(refuse("the device has memory of its own".to_owned()));
        }
        let address = bytes.as_ptr() as usize;
        for (what, value) in [("address", address), ("length", bytes.len())] {
            let over = value % ADOPTION_ALIGNMENT;
            if over != 0 {
                return Err(refuse(format!(
                    "its {what} is {over} past a multiple of {ADOPTION_ALIGNMENT}, expected a multiple"
                )));
            }
        }
        let most = self.properties.max_buffer_bytes;
        if bytes.len() as u64 > most {
            return Err(refuse(format!("it has {} bytes, expected at most {most}", bytes.len())));
        }
        let tally = self.ledger.buffer_at(label, AccessPattern::ADOPTED, bytes.len() as u64, site);
        Ok(Arc::new(EmulatedAllocation::adopted(&self.shared, label, bytes, tally)))
    }

    fn write(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let found = self.reachable(allocation, "write")?;
        let range = found.range(offset, bytes.len() as u64)?;
        if found.is_adopted() {
            return Err(
                marlin_kernels::BindError::ReadOnly { label: found.label().to_owned() }.into()
            );
        }
        found.host_write(&self.shared.lock(), range, bytes);
        Ok(())
    }

    fn did_modify(
        &self,
        allocation: &Arc<dyn Allocation>,
        range: Range<u64>,
    ) -> Result<(), GpuError> {
        let found = self.find(allocation)?;
        self.shared.check_present()?;
        let range = found.range(range.start, range.end.saturating_sub(range.start))?;
        if let Some(submission) = found.in_flight() {
            let label = found.label().to_owned();
            return Err(GpuError::InFlight { access: "write", label, submission });
        }
        if found.has_mirror() {
            self.modifies.record(range.len() as u64);
            found.copy_mirror(&self.shared.lock(), range);
        }
        Ok(())
    }

    fn read(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError> {
        let found = self.reachable(allocation, "read")?;
        let range = found.range(offset, out.len() as u64)?;
        found.host_read(&self.shared.lock(), range, out);
        Ok(())
    }

    fn upload(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        self.shared.check_present()?;
        let found = self.find(allocation)?;
        let range = found.range(offset, bytes.len() as u64)?;
        if found.is_adopted() {
            return Err(
                marlin_kernels::BindError::ReadOnly { label: found.label().to_owned() }.into()
            );
        }
        self.uploads.record(bytes.len() as u64);
        found.device_write(&self.shared.lock(), range, bytes);
        Ok(())
    }

    fn download(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError> {
        self.shared.check_present()?;
        let found = self.find(allocation)?;
        let range = found.range(offset, out.len() as u64)?;
        self.downloads.record(out.len() as u64);
        found.device_read(&self.shared.lock(), range, out);
        Ok(())
    }

    fn compile(&self, pipeline: &PipelineKey) -> Result<(), GpuError> {
        recording::kernel_of(pipeline).map(|_| ())
    }

    fn record(&self, commands: CommandList) -> Result<Arc<dyn Recording>, GpuError> {
        let recording =
            EmulatedRecording::new(&self.shared, &self.properties, &self.ledger, commands)?;
        Ok(Arc::new(recording))
    }

    fn submit(&self, recording: &Arc<dyn Recording>) -> Result<Box<dyn Submission>, GpuError> {
        let any: &dyn std::any::Any = &**recording;
        let found = any
            .downcast_ref::<EmulatedRecording>()
            .filter(|r| r.belongs_to(&self.shared))
            .ok_or_else(|| GpuError::ForeignAllocation { label: recording.label().to_owned() })?;
        self.shared.check_present()?;
        let number = self.shared.submissions.fetch_add(1, Ordering::Relaxed);
        self.submissions.record(0);
        found.accesses.record();
        let submission =
            submission::start(recording, found, number, &self.shared, self.waits.clone());
        Ok(Box::new(submission))
    }
}
