//! What the host and the device do with a buffer.

use std::fmt;

/// What the host (the CPU side of the program) does with a buffer after its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostAccess {
    /// Never touches it.
    None,
    /// Writes it once, when it is made or shortly after.
    WritesOnce,
    /// Writes it again for every step or dispatch.
    WritesEachStep,
    /// Reads what the device wrote.
    ReadsBack,
    /// Could not be determined.
    Unknown,
}

impl HostAccess {
    /// Whether the host writes the buffer.
    pub fn writes(self) -> bool {
        matches!(self, Self::WritesOnce | Self::WritesEachStep)
    }
}

/// What the device (GPU, or the worker threads of the CPU backend) does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceAccess {
    /// Never touches it.
    None,
    /// Only reads it.
    Reads,
    /// Only writes it.
    Writes,
    /// Reads and writes it.
    ReadsWrites,
    /// Could not be determined.
    Unknown,
}

impl DeviceAccess {
    /// Whether the device writes the buffer.
    pub fn writes(self) -> bool {
        matches!(self, Self::Writes | Self::ReadsWrites)
    }

    /// Both accesses together, as when two kernels use one buffer.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, x) | (x, Self::None) => x,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (a, b) if a == b => a,
            _ => Self::ReadsWrites,
        }
    }
}

/// How a buffer is used: the only thing that [`policy`](crate::policy) looks at, besides its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccessPattern {
    /// What the host does.
    pub host: HostAccess,
    /// What the device does.
    pub device: DeviceAccess,
    /// The buffer is other memory of the host's (a mapped file, a tensor of another
    /// library) seen by the device without a copy.
    pub aliases_host: bool,
    /// The buffer starts with data that the host has, and the host does not touch it afterwards.
    pub initial_data: bool,
    /// The contents are constants of one dispatch (sizes, strides, flags).
    pub constant: bool,
}

impl AccessPattern {
    /// A buffer of its own, without initial data.
    pub const fn new(host: HostAccess, device: DeviceAccess) -> Self {
        Self { host, device, aliases_host: false, initial_data: false, constant: false }
    }

    /// Scratch and state that only the device sees.
    pub const DEVICE_ONLY: Self = Self::new(HostAccess::None, DeviceAccess::ReadsWrites);

    /// Memory of the host's that the device reads in place.
    pub const ADOPTED: Self =
        Self { aliases_host: true, ..Self::new(HostAccess::None, DeviceAccess::Reads) };

    /// Written by the host before every step, read by the device.
    pub const STEP_INPUT: Self = Self::new(HostAccess::WritesEachStep, DeviceAccess::Reads);

    /// Written by the device, read by the host after the step.
    pub const READ_BACK: Self = Self::new(HostAccess::ReadsBack, DeviceAccess::Writes);

    /// The same pattern for a buffer that aliases host memory.
    #[must_use]
    pub const fn aliasing_host(mut self) -> Self {
        self.aliases_host = true;
        self
    }

    /// The same pattern for a buffer that is filled once from host data.
    #[must_use]
    pub const fn with_initial_data(mut self) -> Self {
        self.initial_data = true;
        self
    }

    /// The same pattern for constants of one dispatch.
    #[must_use]
    pub const fn constant(mut self) -> Self {
        self.constant = true;
        self
    }
}

impl fmt::Display for AccessPattern {
    /// The words of the audits: "CPU write, GPU read", "GPU write/read", …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use DeviceAccess as D;
        use HostAccess as H;
        if self.aliases_host {
            let device = match self.device {
                D::Reads => "GPU read",
                D::Writes => "GPU write",
                D::ReadsWrites => "GPU write/read",
                D::None => "GPU access not used here",
                D::Unknown => "GPU access unknown",
            };
            let host = match self.host {
                H::None => "CPU access not used here",
                H::WritesOnce | H::WritesEachStep => "CPU write",
                H::ReadsBack => "CPU read",
                H::Unknown => "CPU access unknown",
            };
            return write!(f, "{device}, {host}");
        }
        f.write_str(match (self.host, self.device) {
            (H::None | H::Unknown, D::None | D::Unknown) => "Unknown (no observed use)",
            (H::None, D::Reads) => "GPU read",
            (H::None, D::Writes) => "GPU write, no CPU read observed",
            (H::None, D::ReadsWrites) => "GPU write/read",
            (H::WritesOnce | H::WritesEachStep, D::Reads) => "CPU write, GPU read",
            (H::WritesOnce | H::WritesEachStep, D::Writes) => "CPU write, GPU write",
            (H::WritesOnce | H::WritesEachStep, D::ReadsWrites) => "CPU write, GPU write/read",
            (H::WritesOnce | H::WritesEachStep, D::None) => "CPU write, no GPU use observed",
            (H::WritesOnce | H::WritesEachStep, D::Unknown) => "CPU write, GPU access unknown",
            (H::ReadsBack, D::Reads) => "CPU read, GPU read",
            (H::ReadsBack, D::Writes) => "GPU write, CPU read",
            (H::ReadsBack, D::ReadsWrites) => "GPU write/read, CPU read",
            (H::ReadsBack, D::None) => "CPU read, no GPU use observed",
            (H::ReadsBack, D::Unknown) => "CPU read, GPU access unknown",
            (H::Unknown, D::Reads) => "GPU read, CPU access unknown",
            (H::Unknown, D::Writes) => "GPU write, CPU access unknown",
            (H::Unknown, D::ReadsWrites) => "GPU write/read, CPU access unknown",
        })
    }
}
