//! Command lists as recordings, and recordings as command buffers.

use std::any::Any;
use std::panic::Location;
use std::sync::{Arc, Mutex};

use marlin_kernels::bytes::{CopyBytes, CopyBytesArgs, FillBytes, FillBytesArgs};
use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{Allocation, Argument, Grid, Launch, View, ViewMut};
use marlin_placement::{AccessTally, Accesses, Direction, Ledger, Tally};

use super::api::{Api, CommandBuffer, Failure, Status};
use super::buffer::{Memory, MetalAllocation};
use super::check;
use super::context::{Context, lock};
use super::encoding::{Passes, Planner, no_encoder};
use super::pipeline::Pipelines;
use super::staging::Staging;
use crate::device::{Completed, Recording, Submission};
use crate::{Command, CommandList, GpuError, Region};

/// What offsets and sizes of a blit must be multiples of on macOS (Metal API reference, `MTLBlitCommandEncoder`).
pub(super) const BLIT_ALIGNMENT: u64 = 4;

/// `MTLCommandBufferError`s that a kernel can cause: timeout, page fault, access revoked after those, invalid resource,
/// stack overflow.
const FAULTS: [isize; 5] = [2, 3, 4, 9, 12];

/// `MTLCommandBufferErrorDeviceRemoved`.
pub(super) const DEVICE_REMOVED: isize = 11;

/// A command list, worked out.
pub(super) struct MetalRecording<A: Api> {
    context: Arc<Context<A>>,
    label: Arc<str>,
    passes: Passes<A>,
    /// What errors name: the kernels, each once.
    kernels: Vec<String>,
    tallies: Vec<(Tally, u64)>,
    accesses: AccessTally,
    /// Memory that the host must leave alone while a submission runs.
    host_visible: Vec<Arc<dyn Allocation>>,
    /// Keeps allocations alive: command buffers of recordings do not.
    _commands: CommandList,
}

impl<A: Api> Recording for MetalRecording<A> {
    fn label(&self) -> &str {
        &self.label
    }
}

fn is_whole(region: &Region) -> bool {
    region.offset.is_multiple_of(BLIT_ALIGNMENT) && region.bytes.is_multiple_of(BLIT_ALIGNMENT)
}

/// The command as Metal can run it: copies and fills that are no whole words become dispatches.
fn lowered(command: &Command) -> Result<Command, GpuError> {
    const THREADS: u32 = 256;
    let grid = |bytes: u64| {
        Grid::x(
            u32::try_from(bytes.div_ceil(u64::from(THREADS))).unwrap_or(1 << 16).min(1 << 16),
            THREADS,
        )
    };
    let len = |region: &Region| usize::try_from(region.bytes).unwrap_or(usize::MAX);
    Ok(match command {
        Command::Copy { source, destination } if !is_whole(source) || !is_whole(destination) => {
            let launcher = CopyBytes {
                source: View::new(&source.allocation, source.offset, len(source))?,
                destination: ViewMut::new(
                    &destination.allocation,
                    destination.offset,
                    len(destination),
                )?,
                args: CopyBytesArgs { count: source.bytes },
            };
            Command::Dispatch(launcher.dispatch(grid(source.bytes)))
        }
        Command::Fill { region, value } if !is_whole(region) => {
            let launcher = FillBytes {
                destination: ViewMut::new(&region.allocation, region.offset, len(region))?,
                args: FillBytesArgs { count: region.bytes, value: u32::from(*value), unused: 0 },
            };
            Command::Dispatch(launcher.dispatch(grid(region.bytes)))
        }
        other => other.clone(),
    })
}

/// Checks a command that `site` appended, and registers what its runs count and touch.
fn checked<A: Api>(
    command: &Command,
    site: &'static Location<'static>,
    context: &Arc<Context<A>>,
    ledger: &Ledger,
    accesses: &mut Accesses,
) -> Result<(Tally, u64), GpuError> {
    Ok(match command {
        Command::Dispatch(dispatch) => {
            check::threads(dispatch, context)?;
            check::dispatch(dispatch, context)?;
            let kernel = dispatch.pipeline.kernel.name;
            for argument in &dispatch.arguments {
                if let Argument::Buffer { allocation, access, .. } = argument {
                    let own = MetalAllocation::of(allocation, context)?;
                    if *access != ParameterAccess::Out {
                        accesses.reads(&own.tally, kernel);
                    }
                    if *access != ParameterAccess::In {
                        accesses.writes(&own.tally, kernel);
                    }
                }
            }
            (ledger.dispatches_at(kernel, site), 0)
        }
        Command::Copy { source, destination } => {
            let (from, to) = check::copy(source, destination, context)?;
            let direction = match (from.memory.is_host_memory(), to.memory.is_host_memory()) {
                (false, false) => Direction::DeviceToDevice,
                (true, false) => Direction::HostToDevice,
                (false, true) => Direction::DeviceToHost,
                (true, true) => Direction::HostToHost,
            };
            accesses.reads(&from.tally, "copy command");
            accesses.writes(&to.tally, "copy command");
            (ledger.copies_at(direction, "copy command", site), source.bytes)
        }
        Command::Fill { region, .. } => {
            let to = check::region(region, context, true)?;
            accesses.writes(&to.tally, "fill");
            (ledger.dispatches_at("fill", site), region.bytes)
        }
    })
}

