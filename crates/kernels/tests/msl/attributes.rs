//! What of a source has to be put in other words before clang reads it: Metal's attributes, and
//! structures of arguments.

/// Shapes that a built-in variable of a kernel may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `ushort` or `uint`.
    Scalar,
    /// `ushort`, `uint`, or a vector of 2 or 3 of them.
    UpToThree,
}

/// §5.2.3.6, Table 5.8: the built-in variables of kernels, without the ones of quad-groups, of
/// stage-in grids and of non-uniform dispatches, which the dialect does not have.
pub(crate) const POSITIONS: &[(&str, Shape)] = &[
    ("simdgroup_index_in_threadgroup", Shape::Scalar),
    ("simdgroups_per_threadgroup", Shape::Scalar),
    ("thread_index_in_simdgroup", Shape::Scalar),
    ("thread_index_in_threadgroup", Shape::Scalar),
    ("thread_position_in_grid", Shape::UpToThree),
    ("thread_position_in_threadgroup", Shape::UpToThree),
    ("threadgroup_position_in_grid", Shape::UpToThree),
    ("threadgroups_per_grid", Shape::UpToThree),
    ("threads_per_grid", Shape::UpToThree),
    ("threads_per_simdgroup", Shape::Scalar),
    ("threads_per_threadgroup", Shape::UpToThree),
];

/// §5.2.1, §5.8.1.
const WITH_INDEX: &[&str] = &["buffer", "threadgroup", "function_constant"];

/// `source` with each attribute of Metal's as `clang::annotate`, whose words stay in the syntax
/// tree. Others are left to clang, which knows C++14's and refuses the rest.
///
/// A function constant gets an initialiser besides: Metal forbids one (§5.8.1), OpenCL wants one.
pub(crate) fn as_annotations(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("[[") {
        out.push_str(before);
        let Some((inside, behind)) = after.split_once("]]") else {
            out.push_str("[[");
            rest = after;
            continue;
        };
        match annotation(inside.trim()) {
            Some(text) => {
                out.push_str(&text);
                rest = behind;
            }
            // Only the brackets are passed over: what stands between them may hold an attribute.
            None => {
                out.push_str("[[");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// `source` with what lets a `struct …Args` be copied out of constant memory, on the same line.
pub(crate) fn with_copies_of_arguments(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    for line in source.split_inclusive('\n') {
        let name = line
            .trim_start()
            .strip_prefix("struct ")
            .and_then(|rest| rest.split_once('{'))
            .map(|(name, _)| name.trim())
            .filter(|name| name.ends_with("Args"));
        match (name, line.split_once('{')) {
            (Some(name), Some((before, after))) => {
                out.push_str(&format!("{before}{{ MSL_COPIED_FROM_EVERYWHERE({name}){after}"));
            }
            _ => out.push_str(line),
        }
    }
    out
}

fn annotation(inside: &str) -> Option<String> {
    if POSITIONS.iter().any(|(name, _)| *name == inside) {
        return Some(format!("[[clang::annotate(\"{inside}\")]]"));
    }
    let (name, index) = inside.strip_suffix(')')?.split_once('(')?;
    let name = WITH_INDEX.iter().find(|n| **n == name.trim())?;
    let initialiser = if *name == "function_constant" { " = msl::specialised()" } else { "" };
    Some(format!("[[clang::annotate(\"{name}\", {index})]]{initialiser}"))
}

#[cfg(test)]
mod tests {
    use super::{as_annotations, with_copies_of_arguments};

    #[test]
    fn structures_of_arguments_are_copied_and_others_left() {
        for (from, to) in [
            (
                "struct NormArgs {\n    uint n;\n};\n",
                "struct NormArgs { MSL_COPIED_FROM_EVERYWHERE(NormArgs)\n    uint n;\n};\n",
            ),
            ("struct Block {\n", "struct Block {\n"),
            ("// struct NormArgs {", "// struct NormArgs {"),
        ] {
            assert_eq!(with_copies_of_arguments(from), to);
        }
    }

    #[test]
    fn metals_attributes_are_rewritten_and_others_left() {
        for (from, to) in [
            ("x [[buffer(3)]],", "x [[clang::annotate(\"buffer\", 3)]],"),
            ("x [[ threadgroup( 0 ) ]]", "x [[clang::annotate(\"threadgroup\",  0 )]]"),
            ("g [[thread_position_in_grid]]", "g [[clang::annotate(\"thread_position_in_grid\")]]"),
            (
                "uint N [[function_constant(i)]];",
                "uint N [[clang::annotate(\"function_constant\", i)]] = msl::specialised();",
            ),
            ("x [[vertex_id]]", "x [[vertex_id]]"),
            ("x [[buffer]]", "x [[buffer]]"),
            ("a[[b]] c[d[0]] [[", "a[[b]] c[d[0]] [["),
        ] {
            assert_eq!(as_annotations(from), to);
        }
    }
}
