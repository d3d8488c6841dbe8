//! A double of Metal: records what it is asked, moves bytes as Metal would, and runs no kernel. On any system.
//!
//! What a command buffer does happens when it is committed; it counts as under way until it is waited for.

mod call;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use marlin_backend::HostBytes;

use crate::metal::api::{
    Api, BlitEncoder, BufferMode, CommandBuffer, ComputeEncoder, Description, Failure,
    PipelineLimits, PipelineRequest, Status,
};

pub use call::Call;

/// What the double is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it says of itself.
    pub description: Description,
    /// Whether the system has residency sets.
    pub residency_sets: bool,
    /// Why a library does not compile, by kernel file.
    pub broken: BTreeMap<String, String>,
    /// What pipelines can do.
    pub limits: PipelineLimits,
}

impl Default for Options {
    /// An M1 with 16 GB on macOS 15.
    fn default() -> Self {
        Self {
            description: Description {
                name: "Apple M1".to_owned(),
                apple_family: Some(7),
                unified: true,
                working_set_bytes: 11_453_251_584,
                max_buffer_bytes: 8_589_934_592,
                max_threads: 1024,
                threadgroup_bytes: 32768,
                cores: Some(8),
                page_bytes: 16384,
                system: "Version 15.0".to_owned(),
            },
            residency_sets: true,
            broken: BTreeMap::new(),
            limits: PipelineLimits { max_threads: 1024, simd_width: 32, threadgroup_bytes: 0 },
        }
    }
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    allocated: u64,
    /// What becomes of the next command buffers that are committed.
    failures: Vec<Failure>,
}

/// The double.
#[derive(Clone)]
pub struct Double {
    options: Arc<Options>,
    state: Arc<Mutex<State>>,
}

impl Double {
    /// A device without a past.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), state: Arc::default() }
    }

    /// The calls since they were last taken.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    /// The next command buffer that is committed, and has no failure yet, ends with `failure`.
    pub fn fail_next(&self, failure: Failure) {
        self.state().failures.push(failure);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, call: Call) {
        self.state().calls.push(call);
    }

    fn new_command_buffer(&self, label: &str, retained: bool) -> DoubleCommandBuffer {
        self.call(Call::NewCommandBuffer { label: label.to_owned(), retained });
        DoubleCommandBuffer(Arc::new(CommandBufferState {
            double: self.clone(),
            label: label.to_owned(),
            retained,
            inner: Mutex::new(CommandBufferInner {
                work: Vec::new(),
                used: Vec::new(),
                status: Status::Pending,
                committed: false,
                failure: None,
            }),
        }))
    }
}

/// Bytes on the device, and on managed memory the host's copy.
enum Contents {
    Own { device: Vec<u8>, host: Option<Vec<u8>> },
    NoCopy(HostBytes),
}

struct BufferState {
    double: Double,
    label: String,
    bytes: usize,
    mode: BufferMode,
    contents: Mutex<Contents>,
}

impl BufferState {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device_bytes(&self, range: Range<usize>) -> Vec<u8> {
        match &*self.contents() {
            Contents::Own { device, .. } => device[range].to_vec(),
            Contents::NoCopy(bytes) => bytes[range].to_vec(),
        }
    }

    fn set_device_bytes(&self, offset: usize, bytes: &[u8]) {
        match &mut *self.contents() {
            Contents::Own { device, .. } => {
                device[offset..][..bytes.len()].copy_from_slice(bytes);
            }
            Contents::NoCopy(_) => panic!("\"{}\" is read-only and was written", self.label),
        }
    }
}

impl Drop for BufferState {
    fn drop(&mut self) {
        let mut state = self.double.state();
        state.allocated -= self.bytes as u64;
        state.calls.push(Call::FreeBuffer { label: self.label.clone() });
    }
}

/// `MTLBuffer`.
#[derive(Clone)]
pub struct DoubleBuffer(Arc<BufferState>);

/// `MTLLibrary`.
pub struct DoubleLibrary {
    source: String,
}

/// `MTLComputePipelineState`.
pub struct DoublePipeline {
    function: String,
}

