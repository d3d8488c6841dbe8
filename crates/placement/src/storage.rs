//! Where a buffer can live, and what that means on a device.

use std::fmt;

/// Where a buffer lives. The names are Metal's (`MTLStorageMode`, Metal API reference).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum StorageMode {
    /// Only the device can reach it.
    Private,
    /// The device's own copy with a host mirror: host writes reach the device only
    /// after `did_modify(range)`.
    Managed,
    /// One memory that both reach.
    Shared,
    /// No buffer: bound as bytes in the command (Metal `setBytes`, a CUDA kernel argument).
    Inline,
}

impl StorageMode {
    /// The mode in Metal's spelling, as it stands in an audit's table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Private => "Private",
            Self::Managed => "Managed",
            Self::Shared => "Shared",
            Self::Inline => "Inline",
        }
    }

    /// What the mode amounts to on `device`: with unified memory a managed buffer is a
    /// shared one, and `did_modify` costs nothing.
    #[must_use]
    pub const fn resolve(self, device: Device) -> Self {
        match (self, device) {
            (Self::Managed, Device::Unified) => Self::Shared,
            (mode, _) => mode,
        }
    }
}

impl fmt::Display for StorageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whether the device shares the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Device {
    /// One memory for both: Apple silicon, integrated GPUs, the CPU backend.
    Unified,
    /// Memory of its own behind a bus.
    Discrete,
}
