//! What Metal or the dialect refuses and clang's C++ for OpenCL accepts, found in the syntax tree.

use std::collections::BTreeMap;

use crate::ast::{Node, with_ancestors};
use crate::attributes::{POSITIONS, Shape};
use crate::call_graph::{CallGraph, is_function};
use crate::check::Finding;

/// Where `compat/msl` lies for clang. Its macros may use what a kernel may not.
const STAND_IN: &str = "compat/msl/";

/// Words with a meaning of their own in Metal that clang would take for names: function qualifiers
/// (§5.1), address spaces (§4), types and qualifiers of later versions (§2.1, §4.8), and `assert`,
/// a macro of Apple's headers (gfx-rs/wgpu issue 5347).
const KEYWORDS: &[&str] = &[
    "assert",
    "bfloat",
    "bfloat2",
    "bfloat3",
    "bfloat4",
    "coherent",
    "fragment",
    "object_data",
    "ray_data",
    "threadgroup_imageblock",
    "vertex",
];

/// Metal Feature Set Tables, "Maximum total threadgroup memory allocation": Apple 4 and later.
const THREADGROUP_BYTES: usize = 32 * 1024;

const SPACES: [&str; 4] = ["__global", "__local", "__private", "__constant"];

/// All of it, by place.
pub(crate) fn violations(nodes: &[Node<'_>]) -> Vec<Finding> {
    let mut out = CallGraph::new(nodes).violations();
    let mut implicit_below = None;
    with_ancestors(nodes, |node, above| {
        // What the compiler adds to a class takes the generic address space, as in Metal.
        if implicit_below.is_some_and(|depth| node.depth <= depth) {
            implicit_below = None;
        }
        if implicit_below.is_some() {
            return;
        }
        if node.kind.ends_with("Decl") && node.has_flag("implicit") {
            implicit_below = Some(node.depth);
            return;
        }
        let mut refuse = |message: String| {
            out.push(Finding { file: node.file.to_owned(), line: node.line, message });
        };
        if let Some(message) = forbidden(node, above) {
            refuse(message.to_owned());
        }
        if let Some(message) = no_address_space(node) {
            refuse(message);
        }
        if let Some(message) = method_of_elsewhere(node, above) {
            refuse(message);
        }
        if let Some(message) = between_kinds_of_numbers(node) {
            refuse(message);
        }
        if let Some(message) = keyword(node) {
            refuse(message);
        }
        if let Some((on, message)) = misplaced_attribute(node, above) {
            out.push(Finding { file: on.file.to_owned(), line: on.line, message });
        }
    });
    out.extend(kernels(nodes));
    out.sort_by(|a, b| (&a.file, a.line, &a.message).cmp(&(&b.file, b.line, &b.message)));
    out.dedup();
    out
}

/// Kinds of nodes that have no place in a kernel (§1.5.4, and §5.3 for `static`).
fn forbidden(node: &Node<'_>, above: &[&Node<'_>]) -> Option<&'static str> {
    Some(match node.kind {
        "GotoStmt" | "IndirectGotoStmt" | "LabelStmt" => {
            "goto and labels are not in Metal (§1.5.4)"
        }
        "LambdaExpr" => "lambda expressions are not in Metal 3.0 (§1.5.4)",
        "CXXNoexceptExpr" => "the noexcept operator is not in Metal (§1.5.4)",
        "GCCAsmStmt" | "MSAsmStmt" | "FileScopeAsmDecl" => "assembly is not in Metal",
        "public" | "protected" | "private" if node.address == 0 => {
            "derived classes are not in Metal (§1.5.4)"
        }
        "VarDecl"
            if above.iter().any(|n| is_function(n))
                && node
                    .text
                    .split('\'')
                    .next_back()
                    .is_some_and(|t| t.split_whitespace().any(|word| word == "static")) =>
        {
            "static is for program scope only (§5.3)"
        }
        "DeclRefExpr" if node.text.contains("'__builtin_") && !node.file.starts_with(STAND_IN) => {
            "a compiler's builtin is no function of Metal's"
        }
        "VarDecl" | "ParmVarDecl" | "FieldDecl" | "TypedefDecl" | "TypeAliasDecl"
        | "FunctionDecl"
            if node.type_name().contains("long long") =>
        {
            "long long is not in Metal (§2.1)"
        }
        _ => return None,
    })
}

