//! What is known of a kernel without running it.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::signature::{ElementType, ParameterAccess, Position, ScalarType, TypeName};

/// The most specialisation constants that a kernel file can declare.
pub const MAX_CONSTANTS: usize = 24;

/// A kernel as its source declares it.
#[derive(Debug)]
pub struct Kernel {
    /// Its name, without the suffix of an element type.
    pub name: &'static str,
    /// The stem of its file: `norm` for `norm.metal`.
    pub file: &'static str,
    /// What is bound, by binding index.
    pub parameters: &'static [KernelParameter],
    /// The specialisation constants of its file: name and type, by index.
    pub constants: &'static [(&'static str, ScalarType)],
    /// The type parameters of its file: name and types.
    pub type_parameters: &'static [TypeParameter],
    /// Element type of the threadgroup memory that the launcher sizes, if there is any.
    pub threadgroup: Option<TypeName>,
    /// The SIMD-group width that it needs, if it needs one.
    pub simd_width: Option<u32>,
    /// What stands where in the parameter list of the source.
    pub order: &'static [Ordered],
}

/// What a place in a kernel's parameter list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// The next binding.
    Binding,
    /// The threadgroup memory that the launcher sizes.
    Threadgroup,
    /// Where the thread is.
    Position(Position),
}

/// A type parameter of a kernel file.
#[derive(Debug)]
pub struct TypeParameter {
    /// Its name in the source.
    pub name: &'static str,
    /// What it can stand for.
    pub types: &'static [ElementType],
}

/// Something that is bound to a kernel.
#[derive(Debug)]
pub enum KernelParameter {
    /// A buffer.
    Buffer {
        /// The parameter's name.
        name: &'static str,
        /// Element type.
        element: TypeName,
        /// What the kernel does with it.
        access: ParameterAccess,
        /// Whether nothing may be bound.
        optional: bool,
    },
    /// Bytes in the command.
    Inline {
        /// The parameter's name.
        name: &'static str,
        /// The structure's name.
        structure: &'static str,
        /// The structure's size.
        bytes: usize,
    },
}

impl KernelParameter {
    /// The parameter's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Buffer { name, .. } | Self::Inline { name, .. } => name,
        }
    }
}

/// Values of a file's specialisation constants, as bits, by index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ConstantValues {
    bits: [u32; MAX_CONSTANTS],
    len: u8,
}

impl ConstantValues {
    /// The values in `bits`, by index; at most [`MAX_CONSTANTS`].
    pub fn new<const N: usize>(bits: [u32; N]) -> Self {
        const { assert!(N <= MAX_CONSTANTS, "too many specialisation constants") };
        let mut out = Self { bits: [0; MAX_CONSTANTS], len: N as u8 };
        out.bits[..N].copy_from_slice(&bits);
        out
    }

    /// The values, by index.
    pub fn bits(&self) -> &[u32] {
        &self.bits[..usize::from(self.len)]
    }
}

impl fmt::Debug for ConstantValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.bits()).finish()
    }
}

/// What one compiled pipeline is made from.
#[derive(Clone, Copy)]
pub struct PipelineKey {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// What its file's type parameters stand for.
    pub elements: [Option<ElementType>; 2],
    /// Its file's specialisation constants.
    pub constants: ConstantValues,
}

impl PipelineKey {
    /// The type that `name` stands for.
    pub fn resolve(&self, name: TypeName) -> ElementType {
        match name {
            TypeName::Element(element) => element,
            TypeName::Generic(index) => {
                self.elements[index].expect("a launcher sets every type parameter of its file")
            }
        }
    }

    /// The kernel's name in the compiled code, suffixes included: `rms_norm_f16`.
    pub fn symbol(&self) -> String {
        let mut out = self.kernel.name.to_owned();
        for element in self.elements.iter().flatten() {
            out.push('_');
            out.push_str(element.suffix());
        }
        out
    }
}

impl PartialEq for PipelineKey {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.kernel, other.kernel)
            && self.elements == other.elements
            && self.constants == other.constants
    }
}

impl Eq for PipelineKey {}

impl Hash for PipelineKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.kernel, state);
        self.elements.hash(state);
        self.constants.hash(state);
    }
}

impl fmt::Debug for PipelineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.symbol(), self.constants)
    }
}
