//! The emulated device runs right kernels rightly.

mod common;

use std::marker::PhantomData;

use half::{bf16, f16};
use marlin_gpu::Device;
use marlin_kernels::test_kernels::elementwise::{ElementwiseConstants, Reverse, Scale, ScaleArgs};
use marlin_kernels::{Element, Grid};

fn scale<T: Element>(device: &dyn Device, values: &[T], adds: bool) -> Vec<T> {
    let x = device.upload_new("x", values).unwrap();
    let y = common::output::<T>(device, values.len());
    let launcher = Scale {
        x: x.view(),
        y: y.view_mut().unwrap(),
        args: ScaleArgs { count: values.len() as u32, factor: 3.0 },
        constants: ElementwiseConstants { adds: u32::from(adds) },
        elements: PhantomData,
    };
    common::run(device, launcher, Grid::x(values.len().div_ceil(48) as u32, 48)).unwrap();
    device.download_all(&y).unwrap()
}

#[test]
fn an_elementwise_kernel_gives_what_a_plain_loop_gives_for_every_element_type() {
    let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
    let halves: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
    let brains: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
    for device in common::devices() {
        let expected: Vec<f32> = values.iter().map(|v| v * 3.0).collect();
        assert_eq!(scale(&*device, &values, false), expected);
        let expected: Vec<f16> = halves.iter().map(|v| f16::from_f32(v.to_f32() * 3.0)).collect();
        assert_eq!(scale(&*device, &halves, false), expected);
        let expected: Vec<bf16> = brains.iter().map(|v| bf16::from_f32(v.to_f32() * 3.0)).collect();
        assert_eq!(scale(&*device, &brains, false), expected);
    }
}

#[test]
fn specialisation_constants_reach_the_kernel() {
    for device in common::devices() {
        assert_eq!(scale(&*device, &[1.0_f32, 2.0], true), [4.0, 5.0]);
        assert_eq!(scale(&*device, &[1.0_f32, 2.0], false), [3.0, 6.0]);
    }
}

#[test]
fn threadgroup_memory_and_a_barrier_reverse_each_threadgroup() {
    let values: Vec<f32> = (0..5 * 96).map(|i| i as f32).collect();
    for device in common::devices() {
        let x = device.upload_new("x", &values).unwrap();
        let y = common::output::<f32>(&*device, values.len());
        let launcher = Reverse {
            x: x.view(),
            y: y.view_mut().unwrap(),
            tile: 96,
            constants: ElementwiseConstants { adds: 0 },
            elements: PhantomData,
        };
        common::run(&*device, launcher, Grid::x(5, 96)).unwrap();
        let expected: Vec<f32> = values.chunks(96).flat_map(|c| c.iter().rev().copied()).collect();
        assert_eq!(device.download_all(&y).unwrap(), expected);
    }
}
