//! Keeping allocations where the device reaches them, on systems with residency sets (macOS 15 and later): the driver then
//! has nothing to look up when a command buffer is submitted.

use std::sync::Mutex;

use super::api::Api;
use super::context::lock;

/// All allocations of a device, as one set of its queue's.
pub(super) struct Residency<A: Api> {
    set: Option<A::ResidencySet>,
    /// Whether something was added since the set was last committed.
    grown: Mutex<bool>,
}

impl<A: Api> Residency<A> {
    pub(super) fn new(api: &A) -> Self {
        Self { set: api.residency_set("metal-marlin"), grown: Mutex::default() }
    }

    /// From the next [`commit`](Self::commit) on.
    pub(super) fn add(&self, api: &A, buffer: &A::Buffer) {
        if let Some(set) = &self.set {
            let mut grown = lock(&self.grown);
            api.add_resident(set, buffer);
            *grown = true;
        }
    }

    /// At once: memory that is freed should be free although nothing more is submitted.
    pub(super) fn remove(&self, api: &A, buffer: &A::Buffer) {
        if let Some(set) = &self.set {
            let mut grown = lock(&self.grown);
            api.remove_resident(set, buffer);
            api.commit_residency(set);
            *grown = false;
        }
    }

    /// Before a submission.
    pub(super) fn commit(&self, api: &A) {
        if let Some(set) = &self.set {
            let mut grown = lock(&self.grown);
            if std::mem::take(&mut *grown) {
                api.commit_residency(set);
            }
        }
    }
}
