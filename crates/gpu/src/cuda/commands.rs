//! Command lists as CUDA graphs.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{Allocation, Argument, BindError, Dispatch, KernelParameter};
use marlin_placement::{AccessTally, Accesses, Direction, Ledger, Tally};

use super::buffer::{CudaAllocation, Memory, lock};
use super::context::Context;
use super::driver::{
    AddDependencies, CopyEnd, CopyParams, EdgeData, Handle, KernelNodeParams, MemsetNodeParams,
    status,
};
use super::pipeline::{Pipeline, Variant};
use crate::device::{Completed, DeviceProperties, Recording, Submission};
use crate::{Command, CommandList, GpuError, Region};

/// The largest grid along y and z (CUDA C++ Programming Guide, "Technical specifications per
/// compute capability").
const MAX_GRID_YZ: u32 = 65_535;
/// The largest grid along x.
const MAX_GRID_X: u32 = i32::MAX.unsigned_abs();

/// Whether any memory that the dispatch writes is bound a second time.
fn is_aliased(dispatch: &Dispatch) -> bool {
    let ranges: Vec<_> = dispatch
        .arguments
        .iter()
        .filter_map(|argument| match argument {
            Argument::Buffer { allocation, offset, bytes, access } => {
                let address = Arc::as_ptr(allocation).cast::<u8>() as usize;
                Some((address, *offset, offset + bytes, *access != ParameterAccess::In))
            }
            Argument::Absent | Argument::Inline(_) => None,
        })
        .collect();
    ranges.iter().enumerate().any(|(i, a)| {
        ranges[i + 1..].iter().any(|b| (a.3 || b.3) && a.0 == b.0 && a.1 < b.2 && b.1 < a.2)
    })
}

/// What a dispatch's pipeline is compiled for.
pub(super) fn variant(dispatch: &Dispatch) -> Variant {
    Variant { threads: Some(dispatch.grid.threads), aliased: is_aliased(dispatch) }
}

/// Checks what does not need the compiled kernel.
pub(super) fn check_dispatch(
    dispatch: &Dispatch,
    context: &Arc<Context>,
    properties: &DeviceProperties,
) -> Result<(), GpuError> {
    let kernel = dispatch.pipeline.kernel;
    let refuse =
        |reason: String| Err(GpuError::Launch { kernel: dispatch.pipeline.symbol(), reason });
    let threads = dispatch.grid.threads.iter().try_fold(1u32, |n, t| n.checked_mul(*t));
    match threads {
        Some(n) if (1..=properties.max_threads).contains(&n) && dispatch.grid.threads[2] <= 64 => {}
        _ => {
            return refuse(format!(
                "{:?} threads in a threadgroup, expected 1 to {} in all and at most 64 along z",
                dispatch.grid.threads, properties.max_threads
            ));
        }
    }
    let [x, y, z] = dispatch.grid.threadgroups;
    if x > MAX_GRID_X || y > MAX_GRID_YZ || z > MAX_GRID_YZ {
        return refuse(format!(
            "{:?} threadgroups, expected at most {MAX_GRID_X}, {MAX_GRID_YZ}, {MAX_GRID_YZ}",
            dispatch.grid.threadgroups
        ));
    }
    if let Some(width) = kernel.simd_width
        && width != properties.simd_width
    {
        return refuse(format!(
            "it needs {width} threads in a SIMD-group, the device has {}",
            properties.simd_width
        ));
    }
    if dispatch.arguments.len() != kernel.parameters.len() {
        return refuse(format!(
            "{} arguments, expected {}",
            dispatch.arguments.len(),
            kernel.parameters.len()
        ));
    }
    for (parameter, argument) in kernel.parameters.iter().zip(&dispatch.arguments) {
        let name = parameter.name();
        match (parameter, argument) {
            (
                KernelParameter::Buffer { element, access, .. },
                Argument::Buffer { allocation, offset, bytes, access: bound },
            ) => {
                let own = CudaAllocation::of(allocation, context)?;
                own.check_range(*offset, *bytes)?;
                let align = dispatch.pipeline.resolve(*element).bytes() as u64;
                if !offset.is_multiple_of(align) {
                    return refuse(format!(
                        "\"{name}\" begins at byte {offset}, expected a multiple of {align}"
                    ));
                }
                if access != bound {
                    return refuse(format!(
                        "\"{name}\" is bound as {bound:?}, expected {access:?}"
                    ));
                }
                if *access != ParameterAccess::In && !own.writable {
                    return Err(BindError::ReadOnly { label: own.label.clone() }.into());
                }
            }
            (KernelParameter::Buffer { optional: true, .. }, Argument::Absent) => {}
            (KernelParameter::Inline { bytes, .. }, Argument::Inline(given)) => {
                if given.bytes().len() != *bytes {
                    let found = given.bytes().len();
                    return refuse(format!("\"{name}\" has {found} bytes, expected {bytes}"));
                }
            }
            (KernelParameter::Buffer { .. }, _) => {
                return refuse(format!("\"{name}\" is not a buffer"));
            }
            (KernelParameter::Inline { .. }, _) => {
                return refuse(format!("\"{name}\" is not bytes in the command"));
            }
        }
    }
    Ok(())
}

