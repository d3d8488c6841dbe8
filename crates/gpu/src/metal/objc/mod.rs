//! Apple's Metal behind [`Api`]: one message a method.

mod commands;
mod compile;
mod cores;

use std::ffi::c_void;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use block2::RcBlock;
use marlin_backend::HostBytes;
use objc2::available;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSPageSize, NSProcessInfo, NSRange, NSString};
use objc2_metal::{
    MTLBuffer, MTLCommandBufferDescriptor, MTLCommandBufferErrorOption, MTLCommandQueue,
    MTLCopyAllDevices, MTLDevice, MTLGPUFamily, MTLResidencySet, MTLResidencySetDescriptor,
    MTLResource, MTLResourceOptions,
};

use super::api::{Api, BufferMode, Description, PipelineLimits, PipelineRequest};
use super::device::{MetalDevice, Settings, properties, unavailable};
use crate::{DeviceProperties, GpuError};

pub use commands::ObjcCommandBuffer;
pub use compile::{ObjcLibrary, ObjcPipeline};

/// An Apple GPU.
pub type Metal = MetalDevice<Objc>;

/// Every GPU that Metal finds, in its order, also those that the kernels do not run on.
///
/// # Errors
/// [`GpuError::Unavailable`] without a GPU.
pub fn devices() -> Result<Vec<DeviceProperties>, GpuError> {
    let devices = all()?;
    Ok(devices.iter().map(|device| properties(&describe(device))).collect())
}

/// The operating system's version, as it gives it.
pub fn system_version() -> String {
    autoreleasepool(|_| NSProcessInfo::processInfo().operatingSystemVersionString().to_string())
}

