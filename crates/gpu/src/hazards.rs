//! Which commands must wait for which: from what each command does with memory, as the kernels' signatures say it.
//!
//! Knows no device. A device whose commands overlap (Metal's concurrent encoder) asks [`Hazards`] before each command;
//! one that runs them one after the other needs none of it.
//!
//! A barrier lets every command before it finish, and makes what they wrote to the named allocations visible to the
//! commands after it (`memoryBarrierWithResources:count:`, Metal API reference). So each barrier
//! names everything that was written since the one before: a second barrier for the same commands would
//! only make the device wait once more.

use std::ops::Range;
use std::sync::Arc;

use marlin_kernels::signature::ParameterAccess;
use marlin_kernels::{Allocation, Argument, Dispatch};

use crate::{Command, CommandList, Region};

/// One use of memory by a command.
#[derive(Clone, Debug)]
pub struct Access {
    /// The memory.
    pub allocation: Arc<dyn Allocation>,
    /// The bytes.
    pub range: Range<u64>,
    /// Whether they may be written.
    pub writes: bool,
}

impl Access {
    fn of_region(region: &Region, writes: bool) -> Self {
        let range = region.offset..region.offset.saturating_add(region.bytes);
        Self { allocation: region.allocation.clone(), range, writes }
    }

    /// Whether one of the two must wait for the other: common bytes that either writes.
    pub fn conflicts(&self, other: &Self) -> bool {
        (self.writes || other.writes)
            && Arc::ptr_eq(&self.allocation, &other.allocation)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

/// Every use of memory by `command`, those without bytes left out.
pub fn accesses(command: &Command) -> Vec<Access> {
    let mut out: Vec<Access> = match command {
        Command::Dispatch(dispatch) => dispatch.arguments.iter().filter_map(of_argument).collect(),
        Command::Copy { source, destination } => {
            vec![Access::of_region(source, false), Access::of_region(destination, true)]
        }
        Command::Fill { region, .. } => vec![Access::of_region(region, true)],
    };
    out.retain(|access| !access.range.is_empty());
    out
}

fn of_argument(argument: &Argument) -> Option<Access> {
    match argument {
        Argument::Buffer { allocation, offset, bytes, access } => Some(Access {
            allocation: allocation.clone(),
            range: *offset..offset.saturating_add(*bytes),
            writes: *access != ParameterAccess::In,
        }),
        Argument::Absent | Argument::Inline(_) => None,
    }
}

/// What is wrong with a dispatch of which two parameters share bytes, one of them written: inputs may be read through
/// caches that do not see the same dispatch's writes (MSL §5.2).
pub fn overlap_within(dispatch: &Dispatch) -> Option<String> {
    let bound: Vec<(&str, Access)> = dispatch
        .arguments
        .iter()
        .zip(dispatch.pipeline.kernel.parameters)
        .filter_map(|(argument, parameter)| Some((parameter.name(), of_argument(argument)?)))
        .collect();
    bound.iter().enumerate().find_map(|(i, (name, access))| {
        let (other_name, other) = bound[..i].iter().find(|(_, other)| access.conflicts(other))?;
        Some(format!(
            "\"{other_name}\" and \"{name}\" share bytes of \"{}\" ({:?} and {:?}) and one of them is \
             written, expected one in-out parameter or ranges apart",
            access.allocation.label(),
            other.range,
            access.range
        ))
    })
}

/// Commands since the last moment at which everything before was done.
#[derive(Debug, Default)]
pub struct Hazards {
    pending: Vec<Access>,
}

impl Hazards {
    /// Nothing is under way.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a barrier right before `command` must name, each allocation once in the order of first use; none: no barrier
    /// is needed. The command counts as under way from here on.
    pub fn before(&mut self, command: &Command) -> Vec<Arc<dyn Allocation>> {
        let own = accesses(command);
        let mut named: Vec<Arc<dyn Allocation>> = Vec::new();
        if self.pending.iter().any(|earlier| own.iter().any(|access| access.conflicts(earlier))) {
            for earlier in self.pending.drain(..) {
                let concerned = earlier.writes || own.iter().any(|own| own.conflicts(&earlier));
                if concerned && !named.iter().any(|known| Arc::ptr_eq(known, &earlier.allocation)) {
                    named.push(earlier.allocation);
                }
            }
        }
        self.pending.extend(own);
        named
    }

    /// Everything before is done and seen by whatever follows.
    pub fn settle(&mut self) {
        self.pending.clear();
    }
}

/// For each command of `list`, what a barrier right before it must name; empty where none is needed.
pub fn barriers(list: &CommandList) -> Vec<Vec<Arc<dyn Allocation>>> {
    let mut hazards = Hazards::new();
    list.commands().iter().map(|command| hazards.before(command)).collect()
}
