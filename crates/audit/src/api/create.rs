//! Calls that make a buffer.

use crate::ir::{Call, Expr, ExprKind, Language};

/// How a buffer comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CreateKind {
    /// With a length, contents undefined or zero.
    Length,
    /// With a copy of host bytes.
    Bytes,
    /// Over host memory, without a copy.
    NoCopy,
    /// By a wgpu descriptor, whose usage decides where it lives.
    Wgpu {
        /// Whether the descriptor carries the contents.
        init: bool,
    },
}

/// A recognised creation and which arguments say what.
pub(crate) struct Creation<'a, 's> {
    pub(crate) kind: CreateKind,
    pub(crate) length: Option<&'a Expr<'s>>,
    pub(crate) bytes: Option<&'a Expr<'s>>,
    pub(crate) options: Option<&'a Expr<'s>>,
}

/// Recognises a buffer creation.
pub(crate) fn recognise<'a, 's>(
    call: &'a Call<'s>,
    language: Language,
) -> Option<Creation<'a, 's>> {
    let arg = |i: usize| call.args.get(i).map(|a| &a.value);
    let labelled =
        |label: &str| call.args.iter().find(|a| a.label == Some(label)).map(|a| &a.value);
    let make = |kind, length, bytes, options| Some(Creation { kind, length, bytes, options });
    match call.name.as_ref() {
        "newBufferWithLength_options" | "newBufferWithLength_options_offset" => {
            make(CreateKind::Length, arg(0), None, arg(1))
        }
        "newBufferWithBytes_length_options" => make(CreateKind::Bytes, arg(1), arg(0), arg(2)),
        "newBufferWithBytesNoCopy_length_options_deallocator" => {
            make(CreateKind::NoCopy, arg(1), arg(0), arg(2))
        }
        // Swift.
        "makeBuffer" => {
            let (length, options) = (labelled("length"), labelled("options"));
            if let Some(bytes) = labelled("bytes") {
                make(CreateKind::Bytes, length, Some(bytes), options)
            } else if let Some(bytes) = labelled("bytesNoCopy") {
                make(CreateKind::NoCopy, length, Some(bytes), options)
            } else if length.is_some() {
                make(CreateKind::Length, length, None, options)
            } else {
                None
            }
        }
        // metal-cpp overloads by arity, and by whether the first argument is an address.
        "newBuffer" if language != Language::Python => match call.args.len() {
            2 if !looks_like_address(arg(0)?) => make(CreateKind::Length, arg(0), None, arg(1)),
            3 if receiver_is_heap(call) => make(CreateKind::Length, arg(0), None, arg(1)),
            3 => make(CreateKind::Bytes, arg(1), arg(0), arg(2)),
            4 => make(CreateKind::NoCopy, arg(1), arg(0), arg(2)),
            _ => None,
        },
        // metal-rs.
        "new_buffer" if call.receiver.is_some() && call.args.len() == 2 => {
            make(CreateKind::Length, arg(0), None, arg(1))
        }
        "new_buffer_with_data" if call.receiver.is_some() && call.args.len() == 3 => {
            make(CreateKind::Bytes, arg(1), arg(0), arg(2))
        }
        "new_buffer_with_bytes_no_copy" => make(CreateKind::NoCopy, arg(1), arg(0), arg(2)),
        "new_buffer_with_offset" => make(CreateKind::Length, arg(0), None, arg(1)),
        "create_buffer" | "create_buffer_init" if language == Language::Rust => {
            let entries = record(arg(0)?)?;
            let entry = |name: &str| entries.iter().find(|(key, _)| *key == name).map(|(_, v)| v);
            let init = call.name == "create_buffer_init";
            let usage = entry("usage")?;
            make(CreateKind::Wgpu { init }, entry("size"), entry("contents"), Some(usage))
        }
        _ => None,
    }
}

fn record<'a, 's>(expr: &'a Expr<'s>) -> Option<&'a [(&'s str, Expr<'s>)]> {
    match &expr.kind {
        ExprKind::Record { entries, .. } => Some(entries),
        ExprKind::AddressOf(inner) => record(inner),
        _ => None,
    }
}

fn looks_like_address(expr: &Expr<'_>) -> bool {
    matches!(expr.kind, ExprKind::AddressOf(_))
}

fn receiver_is_heap(call: &Call<'_>) -> bool {
    let name = call.receiver.as_ref().and_then(Expr::last_name);
    name.is_some_and(|n| n.to_ascii_lowercase().contains("heap"))
}
