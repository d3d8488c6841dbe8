//! What can go wrong between a program and a device.

use marlin_formats::Format;

/// An error of a backend: names the thing, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A weight's bytes do not fit its shape and format.
    #[error("weight `{name}` [{rows}, {cols}] as {format}: {problem}")]
    Weight {
        /// The tensor's name.
        name: String,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Its number format.
        format: Format,
        /// What was found and expected.
        problem: String,
    },
    /// Two things that must agree in shape do not.
    #[error("`{name}` has {found} {what}, expected {expected}")]
    Shape {
        /// The weight or tensor.
        name: String,
        /// Which dimension.
        what: &'static str,
        /// What it has.
        found: usize,
        /// What it should have.
        expected: usize,
    },
    /// A format or an op that this backend does not run.
    #[error("{backend} does not support {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// The format or op.
        what: String,
    },
    /// A batch that does not fit the executor it was given to.
    #[error("batch: {what} is {found}, this session was made for at most {limit}")]
    Batch {
        /// The quantity.
        what: &'static str,
        /// Its value.
        found: usize,
        /// Its bound.
        limit: usize,
    },
    /// The device could not give the memory that was asked for.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much.
        bytes: u64,
    },
    /// A device that has no room for something, which was not begun.
    #[error(
        "out of memory on {device}: {needed} bytes for {what}, {free} free, {} too few",
        needed.saturating_sub(*free)
    )]
    DoesNotFit {
        /// What the memory was for.
        what: String,
        /// The device's name.
        device: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The device is gone. Sessions and weights on it are of no more use; what they hold is freed when they are dropped.
    #[error("the device {device} was lost: {reason}")]
    DeviceLost {
        /// The device's name.
        device: String,
        /// What was going on when it was noticed.
        reason: String,
    },
    /// The device failed or cannot be used.
    #[error("{backend}: {problem}")]
    Device {
        /// The backend's name.
        backend: &'static str,
        /// What happened.
        problem: String,
    },
}
