//! A command list that has been checked.

use std::sync::{Arc, Weak};

use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{
    Allocation, Argument, Dispatch, HostKernel, KernelParameter, PipelineKey, host_entry,
};
use marlin_placement::{AccessTally, Accesses, BufferTally, Direction, Ledger, Tally};

use super::{MAX_THREADS, Shared, THREADGROUP_BYTES, memory};
use crate::device::{DeviceProperties, Recording};
use crate::hazards::overlap_within;
use crate::{Command, CommandList, GpuError, Region};

/// A command with what running it needs.
pub(crate) enum Step {
    Dispatch { kernel: HostKernel, dispatch: Dispatch, tally: Tally },
    Copy { source: Region, destination: Region, tally: Tally },
    Fill { region: Region, value: u8 },
}

/// A prepared command list.
pub(crate) struct EmulatedRecording {
    label: Arc<str>,
    device: Weak<Shared>,
    pub(crate) simd_width: u32,
    pub(crate) steps: Vec<Step>,
    pub(crate) accesses: AccessTally,
    /// Every allocation that a command uses, once.
    pub(crate) allocations: Vec<Arc<dyn Allocation>>,
}

impl Recording for EmulatedRecording {
    fn label(&self) -> &str {
        &self.label
    }
}

/// The compiled kernel of `pipeline`.
pub(crate) fn kernel_of(pipeline: &PipelineKey) -> Result<HostKernel, GpuError> {
    host_entry(pipeline).ok_or_else(|| GpuError::Compile {
        kernel: pipeline.symbol(),
        target: "host".to_owned(),
        log: "its file was not compiled for these element types".to_owned(),
    })
}

impl EmulatedRecording {
    pub(crate) fn new(
        device: &Arc<Shared>,
        properties: &DeviceProperties,
        ledger: &Ledger,
        commands: CommandList,
    ) -> Result<Self, GpuError> {
        let mut recording = Self {
            label: commands.label().into(),
            device: Arc::downgrade(device),
            simd_width: properties.simd_width,
            steps: Vec::new(),
            accesses: ledger.accesses(accesses_of(device, &commands)?),
            allocations: Vec::new(),
        };
        for (command, site) in commands.commands().iter().zip(commands.sites()) {
            let step = match command {
                Command::Dispatch(dispatch) => {
                    check_launch(dispatch, properties)?;
                    check_overlap(dispatch)?;
                    for argument in &dispatch.arguments {
                        if let Argument::Buffer { allocation, .. } = argument {
                            recording.keep(device, allocation)?;
                        }
                    }
                    Step::Dispatch {
                        kernel: kernel_of(&dispatch.pipeline)?,
                        dispatch: dispatch.clone(),
                        tally: ledger.dispatches_at(dispatch.pipeline.kernel.name, site),
                    }
                }
                Command::Copy { source, destination } => {
                    recording.keep(device, &source.allocation)?;
                    recording.keep(device, &destination.allocation)?;
                    check_copy(device, source, destination)?;
                    Step::Copy {
                        source: source.clone(),
                        destination: destination.clone(),
                        tally: ledger.copies_at(Direction::DeviceToDevice, "copy command", site),
                    }
                }
                Command::Fill { region, value } => {
                    recording.keep(device, &region.allocation)?;
                    check_region(device, region, true)?;
                    Step::Fill { region: region.clone(), value: *value }
                }
            };
            recording.steps.push(step);
        }
        Ok(recording)
    }

    pub(crate) fn belongs_to(&self, device: &Arc<Shared>) -> bool {
        std::ptr::eq(self.device.as_ptr(), Arc::as_ptr(device))
    }

    pub(crate) fn label(&self) -> &Arc<str> {
        &self.label
    }

    fn keep(
        &mut self,
        device: &Arc<Shared>,
        allocation: &Arc<dyn Allocation>,
    ) -> Result<(), GpuError> {
        memory::find(device, allocation)?;
        if !self.allocations.iter().any(|a| Arc::ptr_eq(a, allocation)) {
            self.allocations.push(allocation.clone());
        }
        Ok(())
    }
}

