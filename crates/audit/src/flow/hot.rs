//! Which functions run for every token, step, frame or dispatch.

use super::project::Project;
use super::summary::Summary;
use crate::ir::FunctionKind;

/// How many calls away from a hot loop a function still counts as hot.
const REACH: usize = 4;

/// Words in the names of functions that run once: their loops are loading, not steps.
const COLD: &[&str] = &[
    "init",
    "load",
    "setup",
    "build",
    "create",
    "make",
    "test",
    "main",
    "convert",
    "quantize",
    "pack",
    "save",
    "export",
    "prepare",
    "configure",
    "warmup",
    "benchmark",
    "bench",
    "parse",
    "compile",
    "new",
    "register",
    "alloc",
];

/// Words in the names of functions that run per token, step, frame or dispatch.
const HOT: &[&str] = &[
    "forward",
    "decode",
    "step",
    "sample",
    "generate",
    "dispatch",
    "draw",
    "render",
    "encode",
    "gemm",
    "gemv",
    "matmul",
    "attention",
    "run",
    "call",
    "update",
    "predict",
    "infer",
    "compute",
    "execute",
    "eval",
    "launch",
    "softmax",
    "argmax",
    "token",
    "kernel",
    "tick",
    "frame",
    "apply",
    "process",
    "fused",
    "proj",
    "transform",
    "simulate",
];

/// For each function, whether it is on a hot path.
pub(crate) fn hot_functions(project: &Project<'_>, summaries: &[Summary<'_>]) -> Vec<bool> {
    let count = project.functions.len();
    let mut hot = vec![false; count];
    let mut cold = vec![false; count];
    for id in 0..count {
        let function = project.function(id as u32).1;
        cold[id] = function.kind != FunctionKind::Free && function.kind != FunctionKind::Method
            || function.is_test
            || has_word(&function.name, COLD);
        hot[id] = !cold[id] && has_word(&function.name, HOT);
    }
    for _ in 0..REACH {
        let mut reached = Vec::new();
        for (id, summary) in summaries.iter().enumerate() {
            for edge in &summary.calls {
                let callee = edge.callee as usize;
                let from_hot = hot[id] || edge.in_loop && !cold[id];
                if from_hot && !hot[callee] && !cold[callee] {
                    reached.push(callee);
                }
            }
        }
        if reached.is_empty() {
            break;
        }
        for id in reached {
            hot[id] = true;
        }
    }
    hot
}

/// Whether loops in this function are steps rather than loading.
pub(crate) fn loops_are_steps(project: &Project<'_>, id: u32) -> bool {
    let function = project.function(id).1;
    !matches!(function.kind, FunctionKind::Constructor | FunctionKind::TopLevel)
        && !function.is_test
        && !has_word(
            &function.name,
            &["init", "load", "test", "convert", "quantize", "pack", "save", "export"],
        )
}

/// Whether one of `words` is a word of the identifier `name`.
fn has_word(name: &str, words: &[&str]) -> bool {
    let mut start = 0;
    let bytes = name.as_bytes();
    let mut parts = Vec::new();
    for i in 0..=bytes.len() {
        let boundary = i == bytes.len()
            || bytes[i] == b'_'
            || i > start && bytes[i].is_ascii_uppercase() && !bytes[i - 1].is_ascii_uppercase();
        if boundary {
            if i > start {
                parts.push(&name[start..i]);
            }
            start = if i < bytes.len() && bytes[i] == b'_' { i + 1 } else { i };
        }
    }
    parts.iter().any(|part| words.iter().any(|w| part.eq_ignore_ascii_case(w)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_identifiers() {
        assert!(has_word("_dispatch_mla_decode", &["decode"]));
        assert!(has_word("drawInMTKView", &["draw"]));
        assert!(has_word("__init__", &["init"]));
        assert!(!has_word("redraws", &["draw"]));
        assert!(!has_word("steps_per_epoch", &["step"]));
    }
}