/// A command list as an executable graph.
pub(super) struct CudaRecording {
    context: Arc<Context>,
    label: Arc<str>,
    graph: Graph,
    /// What errors name: the kernels, each once.
    kernels: Vec<String>,
    tallies: Vec<(Tally, u64)>,
    accesses: AccessTally,
    /// Memory that the host must leave alone while a submission runs.
    shared: Vec<Arc<dyn Allocation>>,
    /// Keeps allocations and functions alive.
    _commands: CommandList,
    _pipelines: Vec<Arc<Pipeline>>,
}

impl Recording for CudaRecording {
    fn label(&self) -> &str {
        &self.label
    }
}

/// A graph under construction and then ready to run; destroyed when dropped.
struct Graph {
    context: Arc<Context>,
    graph: Handle,
    executable: Handle,
    last: Option<Last>,
}

/// The node that was added last.
#[derive(Clone, Copy)]
struct Last {
    node: Handle,
    is_kernel: bool,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // The upload of a graph that was never submitted may still be under way.
        if self.context.synchronize().is_err() {
            return;
        }
        // SAFETY: both were made by this context, if they are not null, and no submission runs:
        // each one keeps its recording alive until it is done.
        unsafe {
            if self.executable != Handle::NULL {
                (self.context.driver.graph_exec_destroy)(self.executable);
            }
            if self.graph != Handle::NULL {
                (self.context.driver.graph_destroy)(self.graph);
            }
        }
    }
}

impl Graph {
    fn new(context: &Arc<Context>) -> Result<Self, GpuError> {
        context.enter()?;
        let mut graph = Handle::NULL;
        // SAFETY: the argument points to a handle; the context is current.
        let code = unsafe { (context.driver.graph_create)(&mut graph, 0) };
        context.driver.check("cuGraphCreate", code)?;
        Ok(Self { context: context.clone(), graph, executable: Handle::NULL, last: None })
    }

    /// Adds a node after the last one. `add` gets the new node's place and the nodes before it.
    fn append(
        &mut self,
        call: &'static str,
        is_kernel: bool,
        add: impl FnOnce(*mut Handle, *const Handle, usize) -> i32,
    ) -> Result<(), GpuError> {
        let mut node = Handle::NULL;
        let code = match &self.last {
            Some(last) => add(&mut node, &last.node, 1),
            None => add(&mut node, std::ptr::null(), 0),
        };
        self.context.driver.check(call, code)?;
        self.last = Some(Last { node, is_kernel });
        Ok(())
    }

    /// Adds a kernel that waits by itself for the kernel before it, and may begin earlier.
    fn append_overlapping(
        &mut self,
        add_dependencies: AddDependencies,
        before: Handle,
        add: impl FnOnce(*mut Handle, *const Handle, usize) -> i32,
    ) -> Result<(), GpuError> {
        let mut node = Handle::NULL;
        let driver = self.context.driver;
        driver.check("cuGraphAddKernelNode", add(&mut node, std::ptr::null(), 0))?;
        // SAFETY: both nodes are kernels of this graph; each argument points to one element.
        let code =
            unsafe { add_dependencies(self.graph, &before, &node, &EdgeData::PROGRAMMATIC, 1) };
        driver.check("cuGraphAddDependencies", code)?;
        self.last = Some(Last { node, is_kernel: true });
        Ok(())
    }

