//! Checks of the views that an op is given.

use crate::GpuError;

/// A launch that cannot be done.
pub(super) fn refuse(kernel: &str, reason: String) -> GpuError {
    GpuError::Launch { kernel: kernel.to_owned(), reason }
}

/// `name` has exactly `expected` elements.
pub(super) fn expect_len(
    kernel: &str,
    name: &str,
    found: usize,
    expected: usize,
) -> Result<(), GpuError> {
    if found == expected {
        return Ok(());
    }
    Err(refuse(kernel, format!("{name} has {found} elements, expected {expected}")))
}

/// `name` is at least `least`.
pub(super) fn expect_at_least(
    kernel: &str,
    name: &str,
    found: usize,
    least: usize,
) -> Result<(), GpuError> {
    if found >= least {
        return Ok(());
    }
    Err(refuse(kernel, format!("{found} {name}, expected at least {least}")))
}
