//! What is asked of Metal: one method a call, safe to use, with nothing decided in it. Everything that is decided (modes,
//! staging, barriers, residency, errors) is above, so that it is the same code over Apple's Metal
//! (`objc`) and over the double that records the calls.
//!
//! Methods that are given a range panic if it does not lie in the buffer: the caller has checked it.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use marlin_backend::HostBytes;
use marlin_kernels::signature::ScalarType;

/// What Metal says of a device.
#[derive(Clone, Debug)]
pub struct Description {
    /// `MTLDevice.name`.
    pub name: String,
    /// The highest Apple GPU family that it supports, 7 for M1; `None` for other makers' GPUs.
    pub apple_family: Option<u32>,
    /// `hasUnifiedMemory`.
    pub unified: bool,
    /// `recommendedMaxWorkingSetSize`.
    pub working_set_bytes: u64,
    /// `maxBufferLength`.
    pub max_buffer_bytes: u64,
    /// `maxThreadsPerThreadgroup` along x.
    pub max_threads: u32,
    /// `maxThreadgroupMemoryLength`.
    pub threadgroup_bytes: u32,
    /// GPU cores, as the I/O registry has them.
    pub cores: Option<u32>,
    /// The system's page size.
    pub page_bytes: usize,
    /// The operating system's version.
    pub system: String,
}

/// `MTLStorageMode`, as far as buffers of ours have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferMode {
    /// `MTLStorageModePrivate`.
    Private,
    /// `MTLStorageModeManaged`; only where memory is not unified.
    Managed,
    /// `MTLStorageModeShared`.
    Shared,
}

/// A function and what it is specialised to.
#[derive(Clone, Debug)]
pub struct PipelineRequest<'a> {
    /// The function's name in the library.
    pub function: &'a str,
    /// Values of its function constants, by index.
    pub constants: &'a [(ScalarType, u32)],
    /// Threads of a threadgroup, where they are known: the compiler then keeps to registers that allow them.
    pub threads: Option<u32>,
}

/// What a pipeline can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipelineLimits {
    /// `maxTotalThreadsPerThreadgroup`.
    pub max_threads: u32,
    /// `threadExecutionWidth`.
    pub simd_width: u32,
    /// `staticThreadgroupMemoryLength`.
    pub threadgroup_bytes: u32,
}

/// How far a command buffer is.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// Not done.
    Pending,
    /// Done; how long the device took, where it says.
    Completed(Option<Duration>),
    /// Stopped.
    Failed(Failure),
}

/// Why a command buffer stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// `MTLCommandBufferError`.
    pub code: isize,
    /// `localizedDescription`.
    pub message: String,
    /// Its encoders, where Metal tells of them.
    pub encoders: Vec<EncoderFailure>,
}

/// `MTLCommandBufferEncoderInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderFailure {
    /// The encoder's label.
    pub label: String,
    /// `MTLCommandEncoderErrorState`, in words.
    pub state: &'static str,
    /// The signposts that were put between its commands.
    pub signposts: Vec<String>,
}

