//! Calls that read, write, bind or copy buffers and their contents.

use crate::ir::{Call, Expr, Language};

/// What a call does to one of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    HostWrite,
    HostRead,
    HostWriteDirect,
    HostReadDirect,
    DidModify,
    Synchronize,
    DeviceRead,
    DeviceWrite,
    DeviceUnknown,
}

/// An operand of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Receiver,
    Arg(usize),
    Label(&'static str),
}

use Effect::{
    DeviceRead, DeviceUnknown, DeviceWrite, DidModify, HostRead, HostReadDirect, HostWrite,
    HostWriteDirect, Synchronize,
};
use Slot::{Arg, Label, Receiver};

/// What the call does to its operands; empty for calls that are not of these APIs.
pub(crate) fn effects(call: &Call<'_>, language: Language) -> Vec<(Slot, Effect)> {
    let name = call.name.as_ref();
    let table: &[(Slot, Effect)] = match name {
        "memcpy" | "memmove" | "memcpy_s" => &[(Arg(0), HostWrite), (Arg(1), HostRead)],
        "bcopy" => &[(Arg(0), HostRead), (Arg(1), HostWrite)],
        "memset" | "memset_pattern4" | "memset_pattern16" | "bzero" | "fill_n" | "iota"
        | "fread" | "generate" | "generate_n" => &[(Arg(0), HostWrite)],
        "memcmp" => &[(Arg(0), HostRead), (Arg(1), HostRead)],
        "fwrite" => &[(Arg(0), HostRead)],
        "copyto" if language == Language::Python => &[(Arg(0), HostWrite), (Arg(1), HostRead)],
        "pack_into" => &[(Arg(1), HostWrite)],
        "unpack_from" => &[(Arg(1), HostRead)],
        "unpack" if language == Language::Python => &[(Arg(1), HostRead)],
        "readinto" => &[(Arg(0), HostWrite)],
        "pread" => &[(Arg(1), HostWrite)],
        // Swift and Objective-C data.
        "copyMemory" | "copyBytes" | "update" | "assign" | "initializeMemory" | "storeBytes"
        | "initialize"
            if language == Language::Swift =>
        {
            match call.args.first().and_then(|a| a.label) {
                Some("to") => &[(Receiver, HostRead), (Arg(0), HostWrite)],
                Some("from") => &[(Receiver, HostWrite), (Arg(0), HostRead)],
                _ => &[(Receiver, HostWrite), (Label("from"), HostRead)],
            }
        }
        "load" | "loadUnaligned" if language == Language::Swift => &[(Receiver, HostRead)],
        "getBytes_length" | "getBytes_range" | "getBytes" => &[(Arg(0), HostWrite)],
        "dataWithBytes_length" | "initWithBytes_length" | "appendBytes_length" => {
            &[(Arg(0), HostRead)]
        }
        "initWithBytes_length_encoding" | "stringWithUTF8String" => &[(Arg(0), HostRead)],
        // Rust slices and pointers.
        "copy_from_slice" | "clone_from_slice" | "copy_within" => {
            &[(Receiver, HostWrite), (Arg(0), HostRead)]
        }
        "copy_nonoverlapping" if call.args.len() == 3 => &[(Arg(0), HostRead), (Arg(1), HostWrite)],
        "copy" if language == Language::Rust && call.args.len() == 3 => {
            &[(Arg(0), HostRead), (Arg(1), HostWrite)]
        }
        "copy_to" | "copy_to_nonoverlapping" => &[(Receiver, HostRead), (Arg(0), HostWrite)],
        "copy_from" | "copy_from_nonoverlapping" => &[(Receiver, HostWrite), (Arg(0), HostRead)],
        "write" | "write_unaligned" | "write_volatile" | "write_bytes" | "fill"
            if language == Language::Rust =>
        {
            if call.receiver.is_some() && call.args.len() <= 1 || name == "write_bytes" {
                &[(Receiver, HostWrite)]
            } else {
                &[(Arg(0), HostWrite)]
            }
        }
        "read" | "read_unaligned" | "read_volatile" if language == Language::Rust => {
            &[(Receiver, HostRead), (Arg(0), HostRead)]
        }
        "to_vec" | "to_owned" | "into_vec" | "collect" | "iter" | "sum" | "into_iter"
        | "to_bytes" => &[(Receiver, HostRead)],
        // C++ algorithms: destination last, source first.
        "copy_n" => &[(Arg(0), HostRead), (Arg(2), HostWrite)],
        "copy" if matches!(language, Language::Cpp | Language::ObjectiveCpp) => {
            &[(Arg(0), HostRead), (Arg(2), HostWrite)]
        }
        "fill" if matches!(language, Language::Cpp | Language::ObjectiveCpp) => {
            &[(Arg(0), HostWrite)]
        }
        "sort" => &[(Arg(0), HostRead), (Arg(0), HostWrite)],
        // Metal: managed memory.
        "didModifyRange" | "did_modify_range" => &[(Receiver, DidModify)],
        "synchronizeResource" | "synchronize_resource" => &[(Arg(0), Synchronize)],
        "synchronize" if language == Language::Swift => &[(Label("resource"), Synchronize)],
        // Metal: blits.
        "copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size" => {
            &[(Arg(0), DeviceRead), (Arg(2), DeviceWrite)]
        }
        "copyFromBuffer" if call.args.len() == 5 => &[(Arg(0), DeviceRead), (Arg(2), DeviceWrite)],
        "copyFromBuffer" => &[(Arg(0), DeviceRead)],
        "copyFromTexture" if call.args.len() >= 8 => &[(Arg(5), DeviceWrite)],
        "copy_from_buffer" if call.args.len() == 5 => {
            &[(Arg(0), DeviceRead), (Arg(2), DeviceWrite)]
        }
        "copy_from_buffer_to_texture" => &[(Arg(0), DeviceRead)],
        "copy_from_texture_to_buffer" => &[(Arg(5), DeviceWrite)],
        "copy_buffer_to_buffer" => &[(Arg(0), DeviceRead), (Arg(2), DeviceWrite)],
        "copy" if language == Language::Swift => {
            let buffers = call.args.iter().any(|a| {
                a.label == Some("destinationOffset")
                    || a.label == Some("sourceBytesPerRow")
                    || a.label == Some("destinationBytesPerRow")
            });
            if buffers { &[(Label("from"), DeviceRead), (Label("to"), DeviceWrite)] } else { &[] }
        }
        "fillBuffer_range_value" | "fillBuffer" | "fill_buffer" => &[(Arg(0), DeviceWrite)],
        "clear_buffer" => &[(Arg(0), DeviceWrite)],
        "fill" if language == Language::Swift => &[(Label("buffer"), DeviceWrite)],
        "resolveCounters_inRange_destinationBuffer_destinationOffset" => &[(Arg(2), DeviceWrite)],
        "resolve_counters" | "resolveCounters" => &[(Arg(2), DeviceWrite)],
        "resolve_query_set" => &[(Arg(2), DeviceWrite)],
        // Metal: draws.
        "draw_indexed_primitives" | "draw_indexed_primitives_instanced" => &[(Arg(3), DeviceRead)],
        "drawIndexedPrimitives" if language != Language::Swift => &[(Arg(3), DeviceRead)],
        "set_vertex_buffer" if call.args.len() == 2 => &[(Arg(1), DeviceRead)],
        "set_index_buffer" => &[(Arg(0), DeviceRead)],
        "newTextureWithDescriptor_offset_bytesPerRow" => &[(Receiver, DeviceUnknown)],
        // Bound where the audit does not see what happens.
        "initWithBuffer_descriptor"
        | "initWithBuffer_offset_descriptor"
        | "initWithMTLBuffer_shape_dataType"
        | "as_entire_binding"
        | "as_entire_buffer_binding" => &[(Receiver, DeviceUnknown), (Arg(0), DeviceUnknown)],
        "gpuAddress" | "gpu_address" => &[(Receiver, DeviceUnknown)],
        // The encoder writes resource handles into it on the CPU.
        "setArgumentBuffer_offset"
        | "setArgumentBuffer"
        | "set_argument_buffer"
        | "setArgumentBuffer_startOffset_arrayElement" => {
            &[(Arg(0), HostWriteDirect), (Arg(0), DeviceRead)]
        }
        // Textures over a buffer.
        _ if name.starts_with("replaceRegion")
            || name == "replace" && language == Language::Swift =>
        {
            &[(Receiver, HostWriteDirect)]
        }
        _ if name.starts_with("getBytes_bytesPerRow") => &[(Receiver, HostReadDirect)],
        // wgpu.
        "write_buffer" => &[(Arg(0), HostWriteDirect)],
        "map_async" => {
            let mode = call.args.iter().find_map(|a| a.value.last_name());
            match mode {
                Some("Read") => &[(Receiver, HostReadDirect)],
                Some("Write") => &[(Receiver, HostWriteDirect)],
                _ => &[],
            }
        }
        "get_mapped_range_mut" => &[(Receiver, HostWriteDirect)],
        "get_mapped_range" => &[(Receiver, HostReadDirect)],
        _ => &[],
    };
    let mut out = table.to_vec();
    if name.starts_with("copyFrom") && name.contains("_to") && out.is_empty() {
        out.extend(selector_part(name, "copyFromBuffer").map(|i| (Arg(i), DeviceRead)));
        out.extend(selector_part(name, "toBuffer").map(|i| (Arg(i), DeviceWrite)));
    }
    if name.starts_with("draw") || name.starts_with("dispatch") {
        for part in ["indexBuffer", "indirectBuffer", "controlPointIndexBuffer", "patchIndexBuffer"]
        {
            match selector_part(name, part) {
                Some(i) => out.push((Arg(i), DeviceRead)),
                None if call.args.iter().any(|a| a.label == Some(part)) => {
                    out.push((Label(part), DeviceRead));
                }
                None => {}
            }
        }
    }
    out
}

