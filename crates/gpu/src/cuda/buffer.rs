//! Memory of each storage mode.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marlin_kernels::{Allocation, BindError};
use marlin_placement::{BufferTally, StorageMode};

use super::context::Context;
use super::driver::{DevicePointer, HOST_ALLOC_MAPPED, status};
use super::registration::Registration;
use crate::GpuError;

/// Pinned host memory, freed when dropped.
pub(super) struct Pinned {
    context: Arc<Context>,
    pointer: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory like a boxed slice; `&Pinned` gives no access to the bytes.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` zeroed bytes (`len` > 0) that kernels can reach.
    pub(super) fn new(context: &Arc<Context>, len: usize) -> Result<Self, GpuError> {
        context.enter()?;
        let mut pointer: *mut c_void = std::ptr::null_mut();
        // SAFETY: the first argument points to a pointer; the context is current.
        let code = unsafe { (context.driver.host_allocate)(&mut pointer, len, HOST_ALLOC_MAPPED) };
        if code != status::SUCCESS {
            let why = context.driver.describe(code);
            let reason = format!("{len} bytes of pinned host memory: {why}");
            return Err(GpuError::Driver { call: "cuMemHostAlloc", reason });
        }
        let pointer = NonNull::new(pointer.cast::<u8>())
            .unwrap_or_else(|| unreachable!("the driver said that it has allocated"));
        // SAFETY: the driver gave `len` bytes. Rust must not read what was never written.
        unsafe { pointer.as_ptr().write_bytes(0, len) };
        Ok(Self { context: context.clone(), pointer, len })
    }

    /// The address that kernels use.
    fn device_pointer(&self) -> Result<DevicePointer, GpuError> {
        let mut out = 0;
        let driver = self.context.driver;
        // SAFETY: the memory was allocated as mapped; the context is current.
        let code =
            unsafe { (driver.host_device_pointer)(&mut out, self.pointer.as_ptr().cast(), 0) };
        driver.check("cuMemHostGetDevicePointer", code)?;
        Ok(out)
    }

    /// Some of the bytes; panics if `range` is out of bounds.
    ///
    /// # Safety
    /// Neither the device nor another thread writes them during the borrow.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds and initialised by `new`; the caller answers for the rest.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr().add(range.start), range.len()) }
    }

    /// Some of the bytes, to be written; panics if `range` is out of bounds.
    ///
    /// # Safety
    /// Neither the device nor another thread touches them during the borrow.
    pub(super) unsafe fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let start = self.pointer.as_ptr();
        // SAFETY: as for `bytes`.
        unsafe { std::slice::from_raw_parts_mut(start.add(range.start), range.len()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Copies in flight may still use it.
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated by `new` and not freed before.
            unsafe { (self.context.driver.host_free)(self.pointer.as_ptr().cast()) };
        }
    }
}

/// Device memory, freed when dropped.
pub(super) struct DeviceMemory {
    context: Arc<Context>,
    pub(super) pointer: DevicePointer,
}

impl DeviceMemory {
    fn new(context: &Arc<Context>, label: &str, bytes: u64) -> Result<Self, GpuError> {
        context.enter()?;
        let mut pointer = 0;
        let len = usize::try_from(bytes.max(1)).unwrap_or(usize::MAX);
        // SAFETY: the first argument points to an address; the context is current.
        let code = unsafe { (context.driver.memory_allocate)(&mut pointer, len) };
        if code == status::OUT_OF_MEMORY {
            let (free, total) = context.memory()?;
            let label = label.to_owned();
            return Err(GpuError::OutOfMemory { label, needed: bytes, free, total });
        }
        context.driver.check("cuMemAlloc", code)?;
        Ok(Self { context: context.clone(), pointer })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Uploads in flight may still write it; recordings keep it alive themselves.
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated by `new` and not freed before.
            unsafe { (self.context.driver.memory_free)(self.pointer) };
        }
    }
}

/// Memory that host and kernels reach.
pub(super) struct SharedMemory {
    pub(super) pinned: Pinned,
    /// The last submission that uses it; 0 before the first.
    pub(super) last_use: u64,
}

/// Where an allocation's bytes are.
pub(super) enum Memory {
    Private(DeviceMemory),
    /// The host's side is ordinary memory: what is copied from it goes through the staging ring.
    Managed {
        device: DeviceMemory,
        mirror: Mutex<Box<[u8]>>,
    },
    Shared(Mutex<SharedMemory>),
    /// Kept for as long as the allocation lives.
    Adopted {
        _registration: Arc<Registration>,
    },
}

/// One allocation.
pub(super) struct CudaAllocation {
    pub(super) context: Arc<Context>,
    pub(super) label: String,
    pub(super) bytes: u64,
    pub(super) writable: bool,
    pub(super) memory: Memory,
    pub(super) pointer: DevicePointer,
    pub(super) tally: BufferTally,
}

impl fmt::Debug for CudaAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\", {} bytes, {}", self.label, self.bytes, self.tally.mode())
    }
}

impl Allocation for CudaAllocation {
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

impl CudaAllocation {
    pub(super) fn new(
        context: &Arc<Context>,
        label: &str,
        bytes: u64,
        writable: bool,
        tally: BufferTally,
    ) -> Result<Self, GpuError> {
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let (memory, pointer) = match tally.mode() {
            StorageMode::Private => {
                let device = DeviceMemory::new(context, label, bytes)?;
                let pointer = device.pointer;
                (Memory::Private(device), pointer)
            }
            // Somebody made a buffer for what could have been bound inline: the host writes it and
            // the device reads it, so it is managed.
            StorageMode::Managed | StorageMode::Inline => {
                let device = DeviceMemory::new(context, label, bytes)?;
                let pointer = device.pointer;
                let mirror = Mutex::new(vec![0; len].into_boxed_slice());
                (Memory::Managed { device, mirror }, pointer)
            }
            StorageMode::Shared => {
                let pinned = Pinned::new(context, len.max(1))?;
                let pointer = pinned.device_pointer()?;
                (Memory::Shared(Mutex::new(SharedMemory { pinned, last_use: 0 })), pointer)
            }
        };
        let (context, label) = (context.clone(), label.to_owned());
        Ok(Self { context, label, bytes, writable, memory, pointer, tally })
    }

    /// Its own allocation behind `allocation`.
    pub(super) fn of<'a>(
        allocation: &'a Arc<dyn Allocation>,
        context: &Arc<Context>,
    ) -> Result<&'a Self, GpuError> {
        allocation
            .as_any()
            .downcast_ref::<Self>()
            .filter(|own| Arc::ptr_eq(&own.context, context))
            .ok_or_else(|| GpuError::ForeignAllocation { label: allocation.label().to_owned() })
    }

    /// Checks that `len` bytes from `offset` on are inside.
    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<(), GpuError> {
        let end = offset.saturating_add(len);
        if end <= self.bytes {
            return Ok(());
        }
        let label = self.label.clone();
        Err(BindError::OutOfBounds { label, bytes: self.bytes, start: offset, end }.into())
    }

    /// The error of a host access that the mode does not allow.
    pub(super) fn no_host_access(&self, access: &'static str) -> GpuError {
        GpuError::HostAccess { access, label: self.label.clone(), mode: self.tally.mode() }
    }
}

/// Locks memory that is consistent whatever a panicking thread left undone: it is only bytes.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
