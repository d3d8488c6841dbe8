//! The interface of a device.

use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use marlin_backend::HostBytes;
use marlin_kernels::{Allocation, BindError, Element, PipelineKey, View, ViewMut};
use marlin_placement::{AccessPattern, Device as Memory, Ledger};

use crate::{CommandList, GpuError};

/// What is known of a device.
#[derive(Clone, Debug)]
pub struct DeviceProperties {
    /// Its name, as its maker gives it.
    pub name: String,
    /// `cuda`, `metal`, `emulated`.
    pub kind: &'static str,
    /// The architecture, as its compiler calls it: `sm_90a`, `apple7`, `host`.
    pub architecture: String,
    /// Whether it shares the host's memory.
    pub memory: Memory,
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// Threads in a SIMD-group.
    pub simd_width: u32,
    /// The most threads in a threadgroup.
    pub max_threads: u32,
    /// The most bytes of threadgroup memory.
    pub threadgroup_bytes: u32,
    /// Units that run threadgroups: streaming multiprocessors, GPU cores.
    pub compute_units: u32,
    /// What host memory must be aligned to, address and length, to be adopted without a copy.
    pub adoption_alignment: usize,
    /// The most bytes of one allocation.
    pub max_buffer_bytes: u64,
}

impl DeviceProperties {
    /// Whether SIMD-groups multiply in teams whose matrix units read threadgroup memory themselves: `wgmma`, which
    /// only Hopper has.
    pub fn multiplies_in_teams(&self) -> bool {
        self.kind == "cuda" && self.architecture.starts_with("sm_90")
    }

    /// Whether threadgroup memory is filled from device memory while threads do something else, and there is enough of it to hold
    /// what is on its way.
    pub fn copies_asynchronously(&self) -> bool {
        self.kind == "cuda" && self.threadgroup_bytes >= 128 << 10
    }
}

/// A device. Memory is placed by the policy from its access pattern; nobody picks a mode.
///
/// The modes mean what `docs/kernels.md` says: [`write`](Device::write) to `Managed` memory
/// reaches kernels only after [`did_modify`](Device::did_modify), `Private` memory is
/// filled by [`upload`](Device::upload), and the host may touch `Shared` memory only
/// while no submission uses it.
pub trait Device: Send + Sync {
    /// What is known of it.
    fn properties(&self) -> &DeviceProperties;

    /// The book that it keeps.
    fn ledger(&self) -> &Arc<Ledger>;

    /// Bytes of its memory that are free. By default all of it: a device that shares the host's pages in what is used.
    ///
    /// # Errors
    /// The device failed.
    fn free_bytes(&self) -> Result<u64, GpuError> {
        Ok(self.properties().total_bytes)
    }

    /// `bytes` bytes of memory, uninitialised, placed by the policy for `pattern`; `site` is the line
    /// that asked. Kernels may write it if the pattern says that the device does.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate_at(
        &self,
        label: &str,
        bytes: u64,
        pattern: AccessPattern,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError>;

