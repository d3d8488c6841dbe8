//! Running a recording, and being in flight.

use std::sync::Arc;

use marlin_placement::Tally;

use super::{EmulatedRecording, Shared, execute, memory};
use crate::GpuError;
use crate::device::{Completed, Recording, Submission};

/// A recording that has run but counts as running until it is waited for, or seen to be done.
pub(crate) struct EmulatedSubmission {
    recording: Arc<dyn Recording>,
    number: u64,
    device: Arc<Shared>,
    waits: Tally,
    result: Result<(), GpuError>,
}

/// Runs `found`, which is what `recording` is.
pub(crate) fn start(
    recording: &Arc<dyn Recording>,
    found: &EmulatedRecording,
    number: u64,
    device: &Arc<Shared>,
    waits: Tally,
) -> EmulatedSubmission {
    for allocation in &found.allocations {
        if let Ok(allocation) = memory::find(device, allocation) {
            allocation.take_off(number, found.label());
        }
    }
    // The submission that the device is lost with does not run; nobody knows before waiting for it.
    let result = device.check_present().and_then(|()| execute::run(found, device));
    EmulatedSubmission {
        recording: recording.clone(),
        number,
        device: device.clone(),
        waits,
        result,
    }
}

impl EmulatedSubmission {
    fn land(&self) {
        let any: &dyn std::any::Any = &*self.recording;
        if let Some(found) = any.downcast_ref::<EmulatedRecording>() {
            for allocation in &found.allocations {
                if let Ok(allocation) = memory::find(&self.device, allocation) {
                    allocation.land(self.number);
                }
            }
        }
    }
}

impl Submission for EmulatedSubmission {
    fn wait(self: Box<Self>) -> Result<Completed, GpuError> {
        self.waits.record(0);
        self.result.clone().map(|()| Completed::default())
    }

    fn is_done(&self) -> bool {
        self.land();
        true
    }
}

impl Drop for EmulatedSubmission {
    fn drop(&mut self) {
        self.land();
    }
}