fn has_nothing_to_do(command: &Command) -> bool {
    match command {
        Command::Dispatch(_) => false,
        Command::Copy { source, .. } => source.bytes == 0,
        Command::Fill { region, .. } => region.bytes == 0,
    }
}

/// Checks the commands, compiles what they need and works out the calls.
pub(super) fn record<A: Api>(
    context: &Arc<Context<A>>,
    ledger: &Ledger,
    pipelines: &Pipelines<A>,
    commands: CommandList,
) -> Result<MetalRecording<A>, GpuError> {
    let mut tallies = Vec::new();
    let mut steps = Vec::new();
    let mut wanted = Vec::new();
    let mut accesses = Accesses::new();
    for (command, site) in commands.commands().iter().zip(commands.sites()) {
        let tally = checked(command, site, context, ledger, &mut accesses)?;
        if has_nothing_to_do(command) {
            continue;
        }
        tallies.push(tally);
        let step = lowered(command)?;
        if let Command::Dispatch(dispatch) = &step {
            wanted.push((dispatch.pipeline, Some(check::threads(dispatch, context)?)));
        }
        steps.push(step);
    }
    let compiled = pipelines.get_all(&wanted)?;
    let mut planner = Planner::new(context);
    let mut kernels: Vec<String> = Vec::new();
    let mut next_pipeline = compiled.iter();
    for step in &steps {
        let pipeline = match step {
            Command::Dispatch(dispatch) => {
                let pipeline = next_pipeline
                    .next()
                    .unwrap_or_else(|| unreachable!("one was compiled for each dispatch"));
                check::compiled(dispatch, pipeline, context)?;
                if !kernels.contains(&pipeline.symbol) {
                    kernels.push(pipeline.symbol.clone());
                }
                Some(pipeline)
            }
            _ => None,
        };
        planner.push(step, pipeline)?;
    }
    Ok(MetalRecording {
        context: context.clone(),
        label: commands.label().into(),
        passes: planner.finish(),
        kernels,
        tallies,
        accesses: ledger.accesses(accesses),
        host_visible: host_visible(commands.commands(), context)?,
        _commands: commands,
    })
}

/// Every allocation of the commands that the host can reach, once.
fn host_visible<A: Api>(
    commands: &[Command],
    context: &Arc<Context<A>>,
) -> Result<Vec<Arc<dyn Allocation>>, GpuError> {
    let mut out: Vec<Arc<dyn Allocation>> = Vec::new();
    let mut note = |allocation: &Arc<dyn Allocation>| -> Result<(), GpuError> {
        let memory = MetalAllocation::of(allocation, context)?.memory;
        if matches!(memory, Memory::Shared | Memory::Managed)
            && !out.iter().any(|known| Arc::ptr_eq(known, allocation))
        {
            out.push(allocation.clone());
        }
        Ok(())
    };
    for command in commands {
        match command {
            Command::Dispatch(dispatch) => {
                for argument in &dispatch.arguments {
                    if let Argument::Buffer { allocation, .. } = argument {
                        note(allocation)?;
                    }
                }
            }
            Command::Copy { source, destination } => {
                note(&source.allocation)?;
                note(&destination.allocation)?;
            }
            Command::Fill { region, .. } => note(&region.allocation)?,
        }
    }
    Ok(out)
}

/// A command buffer that was committed.
struct MetalSubmission<A: Api> {
    recording: Arc<dyn Recording>,
    staging: Arc<Mutex<Staging<A>>>,
    command_buffer: A::CommandBuffer,
    number: u64,
    waits: Tally,
    submissions: Tally,
    waited: bool,
}

fn own_recording<A: Api>(recording: &Arc<dyn Recording>) -> Option<&MetalRecording<A>> {
    let any: &dyn Any = &**recording;
    any.downcast_ref::<MetalRecording<A>>()
}

