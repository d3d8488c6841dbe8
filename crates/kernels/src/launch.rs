//! From typed views of device memory to a dispatch.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::signature::ParameterAccess;
use crate::{Element, PipelineKey};

/// Memory that a device can bind to a kernel. Devices implement it and find their own
/// type again through [`Any`].
pub trait Allocation: Any + Send + Sync + fmt::Debug {
    /// What it is called in audits and errors.
    fn label(&self) -> &str;
    /// Its size in bytes.
    fn bytes(&self) -> u64;
    /// Whether kernels may write it.
    fn writable(&self) -> bool;
    /// For finding the device's own type.
    fn as_any(&self) -> &dyn Any;
}

/// Why a view of an allocation cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// It would reach past the end.
    #[error("buffer \"{label}\" has {bytes} bytes; a view of bytes {start}..{end} was asked for")]
    OutOfBounds {
        /// The allocation's label.
        label: String,
        /// The allocation's size.
        bytes: u64,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Its start is not a multiple of the element's size.
    #[error(
        "buffer \"{label}\": a view of {element} at byte {offset}, expected a multiple of {align}"
    )]
    Misaligned {
        /// The allocation's label.
        label: String,
        /// The element type.
        element: &'static str,
        /// First byte.
        offset: u64,
        /// What it must be a multiple of.
        align: usize,
    },
    /// Kernels may not write it.
    #[error("buffer \"{label}\" is read-only on the device and cannot be bound as an output")]
    ReadOnly {
        /// The allocation's label.
        label: String,
    },
}

fn check<T: Element>(
    allocation: &dyn Allocation,
    offset: u64,
    len: usize,
) -> Result<(), BindError> {
    let bytes = (len as u64).checked_mul(size_of::<T>() as u64);
    let end = bytes.and_then(|b| b.checked_add(offset)).unwrap_or(u64::MAX);
    if end > allocation.bytes() {
        return Err(BindError::OutOfBounds {
            label: allocation.label().to_owned(),
            bytes: allocation.bytes(),
            start: offset,
            end,
        });
    }
    let align = T::TYPE.bytes();
    if !offset.is_multiple_of(align as u64) {
        return Err(BindError::Misaligned {
            label: allocation.label().to_owned(),
            element: T::TYPE.source_name(),
            offset,
            align,
        });
    }
    Ok(())
}

macro_rules! view {
    ($(#[$doc:meta])* $name:ident, $writes:literal) => {
        $(#[$doc])*
        pub struct $name<'a, T> {
            allocation: &'a Arc<dyn Allocation>,
            offset: u64,
            len: usize,
            element: PhantomData<T>,
        }

        impl<'a, T: Element> $name<'a, T> {
            /// `len` elements of `allocation` from byte `offset`.
            ///
            /// # Errors
            /// Past the end, not aligned to the element, or written and read-only.
            pub fn new(
                allocation: &'a Arc<dyn Allocation>,
                offset: u64,
                len: usize,
            ) -> Result<Self, BindError> {
                check::<T>(&**allocation, offset, len)?;
                if $writes && !allocation.writable() {
                    return Err(BindError::ReadOnly { label: allocation.label().to_owned() });
                }
                Ok(Self { allocation, offset, len, element: PhantomData })
            }

            /// Number of elements.
            #[allow(clippy::len_without_is_empty, reason = "a view is bound, not iterated")]
            pub fn len(&self) -> usize {
                self.len
            }

            /// `len` of its elements from element `start`.
            ///
            /// # Errors
            /// Past the view's end.
            pub fn slice(&self, start: usize, len: usize) -> Result<Self, BindError> {
                let width = size_of::<T>() as u64;
                match start.checked_add(len) {
                    Some(end) if end <= self.len => {
                        Ok(Self { offset: self.offset + start as u64 * width, len, ..*self })
                    }
                    end => Err(BindError::OutOfBounds {
                        label: self.allocation.label().to_owned(),
                        bytes: self.len as u64 * width,
                        start: start as u64 * width,
                        end: end.map_or(u64::MAX, |end| end as u64 * width),
                    }),
                }
            }

            /// As an argument of a dispatch.
            pub fn argument(&self, access: ParameterAccess) -> Argument {
                Argument::Buffer {
                    allocation: self.allocation.clone(),
                    offset: self.offset,
                    bytes: self.len as u64 * size_of::<T>() as u64,
                    access,
                }
            }
        }

        impl<T> Clone for $name<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $name<'_, T> {}
    };
}

view! {
    /// Elements that a kernel reads.
    View, false
}
view! {
    /// Elements that a kernel writes.
    ViewMut, true
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// The same elements, to be read.
    pub fn read(&self) -> View<'a, T> {
        View {
            allocation: self.allocation,
            offset: self.offset,
            len: self.len,
            element: PhantomData,
        }
    }
}

/// Bytes bound in the command.
#[derive(Clone, PartialEq, Eq)]
pub struct InlineBytes(Vec<u8>);

impl InlineBytes {
    /// The bytes of `value`.
    pub fn of<T: bytemuck::NoUninit>(value: &T) -> Self {
        Self(bytemuck::bytes_of(value).to_vec())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for InlineBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes inline", self.0.len())
    }
}

/// One argument of a dispatch.
#[derive(Clone, Debug)]
pub enum Argument {
    /// A range of an allocation.
    Buffer {
        /// The allocation; the dispatch keeps it alive.
        allocation: Arc<dyn Allocation>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
        /// What the kernel does with it.
        access: ParameterAccess,
    },
    /// An optional buffer that is not there.
    Absent,
    /// Bytes in the command.
    Inline(InlineBytes),
}

/// How many threads run a kernel: threadgroups, and threads in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Threadgroups along x, y, z.
    pub threadgroups: [u32; 3],
    /// Threads of a threadgroup along x, y, z.
    pub threads: [u32; 3],
}

impl Grid {
    /// `threadgroups` × `threads` along x.
    pub const fn x(threadgroups: u32, threads: u32) -> Self {
        Self { threadgroups: [threadgroups, 1, 1], threads: [threads, 1, 1] }
    }

    /// `x` × `y` threadgroups of `threads`.
    pub const fn xy(x: u32, y: u32, threads: u32) -> Self {
        Self { threadgroups: [x, y, 1], threads: [threads, 1, 1] }
    }

    /// `x` × `y` × `z` threadgroups of `threads`.
    pub const fn xyz(x: u32, y: u32, z: u32, threads: u32) -> Self {
        Self { threadgroups: [x, y, z], threads: [threads, 1, 1] }
    }

    /// Threads of one threadgroup.
    pub const fn threads_per_threadgroup(&self) -> u32 {
        self.threads[0] * self.threads[1] * self.threads[2]
    }

    /// Whether nothing runs.
    pub const fn is_empty(&self) -> bool {
        let [x, y, z] = self.threadgroups;
        x == 0 || y == 0 || z == 0
    }
}

/// A kernel with everything that it needs to run.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The pipeline.
    pub pipeline: PipelineKey,
    /// By binding index.
    pub arguments: Vec<Argument>,
    /// The threads.
    pub grid: Grid,
    /// Bytes of the threadgroup memory that the launcher sizes; 0 where there is none.
    pub threadgroup_bytes: u32,
}

/// A generated launcher.
pub trait Launch {
    /// The dispatch that runs the kernel over `grid`.
    fn dispatch(self, grid: Grid) -> Dispatch;
}