/// A copy or fill, to be done when the command buffer is committed.
enum Work {
    Copy { from: DoubleBuffer, range: Range<usize>, to: DoubleBuffer, offset: usize },
    Fill { buffer: DoubleBuffer, range: Range<usize>, value: u8 },
}

struct CommandBufferState {
    double: Double,
    label: String,
    retained: bool,
    inner: Mutex<CommandBufferInner>,
}

struct CommandBufferInner {
    work: Vec<Work>,
    used: Vec<(String, Weak<BufferState>)>,
    status: Status,
    committed: bool,
    failure: Option<Failure>,
}

/// `MTLCommandBuffer`.
#[derive(Clone)]
pub struct DoubleCommandBuffer(Arc<CommandBufferState>);

impl DoubleCommandBuffer {
    fn inner(&self) -> MutexGuard<'_, CommandBufferInner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self, buffer: &DoubleBuffer) {
        let mut inner = self.inner();
        inner.used.push((buffer.0.label.clone(), Arc::downgrade(&buffer.0)));
    }
}

/// `MTLComputeCommandEncoder` or `MTLBlitCommandEncoder`.
pub struct DoubleEncoder(DoubleCommandBuffer);

impl Api for Double {
    type Buffer = DoubleBuffer;
    type Library = DoubleLibrary;
    type Pipeline = DoublePipeline;
    type ResidencySet = ();
    type CommandBuffer = DoubleCommandBuffer;

    fn describe(&self) -> Description {
        self.options.description.clone()
    }

    fn allocated_bytes(&self) -> u64 {
        self.state().allocated
    }