/// The argument that belongs to the part `wanted` of a selector.
fn selector_part(name: &str, wanted: &str) -> Option<usize> {
    name.split('_').position(|part| part == wanted)
}

/// The operand that a slot names.
pub(crate) fn operand<'a, 's>(call: &'a Call<'s>, slot: Slot) -> Option<&'a Expr<'s>> {
    match slot {
        Receiver => call.receiver.as_ref(),
        Arg(i) => call.args.get(i).map(|a| &a.value),
        Label(label) => call.args.iter().find(|a| a.label == Some(label)).map(|a| &a.value),
    }
}

/// A binding of buffers to the arguments of the current pipeline.
pub(crate) enum Binding {
    /// One buffer: positions of the buffer and of its index among the arguments.
    One { buffer: usize, index: usize },
    /// A list of buffers: positions of the list and of the range of indices.
    Many { buffers: usize, range: usize },
    /// Bytes inline.
    Bytes,
}

/// Recognises `setBuffer:offset:atIndex:` and its kin for every stage and binding.
pub(crate) fn binding(call: &Call<'_>) -> Option<Binding> {
    let name = call.name.as_ref();
    let stem = name.strip_prefix("set")?;
    // metal-rs and candle: index first.
    if let Some(rest) = stem.strip_prefix('_') {
        let rest = rest
            .trim_start_matches("vertex_")
            .trim_start_matches("fragment_")
            .trim_start_matches("object_")
            .trim_start_matches("mesh_");
        return match (rest, call.args.len()) {
            ("buffer", 3) => Some(Binding::One { buffer: 1, index: 0 }),
            ("buffers", 3) => Some(Binding::Many { buffers: 1, range: 0 }),
            ("bytes", 3) => Some(Binding::Bytes),
            ("bytes", 2) => Some(Binding::Bytes),
            _ => None,
        };
    }
    let stem = ["Vertex", "Fragment", "Tile", "Object", "Mesh", "Kernel", "Compute"]
        .iter()
        .find_map(|stage| stem.strip_prefix(stage))
        .unwrap_or(stem);
    match (stem, call.args.len()) {
        ("Buffer_offset_atIndex" | "Buffer_offset_attributeStride_atIndex", n) => {
            Some(Binding::One { buffer: 0, index: n.saturating_sub(1) })
        }
        ("Buffer", 3) => Some(Binding::One { buffer: 0, index: 2 }),
        ("Buffers_offsets_withRange" | "Buffers", 3) => {
            Some(Binding::Many { buffers: 0, range: 2 })
        }
        ("Bytes_length_atIndex", 3) | ("Bytes", 3) => Some(Binding::Bytes),
        _ => None,
    }
}

