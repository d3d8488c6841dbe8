//! What a command must be before it is recorded.

use std::sync::Arc;

use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{Argument, BindError, Dispatch, KernelParameter};
use marlin_placement::INLINE_LIMIT;

use super::api::Api;
use super::buffer::MetalAllocation;
use super::context::Context;
use super::pipeline::Pipeline;
use crate::hazards::overlap_within;
use crate::{GpuError, Region};

fn refuse(kernel: String, reason: String) -> GpuError {
    GpuError::Launch { kernel, reason }
}

/// The threads of a threadgroup, if they are as many as the device can have.
pub(super) fn threads<A: Api>(dispatch: &Dispatch, context: &Context<A>) -> Result<u32, GpuError> {
    let most = context.properties.max_threads;
    let threads = dispatch.grid.threads.iter().try_fold(1u32, |n, t| n.checked_mul(*t));
    threads.filter(|n| (1..=most).contains(n)).ok_or_else(|| {
        let found = dispatch.grid.threads;
        let reason = format!("{found:?} threads in a threadgroup, expected 1 to {most} in all");
        refuse(dispatch.pipeline.symbol(), reason)
    })
}

/// Checks what does not need the compiled kernel.
pub(super) fn dispatch<A: Api>(
    dispatch: &Dispatch,
    context: &Arc<Context<A>>,
) -> Result<(), GpuError> {
    let kernel = dispatch.pipeline.kernel;
    let refuse = |reason: String| Err(refuse(dispatch.pipeline.symbol(), reason));
    if let Some(width) = kernel.simd_width
        && width != context.properties.simd_width
    {
        return refuse(format!(
            "it needs {width} threads in a SIMD-group, the device has {}",
            context.properties.simd_width
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
                let own = MetalAllocation::of(allocation, context)?;
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
                let found = given.bytes().len();
                if found != *bytes || found as u64 > INLINE_LIMIT {
                    return refuse(format!(
                        "\"{name}\" has {found} bytes, expected {bytes}, at most {INLINE_LIMIT}"
                    ));
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
    overlap_within(dispatch).map_or(Ok(()), refuse)
}

/// Checks what the compiled kernel allows.
pub(super) fn compiled<A: Api>(
    dispatch: &Dispatch,
    pipeline: &Pipeline<A>,
    context: &Context<A>,
) -> Result<(), GpuError> {
    let (limits, most) = (&pipeline.limits, context.properties.threadgroup_bytes);
    let bytes = limits.threadgroup_bytes + dispatch.threadgroup_bytes.next_multiple_of(16);
    if bytes > most {
        return Err(refuse(
            pipeline.symbol.clone(),
            format!("{bytes} bytes of threadgroup memory, expected at most {most}"),
        ));
    }
    let threads = dispatch.grid.threads_per_threadgroup();
    if threads > limits.max_threads {
        return Err(refuse(
            pipeline.symbol.clone(),
            format!(
                "{threads} threads in a threadgroup, its registers allow {}",
                limits.max_threads
            ),
        ));
    }
    Ok(())
}

/// The memory of a region, if the region lies in it and may be written where it is to be.
pub(super) fn region<'a, A: Api>(
    region: &'a Region,
    context: &Arc<Context<A>>,
    written: bool,
) -> Result<&'a MetalAllocation<A>, GpuError> {
    let own = MetalAllocation::of(&region.allocation, context)?;
    own.check_range(region.offset, region.bytes)?;
    if written && !own.writable {
        return Err(BindError::ReadOnly { label: own.label.clone() }.into());
    }
    Ok(own)
}

/// The memory of a copy's two ends.
pub(super) fn copy<'a, A: Api>(
    source: &'a Region,
    destination: &'a Region,
    context: &Arc<Context<A>>,
) -> Result<(&'a MetalAllocation<A>, &'a MetalAllocation<A>), GpuError> {
    let (from, to) = (region(source, context, false)?, region(destination, context, true)?);
    if source.bytes != destination.bytes {
        return Err(refuse(
            "copy".to_owned(),
            format!(
                "{} bytes of \"{}\" to {} bytes of \"{}\", expected as many",
                source.bytes, from.label, destination.bytes, to.label
            ),
        ));
    }
    let apart = !Arc::ptr_eq(&source.allocation, &destination.allocation)
        || source.offset + source.bytes <= destination.offset
        || destination.offset + destination.bytes <= source.offset;
    if !apart {
        return Err(refuse(
            "copy".to_owned(),
            format!(
                "{} bytes of \"{}\" from {} to {}, expected ranges apart",
                source.bytes, from.label, source.offset, destination.offset
            ),
        ));
    }
    Ok((from, to))
}