    /// Host memory seen by the device without a copy, read-only. It is kept alive.
    ///
    /// # Errors
    /// [`GpuError::NotAdoptable`] where the device cannot do that, with what was expected.
    fn adopt_at(
        &self,
        label: &str,
        bytes: HostBytes,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError>;

    /// The host writes `Managed` or `Shared` memory.
    ///
    /// # Errors
    /// [`GpuError::HostAccess`] for `Private` memory, [`GpuError::InFlight`], out of bounds.
    fn write(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError>;

    /// Says that the host has written bytes of `Managed` memory. Submissions made after it see them.
    ///
    /// # Errors
    /// Out of bounds.
    fn did_modify(
        &self,
        allocation: &Arc<dyn Allocation>,
        range: Range<u64>,
    ) -> Result<(), GpuError>;

    /// The host reads `Shared` memory (`Managed`: its own mirror).
    ///
    /// # Errors
    /// As for [`write`](Device::write).
    fn read(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError>;

    /// Fills part of `Private` memory from the host, through staging memory: one counted copy.
    /// Returns when `bytes` may be reused.
    ///
    /// # Errors
    /// Out of bounds, or the device failed.
    fn upload(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError>;

    /// Reads any memory through staging memory, for tests and diagnosis: one counted copy. Waits for
    /// all submissions.
    ///
    /// # Errors
    /// Out of bounds, or the device failed.
    fn download(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError>;

    /// Compiles a pipeline now, so that the first dispatch does not.
    ///
    /// # Errors
    /// [`GpuError::Compile`].
    fn compile(&self, pipeline: &PipelineKey) -> Result<(), GpuError>;

    /// Prepares a command list to be submitted any number of times; pipelines are compiled, arguments
    /// checked.
    ///
    /// # Errors
    /// [`GpuError::Compile`], [`GpuError::Launch`], [`GpuError::ForeignAllocation`].
    fn record(&self, commands: CommandList) -> Result<Arc<dyn Recording>, GpuError>;

    /// Starts a recording; submissions run one after the other.
    ///
    /// # Errors
    /// The device failed.
    fn submit(&self, recording: &Arc<dyn Recording>) -> Result<Box<dyn Submission>, GpuError>;
}

impl dyn Device + '_ {
    /// `len` elements of memory placed by the policy for `pattern`, uninitialised.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    #[track_caller]
    pub fn allocate<T: Element>(
        &self,
        label: &str,
        len: usize,
        pattern: AccessPattern,
    ) -> Result<Buffer<T>, GpuError> {
        let bytes = len as u64 * size_of::<T>() as u64;
        let allocation = self.allocate_at(label, bytes, pattern, Location::caller())?;
        Ok(Buffer { allocation, offset: 0, len, element: std::marker::PhantomData })
    }

    /// Memory that only the device uses, filled with `values` once.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], or the device failed.
    #[track_caller]
    pub fn upload_new<T: Element>(&self, label: &str, values: &[T]) -> Result<Buffer<T>, GpuError> {
        self.upload_bytes(label, bytemuck::cast_slice(values))
    }

    /// As `upload_new`, from bytes at any address; a rest shorter than an
    /// element is left out.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`], or the device failed.
    #[track_caller]
    pub fn upload_bytes<T: Element>(
        &self,
        label: &str,
        bytes: &[u8],
    ) -> Result<Buffer<T>, GpuError> {
        let pattern = AccessPattern::DEVICE_ONLY.with_initial_data();
        let len = bytes.len() / size_of::<T>();
        let bytes = &bytes[..len * size_of::<T>()];
        let allocation =
            self.allocate_at(label, bytes.len() as u64, pattern, Location::caller())?;
        self.upload(&allocation, 0, bytes)?;
        Ok(Buffer { allocation, offset: 0, len, element: std::marker::PhantomData })
    }

    /// The buffer's contents, through [`Device::download`].
    ///
    /// # Errors
    /// The device failed.
    pub fn download_all<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>, GpuError> {
        let mut out = vec![T::zeroed(); buffer.len];
        self.download(&buffer.allocation, buffer.offset, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// Records, submits and waits.
    ///
    /// # Errors
    /// As [`Device::record`] and [`Submission::wait`].
    pub fn run(&self, commands: CommandList) -> Result<Completed, GpuError> {
        let recording = self.record(commands)?;
        self.submit(&recording)?.wait()
    }
}

/// Elements in device memory: an allocation, or a range of one.
#[derive(Clone, Debug)]
pub struct Buffer<T> {
    allocation: Arc<dyn Allocation>,
    /// Byte of the allocation at which they begin.
    offset: u64,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// `len` elements of `allocation` from byte `offset`: memory that others have a share in.
    ///
    /// # Errors
    /// Past the allocation's end, or not aligned to the element.
    pub fn part_of(
        allocation: Arc<dyn Allocation>,
        offset: u64,
        len: usize,
    ) -> Result<Self, BindError> {
        View::<T>::new(&allocation, offset, len)?;
        Ok(Self { allocation, offset, len, element: std::marker::PhantomData })
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty, reason = "a buffer is bound, not iterated")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The memory, which begins [`offset`](Self::offset) bytes before the elements.
    pub fn allocation(&self) -> &Arc<dyn Allocation> {
        &self.allocation
    }

    /// Byte of the allocation at which the elements begin: 0 unless it is shared.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// All elements, to be read.
    pub fn view(&self) -> View<'_, T> {
        View::new(&self.allocation, self.offset, self.len)
            .unwrap_or_else(|_| unreachable!("the buffer was made with this length"))
    }

    /// Elements `range`, to be read.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Result<View<'_, T>, BindError> {
        View::new(&self.allocation, self.part(&range)?, range.end.saturating_sub(range.start))
    }

    /// All elements, to be written.
    ///
    /// # Errors
    /// [`BindError::ReadOnly`].
    pub fn view_mut(&self) -> Result<ViewMut<'_, T>, BindError> {
        ViewMut::new(&self.allocation, self.offset, self.len)
    }

    /// Elements `range`, to be written.
    ///
    /// # Errors
    /// Out of bounds, or [`BindError::ReadOnly`].
    pub fn slice_mut(&self, range: Range<usize>) -> Result<ViewMut<'_, T>, BindError> {
        ViewMut::new(&self.allocation, self.part(&range)?, range.end.saturating_sub(range.start))
    }

    /// Where elements `range` begin in the allocation, if they are these.
    fn part(&self, range: &Range<usize>) -> Result<u64, BindError> {
        let width = size_of::<T>() as u64;
        if range.end > self.len {
            return Err(BindError::OutOfBounds {
                label: self.allocation.label().to_owned(),
                bytes: self.len as u64 * width,
                start: range.start as u64 * width,
                end: range.end as u64 * width,
            });
        }
        Ok(self.offset + range.start as u64 * width)
    }
}

/// A prepared command list; devices find their own type again through `Any`.
pub trait Recording: std::any::Any + Send + Sync {
    /// The command list's label.
    fn label(&self) -> &str;
}

/// A command list that was started.
pub trait Submission: Send {
    /// Waits until it is done. Dropping a submission waits as well, and forgets errors.
    ///
    /// # Errors
    /// What went wrong on the device, with the kernel's name.
    fn wait(self: Box<Self>) -> Result<Completed, GpuError>;

    /// Whether it is done, without waiting.
    fn is_done(&self) -> bool;
}

/// A command list that has run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Completed {
    /// From the first command's start to the last one's end on the device, where it says.
    pub gpu_time: Option<Duration>,
}
