//! What everything of one device shares.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::api::{Api, BufferMode};
use super::residency::Residency;
use super::timeline::Timeline;
use crate::GpuError;
use crate::device::DeviceProperties;

/// Bytes of what stands in for an optional buffer that is not there: one of the widest elements.
const ABSENT_BYTES: usize = 16;

/// Metal's handle on the device, and what is under way on it. Kept alive by every allocation, recording
/// and submission.
pub(super) struct Context<A: Api> {
    pub(super) api: A,
    pub(super) properties: DeviceProperties,
    pub(super) residency: Residency<A>,
    pub(super) timeline: Timeline<A>,
    /// Bound where an optional buffer is not there: Metal's validation wants something at every index.
    pub(super) absent: A::Buffer,
    /// Whether each dispatch is named for error reports.
    pub(super) signposts: bool,
}

impl<A: Api> Context<A> {
    pub(super) fn new(
        api: A,
        properties: DeviceProperties,
        signposts: bool,
    ) -> Result<Arc<Self>, GpuError> {
        let residency = Residency::new(&api);
        let absent = api.buffer("absent", ABSENT_BYTES, BufferMode::Private).ok_or_else(|| {
            GpuError::OutOfMemory {
                label: "absent".to_owned(),
                needed: ABSENT_BYTES as u64,
                free: 0,
                total: properties.total_bytes,
            }
        })?;
        residency.add(&api, &absent);
        Ok(Arc::new(Self {
            api,
            properties,
            residency,
            timeline: Timeline::default(),
            absent,
            signposts,
        }))
    }

    /// Bytes that allocations may still take before the system begins to move memory out.
    pub(super) fn free_bytes(&self) -> u64 {
        self.properties.total_bytes.saturating_sub(self.api.allocated_bytes())
    }

    /// New memory, resident from the next submission on.
    pub(super) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        mode: BufferMode,
    ) -> Result<A::Buffer, GpuError> {
        // A buffer of no bytes cannot be made, and blits take whole words.
        let len = bytes.max(1).next_multiple_of(ABSENT_BYTES as u64);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let buffer = (bytes <= self.properties.max_buffer_bytes)
            .then(|| self.api.pooled(|| self.api.buffer(label, len, mode)))
            .flatten();
        let Some(buffer) = buffer else {
            return Err(GpuError::OutOfMemory {
                label: label.to_owned(),
                needed: bytes,
                free: self.free_bytes().min(self.properties.max_buffer_bytes),
                total: self.properties.total_bytes,
            });
        };
        self.residency.add(&self.api, &buffer);
        Ok(buffer)
    }
}

/// Locks what is consistent whatever a panicking thread left undone.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