/// A device and its one command queue. All handles may be used from any thread.
pub trait Api: Send + Sync + Sized + 'static {
    /// `MTLBuffer`.
    type Buffer: Clone + Send + Sync;
    /// `MTLLibrary`.
    type Library: Send + Sync;
    /// `MTLComputePipelineState`.
    type Pipeline: Send + Sync;
    /// `MTLResidencySet`.
    type ResidencySet: Send + Sync;
    /// `MTLCommandBuffer`.
    type CommandBuffer: CommandBuffer<Self>;

    /// What Metal says of the device.
    fn describe(&self) -> Description;

    /// `currentAllocatedSize`.
    fn allocated_bytes(&self) -> u64;

    /// Runs `work` in an autorelease pool: what Metal hands out for a moment is gone afterwards.
    fn pooled<R>(&self, work: impl FnOnce() -> R) -> R;

    /// `newBufferWithLength:options:`; `None` without memory.
    fn buffer(&self, label: &str, bytes: usize, mode: BufferMode) -> Option<Self::Buffer>;

    /// `newBufferWithBytesNoCopy:length:options:deallocator:`, shared and to be read only; keeps a share of `bytes` as long
    /// as Metal has the buffer. `None` where Metal refuses.
    fn buffer_no_copy(&self, label: &str, bytes: HostBytes) -> Option<Self::Buffer>;

    /// Copies to `contents`. Not for private memory, and not while a command that uses the bytes runs.
    fn write(&self, buffer: &Self::Buffer, offset: usize, bytes: &[u8]);

    /// Copies from `contents`. As for `write`.
    fn read(&self, buffer: &Self::Buffer, offset: usize, out: &mut [u8]);

    /// `didModifyRange:`; managed memory only.
    fn did_modify(&self, buffer: &Self::Buffer, range: Range<usize>);

    /// `newLibraryWithSource:options:error:`, language version 3.0, without fast mathematics; the error is the
    /// compiler's log.
    fn library(&self, label: &str, source: &str) -> Result<Self::Library, String>;

    /// `newFunctionWithName:constantValues:error:` and `newComputePipelineStateWithDescriptor:…`. Where `keep` says so the
    /// machine code is written to that file as an `MTLBinaryArchive`; that this fails is no error.
    fn pipeline(
        &self,
        library: &Self::Library,
        request: &PipelineRequest<'_>,
        keep: Option<&Path>,
    ) -> Result<Self::Pipeline, String>;

    /// The same from an archive; an error if that does not have it.
    fn archived_pipeline(
        &self,
        library: &Self::Library,
        request: &PipelineRequest<'_>,
        archive: &Path,
    ) -> Result<Self::Pipeline, String>;

    /// What a pipeline can do.
    fn limits(&self, pipeline: &Self::Pipeline) -> PipelineLimits;

    /// `newResidencySetWithDescriptor:error:`, added to the queue; `None` where the system has none (before macOS 15).
    fn residency_set(&self, label: &str) -> Option<Self::ResidencySet>;

    /// `addAllocation:`.
    fn add_resident(&self, set: &Self::ResidencySet, buffer: &Self::Buffer);

    /// `removeAllocation:`.
    fn remove_resident(&self, set: &Self::ResidencySet, buffer: &Self::Buffer);

    /// `commit` and `requestResidency`.
    fn commit_residency(&self, set: &Self::ResidencySet);

    /// `commandBufferWithDescriptor:`, with the encoders' status in errors; keeps what is bound in it alive. `None` where
    /// the queue gives none.
    fn command_buffer(&self, label: &str) -> Option<Self::CommandBuffer>;

    /// The same without keeping anything alive, which costs less for each thing that is bound.
    ///
    /// # Safety
    /// Once it is committed, everything that is bound in it is alive until it is done.
    unsafe fn unretained_command_buffer(&self, label: &str) -> Option<Self::CommandBuffer>;
}

/// Commands on their way to the device.
pub trait CommandBuffer<A: Api>: Clone + Send + Sync {
    /// `MTLComputeCommandEncoder`.
    type Compute: ComputeEncoder<A>;
    /// `MTLBlitCommandEncoder`.
    type Blit: BlitEncoder<A>;

    /// `computeCommandEncoderWithDispatchType:`, concurrent.
    fn compute(&self, label: &str) -> Option<Self::Compute>;

    /// `blitCommandEncoder`.
    fn blit(&self, label: &str) -> Option<Self::Blit>;

    /// `commit`.
    fn commit(&self);

    /// `waitUntilCompleted`.
    fn wait(&self);

    /// `status`, and what belongs to it.
    fn status(&self) -> Status;
}

/// Dispatches, which overlap except for barriers. Bindings stay until they are set again.
pub trait ComputeEncoder<A: Api> {
    /// `setComputePipelineState:`.
    fn set_pipeline(&mut self, pipeline: &A::Pipeline);

    /// `setBuffer:offset:atIndex:`.
    fn set_buffer(&mut self, index: usize, buffer: &A::Buffer, offset: usize);

    /// `setBytes:length:atIndex:`.
    fn set_bytes(&mut self, index: usize, bytes: &[u8]);

    /// `setThreadgroupMemoryLength:atIndex:`.
    fn set_threadgroup_memory(&mut self, index: usize, bytes: usize);

    /// `memoryBarrierWithResources:count:`.
    fn barrier(&mut self, buffers: &[A::Buffer]);

    /// `insertDebugSignpost:`.
    fn signpost(&mut self, text: &str);

    /// `dispatchThreadgroups:threadsPerThreadgroup:`.
    fn dispatch(&mut self, threadgroups: [u32; 3], threads: [u32; 3]);

    /// `endEncoding`.
    fn end(self);
}

/// Copies and fills.
pub trait BlitEncoder<A: Api> {
    /// `copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:`.
    fn copy(
        &mut self,
        source: &A::Buffer,
        source_offset: usize,
        destination: &A::Buffer,
        destination_offset: usize,
        bytes: usize,
    );

    /// `fillBuffer:range:value:`.
    fn fill(&mut self, buffer: &A::Buffer, range: Range<usize>, value: u8);

    /// `endEncoding`.
    fn end(self);
}