    fn dispatch(&mut self, dispatch: &Dispatch, pipeline: &Pipeline) -> Result<(), GpuError> {
        let context = self.context.clone();
        // One place of 8-byte words for all arguments; the driver copies them when the node is made.
        let mut words: Vec<u64> = Vec::new();
        let mut starts = Vec::with_capacity(dispatch.arguments.len());
        for argument in &dispatch.arguments {
            starts.push(words.len());
            match argument {
                Argument::Buffer { allocation, offset, .. } => {
                    words.push(CudaAllocation::of(allocation, &context)?.pointer + offset);
                }
                Argument::Absent => words.push(0),
                Argument::Inline(inline) => {
                    for chunk in inline.bytes().chunks(8) {
                        let mut word = [0; 8];
                        word[..chunk.len()].copy_from_slice(chunk);
                        words.push(u64::from_ne_bytes(word));
                    }
                }
            }
        }
        let base = words.as_mut_ptr();
        let mut parameters: Vec<*mut c_void> =
            starts.iter().map(|start| base.wrapping_add(*start).cast()).collect();
        let node = KernelNodeParams {
            function: pipeline.function,
            grid: dispatch.grid.threadgroups,
            block: dispatch.grid.threads,
            shared_bytes: dispatch.threadgroup_bytes,
            parameters: parameters.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kernel: Handle::NULL,
            context: Handle::NULL,
        };
        let (driver, graph) = (context.driver, self.graph);
        // SAFETY: the parameters match the kernel's signature (checked by `check_dispatch`, and the entry
        // point is generated from the same signature); everything pointed to outlives the call.
        let add = |place, before, count| unsafe {
            (driver.graph_add_kernel)(place, graph, before, count, &node)
        };
        match (self.last, driver.graph_add_dependencies) {
            (Some(Last { node: before, is_kernel: true }), Some(add_dependencies))
                if pipeline.waits_itself =>
            {
                self.append_overlapping(add_dependencies, before, add)
            }
            _ => self.append("cuGraphAddKernelNode", true, add),
        }
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        let node = CopyParams {
            source: CopyEnd::linear(from, bytes),
            destination: CopyEnd::linear(to, bytes),
            width_bytes: bytes,
            height: 1,
            depth: 1,
        };
        let (driver, graph, context) = (self.context.driver, self.graph, self.context.handle());
        // SAFETY: both regions were checked against their allocations, which the recording keeps.
        self.append("cuGraphAddMemcpyNode", false, |place, before, count| unsafe {
            (driver.graph_add_copy)(place, graph, before, count, &node, context)
        })
    }

    fn fill(&mut self, address: u64, bytes: usize, value: u8) -> Result<(), GpuError> {
        let node = MemsetNodeParams {
            destination: address,
            pitch: bytes,
            value: value.into(),
            element_bytes: 1,
            width: bytes,
            height: 1,
        };
        let (driver, graph, context) = (self.context.driver, self.graph, self.context.handle());
        // SAFETY: the region was checked against its allocation, which the recording keeps.
        self.append("cuGraphAddMemsetNode", false, |place, before, count| unsafe {
            (driver.graph_add_fill)(place, graph, before, count, &node, context)
        })
    }

    fn finish(&mut self) -> Result<(), GpuError> {
        let driver = self.context.driver;
        // SAFETY: the first argument points to a handle; the graph is ours.
        let code = unsafe { (driver.graph_instantiate)(&mut self.executable, self.graph, 0) };
        driver.check("cuGraphInstantiateWithFlags", code)?;
        // So that the first submission does not pay for it.
        // SAFETY: graph and stream belong to the current context.
        let code = unsafe { (driver.graph_upload)(self.executable, self.context.stream()) };
        driver.check("cuGraphUpload", code)
    }
}

fn region<'a>(
    region: &'a Region,
    context: &Arc<Context>,
    written: bool,
) -> Result<&'a CudaAllocation, GpuError> {
    let own = CudaAllocation::of(&region.allocation, context)?;
    own.check_range(region.offset, region.bytes)?;
    if written && !own.writable {
        return Err(BindError::ReadOnly { label: own.label.clone() }.into());
    }
    Ok(own)
}

const fn is_host_memory(memory: &Memory) -> bool {
    matches!(memory, Memory::Shared(_) | Memory::Adopted { .. })
}

