//! From signatures to Rust: argument structures, specialisation constants, launchers, and the
//! tables of kernels and embedded files.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::signature::{
    ArgumentStruct, Elements, KernelSignature, ParameterAccess, ParameterKind, ScalarType, Source,
    TypeName,
};

/// The text of `launchers.rs`.
pub(crate) fn generate(
    sources: &[Source],
    files: &[(String, PathBuf, String)],
) -> Result<String, String> {
    let mut out = String::new();
    out.push_str("/// Every embedded file.\npub(crate) const FILES: &[crate::SourceFile] = &[\n");
    for (name, path, _) in files {
        let path = path.display().to_string();
        let _ = writeln!(
            out,
            "    crate::SourceFile {{ name: {name:?}, text: include_str!({path:?}) }},"
        );
    }
    out.push_str("];\n\n/// Every kernel, by file.\npub static KERNELS: &[&crate::Kernel] = &[\n");
    for source in sources {
        for kernel in &source.kernels {
            let _ = writeln!(out, "    &{}::{},", source.stem, constant_name(&kernel.name));
        }
    }
    out.push_str("];\n");
    for source in sources {
        module(&mut out, source)?;
    }
    Ok(out)
}

fn module(out: &mut String, source: &Source) -> Result<(), String> {
    let stem = &source.stem;
    let _ = writeln!(out, "\n/// Launchers of `{stem}.metal`.\npub mod {stem} {{");
    out.push_str("    use crate::signature as s;\n    #[allow(unused_imports)]\n    use half::{bf16, f16};\n");
    for structure in &source.structs {
        argument_struct(out, structure);
    }
    let constants = constants_struct(out, source);
    for kernel in &source.kernels {
        reflection(out, source, kernel);
        launcher(out, source, kernel, constants.as_deref())?;
    }
    out.push_str("}\n");
    Ok(())
}

fn doc(out: &mut String, indent: &str, text: &str) {
    for line in text.lines() {
        // Square brackets would be taken for links.
        let line = line.replace('[', "\\[").replace(']', "\\]").replace('<', "\\<");
        let _ = writeln!(out, "{indent}#[doc = {:?}]", format!(" {line}"));
    }
}

/// `rms_norm` → `RmsNorm`.
fn type_name(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut chars = word.chars();
            chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
        })
        .collect()
}

/// `rms_norm` → `RMS_NORM`.
fn constant_name(name: &str) -> String {
    name.to_uppercase()
}

fn field_name(name: &str) -> String {
    match name {
        "type" | "match" | "in" | "ref" | "loop" | "move" | "box" => format!("r#{name}"),
        _ => name.to_owned(),
    }
}

fn argument_struct(out: &mut String, structure: &ArgumentStruct) {
    doc(out, "    ", &structure.doc);
    let derive = "Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable";
    let _ = writeln!(
        out,
        "    #[derive({derive})]\n    #[repr(C)]\n    pub struct {} {{",
        structure.name
    );
    for field in &structure.fields {
        doc(out, "        ", &field.doc);
        let scalar = field.ty.scalar.rust_name();
        let ty = field.ty.count.map_or(scalar.to_owned(), |n| format!("[{scalar}; {n}]"));
        let _ = writeln!(out, "        pub {}: {ty},", field_name(&field.name));
    }
    out.push_str("    }\n");
}

