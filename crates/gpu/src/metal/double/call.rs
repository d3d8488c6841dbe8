//! What the double writes down.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::metal::api::BufferMode;

/// One call, with buffers by their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Metal's")]
pub enum Call {
    NewBuffer {
        label: String,
        bytes: usize,
        mode: BufferMode,
    },
    NewBufferNoCopy {
        label: String,
        bytes: usize,
    },
    FreeBuffer {
        label: String,
    },
    DidModify {
        buffer: String,
        range: Range<usize>,
    },
    NewLibrary {
        file: String,
    },
    NewPipeline {
        function: String,
        threads: Option<u32>,
        from: Option<PathBuf>,
    },
    AddResident {
        buffer: String,
    },
    RemoveResident {
        buffer: String,
    },
    CommitResidency,
    NewCommandBuffer {
        label: String,
        retained: bool,
    },
    ComputeEncoder {
        label: String,
    },
    BlitEncoder {
        label: String,
    },
    SetPipeline {
        function: String,
    },
    SetBuffer {
        index: usize,
        buffer: String,
        offset: usize,
    },
    SetBytes {
        index: usize,
        bytes: usize,
    },
    SetThreadgroupMemory {
        index: usize,
        bytes: usize,
    },
    Barrier {
        buffers: Vec<String>,
    },
    Signpost {
        text: String,
    },
    Dispatch {
        threadgroups: [u32; 3],
        threads: [u32; 3],
    },
    Copy {
        from: String,
        from_offset: usize,
        to: String,
        to_offset: usize,
        bytes: usize,
    },
    Fill {
        buffer: String,
        range: Range<usize>,
        value: u8,
    },
    EndEncoding,
    Commit {
        label: String,
    },
    Wait {
        label: String,
    },
    /// A buffer that a command buffer under way uses without retaining it was freed: a mistake above.
    UsedAfterFree {
        buffer: String,
    },
}

impl fmt::Display for Call {
    /// One line: what stands in a test of a sequence of calls.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grid = |g: &[u32; 3]| format!("{}x{}x{}", g[0], g[1], g[2]);
        match self {
            Self::NewBuffer { label, bytes, mode } => {
                write!(f, "buffer {label}: {bytes} bytes, {mode:?}")
            }
            Self::NewBufferNoCopy { label, bytes } => {
                write!(f, "buffer {label}: {bytes} bytes, no copy")
            }
            Self::FreeBuffer { label } => write!(f, "free {label}"),
            Self::DidModify { buffer, range } => write!(f, "didModify {buffer} {range:?}"),
            Self::NewLibrary { file } => write!(f, "library {file}"),
            Self::NewPipeline { function, threads, from } => {
                let source = if from.is_some() { "archive" } else { "library" };
                write!(f, "pipeline {function} of {threads:?} threads from its {source}")
            }
            Self::AddResident { buffer } => write!(f, "resident {buffer}"),
            Self::RemoveResident { buffer } => write!(f, "not resident {buffer}"),
            Self::CommitResidency => f.write_str("commit residency"),
            Self::NewCommandBuffer { label, retained } => {
                let how = if *retained { "retained" } else { "unretained" };
                write!(f, "command buffer {label}, {how}")
            }
            Self::ComputeEncoder { label } => write!(f, "concurrent compute encoder {label}"),
            Self::BlitEncoder { label } => write!(f, "blit encoder {label}"),
            Self::SetPipeline { function } => write!(f, "pipeline {function}"),
            Self::SetBuffer { index, buffer, offset } => write!(f, "{index}: {buffer} + {offset}"),
            Self::SetBytes { index, bytes } => write!(f, "{index}: {bytes} bytes"),
            Self::SetThreadgroupMemory { index, bytes } => {
                write!(f, "threadgroup {index}: {bytes} bytes")
            }
            Self::Barrier { buffers } => write!(f, "barrier {}", buffers.join(", ")),
            Self::Signpost { text } => write!(f, "signpost {text}"),
            Self::Dispatch { threadgroups, threads } => {
                write!(f, "dispatch {} of {}", grid(threadgroups), grid(threads))
            }
            Self::Copy { from, from_offset, to, to_offset, bytes } => {
                write!(f, "copy {from} + {from_offset} to {to} + {to_offset}: {bytes} bytes")
            }
            Self::Fill { buffer, range, value } => {
                write!(f, "fill {buffer} {range:?} with {value}")
            }
            Self::EndEncoding => f.write_str("end"),
            Self::Commit { label } => write!(f, "commit {label}"),
            Self::Wait { label } => write!(f, "wait {label}"),
            Self::UsedAfterFree { buffer } => write!(f, "USED AFTER FREE {buffer}"),
        }
    }
}
