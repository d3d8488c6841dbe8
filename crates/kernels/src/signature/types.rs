//! What a kernel source declares.

/// A kernel file's declarations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// The file's stem: `norm` for `norm.metal`.
    pub stem: String,
    /// `ELEMENTS` lines, in order; at most two.
    pub elements: Vec<Elements>,
    /// `struct …Args` at file scope.
    pub structs: Vec<ArgumentStruct>,
    /// `SPECIALISE` lines, by index.
    pub constants: Vec<SpecialisationConstant>,
    /// The kernels, in order.
    pub kernels: Vec<KernelSignature>,
    /// Names in `#include "…"` lines, in order.
    pub includes: Vec<String>,
}

/// `ELEMENTS(T, half, float);`: the types that a type parameter stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// The parameter's name: `T`.
    pub parameter: String,
    /// The types.
    pub types: Vec<ElementType>,
}

/// The element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum ElementType {
    U8,
    I8,
    U16,
    U32,
    I32,
    U64,
    F16,
    Bf16,
    F32,
    /// Four 32-bit words, 16-byte aligned.
    U32x4,
    /// An atomic 32-bit word.
    AtomicU32,
}

impl ElementType {
    /// Every type.
    pub const ALL: [Self; 11] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::F16,
        Self::Bf16,
        Self::F32,
        Self::U32x4,
        Self::AtomicU32,
    ];

    /// The dialect's name.
    pub const fn source_name(self) -> &'static str {
        match self {
            Self::U8 => "uchar",
            Self::I8 => "char",
            Self::U16 => "ushort",
            Self::U32 => "uint",
            Self::I32 => "int",
            Self::U64 => "ulong",
            Self::F16 => "half",
            Self::Bf16 => "bf16",
            Self::F32 => "float",
            Self::U32x4 => "uint4",
            Self::AtomicU32 => "atomic_uint",
        }
    }

    /// What a kernel's name ends in when a type parameter stands for this type.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::U32x4 => "u32x4",
            Self::AtomicU32 => "atomic_u32",
        }
    }

    /// Bytes of one element, which is also its alignment.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 | Self::AtomicU32 => 4,
            Self::U64 => 8,
            Self::U32x4 => 16,
        }
    }

    /// The type of this name in the dialect.
    pub fn from_source_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.source_name() == name)
    }
}

/// The type in a parameter's brackets: a type, or a parameter of an `ELEMENTS` line (its index).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TypeName {
    /// A type.
    Element(ElementType),
    /// The n-th `ELEMENTS` line's parameter.
    Generic(usize),
}

/// `struct RmsNormArgs { … };`: constants of one dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentStruct {
    /// Its name.
    pub name: String,
    /// The comment above it, without the slashes.
    pub doc: String,
    /// Its members, in order.
    pub fields: Vec<Field>,
}

/// A member of an argument structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: FieldType,
    /// The comment above or beside it.
    pub doc: String,
}

/// A scalar, or an array of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldType {
    /// The scalar.
    pub scalar: ScalarType,
    /// Number of elements, where it is an array.
    pub count: Option<usize>,
}

/// Scalars of argument structures and specialisation constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum ScalarType {
    Uint,
    Int,
    Float,
    Ulong,
    Bool,
}

impl ScalarType {
    /// The dialect's name.
    pub const fn source_name(self) -> &'static str {
        match self {
            Self::Uint => "uint",
            Self::Int => "int",
            Self::Float => "float",
            Self::Ulong => "ulong",
            Self::Bool => "bool",
        }
    }

    /// Rust's name.
    pub const fn rust_name(self) -> &'static str {
        match self {
            Self::Uint => "u32",
            Self::Int => "i32",
            Self::Float => "f32",
            Self::Ulong => "u64",
            Self::Bool => "bool",
        }
    }

    /// Bytes in an argument structure, which is also the alignment.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Ulong => 8,
            Self::Bool => 1,
            _ => 4,
        }
    }
}

/// `SPECIALISE(uint, GROUP, 0);`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialisationConstant {
    /// Its name in the source, in capitals.
    pub name: String,
    /// `uint`, `int`, `float` or `bool`.
    pub ty: ScalarType,
    /// Its index; indices count up from 0.
    pub index: usize,
    /// The comment above it.
    pub doc: String,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelSignature {
    /// Its name, without the suffix of an element type.
    pub name: String,
    /// The comment above it, without the slashes.
    pub doc: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
    /// The SIMD-group width that it needs, if it needs one.
    pub simd_width: Option<u32>,
    /// Its line, from 1.
    pub line: usize,
}

/// A kernel's parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ParameterKind,
}

/// What a parameter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// A buffer.
    Buffer {
        /// Element type.
        element: TypeName,
        /// What the kernel does with it.
        access: ParameterAccess,
        /// Whether nothing may be bound.
        optional: bool,
        /// Binding index.
        index: usize,
    },
    /// Bytes in the command.
    Inline {
        /// Name of the argument structure.
        structure: String,
        /// Binding index.
        index: usize,
    },
    /// Threadgroup memory whose length the launcher gives.
    Threadgroup {
        /// Element type.
        element: TypeName,
    },
    /// Where the thread is.
    Position(Position),
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParameterAccess {
    /// Only reads it.
    In,
    /// Writes it before it reads it, if it reads it at all.
    Out,
    /// Reads and writes it.
    InOut,
}

/// A position attribute (Metal Shading Language Specification 3.0, §5.2.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the attributes'")]
pub enum Position {
    ThreadgroupPositionInGrid,
    ThreadgroupsPerGrid,
    ThreadPositionInThreadgroup,
    ThreadsPerThreadgroup,
    ThreadIndexInThreadgroup,
    ThreadIndexInSimdgroup,
    SimdgroupIndexInThreadgroup,
    ThreadsPerSimdgroup,
    SimdgroupsPerThreadgroup,
}

impl Position {
    /// Every attribute.
    pub const ALL: [Self; 9] = [
        Self::ThreadgroupPositionInGrid,
        Self::ThreadgroupsPerGrid,
        Self::ThreadPositionInThreadgroup,
        Self::ThreadsPerThreadgroup,
        Self::ThreadIndexInThreadgroup,
        Self::ThreadIndexInSimdgroup,
        Self::SimdgroupIndexInThreadgroup,
        Self::ThreadsPerSimdgroup,
        Self::SimdgroupsPerThreadgroup,
    ];

    /// The attribute's name.
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::ThreadgroupPositionInGrid => "threadgroup_position_in_grid",
            Self::ThreadgroupsPerGrid => "threadgroups_per_grid",
            Self::ThreadPositionInThreadgroup => "thread_position_in_threadgroup",
            Self::ThreadsPerThreadgroup => "threads_per_threadgroup",
            Self::ThreadIndexInThreadgroup => "thread_index_in_threadgroup",
            Self::ThreadIndexInSimdgroup => "thread_index_in_simdgroup",
            Self::SimdgroupIndexInThreadgroup => "simdgroup_index_in_threadgroup",
            Self::ThreadsPerSimdgroup => "threads_per_simdgroup",
            Self::SimdgroupsPerThreadgroup => "simdgroups_per_threadgroup",
        }
    }

    /// The type that a parameter with this attribute must have.
    pub const fn source_type(self) -> &'static str {
        match self {
            Self::ThreadgroupPositionInGrid
            | Self::ThreadgroupsPerGrid
            | Self::ThreadPositionInThreadgroup
            | Self::ThreadsPerThreadgroup => "uint3",
            _ => "uint",
        }
    }

    /// The attribute of this name.
    pub fn from_attribute(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.attribute() == name)
    }
}
