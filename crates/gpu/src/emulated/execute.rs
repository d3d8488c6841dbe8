//! Runs the commands of a recording.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;

use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{Argument, Dispatch, HostKernel, HostLaunch, HostRegion, region_flags};

use super::recording::{EmulatedRecording, Step};
use super::{Execution, Shared, memory};
use crate::{GpuError, Region};

const FAULT_BYTES: usize = 512;

/// Runs every command in order, up to the first fault.
pub(crate) fn run(recording: &EmulatedRecording, device: &Arc<Shared>) -> Result<(), GpuError> {
    let mut execution = device.lock();
    for step in &recording.steps {
        match step {
            Step::Dispatch { kernel, dispatch, tally } => {
                let started = tally.start();
                let result =
                    launch(device, &mut execution, *kernel, dispatch, recording.simd_width);
                tally.record_since(started, 0);
                result?;
            }
            Step::Copy { source, destination, tally } => {
                tally.record(source.bytes);
                copy(device, &execution, source, destination)?;
            }
            Step::Fill { region, value } => {
                let found = memory::find(device, &region.allocation)?;
                let range = found.range(region.offset, region.bytes)?;
                found.device_write(&execution, range.clone(), &vec![*value; range.len()]);
                found.command_wrote(&execution);
            }
        }
    }
    Ok(())
}

/// Bytes that were never written stay so at their new place.
fn copy(
    device: &Arc<Shared>,
    execution: &Execution,
    source: &Region,
    destination: &Region,
) -> Result<(), GpuError> {
    let from = memory::find(device, &source.allocation)?;
    let to = memory::find(device, &destination.allocation)?;
    let from_range = from.range(source.offset, source.bytes)?;
    let to_range = to.range(destination.offset, destination.bytes)?;
    let mut bytes = vec![0; from_range.len()];
    from.device_read(execution, from_range.clone(), &mut bytes);
    let initialised = from.initialised(execution, from_range);
    to.device_write(execution, to_range.clone(), &bytes);
    to.set_initialised(execution, to_range, &initialised);
    to.command_wrote(execution);
    Ok(())
}

const UNBOUND: HostRegion = HostRegion {
    base: std::ptr::null_mut(),
    bytes: 0,
    initialised: std::ptr::null_mut(),
    writes: std::ptr::null_mut(),
    reads: std::ptr::null_mut(),
    name: std::ptr::null(),
    flags: region_flags::ABSENT,
    checked: 0,
};

fn launch(
    device: &Arc<Shared>,
    execution: &mut Execution,
    kernel: HostKernel,
    dispatch: &Dispatch,
    simd_width: u32,
) -> Result<(), GpuError> {
    let parameters = dispatch.pipeline.kernel.parameters;
    let names: Vec<CString> =
        parameters.iter().map(|p| CString::new(p.name()).unwrap_or_default()).collect();
    let mut regions = Vec::with_capacity(parameters.len());
    let mut inlines: Vec<*const c_void> = Vec::with_capacity(parameters.len());
    // Inline structures may hold 8-byte members, so their bytes move to words.
    let mut words: Vec<Vec<u64>> = Vec::new();
    for (argument, name) in dispatch.arguments.iter().zip(&names) {
        let mut region = HostRegion { name: name.as_ptr(), ..UNBOUND };
        let mut inlined = std::ptr::null();
        match argument {
            Argument::Buffer { allocation, offset, bytes, access } => {
                let written = dispatch.arguments.iter().any(|other| {
                    matches!(other, Argument::Buffer { allocation: a, access, .. }
                        if *access != ParameterAccess::In && Arc::ptr_eq(a, allocation))
                });
                bind(
                    device,
                    execution,
                    allocation,
                    *offset,
                    *bytes,
                    *access,
                    written,
                    &mut region,
                )?;
            }
            Argument::Inline(value) => {
                let mut aligned = vec![0_u64; value.bytes().len().div_ceil(8)];
                bytemuck::cast_slice_mut(&mut aligned)[..value.bytes().len()]
                    .copy_from_slice(value.bytes());
                inlined = aligned.as_ptr().cast();
                words.push(aligned);
            }
            Argument::Absent => {}
        }
        regions.push(region);
        inlines.push(inlined);
    }
    let mut fault = [0 as c_char; FAULT_BYTES];
    let mut launch = HostLaunch {
        regions: regions.as_mut_ptr(),
        inlines: inlines.as_ptr(),
        constants: dispatch.pipeline.constants.bits().as_ptr(),
        threadgroups: dispatch.grid.threadgroups,
        threads: dispatch.grid.threads,
        simd_width,
        region_count: regions.len() as u32,
        threadgroup_bytes: dispatch.threadgroup_bytes,
        clock: execution.clock,
        generation: execution.generation,
        fault_bytes: FAULT_BYTES as u32,
        fault: fault.as_mut_ptr(),
    };
    // SAFETY: regions and inline bytes are by binding index and were checked against the kernel's parameters
    // when it was recorded, as were threads, SIMD width and threadgroup memory; the recording keeps the
    // allocations alive and the device's lock is held, so nothing else touches their bytes.
    let went_well = unsafe { execution.state.run(kernel, &mut launch) };
    execution.clock = launch.clock;
    execution.generation = launch.generation;
    if went_well {
        return Ok(());
    }
    // SAFETY: the buffer is `FAULT_BYTES` long and the description in it ends in a zero.
    let message = unsafe { CStr::from_ptr(fault.as_ptr()) }.to_string_lossy().into_owned();
    Err(GpuError::Fault { kernel: dispatch.pipeline.symbol(), message })
}

#[allow(clippy::too_many_arguments, reason = "one argument of a dispatch, taken apart")]
fn bind(
    device: &Arc<Shared>,
    execution: &Execution,
    allocation: &Arc<dyn marlin_kernels::Allocation>,
    offset: u64,
    bytes: u64,
    access: ParameterAccess,
    written: bool,
    region: &mut HostRegion,
) -> Result<(), GpuError> {
    let found = memory::find(device, allocation)?;
    let range = found.range(offset, bytes)?;
    // SAFETY: the only reference to these contents; an allocation that is bound twice is taken twice, one after
    // the other.
    let contents = unsafe { found.contents(execution) };
    if written {
        contents.stamp(found.range(0, allocation.bytes())?.len(), execution.generation);
        region.writes = contents.writes[range.clone()].as_mut_ptr();
        region.reads = contents.reads[range.clone()].as_mut_ptr();
    }
    // Where everything was written before and nothing is written now, a read needs no look.
    let known = found.is_adopted() || !contents.initialised[range.clone()].contains(&0);
    if written || contents.changes || !known {
        region.initialised = contents.initialised[range.clone()].as_mut_ptr();
        region.checked = 1;
    }
    // SAFETY: `range` is inside the allocation.
    region.base = unsafe { contents.start().add(range.start) };
    region.bytes = bytes;
    region.flags = match access {
        ParameterAccess::In => 0,
        ParameterAccess::Out => region_flags::WRITABLE | region_flags::OUTPUT,
        ParameterAccess::InOut => region_flags::WRITABLE,
    };
    if contents.changes {
        region.flags |= region_flags::CHANGES;
    }
    Ok(())
}