/// Writes the structure of the file's specialisation constants and gives its name.
fn constants_struct(out: &mut String, source: &Source) -> Option<String> {
    if source.constants.is_empty() {
        return None;
    }
    let name = format!("{}Constants", type_name(&source.stem));
    let _ = writeln!(
        out,
        "    /// Specialisation constants of `{}.metal`.\n    #[derive(Clone, Copy, Debug, PartialEq)]\n    pub struct {name} {{",
        source.stem
    );
    for constant in &source.constants {
        doc(out, "        ", &constant.doc);
        let _ = writeln!(
            out,
            "        pub {}: {},",
            field_name(&constant.name.to_lowercase()),
            constant.ty.rust_name()
        );
    }
    out.push_str("    }\n");
    let bits: Vec<String> = source
        .constants
        .iter()
        .map(|c| {
            let field = format!("self.{}", field_name(&c.name.to_lowercase()));
            match c.ty {
                ScalarType::Float => format!("{field}.to_bits()"),
                ScalarType::Uint => field,
                _ => format!("{field} as u32"),
            }
        })
        .collect();
    let _ = writeln!(
        out,
        "    impl {name} {{\n        /// The constants' bits, by index.\n        pub fn values(&self) -> crate::ConstantValues {{\n            crate::ConstantValues::new([{}])\n        }}\n    }}",
        bits.join(", ")
    );
    Some(name)
}

fn type_expression(name: TypeName) -> String {
    match name {
        TypeName::Element(element) => format!("s::TypeName::Element(s::ElementType::{element:?})"),
        TypeName::Generic(index) => format!("s::TypeName::Generic({index})"),
    }
}

fn access_expression(access: ParameterAccess) -> String {
    format!("s::ParameterAccess::{access:?}")
}

fn reflection(out: &mut String, source: &Source, kernel: &KernelSignature) {
    let name = constant_name(&kernel.name);
    let _ = writeln!(out, "    pub static {name}: crate::Kernel = crate::Kernel {{");
    let _ = writeln!(out, "        name: {:?},\n        file: {:?},", kernel.name, source.stem);
    out.push_str("        parameters: &[\n");
    let mut threadgroup = "None".to_owned();
    let mut order = String::new();
    for parameter in &kernel.parameters {
        match &parameter.kind {
            ParameterKind::Buffer { element, access, optional, .. } => {
                let _ = writeln!(
                    out,
                    "            crate::KernelParameter::Buffer {{ name: {:?}, element: {}, access: {}, optional: {optional} }},",
                    parameter.name,
                    type_expression(*element),
                    access_expression(*access)
                );
                order.push_str("crate::Ordered::Binding, ");
            }
            ParameterKind::Inline { structure, .. } => {
                let _ = writeln!(
                    out,
                    "            crate::KernelParameter::Inline {{ name: {:?}, structure: {structure:?}, bytes: size_of::<{structure}>() }},",
                    parameter.name
                );
                order.push_str("crate::Ordered::Binding, ");
            }
            ParameterKind::Threadgroup { element } => {
                threadgroup = format!("Some({})", type_expression(*element));
                order.push_str("crate::Ordered::Threadgroup, ");
            }
            ParameterKind::Position(position) => {
                let _ = write!(order, "crate::Ordered::Position(s::Position::{position:?}), ");
            }
        }
    }
    out.push_str("        ],\n        constants: &[");
    for constant in &source.constants {
        let _ = write!(out, "({:?}, s::ScalarType::{:?}), ", constant.name, constant.ty);
    }
    out.push_str("],\n        type_parameters: &[");
    for Elements { parameter, types } in &source.elements {
        let types: Vec<String> = types.iter().map(|t| format!("s::ElementType::{t:?}")).collect();
        let _ = write!(
            out,
            "crate::TypeParameter {{ name: {parameter:?}, types: &[{}] }}, ",
            types.join(", ")
        );
    }
    let _ = writeln!(
        out,
        "],\n        threadgroup: {threadgroup},\n        simd_width: {:?},\n        order: &[{order}],\n    }};",
        kernel.simd_width
    );
}