impl Metal {
    /// The GPU `index`, in Metal's order.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] without such a GPU, or for one that the kernels do not run on.
    pub fn open(index: usize) -> Result<Self, GpuError> {
        Self::open_with(&Settings::new(index))
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(settings: &Settings) -> Result<Self, GpuError> {
        let devices = all()?;
        let device = devices.get(settings.index).ok_or_else(|| {
            unavailable(format!(
                "GPU {} was asked for, there are {}, counted from 0",
                settings.index,
                devices.len()
            ))
        })?;
        let api = Objc::new(device.clone()).ok_or_else(|| GpuError::Driver {
            call: "newCommandQueue",
            reason: "Metal gave no command queue".to_owned(),
        })?;
        Self::over(api, settings)
    }
}

type DeviceObject = Retained<ProtocolObject<dyn MTLDevice>>;

fn all() -> Result<Vec<DeviceObject>, GpuError> {
    let devices = autoreleasepool(|_| MTLCopyAllDevices().to_vec());
    if devices.is_empty() {
        return Err(unavailable("Metal finds no GPU".to_owned()));
    }
    Ok(devices)
}

fn describe(device: &DeviceObject) -> Description {
    /// `MTLGPUFamilyApple1` is 1001, and so on; families yet to come included.
    const APPLE: isize = 1000;
    const NEWEST: isize = 30;
    let family =
        (1..=NEWEST).rev().find(|family| device.supportsFamily(MTLGPUFamily(APPLE + family)));
    autoreleasepool(|_| Description {
        name: device.name().to_string(),
        apple_family: family.and_then(|family| u32::try_from(family).ok()),
        unified: device.hasUnifiedMemory(),
        working_set_bytes: device.recommendedMaxWorkingSetSize(),
        max_buffer_bytes: device.maxBufferLength() as u64,
        max_threads: saturated(device.maxThreadsPerThreadgroup().width),
        threadgroup_bytes: saturated(device.maxThreadgroupMemoryLength()),
        cores: cores::of(device.registryID()),
        page_bytes: NSPageSize(),
        system: system_version(),
    })
}

fn saturated(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A device and its queue.
pub struct Objc {
    device: DeviceObject,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
}

impl Objc {
    fn new(device: DeviceObject) -> Option<Self> {
        let queue = device.newCommandQueue()?;
        queue.setLabel(Some(&NSString::from_str("metal-marlin")));
        Some(Self { device, queue })
    }
}

struct BufferState {
    buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
    bytes: usize,
    mode: BufferMode,
    writable: bool,
    /// Held while the host touches the contents.
    host: Mutex<()>,
}

// SAFETY: Metal's resources may be used from any thread (Metal Programming Guide, "Fundamental Metal Concepts"); the
// contents are only reached through `host_bytes`, under the lock.
unsafe impl Send for BufferState {}
// SAFETY: as above.
unsafe impl Sync for BufferState {}

/// `MTLBuffer`.
#[derive(Clone)]
pub struct ObjcBuffer(Arc<BufferState>);

impl ObjcBuffer {
    fn new(
        buffer: Retained<ProtocolObject<dyn MTLBuffer>>,
        label: &str,
        bytes: usize,
        mode: BufferMode,
        writable: bool,
    ) -> Self {
        buffer.setLabel(Some(&NSString::from_str(label)));
        Self(Arc::new(BufferState { buffer, bytes, mode, writable, host: Mutex::new(()) }))
    }

    fn object(&self) -> &ProtocolObject<dyn MTLBuffer> {
        &self.0.buffer
    }

    /// Panics if the range is not inside.
    fn check(&self, offset: usize, len: usize) {
        let bytes = self.0.bytes;
        assert!(
            offset <= bytes && len <= bytes - offset,
            "{len} bytes from {offset} of {bytes} were asked for"
        );
    }

    /// Runs `touch` with the address of the contents from `offset` on, of which it may touch `len` bytes, alone among the
    /// host's threads.
    fn host_bytes(&self, offset: usize, len: usize, touch: impl FnOnce(*mut u8)) {
        assert_ne!(self.0.mode, BufferMode::Private, "private memory has no contents");
        self.check(offset, len);
        let _alone = self.0.host.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = self.0.buffer.contents().as_ptr().cast::<u8>();
        // SAFETY: the contents have as many bytes as the buffer, and the range was checked.
        touch(unsafe { contents.add(offset) });
    }
}

/// `MTLResidencySet`.
pub struct ObjcResidencySet(Retained<ProtocolObject<dyn MTLResidencySet>>);

// SAFETY: it is changed under the lock of `Residency`; the queue only reads what was committed.
unsafe impl Send for ObjcResidencySet {}
// SAFETY: as above.
unsafe impl Sync for ObjcResidencySet {}

impl Api for Objc {
    type Buffer = ObjcBuffer;
    type Library = ObjcLibrary;
    type Pipeline = ObjcPipeline;
    type ResidencySet = ObjcResidencySet;
    type CommandBuffer = ObjcCommandBuffer;

    fn describe(&self) -> Description {
        describe(&self.device)
    }

    fn allocated_bytes(&self) -> u64 {
        self.device.currentAllocatedSize() as u64
    }

    fn pooled<R>(&self, work: impl FnOnce() -> R) -> R {
        autoreleasepool(|_| work())
    }

    fn buffer(&self, label: &str, bytes: usize, mode: BufferMode) -> Option<ObjcBuffer> {
        let options = match mode {
            BufferMode::Private => MTLResourceOptions::StorageModePrivate,
            BufferMode::Managed => MTLResourceOptions::StorageModeManaged,
            BufferMode::Shared => MTLResourceOptions::StorageModeShared,
        };
        let buffer = self.device.newBufferWithLength_options(bytes, options)?;
        Some(ObjcBuffer::new(buffer, label, bytes, mode, true))
    }

    fn buffer_no_copy(&self, label: &str, bytes: HostBytes) -> Option<ObjcBuffer> {
        let len = bytes.len();
        let pointer = NonNull::new(bytes.as_ptr().cast_mut().cast::<c_void>())?;
        // Metal calls it when the buffer is gone and then releases it, and with it the share of the bytes.
        let deallocator = RcBlock::new(move |_: NonNull<c_void>, _: usize| {
            let _kept = &bytes;
        });
        // SAFETY: the bytes stay where they are as long as the block, which Metal keeps until the buffer is gone, has its
        // share of them; that share may be dropped on any thread. Kernels bind the buffer as input only, `writable` is false.
        let buffer = unsafe {
            self.device.newBufferWithBytesNoCopy_length_options_deallocator(
                pointer,
                len,
                MTLResourceOptions::StorageModeShared,
                Some(&deallocator),
            )
        }?;
        Some(ObjcBuffer::new(buffer, label, len, BufferMode::Shared, false))
    }

    fn write(&self, buffer: &ObjcBuffer, offset: usize, bytes: &[u8]) {
        assert!(buffer.0.writable, "adopted memory is read-only");
        buffer.host_bytes(offset, bytes.len(), |to| {
            // SAFETY: `to` has room for the bytes and no other thread of the host's touches them.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        });
    }

    fn read(&self, buffer: &ObjcBuffer, offset: usize, out: &mut [u8]) {
        buffer.host_bytes(offset, out.len(), |from| {
            // SAFETY: `from` has as many bytes and no other thread of the host's touches them.
            unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        });
    }

    fn did_modify(&self, buffer: &ObjcBuffer, range: Range<usize>) {
        buffer.check(range.start, range.len());
        assert_eq!(buffer.0.mode, BufferMode::Managed, "only managed memory is marked");
        buffer.object().didModifyRange(NSRange::new(range.start, range.len()));
    }

    fn library(&self, label: &str, source: &str) -> Result<ObjcLibrary, String> {
        compile::library(&self.device, label, source)
    }

    fn pipeline(
        &self,
        library: &ObjcLibrary,
        request: &PipelineRequest<'_>,
        keep: Option<&Path>,
    ) -> Result<ObjcPipeline, String> {
        compile::pipeline(&self.device, library, request, keep)
    }

    fn archived_pipeline(
        &self,
        library: &ObjcLibrary,
        request: &PipelineRequest<'_>,
        archive: &Path,
    ) -> Result<ObjcPipeline, String> {
        compile::archived_pipeline(&self.device, library, request, archive)
    }

    fn limits(&self, pipeline: &ObjcPipeline) -> PipelineLimits {
        pipeline.limits()
    }

    fn residency_set(&self, label: &str) -> Option<ObjcResidencySet> {
        if !available!(macos = 15.0, ios = 18.0, tvos = 18.0, visionos = 2.0) {
            return None;
        }
        let descriptor = MTLResidencySetDescriptor::new();
        descriptor.setLabel(Some(&NSString::from_str(label)));
        let set = self.device.newResidencySetWithDescriptor_error(&descriptor).ok()?;
        self.queue.addResidencySet(&set);
        Some(ObjcResidencySet(set))
    }

    fn add_resident(&self, set: &ObjcResidencySet, buffer: &ObjcBuffer) {
        set.0.addAllocation(ProtocolObject::from_ref(buffer.object()));
    }

    fn remove_resident(&self, set: &ObjcResidencySet, buffer: &ObjcBuffer) {
        set.0.removeAllocation(ProtocolObject::from_ref(buffer.object()));
    }

    fn commit_residency(&self, set: &ObjcResidencySet) {
        set.0.commit();
        set.0.requestResidency();
    }

    fn command_buffer(&self, label: &str) -> Option<ObjcCommandBuffer> {
        self.command_buffer_that(label, true)
    }

    unsafe fn unretained_command_buffer(&self, label: &str) -> Option<ObjcCommandBuffer> {
        // The caller keeps what is bound alive.
        self.command_buffer_that(label, false)
    }
}

impl Objc {
    fn command_buffer_that(&self, label: &str, retains: bool) -> Option<ObjcCommandBuffer> {
        let descriptor = MTLCommandBufferDescriptor::new();
        descriptor.setRetainedReferences(retains);
        descriptor.setErrorOptions(MTLCommandBufferErrorOption::EncoderExecutionStatus);
        let command_buffer = self.queue.commandBufferWithDescriptor(&descriptor)?;
        Some(ObjcCommandBuffer::new(command_buffer, label))
    }
}