/// §4: every pointer and reference names an address space. Without one, C++ for OpenCL takes the
/// generic one, or leaves a template's open.
fn no_address_space(node: &Node<'_>) -> Option<String> {
    if node.file.starts_with(STAND_IN) {
        return None;
    }
    let ty = match node.kind {
        "VarDecl"
        | "ParmVarDecl"
        | "FieldDecl"
        | "TypedefDecl"
        | "TypeAliasDecl"
        | "CStyleCastExpr"
        | "CXXStaticCastExpr"
        | "CXXReinterpretCastExpr"
        | "CXXConstCastExpr" => node.type_name(),
        // The parameters have nodes of their own; what is left is what it returns.
        _ if is_function(node) => node.type_name().split('(').next().unwrap_or_default(),
        _ => return None,
    };
    let mut pointees: Vec<&str> = ty.split(['*', '&']).collect();
    pointees.pop();
    let bare = pointees.iter().any(|p| !SPACES.iter().any(|space| p.contains(space)));
    bare.then(|| {
        let shown = ty.replace("__generic ", "");
        format!("pointer or reference without an address space: `{}` (§4)", in_metal(&shown))
    })
}

/// The type in Metal's words.
fn in_metal(ty: &str) -> String {
    let mut out = ty.replace(" *__private", " *").replace(" &__private", " &");
    for (from, to) in SPACES.iter().zip(["device", "threadgroup", "thread", "constant"]) {
        out = out.replace(from, to);
    }
    out.replace("msl_atomic", "atomic")
}

/// A method's `this` is in the thread address space unless it says otherwise (§4.3); C++ for OpenCL
/// would make it generic.
fn method_of_elsewhere(node: &Node<'_>, above: &[&Node<'_>]) -> Option<String> {
    let [.., member, conversion] = above else { return None };
    let from_elsewhere = conversion.text.contains("<AddressSpaceConversion>")
        && member.kind == "MemberExpr"
        && member.text.contains("bound member function")
        && ["__global", "__local", "__constant"].iter().any(|s| node.type_name().contains(s));
    from_elsewhere.then(|| {
        format!(
            "a method whose `this` is thread is called on `{}` (§4)",
            in_metal(node.type_name())
        )
    })
}

fn keyword(node: &Node<'_>) -> Option<String> {
    if !node.kind.ends_with("Decl") || node.file.starts_with(STAND_IN) {
        return None;
    }
    // A structure has no type in quotes, so its name is the last word but `definition`.
    let mut words = node.head().split_whitespace().rev().filter(|w| *w != "definition");
    let name = words.next().filter(|name| KEYWORDS.contains(name))?;
    Some(format!("`{name}` is a word of Metal's own"))
}

/// The dialect's rule, not Metal's (§2.22 would convert): on Metal a forgotten conversion rounds
/// silently, elsewhere it does not compile.
fn between_kinds_of_numbers(node: &Node<'_>) -> Option<String> {
    let implicit = node.kind == "ImplicitCastExpr"
        && ["<FloatingCast>", "<IntegralToFloating>", "<FloatingToIntegral>"]
            .iter()
            .any(|kind| node.text.contains(kind))
        && !node.text.contains("part_of_explicit_cast")
        && !node.file.starts_with(STAND_IN);
    implicit.then(|| format!("implicit conversion to `{}`", node.type_name()))
}

/// Attributes on what they are for, with a type of theirs (§5.2.1, §5.2.3.6, §5.8.1).
fn misplaced_attribute<'n, 'a>(
    node: &Node<'a>,
    above: &[&'n Node<'a>],
) -> Option<(&'n Node<'a>, String)> {
    let on = above.last().filter(|_| node.kind == "AnnotateAttr")?;
    let attribute = node.text.split('"').nth(1).unwrap_or_default();
    Some((on, problem_with_attribute(attribute, on)?))
}

