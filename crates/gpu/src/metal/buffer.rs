//! Memory of each storage mode.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};

use marlin_backend::HostBytes;
use marlin_kernels::{Allocation, BindError};
use marlin_placement::{BufferTally, StorageMode};

use super::api::{Api, BufferMode};
use super::context::Context;
use crate::GpuError;

/// Where an allocation's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    Private,
    /// Device memory with a host mirror; never on unified memory.
    Managed,
    Shared,
    /// The host's own pages, read-only.
    Adopted,
}

impl Memory {
    /// Whether bytes of it are the host's as well.
    pub(super) const fn is_host_memory(self) -> bool {
        matches!(self, Self::Shared | Self::Adopted)
    }
}

/// One allocation.
pub(super) struct MetalAllocation<A: Api> {
    pub(super) context: Arc<Context<A>>,
    pub(super) label: String,
    pub(super) bytes: u64,
    pub(super) writable: bool,
    pub(super) memory: Memory,
    pub(super) buffer: A::Buffer,
    /// The last submission that uses it; 0 before the first. Held while the host touches the bytes.
    pub(super) last_use: Mutex<u64>,
    pub(super) tally: BufferTally,
}

impl<A: Api> fmt::Debug for MetalAllocation<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\", {} bytes, {:?}", self.label, self.bytes, self.memory)
    }
}

impl<A: Api> Allocation for MetalAllocation<A> {
    fn label(&self) -> &str {
        &self.label
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<A: Api> MetalAllocation<A> {
    pub(super) fn new(
        context: &Arc<Context<A>>,
        label: &str,
        bytes: u64,
        writable: bool,
        tally: BufferTally,
    ) -> Result<Self, GpuError> {
        let mode = match tally.mode() {
            // Somebody made a buffer for what could have been bound inline: the host writes it and
            // the device reads it, so it is managed.
            StorageMode::Inline => StorageMode::Managed,
            mode => mode,
        };
        let (memory, mode) = match mode.resolve(context.properties.memory) {
            StorageMode::Private => (Memory::Private, BufferMode::Private),
            StorageMode::Managed | StorageMode::Inline => (Memory::Managed, BufferMode::Managed),
            StorageMode::Shared => (Memory::Shared, BufferMode::Shared),
        };
        let buffer = context.buffer(label, bytes, mode)?;
        Ok(Self {
            context: context.clone(),
            label: label.to_owned(),
            bytes,
            writable,
            memory,
            buffer,
            last_use: Mutex::new(0),
            tally,
        })
    }

    /// The host's own pages: Metal takes whole ones only.
    pub(super) fn adopt(
        context: &Arc<Context<A>>,
        label: &str,
        host: HostBytes,
        tally: impl FnOnce(u64) -> BufferTally,
    ) -> Result<Self, GpuError> {
        let refuse = |reason: String| GpuError::NotAdoptable { label: label.to_owned(), reason };
        let page = context.properties.adoption_alignment;
        if host.is_empty() {
            return Err(refuse("it has no bytes".to_owned()));
        }
        for (what, value) in [("address", host.as_ptr() as usize), ("length", host.len())] {
            let over = value % page;
            if over != 0 {
                return Err(refuse(format!(
                    "its {what} is {over} past a multiple of {page}, expected a multiple"
                )));
            }
        }
        let bytes = host.len() as u64;
        if bytes > context.properties.max_buffer_bytes {
            return Err(refuse(format!(
                "it has {bytes} bytes, expected at most {}",
                context.properties.max_buffer_bytes
            )));
        }
        let buffer = context
            .api
            .pooled(|| context.api.buffer_no_copy(label, host))
            .ok_or_else(|| refuse("Metal makes no buffer over this memory".to_owned()))?;
        context.residency.add(&context.api, &buffer);
        Ok(Self {
            context: context.clone(),
            label: label.to_owned(),
            bytes,
            writable: false,
            memory: Memory::Adopted,
            buffer,
            last_use: Mutex::new(0),
            tally: tally(bytes),
        })
    }

    /// Its own allocation behind `allocation`.
    pub(super) fn of<'a>(
        allocation: &'a Arc<dyn Allocation>,
        context: &Arc<Context<A>>,
    ) -> Result<&'a Self, GpuError> {
        allocation
            .as_any()
            .downcast_ref::<Self>()
            .filter(|own| Arc::ptr_eq(&own.context, context))
            .ok_or_else(|| GpuError::ForeignAllocation { label: allocation.label().to_owned() })
    }

    /// Checks that `len` bytes from `offset` on are inside.
    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<(), GpuError> {
        let end = offset.saturating_add(len);
        if end <= self.bytes {
            return Ok(());
        }
        let label = self.label.clone();
        Err(BindError::OutOfBounds { label, bytes: self.bytes, start: offset, end }.into())
    }

    /// Checks that the host may `access` it: not private, not adopted, not in flight. `last_use` is its own, locked.
    pub(super) fn check_host_access(
        &self,
        access: &'static str,
        last_use: u64,
    ) -> Result<(), GpuError> {
        if matches!(self.memory, Memory::Private | Memory::Adopted) {
            return Err(self.no_host_access(access));
        }
        match self.context.timeline.unfinished(last_use) {
            None => Ok(()),
            Some(submission) => {
                Err(GpuError::InFlight { access, label: self.label.clone(), submission })
            }
        }
    }

    /// The error of a host access that the mode does not allow.
    pub(super) fn no_host_access(&self, access: &'static str) -> GpuError {
        GpuError::HostAccess { access, label: self.label.clone(), mode: self.tally.mode() }
    }
}

impl<A: Api> Drop for MetalAllocation<A> {
    fn drop(&mut self) {
        // Submissions that use it have ended: each one keeps its recording, and that its allocations.
        self.context.residency.remove(&self.context.api, &self.buffer);
    }
}
