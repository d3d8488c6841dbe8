//! The kernels' sources, put together for a target.

use crate::PipelineKey;

/// What a source is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Apple's compiler.
    Metal,
    /// NVRTC.
    Cuda,
}

/// An embedded file.
#[derive(Clone, Copy, Debug)]
pub struct SourceFile {
    /// Its name: `norm.metal`, `weights.h`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

fn find(name: &str) -> &'static str {
    crate::generated::FILES
        .iter()
        .find(|f| f.name == name)
        .map(|f| f.text)
        .unwrap_or_else(|| unreachable!("the build embeds every file that a kernel includes"))
}

/// Appends `name` with its includes put in place, each file once.
fn flatten(name: &'static str, done: &mut Vec<&'static str>, out: &mut String) {
    if done.contains(&name) {
        return;
    }
    done.push(name);
    out.push_str(&format!("#line 1 \"{name}\"\n"));
    for (number, line) in find(name).lines().enumerate() {
        let include =
            line.trim_start().strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
        match include {
            Some(included) => {
                let file = crate::generated::FILES
                    .iter()
                    .find(|f| f.name == included)
                    .unwrap_or_else(|| unreachable!("checked by the build"));
                flatten(file.name, done, out);
                out.push_str(&format!("#line {} \"{name}\"\n", number + 2));
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

/// The whole source of `pipeline`'s kernel file for `target`: compatibility header, type
/// parameters, shared headers and kernels, in one text without includes.
///
/// Type parameters and kernel names are set by macros in front. On CUDA the specialisation
/// constants are too (`SPECIALISE` needs their values), and the entry point of the
/// pipeline's kernel follows; on Metal they are function constants.
pub fn source(pipeline: &PipelineKey, target: Target) -> String {
    let kernel = pipeline.kernel;
    let file = crate::generated::FILES
        .iter()
        .find(|f| f.name.strip_suffix(".metal") == Some(kernel.file))
        .unwrap_or_else(|| unreachable!("a kernel's file is embedded"));
    let mut out = String::new();
    let mut done = Vec::new();
    if target == Target::Cuda {
        for ((name, ty), bits) in kernel.constants.iter().zip(pipeline.constants.bits()) {
            out.push_str(&format!("#define MARLIN_VALUE_{name} {}\n", literal(*ty, *bits)));
        }
        if works_before_waiting(kernel.name, file.text) {
            out.push_str("#define MARLIN_WORKS_BEFORE_WAITING\n");
        }
    }
    flatten(
        match target {
            Target::Metal => "compat/metal.h",
            Target::Cuda => "compat/cuda.h",
        },
        &mut done,
        &mut out,
    );
    for (parameter, element) in kernel.type_parameters.iter().zip(pipeline.elements) {
        let element = element.unwrap_or(parameter.types[0]);
        out.push_str(&format!("#define {} {}\n", parameter.name, element.source_name()));
    }
    if !kernel.type_parameters.is_empty() {
        let suffix = pipeline.symbol()[kernel.name.len()..].to_owned();
        for other in crate::generated::KERNELS.iter().filter(|k| k.file == kernel.file) {
            out.push_str(&format!("#define {0} {0}{suffix}\n", other.name));
        }
    }
    flatten(file.name, &mut done, &mut out);
    if target == Target::Cuda {
        out.push_str(&crate::cuda_entry::entry_point(pipeline));
    }
    out
}

/// Whether the body of the kernel `name` in `text` does anything before its `wait_for_previous()` but allow the next dispatch to
/// begin.
fn works_before_waiting(name: &str, text: &str) -> bool {
    let body = text.split_once(&format!("kernel void {name}(")).map_or("", |(_, rest)| rest);
    let body = body.split_once("\nkernel void ").map_or(body, |(body, _)| body);
    let Some((_, body)) = body.split_once(") {\n") else { return false };
    for line in body.lines().map(str::trim) {
        match line {
            "wait_for_previous();" => return false,
            "" | "allow_next();" => {}
            _ if line.starts_with("//") || line.starts_with("THREADGROUP_ARRAY(") => {}
            _ => return body.contains("    wait_for_previous();"),
        }
    }
    false
}

/// A kernel file with its headers, as it is written: what results that depend on its code are keyed by. `None` if there
/// is no such file.
pub fn text(file: &str) -> Option<String> {
    let file =
        crate::generated::FILES.iter().find(|f| f.name.strip_suffix(".metal") == Some(file))?;
    let mut out = String::new();
    flatten(file.name, &mut Vec::new(), &mut out);
    Some(out)
}

/// A specialisation constant as a C++ literal.
fn literal(ty: crate::signature::ScalarType, bits: u32) -> String {
    use crate::signature::ScalarType as S;
    match ty {
        S::Uint | S::Ulong => format!("{bits}u"),
        S::Int => format!("({})", bits as i32),
        S::Bool => (bits != 0).to_string(),
        S::Float => float_literal(f32::from_bits(bits)),
    }
}

/// A constant expression, which a reinterpretation of bits would not be. Rust writes the shortest
/// decimal number that reads back as the same bits.
fn float_literal(value: f32) -> String {
    if value.is_nan() {
        "__builtin_nanf(\"\")".to_owned()
    } else if value.is_infinite() {
        format!("({}__builtin_huge_valf())", if value < 0.0 { "-" } else { "" })
    } else {
        format!("({value:e}f)")
    }
}

#[cfg(test)]
mod tests {
    use super::{float_literal, works_before_waiting};

    /// What stands before the wait decides whether pointers are restricted.
    #[test]
    fn kernels_that_work_before_they_wait_are_told_from_those_that_only_wait() {
        let text = "\nkernel void waits(\n    IN(float) x [[buffer(0)]]) {\n    THREADGROUP_ARRAY(float, y, 4);\n    \
                    // Nothing.\n    allow_next();\n    wait_for_previous();\n    use(x);\n}\n\nkernel void \
                    works(\n    IN(float) x [[buffer(0)]]) {\n    allow_next();\n    use(x);\n    \
                    wait_for_previous();\n}\n\nkernel void neither(\n    IN(float) x [[buffer(0)]]) {\n    use(x);\n}\n";
        assert!(!works_before_waiting("waits", text));
        assert!(works_before_waiting("works", text));
        assert!(!works_before_waiting("neither", text));
        let real = |file: &str| super::text(file).unwrap_or_default();
        for (kernel, works) in [
            ("gemm", true),
            ("gemm_batch", true),
            ("rope_append", true),
            ("attention_short", true),
            ("attention_append", true),
            ("rms_norm", false),
            ("hadamard", false),
        ] {
            let file = if kernel == "rms_norm" { "norm" } else { kernel };
            assert_eq!(works_before_waiting(kernel, &real(file)), works, "{kernel}");
        }
    }

    #[test]
    fn floats_are_written_so_that_they_read_back_the_same() {
        assert_eq!(float_literal(1.0), "(1e0f)");
        assert_eq!(float_literal(-0.1), "(-1e-1f)");
        assert_eq!(float_literal(f32::MIN_POSITIVE), "(1.1754944e-38f)");
        assert_eq!(float_literal(f32::NEG_INFINITY), "(-__builtin_huge_valf())");
        assert_eq!(float_literal(f32::NAN), "__builtin_nanf(\"\")");
    }
}