fn problem_with_attribute(attribute: &str, on: &Node<'_>) -> Option<String> {
    let ty = on.type_name();
    if attribute == "function_constant" {
        let scalar = ["uint", "int", "float", "bool", "ushort", "short", "half"]
            .iter()
            .any(|scalar| ty.trim_start_matches("const ") == format!("__constant {scalar}"));
        return (on.kind != "VarDecl" || !scalar).then(|| {
            format!("[[function_constant]] on `{}`, not a scalar constant (§5.8.1)", in_metal(ty))
        });
    }
    if on.kind != "ParmVarDecl" {
        return Some(format!("[[{attribute}]] on something other than a parameter (§5.2)"));
    }
    let pointee = ty.strip_suffix(" *__private").or_else(|| ty.strip_suffix(" &__private"));
    let expected = match attribute {
        "buffer" if pointee.is_some_and(|p| p.contains("__global") || p.contains("__constant")) => {
            return None;
        }
        "threadgroup" if pointee.is_some_and(|p| p.contains("__local")) => return None,
        "buffer" => "a pointer or reference to device or constant memory (§5.2.1)".to_owned(),
        "threadgroup" => "a pointer to threadgroup memory (§5.2.1)".to_owned(),
        _ => {
            let (_, shape) = POSITIONS.iter().find(|(name, _)| *name == attribute)?;
            let widths: &[&str] = match shape {
                Shape::Scalar => &[""],
                Shape::UpToThree => &["", "2", "3"],
            };
            let types: Vec<String> =
                widths.iter().flat_map(|w| [format!("uint{w}"), format!("ushort{w}")]).collect();
            if types.iter().any(|t| ty == format!("__private {t}")) {
                return None;
            }
            format!("one of {} (Table 5.8)", types.join(", "))
        }
    };
    Some(format!(
        "[[{attribute}]] on `{}`, expected {expected}",
        in_metal(ty.trim_start_matches("__private "))
    ))
}

/// What concerns a kernel as a whole.
#[derive(Default)]
struct KernelFacts<'a> {
    is_kernel: bool,
    name: &'a str,
    file: &'a str,
    line: usize,
    /// Attribute, its index, and the type that it is on.
    attributes: Vec<(&'a str, Option<usize>, &'a str)>,
    parameters: usize,
    threadgroup: Vec<&'a str>,
}

