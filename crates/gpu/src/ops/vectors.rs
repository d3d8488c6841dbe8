//! Whether a kernel may read and write whole vectors of 16 bytes, and how many threads take them.

use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{Argument, Element, View, ViewMut};

use super::lengths::refuse;
use crate::GpuError;

/// Elements that a thread takes at once.
pub(super) const EIGHT: usize = 8;

/// Bytes that a vector's start must be a multiple of.
const VECTOR_BYTES: u64 = 16;

/// A view's first byte in its allocation. Allocations themselves start at multiples of 16 bytes.
fn first_byte<T: Element>(view: &View<'_, T>) -> u64 {
    match view.argument(ParameterAccess::In) {
        Argument::Buffer { offset, .. } => offset,
        Argument::Absent | Argument::Inline(_) => 0,
    }
}

/// Whether `view` starts at a multiple of 16 bytes.
pub(super) fn starts_whole<T: Element>(view: &View<'_, T>) -> bool {
    first_byte(view).is_multiple_of(VECTOR_BYTES)
}

/// As [`starts_whole`], of a view that is written.
pub(super) fn starts_whole_mut<T: Element>(view: &ViewMut<'_, T>) -> bool {
    starts_whole(&view.read())
}

/// Threads of a threadgroup that goes over a row of `columns` in eights: whole SIMD-groups of any width, one vector a
/// thread where rows are few and latency counts, four where there are enough rows to fill a device.
pub(super) fn row_threads(columns: usize, rows: usize) -> u32 {
    let eights = columns.div_ceil(EIGHT);
    let each = if rows < 256 { 1 } else { 4 };
    eights.div_ceil(each).next_multiple_of(64).clamp(64, 1024) as u32
}

/// Threadgroups of `threads` that `total` threads fill. Kernels number their threads in 32 bits.
///
/// # Errors
/// More threads than that.
pub(super) fn groups_of(kernel: &str, total: usize, threads: u32) -> Result<u32, GpuError> {
    let most = (u32::MAX - threads) as usize;
    if total > most {
        return Err(refuse(kernel, format!("{total} threads, expected at most {most}")));
    }
    Ok((total as u32).div_ceil(threads))
}
