//! Copies and fills of any number of bytes, on every device.

mod common;

use marlin_gpu::GpuError;
use marlin_kernels::Grid;
use marlin_kernels::bytes::{CopyBytes, CopyBytesArgs, FillBytes, FillBytesArgs};

#[test]
fn any_bytes_are_copied_and_filled_and_no_others() -> Result<(), GpuError> {
    let source: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
    for device in common::devices() {
        let device = &*device;
        let from = device.upload_new("source", &source)?;
        for (start, to, count) in [(0, 0, 1000), (1, 3, 517), (999, 0, 1), (5, 5, 0)] {
            let target = device.upload_new("target", &[0xaau8; 1000])?;
            let launcher = CopyBytes {
                source: from.slice(start..start + count)?,
                destination: target.slice_mut(to..to + count)?,
                args: CopyBytesArgs { count: count as u64 },
            };
            // Fewer threads than bytes: each takes several.
            common::run(device, launcher, Grid::x(2, 64))?;
            let mut expected = vec![0xaau8; 1000];
            expected[to..to + count].copy_from_slice(&source[start..start + count]);
            assert_eq!(device.download_all(&target)?, expected);

            let launcher = FillBytes {
                destination: target.slice_mut(to..to + count)?,
                args: FillBytesArgs { count: count as u64, value: 0x15c, unused: 0 },
            };
            common::run(device, launcher, Grid::x(3, 64))?;
            expected[to..to + count].fill(0x5c);
            assert_eq!(device.download_all(&target)?, expected);
        }
    }
    Ok(())
}
