//! SIMD-group operations of the emulated device against plain loops, at every width, the last
//! SIMD-group partly filled too.

mod common;

use marlin_gpu::Device;
use marlin_kernels::Grid;
use marlin_kernels::test_kernels::simd::{
    SimdArgs, SimdBarrierOrders, SimdFloats, SimdInts, SimdUints,
};

const WIDTHS: [u32; 4] = [8, 16, 32, 64];

fn values(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 12).collect()
}

fn width_of(device: &dyn Device) -> usize {
    device.properties().simd_width as usize
}

#[test]
fn operations_on_uint_match_plain_loops() {
    for device in WIDTHS.map(|w| common::emulated(w, true)) {
        let width = width_of(&*device);
        // Whole SIMD-groups: shuffles must find the lanes that they name.
        let x = values(4 * width);
        let buffer = device.upload_new("x", &x).unwrap();
        let out = common::output::<u32>(&*device, x.len() * 12);
        let (lane, mask, shift) = (width - 2, width / 2 + 1, 3);
        let launcher = SimdUints {
            x: buffer.view(),
            out: out.view_mut().unwrap(),
            args: SimdArgs { lane: lane as u32, mask: mask as u32, shift },
        };
        common::run(&*device, launcher, Grid::x(1, x.len() as u32)).unwrap();
        let result = device.download_all(&out).unwrap();
        let shift = shift as usize;
        for (i, row) in result.chunks(12).enumerate() {
            let (group, me) = (i / width, i % width);
            let lanes = &x[group * width..(group + 1) * width];
            let any = lanes.iter().any(|v| v % 7 == 3);
            let all = lanes.iter().all(|v| v % 7 != 3);
            let expected = [
                lanes.iter().sum(),
                *lanes.iter().max().unwrap(),
                *lanes.iter().min().unwrap(),
                lanes[lane],
                lanes[me ^ mask],
                if me + shift < width { lanes[me + shift] } else { lanes[me] },
                if me >= shift { lanes[me - shift] } else { lanes[me] },
                lanes[lane],
                lanes[..me].iter().sum(),
                u32::from(any) + 2 * u32::from(all),
                (me + 100 * group + 10_000 * 4) as u32,
                width as u32,
            ];
            assert_eq!(row, expected, "width {width}, thread {i}");
        }
    }
}

#[test]
fn operations_on_float_match_plain_loops_in_a_partly_filled_group() {
    for device in WIDTHS.map(|w| common::emulated(w, true)) {
        let width = width_of(&*device);
        // Whole numbers: their sum is the same in every order.
        let x: Vec<f32> =
            values(2 * width + 5).iter().map(|v| (*v % 2001) as f32 - 1000.0).collect();
        let buffer = device.upload_new("x", &x).unwrap();
        let out = common::output::<f32>(&*device, x.len() * 3);
        let launcher = SimdFloats { x: buffer.view(), out: out.view_mut().unwrap() };
        common::run(&*device, launcher, Grid::x(1, x.len() as u32)).unwrap();
        let result = device.download_all(&out).unwrap();
        for (lanes, rows) in x.chunks(width).zip(result.chunks(3 * width)) {
            let sum: f32 = lanes.iter().sum();
            let greatest = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let least = lanes.iter().copied().fold(f32::INFINITY, f32::min);
            for row in rows.chunks(3) {
                assert_eq!(row, [sum, greatest, least], "width {width}");
            }
        }
    }
}

#[test]
fn operations_on_int_and_ballots_match_plain_loops() {
    for device in WIDTHS.map(|w| common::emulated(w, true)) {
        let width = width_of(&*device);
        let x: Vec<i32> = values(3 * width - 1).iter().map(|v| *v as i32 - 500_000).collect();
        let buffer = device.upload_new("x", &x).unwrap();
        let out = common::output::<i32>(&*device, x.len() * 3);
        let ballot = common::output::<u64>(&*device, x.len());
        let launcher = SimdInts {
            x: buffer.view(),
            out: out.view_mut().unwrap(),
            ballot: ballot.view_mut().unwrap(),
        };
        common::run(&*device, launcher, Grid::x(1, x.len() as u32)).unwrap();
        let result = device.download_all(&out).unwrap();
        let ballots = device.download_all(&ballot).unwrap();
        for (group, lanes) in x.chunks(width).enumerate() {
            let expected =
                [lanes.iter().sum(), *lanes.iter().max().unwrap(), *lanes.iter().min().unwrap()];
            let mut odd = 0_u64;
            for (lane, v) in lanes.iter().enumerate() {
                odd |= u64::from(v & 1 != 0) << lane;
            }
            for lane in 0..lanes.len() {
                let i = group * width + lane;
                assert_eq!(result[3 * i..3 * i + 3], expected, "width {width}, thread {i}");
                assert_eq!(ballots[i], odd, "width {width}, thread {i}");
            }
        }
    }
}

#[test]
fn a_simdgroup_barrier_orders_the_lanes_of_its_group() {
    for device in WIDTHS.map(|w| common::emulated(w, true)) {
        let width = width_of(&*device);
        let x = values(4 * width);
        let buffer = device.upload_new("x", &x).unwrap();
        let out = common::output::<u32>(&*device, x.len());
        let launcher = SimdBarrierOrders {
            x: buffer.view(),
            out: out.view_mut().unwrap(),
            tile: x.len() as u32,
        };
        common::run(&*device, launcher, Grid::x(1, x.len() as u32)).unwrap();
        let expected: Vec<u32> =
            x.chunks(width).flat_map(|lanes| lanes.iter().rev().map(|v| v + 1)).collect();
        assert_eq!(device.download_all(&out).unwrap(), expected, "width {width}");
    }
}
