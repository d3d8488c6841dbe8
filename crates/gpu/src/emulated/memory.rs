//! Memory of the emulated device: bytes, which of them were ever written, and who touched them last.

use std::alloc::Layout;
use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use marlin_backend::HostBytes;
use marlin_kernels::{Allocation, BindError};
use marlin_placement::{AccessPattern, BufferTally, Device as Memory, StorageMode};

use super::{ADOPTION_ALIGNMENT, Execution, Shared};
use crate::GpuError;

/// What fresh memory holds: half, bf16 and float read it as NaN, so that a result which a kernel forgot to
/// write does not look like a zero.
const FRESH: u8 = 0xff;

/// Bytes at an address that suits every element type and adoption.
struct Bytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes are owned, and reached only through `Contents`, under the device's lock.
unsafe impl Send for Bytes {}

impl Bytes {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), ADOPTION_ALIGNMENT)
            .unwrap_or_else(|_| unreachable!("checked against the device's memory"));
        // SAFETY: the layout's size is not zero.
        let start = unsafe { std::alloc::alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        // SAFETY: `layout.size()` bytes were allocated at `start`.
        unsafe { start.write_bytes(FRESH, layout.size()) };
        Self { start, layout }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`, freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

enum Storage {
    Owned(Bytes),
    /// Always initialised, never written.
    Adopted(HostBytes),
}

/// What the host sees of `Managed` memory on a discrete device.
struct Mirror {
    bytes: Vec<u8>,
    initialised: Vec<u8>,
}

/// Bytes and what is known of them. Lengths are the allocation's.
pub(crate) struct Contents {
    storage: Storage,
    mirror: Option<Mirror>,
    /// One byte a byte, 0 where nothing was ever written; empty for adopted memory.
    pub(crate) initialised: Vec<u8>,
    /// Stamps of the last write and read of each byte; empty until a dispatch may write.
    pub(crate) writes: Vec<u32>,
    pub(crate) reads: Vec<u32>,
    /// The device's count when the stamps were last void.
    pub(crate) generation: u32,
    /// Whether a command ever wrote it, which weights never see.
    pub(crate) changes: bool,
}

impl Contents {
    /// The first byte. Adopted memory must not be written through it.
    pub(crate) fn start(&self) -> *mut u8 {
        match &self.storage {
            Storage::Owned(bytes) => bytes.start.as_ptr(),
            Storage::Adopted(bytes) => bytes.as_ptr().cast_mut(),
        }
    }

    /// Makes the stamps ready for a dispatch that may write.
    pub(crate) fn stamp(&mut self, len: usize, generation: u32) {
        self.changes = true;
        if self.writes.is_empty() || self.generation != generation {
            self.writes = vec![0; len];
            self.reads = vec![0; len];
            self.generation = generation;
        }
    }
}

/// Memory of one emulated device.
pub(crate) struct EmulatedAllocation {
    label: String,
    bytes: u64,
    mode: StorageMode,
    writable: bool,
    mirrored: bool,
    adopted: bool,
    tally: BufferTally,
    device: Weak<Shared>,
    used_bytes: Arc<AtomicU64>,
    /// Number and label of each submission in flight that uses it.
    flights: Mutex<Vec<(u64, Arc<str>)>>,
    contents: UnsafeCell<Contents>,
}

// SAFETY: `contents` is only reached through `contents()`, whose callers hold the device's lock; everything
// else is `Sync`.
unsafe impl Sync for EmulatedAllocation {}

impl fmt::Debug for EmulatedAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({} bytes, {})", self.label, self.bytes, self.mode)
    }
}

impl Allocation for EmulatedAllocation {
    fn label(&self) -> &str {
        &self.label
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The device's own allocation behind `allocation`.
pub(crate) fn find<'a>(
    device: &Arc<Shared>,
    allocation: &'a Arc<dyn Allocation>,
) -> Result<&'a EmulatedAllocation, GpuError> {
    allocation
        .as_any()
        .downcast_ref::<EmulatedAllocation>()
        .filter(|a| std::ptr::eq(a.device.as_ptr(), Arc::as_ptr(device)))
        .ok_or_else(|| GpuError::ForeignAllocation { label: allocation.label().to_owned() })
}

impl EmulatedAllocation {
    pub(crate) fn new(
        device: &Arc<Shared>,
        label: &str,
        bytes: u64,
        pattern: AccessPattern,
        tally: BufferTally,
        memory: Memory,
    ) -> Self {
        let len = bytes as usize;
        let mode = match tally.mode() {
            // A buffer was asked for although bytes in the command would do.
            StorageMode::Inline => StorageMode::Managed,
            mode => mode,
        }
        .resolve(memory);
        let mirrored = mode == StorageMode::Managed;
        let mirror =
            mirrored.then(|| Mirror { bytes: vec![FRESH; len], initialised: vec![0; len] });
        device.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self {
            label: label.to_owned(),
            bytes,
            mode,
            writable: pattern.device.writes(),
            mirrored,
            adopted: false,
            tally,
            device: Arc::downgrade(device),
            used_bytes: device.used_bytes.clone(),
            flights: Mutex::default(),
            contents: UnsafeCell::new(Contents {
                storage: Storage::Owned(Bytes::new(len)),
                mirror,
                initialised: vec![0; len],
                writes: Vec::new(),
                reads: Vec::new(),
                generation: 0,
                changes: false,
            }),
        }
    }

    pub(crate) fn adopted(
        device: &Arc<Shared>,
        label: &str,
        bytes: HostBytes,
        tally: BufferTally,
    ) -> Self {
        Self {
            label: label.to_owned(),
            bytes: bytes.len() as u64,
            mode: StorageMode::Shared,
            writable: false,
            mirrored: false,
            adopted: true,
            tally,
            device: Arc::downgrade(device),
            used_bytes: device.used_bytes.clone(),
            flights: Mutex::default(),
            contents: UnsafeCell::new(Contents {
                storage: Storage::Adopted(bytes),
                mirror: None,
                initialised: Vec::new(),
                writes: Vec::new(),
                reads: Vec::new(),
                generation: 0,
                changes: false,
            }),
        }
    }

    /// Its entry in the ledger.
    pub(crate) fn tally(&self) -> &BufferTally {
        &self.tally
    }

    pub(crate) fn mode(&self) -> StorageMode {
        self.mode
    }

    pub(crate) fn is_adopted(&self) -> bool {
        self.adopted
    }

    pub(crate) fn has_mirror(&self) -> bool {
        self.mirrored
    }

    /// Bytes `offset..offset + len`, if they are inside.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<Range<usize>, BindError> {
        let end = offset.saturating_add(len);
        if end > self.bytes {
            return Err(BindError::OutOfBounds {
                label: self.label.clone(),
                bytes: self.bytes,
                start: offset,
                end,
            });
        }
        Ok(offset as usize..end as usize)
    }

    /// The label of a submission in flight that uses it.
    pub(crate) fn in_flight(&self) -> Option<String> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.first().map(|(_, label)| label.to_string())
    }

    pub(crate) fn take_off(&self, number: u64, label: &Arc<str>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.push((number, label.clone()));
    }

    pub(crate) fn land(&self, number: u64) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|(n, _)| *n != number);
    }

    /// The contents, for as long as the device is locked.
    ///
    /// # Safety
    /// No other reference to this allocation's contents is alive.
    #[allow(clippy::mut_from_ref, reason = "the lock that is passed in makes it exclusive")]
    pub(crate) unsafe fn contents<'a>(&'a self, _lock: &'a Execution) -> &'a mut Contents {
        // SAFETY: all callers hold the lock of the one device that the allocation belongs to, and the
        // caller vouches for having no other reference.
        unsafe { &mut *self.contents.get() }
    }

    /// The device's bytes in `range`.
    ///
    /// # Safety
    /// As [`contents`](Self::contents).
    unsafe fn device_bytes(contents: &Contents, range: &Range<usize>) -> *mut u8 {
        // SAFETY: `range` was checked to be inside.
        unsafe { contents.start().add(range.start) }
    }

    pub(crate) fn host_write(&self, lock: &Execution, range: Range<usize>, bytes: &[u8]) {
        self.tally.host_wrote(bytes.len() as u64);
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        match &mut contents.mirror {
            Some(mirror) => {
                mirror.bytes[range.clone()].copy_from_slice(bytes);
                mirror.initialised[range].fill(1);
            }
            None => self.device_write(lock, range, bytes),
        }
    }

    pub(crate) fn host_read(&self, lock: &Execution, range: Range<usize>, out: &mut [u8]) {
        self.tally.host_read(out.len() as u64);
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        match &contents.mirror {
            Some(mirror) => out.copy_from_slice(&mirror.bytes[range]),
            None => self.device_read(lock, range, out),
        }
    }

    /// Copies the mirror's bytes to the device's; those that the host never wrote stay uninitialised.
    pub(crate) fn copy_mirror(&self, lock: &Execution, range: Range<usize>) {
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        if let Some(mirror) = &contents.mirror {
            let from = &mirror.bytes[range.clone()];
            contents.initialised[range.clone()].copy_from_slice(&mirror.initialised[range.clone()]);
            // SAFETY: `range` is inside the device's bytes, which the mirror does not overlap.
            unsafe {
                Self::device_bytes(contents, &range)
                    .copy_from_nonoverlapping(from.as_ptr(), from.len());
            }
        }
    }

    pub(crate) fn device_write(&self, lock: &Execution, range: Range<usize>, bytes: &[u8]) {
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        contents.initialised[range.clone()].fill(1);
        // SAFETY: `range` is inside, has the length of `bytes`, and is not the host's memory.
        unsafe {
            Self::device_bytes(contents, &range)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    pub(crate) fn device_read(&self, lock: &Execution, range: Range<usize>, out: &mut [u8]) {
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        // SAFETY: `range` is inside, has the length of `out`, and `out` is borrowed mutably elsewhere.
        unsafe {
            out.as_mut_ptr()
                .copy_from_nonoverlapping(Self::device_bytes(contents, &range), out.len());
        }
    }

    /// Whether bytes were written, by range.
    pub(crate) fn initialised(&self, lock: &Execution, range: Range<usize>) -> Vec<u8> {
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        if self.adopted { vec![1; range.len()] } else { contents.initialised[range].to_vec() }
    }

    /// Says that a command wrote it.
    pub(crate) fn command_wrote(&self, lock: &Execution) {
        // SAFETY: the only reference, dropped at the end of this function.
        unsafe { self.contents(lock) }.changes = true;
    }

    pub(crate) fn set_initialised(&self, lock: &Execution, range: Range<usize>, values: &[u8]) {
        // SAFETY: the only reference, dropped at the end of this function.
        let contents = unsafe { self.contents(lock) };
        contents.initialised[range].copy_from_slice(values);
    }
}

impl Drop for EmulatedAllocation {
    fn drop(&mut self) {
        if !self.adopted {
            self.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
