//! What can go wrong on a device.

use marlin_kernels::BindError;
use marlin_placement::StorageMode;

/// An error of a device. Every variant names the thing, what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no such device on this machine, and why.
    #[error("no {device} device: {reason}")]
    Unavailable {
        /// `cuda`, `metal`, …
        device: &'static str,
        /// What was looked for and not found.
        reason: String,
    },
    /// The device has no room.
    #[error(
        "out of device memory: \"{label}\" needs {needed} bytes, {free} of {total} bytes are free"
    )]
    OutOfMemory {
        /// The allocation's label.
        label: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// The host touched memory that its mode does not let it reach.
    #[error("the host cannot {access} \"{label}\": its storage mode is {mode}")]
    HostAccess {
        /// `read` or `write`.
        access: &'static str,
        /// The allocation's label.
        label: String,
        /// Its mode.
        mode: StorageMode,
    },
    /// The host touched memory that a submission in flight uses.
    #[error(
        "the host cannot {access} \"{label}\" while submission \"{submission}\" uses it: wait first"
    )]
    InFlight {
        /// `read` or `write`.
        access: &'static str,
        /// The allocation's label.
        label: String,
        /// The submission's label.
        submission: String,
    },
    /// Host memory cannot be adopted without a copy.
    #[error("\"{label}\" cannot be adopted without a copy: {reason}")]
    NotAdoptable {
        /// The allocation's label.
        label: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A range outside an allocation.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A kernel does not compile.
    #[error("kernel {kernel} does not compile for {target}:\n{log}")]
    Compile {
        /// The kernel's symbol.
        kernel: String,
        /// Architecture.
        target: String,
        /// The compiler's log.
        log: String,
    },
    /// A launch that this device or kernel cannot do.
    #[error("kernel {kernel} cannot be launched: {reason}")]
    Launch {
        /// The kernel's symbol.
        kernel: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A kernel did something wrong while it ran (the emulator says where).
    #[error("kernel {kernel}: {message}")]
    Fault {
        /// The kernel's symbol.
        kernel: String,
        /// Buffer, index and what happened.
        message: String,
    },
    /// The device is gone: unplugged, reset, or taken away. Nothing that it held can be had back.
    #[error("the device {device} was lost: {reason}")]
    Lost {
        /// Its name.
        device: String,
        /// What was going on when it was noticed.
        reason: String,
    },
    /// The device's own interface failed.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The function.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// An allocation of one device was given to another.
    #[error("\"{label}\" belongs to another device")]
    ForeignAllocation {
        /// The allocation's label.
        label: String,
    },
}