/// Builds the graph. `pipelines` belong to the list's dispatches, in order; every dispatch was checked.
pub(super) fn record(
    context: &Arc<Context>,
    ledger: &Ledger,
    properties: &DeviceProperties,
    commands: CommandList,
    pipelines: Vec<Arc<Pipeline>>,
) -> Result<CudaRecording, GpuError> {
    let mut graph = Graph::new(context)?;
    let mut kernels: Vec<String> = Vec::new();
    let mut tallies = Vec::new();
    let mut accesses = Accesses::new();
    let mut shared: Vec<Arc<dyn Allocation>> = Vec::new();
    let mut uses = |allocation: &Arc<dyn Allocation>| -> Result<(), GpuError> {
        let own = CudaAllocation::of(allocation, context)?;
        if matches!(own.memory, Memory::Shared(_))
            && !shared.iter().any(|known| Arc::ptr_eq(known, allocation))
        {
            shared.push(allocation.clone());
        }
        Ok(())
    };
    let mut next_pipeline = pipelines.iter();
    for (command, site) in commands.commands().iter().zip(commands.sites()) {
        match command {
            Command::Dispatch(dispatch) => {
                let pipeline = next_pipeline
                    .next()
                    .unwrap_or_else(|| unreachable!("the caller made one for each dispatch"));
                let threadgroup = pipeline.static_bytes + dispatch.threadgroup_bytes;
                if threadgroup > properties.threadgroup_bytes {
                    return Err(GpuError::Launch {
                        kernel: dispatch.pipeline.symbol(),
                        reason: format!(
                            "{threadgroup} bytes of threadgroup memory, expected at most {}",
                            properties.threadgroup_bytes
                        ),
                    });
                }
                let kernel = dispatch.pipeline.kernel.name;
                for argument in &dispatch.arguments {
                    if let Argument::Buffer { allocation, access, .. } = argument {
                        uses(allocation)?;
                        let own = CudaAllocation::of(allocation, context)?;
                        if *access != ParameterAccess::Out {
                            accesses.reads(&own.tally, kernel);
                        }
                        if *access != ParameterAccess::In {
                            accesses.writes(&own.tally, kernel);
                        }
                    }
                }
                graph.dispatch(dispatch, pipeline)?;
                let symbol = dispatch.pipeline.symbol();
                if !kernels.contains(&symbol) {
                    kernels.push(symbol);
                }
                tallies.push((ledger.dispatches_at(kernel, site), 0));
            }
            Command::Copy { source, destination } => {
                let (from, to) =
                    (region(source, context, false)?, region(destination, context, true)?);
                if source.bytes != destination.bytes {
                    return Err(GpuError::Launch {
                        kernel: "copy".to_owned(),
                        reason: format!(
                            "{} bytes of \"{}\" to {} bytes of \"{}\"",
                            source.bytes, from.label, destination.bytes, to.label
                        ),
                    });
                }
                uses(&source.allocation)?;
                uses(&destination.allocation)?;
                let direction = match (is_host_memory(&from.memory), is_host_memory(&to.memory)) {
                    (false, false) => Direction::DeviceToDevice,
                    (true, false) => Direction::HostToDevice,
                    (false, true) => Direction::DeviceToHost,
                    (true, true) => Direction::HostToHost,
                };
                if source.bytes > 0 {
                    let bytes = usize::try_from(source.bytes).unwrap_or(usize::MAX);
                    graph.copy(
                        from.pointer + source.offset,
                        to.pointer + destination.offset,
                        bytes,
                    )?;
                    accesses.reads(&from.tally, "copy command");
                    accesses.writes(&to.tally, "copy command");
                    let tally = ledger.copies_at(direction, "copy command", site);
                    tallies.push((tally, source.bytes));
                }
            }
            Command::Fill { region: filled, value } => {
                let to = region(filled, context, true)?;
                uses(&filled.allocation)?;
                if filled.bytes > 0 {
                    let bytes = usize::try_from(filled.bytes).unwrap_or(usize::MAX);
                    graph.fill(to.pointer + filled.offset, bytes, *value)?;
                    accesses.writes(&to.tally, "fill");
                    tallies.push((ledger.dispatches_at("fill", site), filled.bytes));
                }
            }
        }
    }
    graph.finish()?;
    Ok(CudaRecording {
        context: context.clone(),
        label: commands.label().into(),
        graph,
        kernels,
        tallies,
        accesses: ledger.accesses(accesses),
        shared,
        _commands: commands,
        _pipelines: pipelines,
    })
}

/// The order of a device's submissions, counted from 1.
#[derive(Default)]
pub(super) struct Timeline {
    /// The last number given out. Held while a submission is started, so that stream and
    /// numbers agree.
    started: Mutex<u64>,
    /// The last number that the host knows to be done.
    completed: AtomicU64,
    in_flight: Mutex<VecDeque<(u64, Arc<str>)>>,
}

impl Timeline {
    /// The label of a submission in flight that `last_use` stands for, if the host does not know that it
    /// is done. Only a wait, or asking whether it is done, tells: so a program that does neither
    /// is wrong every time and not only on a slow day.
    pub(super) fn unfinished(&self, last_use: u64) -> Option<String> {
        if last_use <= self.completed.load(Ordering::Acquire) {
            return None;
        }
        let in_flight = lock(&self.in_flight);
        let found = in_flight.iter().find(|(number, _)| *number == last_use);
        found.map(|(_, label)| label.to_string())
    }