/// What one run of the commands touches.
fn accesses_of(device: &Arc<Shared>, commands: &CommandList) -> Result<Accesses, GpuError> {
    let mut accesses = Accesses::new();
    let tally = |allocation| -> Result<&BufferTally, GpuError> {
        memory::find(device, allocation).map(|found| found.tally())
    };
    for command in commands.commands() {
        match command {
            Command::Dispatch(dispatch) => {
                let kernel = dispatch.pipeline.kernel.name;
                for argument in &dispatch.arguments {
                    if let Argument::Buffer { allocation, access, .. } = argument {
                        if *access != ParameterAccess::Out {
                            accesses.reads(tally(allocation)?, kernel);
                        }
                        if *access != ParameterAccess::In {
                            accesses.writes(tally(allocation)?, kernel);
                        }
                    }
                }
            }
            Command::Copy { source, destination } => {
                accesses.reads(tally(&source.allocation)?, "copy command");
                accesses.writes(tally(&destination.allocation)?, "copy command");
            }
            Command::Fill { region, .. } => accesses.writes(tally(&region.allocation)?, "fill"),
        }
    }
    Ok(accesses)
}

fn check_launch(dispatch: &Dispatch, properties: &DeviceProperties) -> Result<(), GpuError> {
    let kernel = dispatch.pipeline.kernel;
    let refuse =
        |reason: String| Err(GpuError::Launch { kernel: dispatch.pipeline.symbol(), reason });
    if let Some(width) = kernel.simd_width
        && width != properties.simd_width
    {
        return refuse(format!(
            "it needs SIMD-groups of {width} threads, the device has {}",
            properties.simd_width
        ));
    }
    let [x, y, z] = dispatch.grid.threads.map(u64::from);
    let threads = x.saturating_mul(y).saturating_mul(z);
    if threads == 0 || threads > u64::from(MAX_THREADS) {
        return refuse(format!("{threads} threads in a threadgroup, expected 1 to {MAX_THREADS}"));
    }
    if dispatch.threadgroup_bytes > THREADGROUP_BYTES {
        return refuse(format!(
            "{} bytes of threadgroup memory, expected at most {THREADGROUP_BYTES}",
            dispatch.threadgroup_bytes
        ));
    }
    if dispatch.arguments.len() != kernel.parameters.len() {
        return refuse(format!(
            "{} arguments, expected {}",
            dispatch.arguments.len(),
            kernel.parameters.len()
        ));
    }
    for (argument, parameter) in dispatch.arguments.iter().zip(kernel.parameters) {
        let fits = match (argument, parameter) {
            (Argument::Buffer { .. }, KernelParameter::Buffer { .. }) => true,
            (Argument::Absent, KernelParameter::Buffer { optional, .. }) => *optional,
            (Argument::Inline(value), KernelParameter::Inline { bytes, .. }) => {
                value.bytes().len() == *bytes
            }
            _ => false,
        };
        if !fits {
            return refuse(format!(
                "argument \"{}\" is {argument:?}, expected {parameter:?}",
                parameter.name()
            ));
        }
    }
    Ok(())
}

/// No byte may be bound twice where it is written.
fn check_overlap(dispatch: &Dispatch) -> Result<(), GpuError> {
    match overlap_within(dispatch) {
        None => Ok(()),
        Some(reason) => Err(GpuError::Launch { kernel: dispatch.pipeline.symbol(), reason }),
    }
}

fn check_region(device: &Arc<Shared>, region: &Region, written: bool) -> Result<(), GpuError> {
    let found = memory::find(device, &region.allocation)?;
    found.range(region.offset, region.bytes)?;
    if written && found.is_adopted() {
        let label = found.label().to_owned();
        return Err(marlin_kernels::BindError::ReadOnly { label }.into());
    }
    Ok(())
}

fn check_copy(device: &Arc<Shared>, source: &Region, destination: &Region) -> Result<(), GpuError> {
    check_region(device, source, false)?;
    check_region(device, destination, true)?;
    let refuse = |reason: String| Err(GpuError::Launch { kernel: "copy".to_owned(), reason });
    if source.bytes != destination.bytes {
        return refuse(format!(
            "{} bytes of \"{}\" to {} bytes of \"{}\", expected as many",
            source.bytes,
            source.allocation.label(),
            destination.bytes,
            destination.allocation.label()
        ));
    }
    let apart = !Arc::ptr_eq(&source.allocation, &destination.allocation)
        || source.offset + source.bytes <= destination.offset
        || destination.offset + destination.bytes <= source.offset;
    if !apart {
        return refuse(format!(
            "{} bytes of \"{}\" from {} to {}, expected ranges apart",
            source.bytes,
            source.allocation.label(),
            source.offset,
            destination.offset
        ));
    }
    Ok(())
}
