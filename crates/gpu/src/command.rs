//! What a device is asked to do, in order.

use std::panic::Location;
use std::sync::Arc;

use marlin_kernels::{Allocation, Dispatch, Grid, Launch};

/// A byte range of an allocation.
#[derive(Clone, Debug)]
pub struct Region {
    /// The allocation.
    pub allocation: Arc<dyn Allocation>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// One command.
#[derive(Clone, Debug)]
pub enum Command {
    /// Runs a kernel.
    Dispatch(Dispatch),
    /// Copies device memory; both regions have the same size.
    Copy {
        /// From here.
        source: Region,
        /// To here.
        destination: Region,
    },
    /// Sets every byte.
    Fill {
        /// Of this region.
        region: Region,
        /// To this value.
        value: u8,
    },
}

/// Commands that run in order, each after the one before has finished what it
/// depends on. One list is one submission.
#[derive(Clone, Debug)]
pub struct CommandList {
    label: String,
    commands: Vec<Command>,
    /// For each command the line that appended it.
    sites: Vec<&'static Location<'static>>,
}

impl CommandList {
    /// An empty list. The label stands in errors and audits.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), commands: Vec::new(), sites: Vec::new() }
    }

    /// The label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The commands, in order.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// For each command the line that appended it: audits name it.
    pub fn sites(&self) -> &[&'static Location<'static>] {
        &self.sites
    }

    /// Appends a kernel over `grid`. An empty grid appends nothing.
    #[track_caller]
    pub fn launch(&mut self, launcher: impl Launch, grid: Grid) -> &mut Self {
        if !grid.is_empty() {
            self.push(Command::Dispatch(launcher.dispatch(grid)));
        }
        self
    }

    /// Appends a command.
    #[track_caller]
    pub fn push(&mut self, command: Command) -> &mut Self {
        self.commands.push(command);
        self.sites.push(Location::caller());
        self
    }
}