    fn pooled<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }

    fn buffer(&self, label: &str, bytes: usize, mode: BufferMode) -> Option<DoubleBuffer> {
        let mut state = self.state();
        let total = state.allocated.checked_add(bytes as u64)?;
        if total > self.options.description.working_set_bytes {
            return None;
        }
        state.allocated = total;
        state.calls.push(Call::NewBuffer { label: label.to_owned(), bytes, mode });
        // What fresh memory holds is nobody's business: half, bf16 and float read this as NaN.
        let fresh = || vec![0xff; bytes];
        let host = (mode == BufferMode::Managed).then(fresh);
        Some(DoubleBuffer(Arc::new(BufferState {
            double: self.clone(),
            label: label.to_owned(),
            bytes,
            mode,
            contents: Mutex::new(Contents::Own { device: fresh(), host }),
        })))
    }

    fn buffer_no_copy(&self, label: &str, bytes: HostBytes) -> Option<DoubleBuffer> {
        self.call(Call::NewBufferNoCopy { label: label.to_owned(), bytes: bytes.len() });
        Some(DoubleBuffer(Arc::new(BufferState {
            double: self.clone(),
            label: label.to_owned(),
            bytes: 0,
            mode: BufferMode::Shared,
            contents: Mutex::new(Contents::NoCopy(bytes)),
        })))
    }

    fn write(&self, buffer: &DoubleBuffer, offset: usize, bytes: &[u8]) {
        assert_ne!(buffer.0.mode, BufferMode::Private, "\"{}\" has no contents", buffer.0.label);
        match &mut *buffer.0.contents() {
            Contents::Own { device, host } => {
                host.as_mut().unwrap_or(device)[offset..][..bytes.len()].copy_from_slice(bytes);
            }
            Contents::NoCopy(_) => panic!("\"{}\" is read-only and was written", buffer.0.label),
        }
    }

    fn read(&self, buffer: &DoubleBuffer, offset: usize, out: &mut [u8]) {
        assert_ne!(buffer.0.mode, BufferMode::Private, "\"{}\" has no contents", buffer.0.label);
        let contents = buffer.0.contents();
        let from: &[u8] = match &*contents {
            Contents::Own { device, host } => host.as_ref().unwrap_or(device),
            Contents::NoCopy(bytes) => bytes,
        };
        out.copy_from_slice(&from[offset..][..out.len()]);
    }

    fn did_modify(&self, buffer: &DoubleBuffer, range: Range<usize>) {
        let name = buffer.0.label.clone();
        assert_eq!(buffer.0.mode, BufferMode::Managed, "\"{name}\" is not managed");
        if let Contents::Own { device, host: Some(host) } = &mut *buffer.0.contents() {
            device[range.clone()].copy_from_slice(&host[range.clone()]);
        }
        self.call(Call::DidModify { buffer: name, range });
    }

    fn library(&self, label: &str, source: &str) -> Result<DoubleLibrary, String> {
        self.call(Call::NewLibrary { file: label.to_owned() });
        match self.options.broken.get(label) {
            Some(log) => Err(log.clone()),
            None => Ok(DoubleLibrary { source: source.to_owned() }),
        }
    }

    fn pipeline(
        &self,
        library: &DoubleLibrary,
        request: &PipelineRequest<'_>,
        keep: Option<&Path>,
    ) -> Result<DoublePipeline, String> {
        let function = request.function.to_owned();
        // A kernel of a file with type parameters is renamed by a macro in front of it.
        let name = format!("kernel void {function}(");
        let renamed = library.source.lines().any(|line| {
            line.starts_with("#define ") && line.split_whitespace().nth(2) == Some(&function)
        });
        if !library.source.contains(&name) && !renamed {
            return Err(format!("the library has no function {function}"));
        }
        self.call(Call::NewPipeline {
            function: function.clone(),
            threads: request.threads,
            from: None,
        });
        if let Some(path) = keep {
            // That it cannot be kept is no error.
            let _ = std::fs::write(path, format!("machine code of {function}"));
        }
        Ok(DoublePipeline { function })
    }

    fn archived_pipeline(
        &self,
        _library: &DoubleLibrary,
        request: &PipelineRequest<'_>,
        archive: &Path,
    ) -> Result<DoublePipeline, String> {
        let function = request.function.to_owned();
        let contents = std::fs::read_to_string(archive).map_err(|e| e.to_string())?;
        if contents != format!("machine code of {function}") {
            return Err(format!("the archive has no {function}"));
        }
        self.call(Call::NewPipeline {
            function: function.clone(),
            threads: request.threads,
            from: Some(archive.to_owned()),
        });
        Ok(DoublePipeline { function })
    }

    fn limits(&self, _pipeline: &DoublePipeline) -> PipelineLimits {
        self.options.limits
    }

    fn residency_set(&self, _label: &str) -> Option<()> {
        self.options.residency_sets.then_some(())
    }

    fn add_resident(&self, _set: &(), buffer: &DoubleBuffer) {
        self.call(Call::AddResident { buffer: buffer.0.label.clone() });
    }

    fn remove_resident(&self, _set: &(), buffer: &DoubleBuffer) {
        self.call(Call::RemoveResident { buffer: buffer.0.label.clone() });
    }

    fn commit_residency(&self, _set: &()) {
        self.call(Call::CommitResidency);
    }

    fn command_buffer(&self, label: &str) -> Option<DoubleCommandBuffer> {
        Some(self.new_command_buffer(label, true))
    }

    // SAFETY: nothing rests on what the caller promises; that it is kept is checked instead.
    unsafe fn unretained_command_buffer(&self, label: &str) -> Option<DoubleCommandBuffer> {
        Some(self.new_command_buffer(label, false))
    }
}

impl CommandBuffer<Double> for DoubleCommandBuffer {
    type Compute = DoubleEncoder;
    type Blit = DoubleEncoder;

    fn compute(&self, label: &str) -> Option<DoubleEncoder> {
        self.0.double.call(Call::ComputeEncoder { label: label.to_owned() });
        Some(DoubleEncoder(self.clone()))
    }

    fn blit(&self, label: &str) -> Option<DoubleEncoder> {
        self.0.double.call(Call::BlitEncoder { label: label.to_owned() });
        Some(DoubleEncoder(self.clone()))
    }

    fn commit(&self) {
        let failure = {
            let mut state = self.0.double.state();
            state.calls.push(Call::Commit { label: self.0.label.clone() });
            if state.failures.is_empty() { None } else { Some(state.failures.remove(0)) }
        };
        let mut inner = self.inner();
        inner.committed = true;
        if failure.is_none() {
            for work in std::mem::take(&mut inner.work) {
                work.run();
            }
        }
        inner.failure = failure;
    }

