//! What a device's memory can do at most.

use marlin_kernels::Grid;
use marlin_kernels::ceiling::{ReadCeiling, ReadCeilingArgs};
use marlin_placement::AccessPattern;

use super::timing;
use crate::{Command, Device, GpuError, Region};

/// Measured rates of a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes per second of a kernel that only reads.
    pub read_bytes_per_s: f64,
    /// Bytes per second of a copy, read and written bytes together.
    pub copy_bytes_per_s: f64,
}

/// Reads and copies `bytes` bytes (rounded down to whole pieces of 16) a few times.
///
/// # Errors
/// No room for twice as much, or the device failed.
pub fn measure(device: &dyn Device, bytes: u64) -> Result<Ceilings, GpuError> {
    let pieces = (bytes / 16).min(u64::from(u32::MAX)) as usize;
    let pattern = AccessPattern::DEVICE_ONLY;
    let source = device.allocate::<[u32; 4]>("ceiling source", pieces, pattern)?;
    let destination = device.allocate::<[u32; 4]>("ceiling destination", pieces, pattern)?;
    let bytes = pieces as u64 * 16;
    let whole = |buffer: &crate::Buffer<[u32; 4]>| Region {
        allocation: buffer.allocation().clone(),
        offset: 0,
        bytes,
    };
    // Something to read; the values do not matter.
    let mut list = crate::CommandList::new("ceiling fill");
    list.push(Command::Fill { region: whole(&source), value: 0x5a });
    device.run(list)?;
    let grid = Grid::x(device.properties().compute_units.max(1) * 4, 512);
    let threads = (grid.threadgroups[0] * grid.threads[0]) as usize;
    let sums = device.allocate::<u32>("ceiling sums", threads, pattern)?;
    let read = timing::median(device, "read ceiling", 4, |list, _| {
        let args = ReadCeilingArgs { pieces: pieces as u32 };
        list.launch(ReadCeiling { x: source.view(), sums: sums.view_mut()?, args }, grid);
        Ok(())
    })?;
    let copy = timing::median(device, "copy ceiling", 4, |list, _| {
        list.push(Command::Copy { source: whole(&source), destination: whole(&destination) });
        Ok(())
    })?;
    Ok(Ceilings {
        read_bytes_per_s: bytes as f64 / read.as_secs_f64(),
        copy_bytes_per_s: 2.0 * bytes as f64 / copy.as_secs_f64(),
    })
}
