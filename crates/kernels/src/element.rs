//! Rust's side of the element types of buffers.

use half::{bf16, f16};

use crate::signature::ElementType;

mod sealed {
    pub trait Sealed {}
}

/// A type that a buffer can hold: the same bytes on both sides.
pub trait Element: bytemuck::Pod + sealed::Sealed + Send + Sync {
    /// The kernels' name for it.
    const TYPE: ElementType;
}

/// A 32-bit word that kernels change atomically.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Atomic(pub u32);

macro_rules! elements {
    ($($ty:ty => $element:ident),* $(,)?) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const TYPE: ElementType = ElementType::$element;
        }
    )*};
}

elements! {
    u8 => U8,
    i8 => I8,
    u16 => U16,
    u32 => U32,
    i32 => I32,
    u64 => U64,
    f16 => F16,
    bf16 => Bf16,
    f32 => F32,
    [u32; 4] => U32x4,
    Atomic => AtomicU32,
}