    fn finish(&self, number: u64) {
        self.completed.fetch_max(number, Ordering::AcqRel);
        lock(&self.in_flight).retain(|(other, _)| *other > number);
    }
}

/// A graph that was started.
struct CudaSubmission {
    recording: Arc<dyn Recording>,
    timeline: Arc<Timeline>,
    number: u64,
    start: Handle,
    end: Handle,
    waits: Tally,
    submissions: Tally,
    waited: bool,
}

/// Starts a recording; counts it, and later the wait for it.
pub(super) fn submit(
    context: &Arc<Context>,
    timeline: &Arc<Timeline>,
    [waits, submissions]: [&Tally; 2],
    recording: &Arc<dyn Recording>,
) -> Result<Box<dyn Submission>, GpuError> {
    let own = own_recording(recording)
        .filter(|own| Arc::ptr_eq(&own.context, context))
        .ok_or_else(|| GpuError::ForeignAllocation { label: recording.label().to_owned() })?;
    context.enter()?;
    let mut started = lock(&timeline.started);
    let number = *started + 1;
    let (start, end) = (context.event()?, context.event()?);
    context.record(start)?;
    for allocation in &own.shared {
        if let Memory::Shared(shared) = &CudaAllocation::of(allocation, context)?.memory {
            lock(shared).last_use = number;
        }
    }
    lock(&timeline.in_flight).push_back((number, own.label.clone()));
    *started = number;
    // From here on the submission's drop waits and clears the list.
    let submission = Box::new(CudaSubmission {
        recording: recording.clone(),
        timeline: timeline.clone(),
        number,
        start,
        end,
        waits: waits.clone(),
        submissions: submissions.clone(),
        waited: false,
    });
    // SAFETY: graph and stream belong to the current context; what the graph uses is kept by the
    // recording, which the submission keeps.
    let code = unsafe { (context.driver.graph_launch)(own.graph.executable, context.stream()) };
    // The end is recorded whatever came of the launch: the drop waits for it.
    let recorded = context.record(end);
    context.driver.check("cuGraphLaunch", code).map_err(|error| own.fault(code, error))?;
    recorded?;
    submissions.record(0);
    own.accesses.record();
    for (tally, bytes) in &own.tallies {
        tally.record(*bytes);
    }
    Ok(submission)
}

fn own_recording(recording: &Arc<dyn Recording>) -> Option<&CudaRecording> {
    let any: &dyn Any = &**recording;
    any.downcast_ref::<CudaRecording>()
}

impl CudaRecording {
    /// The error of a kernel that went wrong, which the driver only knows by a code.
    fn fault(&self, code: i32, otherwise: GpuError) -> GpuError {
        if !status::FAULTS.contains(&code) {
            return otherwise;
        }
        GpuError::Fault {
            kernel: self.kernels.join(" or "),
            message: format!(
                "recording \"{}\" stopped: {}. The driver refuses all further work of this process",
                self.label,
                self.context.driver.describe(code)
            ),
        }
    }
}

impl CudaSubmission {
    fn own(&self) -> &CudaRecording {
        own_recording(&self.recording).unwrap_or_else(|| unreachable!("checked when it started"))
    }

    fn finish(&mut self) -> Result<Completed, GpuError> {
        let own = self.own();
        own.context.enter()?;
        let code = own.context.wait(self.end);
        let result = own.context.driver.check("cuEventSynchronize", code);
        let result = result.map_err(|error| own.fault(code, error));
        let gpu_time = own.context.elapsed(self.start, self.end);
        own.context.recycle(self.start);
        own.context.recycle(self.end);
        self.timeline.finish(self.number);
        self.waited = true;
        result.map(|()| Completed { gpu_time })
    }
}

impl Submission for CudaSubmission {
    fn wait(mut self: Box<Self>) -> Result<Completed, GpuError> {
        let started = self.waits.start();
        let result = self.finish();
        self.waits.record_since(started, 0);
        if let Ok(Completed { gpu_time: Some(time) }) = result {
            self.submissions.device_took(time);
        }
        result
    }

    fn is_done(&self) -> bool {
        let done = self.own().context.enter().is_ok() && self.own().context.is_done(self.end);
        if done {
            self.timeline.finish(self.number);
        }
        done
    }
}

impl Drop for CudaSubmission {
    fn drop(&mut self) {
        if !self.waited {
            // Errors are forgotten, as `Submission::wait` says.
            drop(self.finish());
        }
    }
}
