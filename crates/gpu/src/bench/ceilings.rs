//! What a device's memory can do at most.

use half::f16;
use marlin_kernels::Grid;
use marlin_kernels::ceiling::{ReadCeiling, ReadCeilingArgs};
use marlin_kernels::multiply_ceiling::{MultiplyCeiling, MultiplyCeilingArgs};
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

/// Rounds of eight products that a SIMD-group multiplies: a tenth of a millisecond and more.
const ROUNDS: u32 = 4096;
/// Multiply-adds of a product of fragments.
const PRODUCT: u64 = 16 * 16 * 8;

/// Multiply-adds per second of matrix fragments whose operands are in registers.
///
/// # Errors
/// A SIMD width other than 32, or the device failed.
pub fn measure_multiply(device: &dyn Device) -> Result<f64, GpuError> {
    let properties = device.properties();
    let x = device.upload_new("ceiling tokens", &[f16::ONE; 8 * 16])?;
    let rounds = if properties.kind == "emulated" { 1 } else { ROUNDS };
    let grid = Grid::x(properties.compute_units.max(1) * 4, 256);
    let threads = (grid.threadgroups[0] * grid.threads[0]) as usize;
    let sums = device.allocate::<f32>("ceiling sums", threads, AccessPattern::DEVICE_ONLY)?;
    let time = timing::median(device, "multiply ceiling", 4, |list, _| {
        let args = MultiplyCeilingArgs { rounds };
        list.launch(MultiplyCeiling { x: x.view(), sums: sums.view_mut()?, args }, grid);
        Ok(())
    })?;
    let products = threads as u64 / 32 * u64::from(rounds) * 8;
    Ok((products * PRODUCT) as f64 / time.as_secs_f64())
}

/// The ceilings that a model's speed is compared with; NaN where one cannot be measured.
pub fn backend_ceilings(device: &dyn Device) -> marlin_backend::Ceilings {
    let properties = device.properties();
    // Larger than any cache, small beside the model; what an interpreter can do in a second.
    let bytes = match properties.kind {
        "emulated" => 1 << 16,
        _ => (properties.total_bytes / 32).clamp(1 << 26, 1 << 30),
    };
    marlin_backend::Ceilings {
        read_bytes_per_s: measure(device, bytes).map_or(f64::NAN, |c| c.read_bytes_per_s),
        multiply_adds_per_s: measure_multiply(device).unwrap_or(f64::NAN),
        vector_multiply_adds_per_s: None,
    }
}