    fn wait(&self) {
        let mut inner = self.inner();
        assert!(inner.committed, "command buffer {} was never committed", self.0.label);
        let mut calls = vec![Call::Wait { label: self.0.label.clone() }];
        if !self.0.retained && inner.status == Status::Pending {
            let freed = inner.used.iter().filter(|(_, buffer)| buffer.strong_count() == 0);
            calls.extend(freed.map(|(label, _)| Call::UsedAfterFree { buffer: label.clone() }));
        }
        inner.status = match inner.failure.clone() {
            Some(failure) => Status::Failed(failure),
            None => Status::Completed(Some(Duration::from_micros(1))),
        };
        drop(inner);
        self.0.double.state().calls.extend(calls);
    }

    fn status(&self) -> Status {
        self.inner().status.clone()
    }
}

impl Work {
    fn run(self) {
        match self {
            Self::Copy { from, range, to, offset } => {
                to.0.set_device_bytes(offset, &from.0.device_bytes(range));
            }
            Self::Fill { buffer, range, value } => {
                buffer.0.set_device_bytes(range.start, &vec![value; range.len()]);
            }
        }
    }
}

impl DoubleEncoder {
    fn call(&self, call: Call) {
        self.0.0.double.call(call);
    }
}

impl ComputeEncoder<Double> for DoubleEncoder {
    fn set_pipeline(&mut self, pipeline: &DoublePipeline) {
        self.call(Call::SetPipeline { function: pipeline.function.clone() });
    }

    fn set_buffer(&mut self, index: usize, buffer: &DoubleBuffer, offset: usize) {
        self.0.uses(buffer);
        self.call(Call::SetBuffer { index, buffer: buffer.0.label.clone(), offset });
    }

    fn set_bytes(&mut self, index: usize, bytes: &[u8]) {
        self.call(Call::SetBytes { index, bytes: bytes.len() });
    }

    fn set_threadgroup_memory(&mut self, index: usize, bytes: usize) {
        self.call(Call::SetThreadgroupMemory { index, bytes });
    }

    fn barrier(&mut self, buffers: &[DoubleBuffer]) {
        let buffers = buffers.iter().map(|buffer| buffer.0.label.clone()).collect();
        self.call(Call::Barrier { buffers });
    }

    fn signpost(&mut self, text: &str) {
        self.call(Call::Signpost { text: text.to_owned() });
    }

    fn dispatch(&mut self, threadgroups: [u32; 3], threads: [u32; 3]) {
        self.call(Call::Dispatch { threadgroups, threads });
    }

    fn end(self) {
        self.call(Call::EndEncoding);
    }
}

impl BlitEncoder<Double> for DoubleEncoder {
    fn copy(
        &mut self,
        source: &DoubleBuffer,
        source_offset: usize,
        destination: &DoubleBuffer,
        destination_offset: usize,
        bytes: usize,
    ) {
        assert!(
            [source_offset, destination_offset, bytes].iter().all(|n| n.is_multiple_of(4)),
            "a blit of {bytes} bytes from {source_offset} to {destination_offset} is not in words"
        );
        self.0.uses(source);
        self.0.uses(destination);
        let range = source_offset..source_offset + bytes;
        let (from, to) = (source.clone(), destination.clone());
        self.0.inner().work.push(Work::Copy { from, range, to, offset: destination_offset });
        self.call(Call::Copy {
            from: source.0.label.clone(),
            from_offset: source_offset,
            to: destination.0.label.clone(),
            to_offset: destination_offset,
            bytes,
        });
    }

    fn fill(&mut self, buffer: &DoubleBuffer, range: Range<usize>, value: u8) {
        assert!(range.start.is_multiple_of(4) && range.end.is_multiple_of(4), "{range:?}");
        self.0.uses(buffer);
        let work = Work::Fill { buffer: buffer.clone(), range: range.clone(), value };
        self.0.inner().work.push(work);
        self.call(Call::Fill { buffer: buffer.0.label.clone(), range, value });
    }

    fn end(self) {
        self.call(Call::EndEncoding);
    }
}
