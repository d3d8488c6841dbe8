//! How long a command takes on the device.

use std::time::{Duration, Instant};

use crate::{CommandList, Device, GpuError};

/// Submissions that count, after one that does not.
const REPETITIONS: usize = 9;

/// Median time of one of the `runs` commands that `append` appends, each given its number.
pub(super) fn median(
    device: &dyn Device,
    label: &str,
    runs: usize,
    mut append: impl FnMut(&mut CommandList, usize) -> Result<(), GpuError>,
) -> Result<Duration, GpuError> {
    let mut list = CommandList::new(label);
    for run in 0..runs {
        append(&mut list, run)?;
    }
    let recording = device.record(list)?;
    let mut times = Vec::with_capacity(REPETITIONS);
    for repetition in 0..=REPETITIONS {
        let start = Instant::now();
        let completed = device.submit(&recording)?.wait()?;
        let time = completed.gpu_time.unwrap_or_else(|| start.elapsed());
        if repetition > 0 {
            times.push(time);
        }
    }
    times.sort();
    Ok(times[REPETITIONS / 2] / runs.max(1) as u32)
}