/// Starts a recording; counts it, and later the wait for it.
pub(super) fn submit<A: Api>(
    context: &Arc<Context<A>>,
    staging: &Arc<Mutex<Staging<A>>>,
    [waits, submissions]: [&Tally; 2],
    recording: &Arc<dyn Recording>,
) -> Result<Box<dyn Submission>, GpuError> {
    let own = own_recording::<A>(recording)
        .filter(|own| Arc::ptr_eq(&own.context, context))
        .ok_or_else(|| GpuError::ForeignAllocation { label: recording.label().to_owned() })?;
    let mut started = lock(&context.timeline.started);
    let number = *started + 1;
    lock(staging).flush()?;
    context.residency.commit(&context.api);
    let command_buffer = context.api.pooled(|| {
        // SAFETY: once it is committed a submission keeps the recording, and that everything that is bound, until it has
        // waited, at the latest when it is dropped; one that is forgotten keeps them for good.
        let command_buffer = unsafe { context.api.unretained_command_buffer(&own.label) }
            .ok_or_else(|| no_encoder("command buffer"))?;
        own.passes.encode(context, &command_buffer, &own.label)?;
        Ok::<_, GpuError>(command_buffer)
    })?;
    for allocation in &own.host_visible {
        *lock(&MetalAllocation::of(allocation, context)?.last_use) = number;
    }
    context.timeline.start(number, own.label.clone(), command_buffer.clone());
    *started = number;
    command_buffer.commit();
    submissions.record(0);
    own.accesses.record();
    for (tally, bytes) in &own.tallies {
        tally.record(*bytes);
    }
    Ok(Box::new(MetalSubmission {
        recording: recording.clone(),
        staging: staging.clone(),
        command_buffer,
        number,
        waits: waits.clone(),
        submissions: submissions.clone(),
        waited: false,
    }))
}

impl<A: Api> MetalRecording<A> {
    /// The error of a command buffer that stopped.
    fn fault(&self, failure: &Failure) -> GpuError {
        let mut reason = format!(
            "recording \"{}\" stopped: {} (code {})",
            self.label, failure.message, failure.code
        );
        let mut suspects: &[String] = &self.kernels;
        for encoder in &failure.encoders {
            reason.push_str(&format!("; encoder \"{}\" {}", encoder.label, encoder.state));
            if let Some(last) = encoder.signposts.last() {
                reason.push_str(&format!(" with {last} encoded last"));
            }
        }
        if let Some(faulted) = failure.encoders.iter().find(|encoder| encoder.state == "faulted")
            && !faulted.signposts.is_empty()
        {
            suspects = &faulted.signposts;
        }
        if failure.code == DEVICE_REMOVED {
            return GpuError::Lost { device: self.context.properties.name.clone(), reason };
        }
        if !FAULTS.contains(&failure.code) {
            return GpuError::Driver { call: "MTLCommandBuffer", reason };
        }
        let mut kernels: Vec<&str> = Vec::new();
        for suspect in suspects {
            if !kernels.contains(&suspect.as_str()) {
                kernels.push(suspect);
            }
        }
        GpuError::Fault { kernel: kernels.join(" or "), message: reason }
    }
}

impl<A: Api> MetalSubmission<A> {
    fn own(&self) -> &MetalRecording<A> {
        own_recording(&self.recording).unwrap_or_else(|| unreachable!("checked when it started"))
    }

    fn finish(&mut self) -> Result<Completed, GpuError> {
        let own = self.own();
        let status = own.context.api.pooled(|| {
            own.context.timeline.finish(self.number);
            self.command_buffer.status()
        });
        let result = match status {
            Status::Completed(gpu_time) => Ok(Completed { gpu_time }),
            Status::Failed(failure) => Err(own.fault(&failure)),
            Status::Pending => Err(GpuError::Driver {
                call: "waitUntilCompleted",
                reason: "it returned before the command buffer was done".to_owned(),
            }),
        };
        self.waited = true;
        // What was uploaded before it is part of what it computed with.
        let uploads = lock(&self.staging).take_failure();
        result.and_then(|completed| uploads.map(|()| completed))
    }
}

impl<A: Api> Submission for MetalSubmission<A> {
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
        let timeline = &self.own().context.timeline;
        let done = timeline.is_done(self.number);
        if done {
            timeline.finish(self.number);
        }
        done
    }
}

impl<A: Api> Drop for MetalSubmission<A> {
    fn drop(&mut self) {
        if !self.waited {
            // Errors are forgotten, as `Submission::wait` says.
            drop(self.finish());
        }
    }
}
