//! Rows by index: exact for tables of floats, to f32's rounding for quantised ones.

mod common;
#[path = "common/values.rs"]
mod values;

use half::{bf16, f16};
use marlin_formats::fragment::FragmentLayout;
use marlin_formats::{Format, encode};
use marlin_gpu::ops::embed::{gather_rows, gather_weight_rows};
use marlin_gpu::ops::linear::FragmentWeights;
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

/// Rows of tables in every format that has a fragment layout.
#[test]
fn rows_of_quantised_tables() -> Result<(), GpuError> {
    for device in common::devices() {
        for format in Format::ALL {
            let (rows, cols) = (37, format.block().max(64) * 3);
            let Some(_) = FragmentLayout::new(format, rows, cols, 1.0) else { continue };
            let values: Vec<f32> = Random::new(8).elements(rows * cols, 1.0);
            let matrix = encode(format, rows, cols, &values).expect("finite values");
            let table = FragmentWeights::upload(&*device, "table", &[matrix.view()])?;
            let ids = [0u32, 36, 17, 8, 15, 16, 37];
            let device_ids = device.upload_new("ids", &ids)?;
            let out = common::output::<f32>(&*device, ids.len() * cols);
            let mut list = CommandList::new("gather");
            gather_weight_rows(&mut list, &table, device_ids.view(), 2.0, out.view_mut()?)?;
            device.run(list)?;
            let found = device.download_all(&out)?;
            let mut row = vec![0.0; cols];
            for (id, found) in ids.iter().zip(found.chunks(cols)) {
                if *id as usize >= rows {
                    assert!(found.iter().all(|x| x.is_nan()), "{format}");
                    continue;
                }
                matrix.view().decode_row(*id as usize, &mut row);
                for (col, (found, expected)) in found.iter().zip(&row).enumerate() {
                    // A scale times a code, plus a minimum, rounded in another order.
                    let bound = 1e-5f32.max(expected.abs() * 1e-6);
                    let error = (found - 2.0 * expected).abs();
                    assert!(error <= bound, "{format} row {id} column {col}: {found} {expected}");
                }
            }
        }
    }
    Ok(())
}
