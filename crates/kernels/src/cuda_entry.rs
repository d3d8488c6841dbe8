//! The `__global__` function around a kernel's body.

use std::fmt::Write as _;

use crate::signature::{ParameterAccess, Position};
use crate::{KernelParameter, PipelineKey};

/// C++ text of the entry point of `pipeline`'s kernel, named by [`PipelineKey::symbol`] with
/// `entry_` in front: it takes the bound parameters by index and passes each position on.
///
/// Pointers are `__restrict__` unless the source is compiled with `MARLIN_ALIASED`, which a device defines
/// where a dispatch binds memory that it writes a second time.
pub(crate) fn entry_point(pipeline: &PipelineKey) -> String {
    let kernel = pipeline.kernel;
    let symbol = pipeline.symbol();
    let mut parameters = Vec::new();
    for (index, parameter) in kernel.parameters.iter().enumerate() {
        parameters.push(match parameter {
            KernelParameter::Buffer { element, access, .. } => {
                let element = pipeline.resolve(*element).source_name();
                match access {
                    ParameterAccess::In => format!("const {element} *MARLIN_RESTRICT b{index}"),
                    _ => format!("{element} *MARLIN_RESTRICT b{index}"),
                }
            }
            KernelParameter::Inline { structure, .. } => {
                format!("const __grid_constant__ {structure} b{index}")
            }
        });
    }
    let mut bindings = 0;
    let mut arguments = Vec::new();
    for parameter in kernel.order {
        arguments.push(match parameter {
            crate::kernel::Ordered::Binding => {
                bindings += 1;
                format!("b{}", bindings - 1)
            }
            crate::kernel::Ordered::Threadgroup => {
                let element = kernel.threadgroup.map(|t| pipeline.resolve(t).source_name());
                format!("({} *)marlin_dynamic_threadgroup", element.unwrap_or("uchar"))
            }
            crate::kernel::Ordered::Position(position) => position_expression(*position).to_owned(),
        });
    }
    let mut out = String::new();
    if kernel.threadgroup.is_some() {
        out.push_str("extern __shared__ uint4 marlin_dynamic_threadgroup[];\n");
    }
    let _ = writeln!(
        out,
        "extern \"C\" __global__ void MARLIN_LAUNCH_BOUNDS entry_{symbol}({}) {{\n    {symbol}({});\n}}",
        parameters.join(", "),
        arguments.join(", ")
    );
    out
}

const fn position_expression(position: Position) -> &'static str {
    match position {
        Position::ThreadgroupPositionInGrid => "make_uint3(blockIdx.x, blockIdx.y, blockIdx.z)",
        Position::ThreadgroupsPerGrid => "make_uint3(gridDim.x, gridDim.y, gridDim.z)",
        Position::ThreadPositionInThreadgroup => {
            "make_uint3(threadIdx.x, threadIdx.y, threadIdx.z)"
        }
        Position::ThreadsPerThreadgroup => {
            "make_uint3(MARLIN_THREADS_X, MARLIN_THREADS_Y, MARLIN_THREADS_Z)"
        }
        Position::ThreadIndexInThreadgroup => "marlin_thread_index()",
        Position::ThreadIndexInSimdgroup => "marlin_thread_index() % 32u",
        Position::SimdgroupIndexInThreadgroup => "marlin_thread_index() / 32u",
        Position::ThreadsPerSimdgroup => "32u",
        Position::SimdgroupsPerThreadgroup => {
            "(MARLIN_THREADS_X * MARLIN_THREADS_Y * MARLIN_THREADS_Z + 31u) / 32u"
        }
    }
}