/// Whether the call runs what has been bound: a dispatch or a draw.
pub(crate) fn is_dispatch(name: &str) -> bool {
    name.starts_with("dispatchThread")
        || name.starts_with("dispatch_thread")
        || name.starts_with("drawPrimitives")
        || name.starts_with("drawIndexed")
        || name.starts_with("draw_primitives")
        || name.starts_with("draw_indexed")
        || name.starts_with("drawMesh")
        || name.starts_with("dispatch_workgroups")
}

/// Whether the call selects the pipeline of the following dispatches.
pub(crate) fn sets_pipeline(name: &str) -> bool {
    matches!(
        name,
        "setComputePipelineState"
            | "set_compute_pipeline_state"
            | "setRenderPipelineState"
            | "set_render_pipeline_state"
            | "setTilePipelineState"
    )
}

/// Calls whose result is still a pointer to, or an array over, the same contents.
pub(crate) fn keeps_view(name: &str, language: Language) -> bool {
    matches!(
        name,
        "as_buffer"
            | "cast"
            | "bindMemory"
            | "assumingMemoryBound"
            | "advanced"
            | "offset"
            | "add"
            | "as_ptr"
            | "as_mut_ptr"
            | "cast_mut"
            | "cast_const"
            | "byte_add"
            | "byte_offset"
            | "as_non_null_ptr"
            | "UnsafeRawPointer"
            | "UnsafeMutableRawPointer"
            | "UnsafePointer"
            | "UnsafeMutablePointer"
            | "OpaquePointer"
            | "static_cast"
            | "reinterpret_cast"
            | "const_cast"
            | "bit_cast"
            | "as_ref"
            | "as_mut"
            | "unwrap"
            | "expect"
            | "get"
            | "as_slice"
            | "as_mut_slice"
            | "NonNull"
            | "data"
            | "begin"
            | "end"
            | "cast_slice"
            | "cast_slice_mut"
            | "addressof"
            | "c_void_p"
            | "POINTER"
            | "unwrap_unchecked"
            | "withMemoryRebound"
            | "from_buffer"
            | "UnsafeMutableRawBufferPointer"
            | "rebound"
    ) || matches!(language, Language::Python)
        && matches!(
            name,
            "reshape" | "view" | "ravel" | "squeeze" | "transpose" | "asarray" | "as_array"
        )
}

/// Calls that make a host array over a pointer; whether they promise only to read.
pub(crate) fn makes_array(name: &str) -> Option<bool> {
    match name {
        "frombuffer" | "memoryview" | "as_strided" => Some(false),
        "from_raw_parts" | "UnsafeBufferPointer" | "UnsafeRawBufferPointer" => Some(true),
        "from_raw_parts_mut" | "UnsafeMutableBufferPointer" | "span" => Some(false),
        _ => None,
    }
}
