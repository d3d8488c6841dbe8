//! Reads kernel sources: signatures, argument structures, specialisation constants.
//!
//! This is not a C++ parser. It knows the declarations of the dialect (`docs/kernels.md`), which are
//! shaped so that they can be found without one: everything it needs stands at file scope
//! in a fixed form, and whatever does not match is an error with its line.

mod lexer;
mod parse;
mod types;

pub use parse::parse;
pub use types::{
    ArgumentStruct, ElementType, Elements, Field, FieldType, KernelSignature, Parameter,
    ParameterAccess, ParameterKind, Position, ScalarType, Source, SpecialisationConstant, TypeName,
};

/// Why a kernel source cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureError {
    /// The file's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What was found and what was expected.
    pub message: String,
}

impl std::fmt::Display for SignatureError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

impl std::error::Error for SignatureError {}
