//! Rows by index: exact.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_gpu::ops::embed::gather_rows;
use marlin_gpu::{CommandList, GpuError};
use values::{Float, Random};

fn gathered<T: Float, U: Float>(scale: f32) -> Result<(), GpuError> {
    for device in common::devices() {
        for (rows, columns, n) in [(5, 8, 3), (100, 13, 40), (3, 576, 2), (2, 1, 4), (4, 16, 0)] {
            let mut random = Random::new(columns as u64);
            let table: Vec<T> = random.elements(rows * columns, 1.0);
            let ids: Vec<u32> = (0..n).map(|_| random.below(rows as u64) as u32).collect();
            let (t, i) = (device.upload_new("table", &table)?, device.upload_new("ids", &ids)?);
            let out = common::output::<U>(&*device, n * columns);
            let mut list = CommandList::new("gather");
            gather_rows(&mut list, t.view(), i.view(), scale, out.view_mut()?, rows, columns)?;
            device.run(list)?;
            let expected: Vec<U> = ids
                .iter()
                .flat_map(|&id| &table[id as usize * columns..][..columns])
                .map(|x| U::of(x.f32() * scale))
                .collect();
            assert_eq!(device.download_all(&out)?, expected);
        }
    }
    Ok(())
}

#[test]
fn rows_come_out_in_the_wanted_type() -> Result<(), GpuError> {
    gathered::<f16, f16>(1.0)?;
    gathered::<bf16, f32>(1.0)?;
    gathered::<f32, f16>(24.0)?;
    gathered::<bf16, bf16>(11.3125)
}

#[test]
fn an_id_outside_the_table_gives_nan() -> Result<(), GpuError> {
    for device in common::devices() {
        let table = device.upload_new("table", &[1.0f32; 24])?;
        let ids = device.upload_new("ids", &[3u32, 2, u32::MAX])?;
        let out = common::output::<f32>(&*device, 24);
        let mut list = CommandList::new("gather");
        gather_rows(&mut list, table.view(), ids.view(), 1.0, out.view_mut()?, 3, 8)?;
        device.run(list)?;
        let out = device.download_all(&out)?;
        assert!(out[..8].iter().chain(&out[16..]).all(|x| x.is_nan()), "{out:?}");
        assert_eq!(out[8..16], [1.0; 8]);
    }
    Ok(())
}