fn launcher(
    out: &mut String,
    source: &Source,
    kernel: &KernelSignature,
    constants: Option<&str>,
) -> Result<(), String> {
    let name = type_name(&kernel.name);
    let parameters: Vec<&str> = source.elements.iter().map(|e| e.parameter.as_str()).collect();
    let element = |name: &TypeName| match name {
        TypeName::Generic(index) => parameters[*index].to_owned(),
        TypeName::Element(element) => rust_element(*element).to_owned(),
    };
    let bounds: Vec<String> = parameters.iter().map(|p| format!("{p}: crate::Element")).collect();
    let has_buffers =
        kernel.parameters.iter().any(|p| matches!(p.kind, ParameterKind::Buffer { .. }));
    if !has_buffers {
        return Err(format!("{}.metal: kernel {} has no buffers", source.stem, kernel.name));
    }
    let mut generics = vec!["'a".to_owned()];
    generics.extend(bounds.iter().cloned());
    let mut names = vec!["'a"];
    names.extend(&parameters);
    let (generics, names) = (generics.join(", "), names.join(", "));

    let mut fields = String::new();
    let mut arguments = String::new();
    let mut threadgroup = "0".to_owned();
    for parameter in &kernel.parameters {
        let field = field_name(&parameter.name);
        match &parameter.kind {
            ParameterKind::Buffer { element: e, access, optional, .. } => {
                let view = if *access == ParameterAccess::In { "View" } else { "ViewMut" };
                let ty = format!("crate::{view}<'a, {}>", element(e));
                let access = access_expression(*access);
                if *optional {
                    let _ = writeln!(fields, "        pub {field}: Option<{ty}>,");
                    let _ = writeln!(
                        arguments,
                        "                self.{field}.map_or(crate::Argument::Absent, |v| v.argument({access})),"
                    );
                } else {
                    let _ = writeln!(fields, "        pub {field}: {ty},");
                    let _ = writeln!(arguments, "                self.{field}.argument({access}),");
                }
            }
            ParameterKind::Inline { structure, .. } => {
                let _ = writeln!(fields, "        pub {field}: {structure},");
                let _ = writeln!(
                    arguments,
                    "                crate::Argument::Inline(crate::InlineBytes::of(&self.{field})),"
                );
            }
            ParameterKind::Threadgroup { element: e } => {
                let _ = writeln!(
                    fields,
                    "        /// Elements of threadgroup memory.\n        pub {field}: u32,"
                );
                threadgroup = format!("self.{field} * size_of::<{}>() as u32", element(e));
            }
            ParameterKind::Position(_) => {}
        }
    }
    let values = match constants {
        Some(ty) => {
            let _ = writeln!(
                fields,
                "        /// Specialisation constants.\n        pub constants: {ty},"
            );
            "self.constants.values()"
        }
        None => "crate::ConstantValues::default()",
    };
    // A type parameter that no binding mentions still has to be said.
    if !parameters.is_empty() {
        let _ = writeln!(
            fields,
            "        /// The file's type parameters.\n        pub elements: std::marker::PhantomData<({},)>,",
            parameters.join(", ")
        );
    }
    let mut elements: Vec<String> =
        parameters.iter().map(|p| format!("Some(<{p} as crate::Element>::TYPE)")).collect();
    elements.resize(2, "None".to_owned());

    doc(out, "    ", &kernel.doc);
    let _ = writeln!(out, "    pub struct {name}<{generics}> {{\n{fields}    }}");
    let _ = writeln!(
        out,
        "    impl<{generics}> crate::Launch for {name}<{names}> {{\n        fn dispatch(self, grid: crate::Grid) -> crate::Dispatch {{\n            crate::Dispatch {{\n                pipeline: crate::PipelineKey {{\n                    kernel: &{},\n                    elements: [{}],\n                    constants: {values},\n                }},\n                arguments: vec![\n{arguments}                ],\n                grid,\n                threadgroup_bytes: {threadgroup},\n            }}\n        }}\n    }}",
        constant_name(&kernel.name),
        elements.join(", ")
    );
    Ok(())
}

fn rust_element(element: crate::signature::ElementType) -> &'static str {
    use crate::signature::ElementType as E;
    match element {
        E::U8 => "u8",
        E::I8 => "i8",
        E::U16 => "u16",
        E::U32 => "u32",
        E::I32 => "i32",
        E::U64 => "u64",
        E::F16 => "f16",
        E::Bf16 => "bf16",
        E::F32 => "f32",
        E::U32x4 => "[u32; 4]",
        E::AtomicU32 => "crate::Atomic",
    }
}