fn kernels(nodes: &[Node<'_>]) -> Vec<Finding> {
    let mut functions: BTreeMap<u64, KernelFacts<'_>> = BTreeMap::new();
    with_ancestors(nodes, |node, above| {
        if is_function(node) {
            let facts = functions.entry(node.address).or_default();
            (facts.name, facts.file, facts.line) = (node.name(), node.file, node.line);
            return;
        }
        let Some(function) = above.iter().rev().find(|n| is_function(n)) else { return };
        let Some(facts) = functions.get_mut(&function.address) else { return };
        match node.kind {
            "OpenCLKernelAttr" => facts.is_kernel = true,
            "ParmVarDecl" if node.depth == function.depth + 1 => facts.parameters += 1,
            "AnnotateAttr" => {
                let ty = above.last().map_or("", |n| n.type_name());
                facts.attributes.push((node.text.split('"').nth(1).unwrap_or_default(), None, ty));
            }
            "value:" => {
                if let Some(last) = facts.attributes.last_mut().filter(|a| a.1.is_none()) {
                    last.1 = node.text.strip_prefix("Int ").and_then(|n| n.parse().ok());
                }
            }
            "VarDecl"
                if node.type_name().starts_with("__local ") && !node.type_name().contains('*') =>
            {
                facts.threadgroup.push(node.type_name());
            }
            _ => {}
        }
    });
    let mut out = Vec::new();
    for facts in functions.values().filter(|f| f.is_kernel) {
        let mut refuse = |message: String| {
            out.push(Finding { file: facts.file.to_owned(), line: facts.line, message });
        };
        let name = facts.name;
        if facts.attributes.len() < facts.parameters {
            refuse(format!("kernel {name} has a parameter without an attribute (§5.2)"));
        }
        for (at, (attribute, index, _)) in facts.attributes.iter().enumerate() {
            if facts.attributes[..at].iter().any(|(a, i, _)| a == attribute && i == index) {
                let index = index.map_or_else(String::new, |i| format!("({i})"));
                refuse(format!("kernel {name} has [[{attribute}{index}]] twice (§5.2.1)"));
            }
        }
        for message in unlike(&facts.attributes) {
            refuse(format!("kernel {name}: {message}"));
        }
        match facts.threadgroup.iter().map(|ty| array_bytes(ty)).sum::<Result<usize, _>>() {
            Ok(bytes) if bytes > THREADGROUP_BYTES => refuse(format!(
                "kernel {name} has {bytes} bytes of threadgroup memory, at most {THREADGROUP_BYTES} \
                 are there (Metal Feature Set Tables)"
            )),
            Ok(_) => {}
            Err(ty) => {
                refuse(format!("kernel {name}: the size of `{}` is not known here", in_metal(&ty)))
            }
        }
    }
    out
}

/// §5.2.3.6, "Notes on kernel function attributes": positions have the same number of components,
/// what is about SIMD-groups has the same type.
fn unlike(attributes: &[(&str, Option<usize>, &str)]) -> Vec<String> {
    let mut out = Vec::new();
    let positions = attributes.iter().filter_map(|(name, _, ty)| {
        POSITIONS.iter().any(|p| p.0 == *name && p.1 == Shape::UpToThree).then_some((*name, *ty))
    });
    let simd = attributes
        .iter()
        .filter(|(name, ..)| name.contains("simdgroup"))
        .map(|(name, _, ty)| (*name, *ty));
    let components = |ty: &str| ty.chars().next_back().filter(char::is_ascii_digit).unwrap_or('1');
    for (a, b) in neighbours(positions).filter(|(a, b)| components(a.1) != components(b.1)) {
        out.push(format!("[[{}]] and [[{}]] differ in components (§5.2.3.6)", a.0, b.0));
    }
    for (a, b) in neighbours(simd).filter(|(a, b)| a.1 != b.1) {
        out.push(format!("[[{}]] and [[{}]] differ in type (§5.2.3.6)", a.0, b.0));
    }
    out
}

fn neighbours<T: Copy>(items: impl Iterator<Item = T>) -> impl Iterator<Item = (T, T)> {
    let items: Vec<T> = items.collect();
    (1..items.len()).map(move |i| (items[i - 1], items[i]))
}

/// Bytes of `__local uint4[64]`; the type, where its size is not known.
fn array_bytes(ty: &str) -> Result<usize, String> {
    let (element, dimensions) = ty.split_once('[').map_or((ty, ""), |(e, d)| (e, d));
    let element = element.trim_start_matches("__local ").trim().trim_start_matches("msl_");
    let scalar = element.trim_end_matches(|c: char| c.is_ascii_digit());
    let bytes = match scalar {
        "bool" | "char" | "uchar" => 1,
        "short" | "ushort" | "half" | "bf" => 2,
        "int" | "uint" | "float" | "atomic_int" | "atomic_uint" => 4,
        "long" | "ulong" => 8,
        _ => return Err(element.to_owned()),
    };
    // Three components take the room of four (Table 2.3); `bf16` ends in digits of its own.
    let components = match &element[scalar.len()..] {
        "2" => 2,
        "3" | "4" => 4,
        _ => 1,
    };
    dimensions
        .split(['[', ']'])
        .filter(|d| !d.is_empty())
        .try_fold(bytes * components, |product, d| d.parse::<usize>().map(|d| product * d))
        .map_err(|_| ty.to_owned())
}

#[cfg(test)]
mod tests {
    use super::array_bytes;

    #[test]
    fn threadgroup_arrays_have_their_size() {
        for (ty, bytes) in [
            ("__local float[32]", 128),
            ("__local uint4[64]", 1024),
            ("__local half3[4]", 32),
            ("__local bf16[3]", 6),
            ("__local half[8][16]", 256),
            ("__local msl_atomic_uint[2]", 8),
            ("__local uint", 4),
        ] {
            assert_eq!(array_bytes(ty), Ok(bytes), "{ty}");
        }
        assert_eq!(array_bytes("__local Tile[2]"), Err("Tile".into()));
    }
}
