//! Wrong kernels are caught by the emulated device, and named; right ones beside them pass.

mod common;

use marlin_gpu::{Device, GpuError};
use marlin_kernels::test_kernels::faults::*;
use marlin_kernels::{Atomic, Grid, Launch};
use marlin_placement::AccessPattern;

const SHARED_BARRIER: u32 = 1;
const DEVICE_BARRIER: u32 = 2;
const SIMD_BARRIER: u32 = 3;

fn device() -> Box<dyn Device> {
    common::emulated(32, true)
}

fn constants(meeting: u32) -> FaultsConstants {
    FaultsConstants { has_x: true, meeting, waits: 1, early: 0 }
}

/// Runs `launcher` and gives the kernel's and the fault's text.
fn fault(device: &dyn Device, launcher: impl Launch, grid: Grid) -> (String, String) {
    match common::run(device, launcher, grid) {
        Err(GpuError::Fault { kernel, message }) => (kernel, message),
        other => panic!("expected a fault, found {other:?}"),
    }
}

macro_rules! assert_fault {
    ($device:expr, $launcher:expr, $grid:expr, $kernel:literal, $($part:literal),+ $(,)?) => {{
        let (kernel, message) = fault(&*$device, $launcher, $grid);
        assert_eq!(kernel, $kernel);
        $(assert!(message.contains($part), "{message:?} does not say {:?}", $part);)+
    }};
}

#[test]
fn a_read_past_the_view_is_named_by_buffer_and_index_though_the_allocation_goes_on() {
    let device = device();
    let x = device.upload_new("x", &[1_u32; 100]).unwrap();
    let y = common::output::<u32>(&*device, 4);
    let read = |index| ReadAt {
        x: x.slice(10..60).unwrap(),
        y: y.view_mut().unwrap(),
        args: FaultArgs { index },
        constants: constants(0),
    };
    common::run(&*device, read(49), Grid::x(1, 4)).unwrap();
    assert_fault!(
        device,
        read(50),
        Grid::x(1, 4),
        "read_at",
        "out of bounds",
        "\"x\"[50]",
        "50 elements"
    );
    assert_fault!(device, read(u32::MAX), Grid::x(1, 4), "read_at", "\"x\"[4294967295]");
}

#[test]
fn a_write_past_the_view_is_caught_and_changes_nothing() {
    let device = device();
    let y = device.allocate::<u32>("y", 8, AccessPattern::READ_BACK).unwrap();
    device.write(y.allocation(), 0, &[0; 32]).unwrap();
    let write = |index| WriteAt {
        y: y.slice_mut(0..4).unwrap(),
        args: FaultArgs { index },
        constants: constants(0),
    };
    common::run(&*device, write(3), Grid::x(1, 4)).unwrap();
    assert_fault!(
        device,
        write(4),
        Grid::x(1, 4),
        "write_at",
        "\"y\"[4] is written",
        "thread (0, 0, 0)"
    );
    assert_eq!(device.download_all(&y).unwrap(), [0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_vector_read_must_be_aligned() {
    let device = device();
    let x = device.upload_new("x", &[1_u32; 16]).unwrap();
    let y = common::output::<u32>(&*device, 4);
    let read = |index| MisalignedRead {
        x: x.view(),
        y: y.view_mut().unwrap(),
        args: FaultArgs { index },
        constants: constants(0),
    };
    common::run(&*device, read(4), Grid::x(1, 4)).unwrap();
    assert_fault!(device, read(5), Grid::x(1, 4), "misaligned_read", "byte 20", "multiple of 16");
}

#[test]
fn an_optional_buffer_that_is_not_bound_must_not_be_read() {
    let device = device();
    let y = common::output::<u32>(&*device, 4);
    let read = |has_x| ReadOptional {
        x: None,
        y: y.view_mut().unwrap(),
        constants: FaultsConstants { has_x, ..constants(0) },
    };
    common::run(&*device, read(false), Grid::x(1, 4)).unwrap();
    assert_fault!(device, read(true), Grid::x(1, 4), "read_optional", "\"x\"", "nothing is bound");
}

#[test]
fn memory_that_nobody_wrote_must_not_be_read() {
    let device = device();
    let x = device.allocate::<u32>("x", 8, AccessPattern::DEVICE_ONLY).unwrap();
    device.upload(x.allocation(), 0, &[1; 16]).unwrap();
    let y = common::output::<u32>(&*device, 4);
    let read = |index| ReadAt {
        x: x.view(),
        y: y.view_mut().unwrap(),
        args: FaultArgs { index },
        constants: constants(0),
    };
    common::run(&*device, read(3), Grid::x(1, 4)).unwrap();
    assert_fault!(device, read(4), Grid::x(1, 4), "read_at", "uninitialised", "\"x\"[4]");
    let increment = Increment { y: x.view_mut().unwrap(), constants: constants(0) };
    assert_fault!(device, increment, Grid::x(1, 8), "increment", "uninitialised", "\"y\"[4]");
}

#[test]
fn an_output_holds_nothing_before_the_dispatch_has_written_it() {
    let device = device();
    let y = device.upload_new("y", &[1_u32; 8]).unwrap();
    let increment = Increment { y: y.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, increment, Grid::x(1, 8)).unwrap();
    assert_eq!(device.download_all(&y).unwrap(), [2; 8]);
    let read = ReadOutput { y: y.view_mut().unwrap(), constants: constants(0) };
    assert_fault!(
        device,
        read,
        Grid::x(1, 8),
        "read_output",
        "output \"y\"[0]",
        "before this dispatch"
    );
}

#[test]
fn an_input_must_not_be_written() {
    let device = device();
    let x = device.upload_new("x", &[1_u32; 8]).unwrap();
    let y = common::output::<u32>(&*device, 8);
    let launcher = WriteInput { x: x.view(), y: y.view_mut().unwrap(), constants: constants(0) };
    assert_fault!(device, launcher, Grid::x(1, 8), "write_input", "\"x\"[0]", "is an input");
}

#[test]
fn threads_that_share_threadgroup_memory_need_a_barrier() {
    for device in common::devices() {
        let width = device.properties().simd_width;
        let y = common::output::<u32>(&*device, 256);
        let launcher = |meeting| NeighbourInThreadgroup {
            y: y.view_mut().unwrap(),
            constants: constants(meeting),
        };
        common::run(&*device, launcher(SHARED_BARRIER), Grid::x(1, 256)).unwrap();
        let expected: Vec<u32> = (0..256).map(|i| (i + 1) % 256).collect();
        assert_eq!(device.download_all(&y).unwrap(), expected);
        common::run(&*device, launcher(DEVICE_BARRIER), Grid::x(1, 256)).unwrap();
        // One SIMD-group's own barrier is enough for one SIMD-group, not for two.
        common::run(&*device, launcher(SIMD_BARRIER), Grid::x(1, width)).unwrap();
        assert_fault!(
            device,
            launcher(SIMD_BARRIER),
            Grid::x(1, 2 * width),
            "neighbour_in_threadgroup",
            "threadgroup memory \"numbers\"",
        );
        assert_fault!(
            device,
            launcher(0),
            Grid::x(1, 256),
            "neighbour_in_threadgroup",
            "\"numbers\"[1]"
        );
    }
}

#[test]
fn memory_that_others_read_is_written_only_after_a_barrier() {
    for device in common::devices() {
        let width = device.properties().simd_width;
        let y = common::output::<u32>(&*device, 256);
        let launcher =
            |meeting| SlotUsedAgain { y: y.view_mut().unwrap(), constants: constants(meeting) };
        common::run(&*device, launcher(SHARED_BARRIER), Grid::x(1, 256)).unwrap();
        common::run(&*device, launcher(SIMD_BARRIER), Grid::x(1, width)).unwrap();
        for (meeting, threads) in [(0, width), (0, 256), (SIMD_BARRIER, 2 * width)] {
            assert_fault!(
                device,
                launcher(meeting),
                Grid::x(1, threads),
                "slot_used_again",
                "data race: threadgroup memory \"numbers\"",
                "was read",
            );
        }
    }
}

#[test]
fn a_barrier_for_threadgroup_memory_does_not_order_device_memory() {
    let device = device();
    let numbers = common::output::<u32>(&*device, 64);
    let y = common::output::<u32>(&*device, 64);
    let launcher = |meeting| NeighbourInDevice {
        numbers: numbers.view_mut().unwrap(),
        y: y.view_mut().unwrap(),
        constants: constants(meeting),
    };
    common::run(&*device, launcher(DEVICE_BARRIER), Grid::x(1, 64)).unwrap();
    assert_fault!(
        device,
        launcher(SHARED_BARRIER),
        Grid::x(1, 64),
        "neighbour_in_device",
        "data race: \"numbers\"[",
    );
}

#[test]
fn two_threads_write_one_place_never_even_the_same_value() {
    let device = device();
    let y = common::output::<u32>(&*device, 64);
    let launcher = || SamePlace { y: y.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, launcher(), Grid::x(1, 1)).unwrap();
    assert_fault!(
        device,
        launcher(),
        Grid::x(1, 2),
        "same_place",
        "data race: \"y\"[0]",
        "by thread 0"
    );
}

#[test]
fn threadgroups_of_a_dispatch_share_nothing_but_atomics() {
    let device = device();
    let y = device.upload_new("y", &[0_u32; 64]).unwrap();
    let write = || SamePlaceBetweenGroups { y: y.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, write(), Grid::x(1, 32)).unwrap();
    // A dispatch is ordered after the one before.
    common::run(&*device, write(), Grid::x(1, 32)).unwrap();
    assert_fault!(
        device,
        write(),
        Grid::x(2, 32),
        "same_place_between_groups",
        "data race: \"y\"[0]",
        "of another threadgroup",
    );
    let read = ReadOtherGroup { y: y.view_mut().unwrap(), constants: constants(0) };
    assert_fault!(device, read, Grid::x(2, 32), "read_other_group", "of another threadgroup");

    let count = device.upload_new("count", &[Atomic(5)]).unwrap();
    let launcher = CountAtomically { y: count.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, launcher, Grid::x(3, 100)).unwrap();
    assert_eq!(device.download_all(&count).unwrap(), [Atomic(305)]);
}

#[test]
fn what_others_change_atomically_is_not_read_plainly() {
    let device = device();
    let y = device.upload_new("y", &[Atomic(0)]).unwrap();
    let seen = common::output::<u32>(&*device, 1);
    let launcher = CountAndLook {
        y: y.view_mut().unwrap(),
        seen: seen.view_mut().unwrap(),
        constants: constants(0),
    };
    assert_fault!(
        device,
        launcher,
        Grid::x(1, 8),
        "count_and_look",
        "data race: \"y\"[0]",
        "atomic"
    );
}

#[test]
fn fresh_threadgroup_memory_holds_nothing_in_any_threadgroup() {
    let device = device();
    let y = common::output::<u32>(&*device, 64);
    let launcher = || ReadFreshThreadgroup { y: y.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, launcher(), Grid::x(1, 32)).unwrap();
    assert_fault!(
        device,
        launcher(),
        Grid::x(1, 64),
        "read_fresh_threadgroup",
        "uninitialised: threadgroup memory \"fresh\"[",
    );
}

#[test]
fn threadgroup_arrays_have_their_own_bounds() {
    let device = device();
    let y = common::output::<u32>(&*device, 1);
    let launcher = |index| OverrunThreadgroup {
        y: y.view_mut().unwrap(),
        args: FaultArgs { index },
        constants: constants(0),
    };
    common::run(&*device, launcher(15), Grid::x(1, 4)).unwrap();
    assert_fault!(
        device,
        launcher(16),
        Grid::x(1, 4),
        "overrun_threadgroup",
        "out of bounds: threadgroup memory \"first\"[16]",
    );
}

#[test]
fn threadgroup_memory_is_32_kib() {
    let device = device();
    let y = common::output::<u32>(&*device, 4);
    let launcher = TooMuchThreadgroup { y: y.view_mut().unwrap(), constants: constants(0) };
    assert_fault!(
        device,
        launcher,
        Grid::x(1, 4),
        "too_much_threadgroup",
        "\"second\"",
        "16388 bytes, 16384 of 32768 are free",
    );
}

#[test]
fn threads_that_wait_for_threads_that_returned_are_reported() {
    for device in common::devices() {
        let y = common::output::<u32>(&*device, 128);
        let launcher = |index| SomeReturn {
            y: y.view_mut().unwrap(),
            args: FaultArgs { index },
            constants: constants(0),
        };
        common::run(&*device, launcher(128), Grid::x(1, 128)).unwrap();
        common::run(&*device, launcher(0), Grid::x(1, 128)).unwrap();
        assert_fault!(
            device,
            launcher(100),
            Grid::x(1, 128),
            "some_return",
            "divergent control flow",
            "thread 0 waits at barrier_threadgroup",
            "thread 100 has returned",
        );
        // The device goes on working.
        common::run(&*device, launcher(128), Grid::x(1, 128)).unwrap();
    }
}

#[test]
fn threads_must_come_to_the_same_barrier() {
    let device = device();
    let y = common::output::<u32>(&*device, 64);
    let launcher = |index| DifferentBarriers {
        y: y.view_mut().unwrap(),
        args: FaultArgs { index },
        constants: constants(0),
    };
    common::run(&*device, launcher(0), Grid::x(1, 64)).unwrap();
    common::run(&*device, launcher(64), Grid::x(1, 64)).unwrap();
    assert_fault!(
        device,
        launcher(32),
        Grid::x(1, 64),
        "different_barriers",
        "divergent control flow",
        "barrier_threadgroup in line",
    );
}

#[test]
fn lanes_must_come_to_the_same_operation() {
    for device in common::devices() {
        let width = device.properties().simd_width;
        let y = common::output::<u32>(&*device, 256);
        let different = |index| DifferentOperations {
            y: y.view_mut().unwrap(),
            args: FaultArgs { index },
            constants: constants(0),
        };
        // Two SIMD-groups may do two things.
        common::run(&*device, different(width), Grid::x(1, 2 * width)).unwrap();
        assert_fault!(
            device,
            different(width + 1),
            Grid::x(1, 2 * width),
            "different_operations",
            "divergent control flow",
            "simd_max",
            "simd_sum",
        );
        let some = |index| SomeLanes {
            y: y.view_mut().unwrap(),
            args: FaultArgs { index },
            constants: constants(0),
        };
        common::run(&*device, some(width), Grid::x(1, 2 * width)).unwrap();
        assert_fault!(
            device,
            some(width - 1),
            Grid::x(1, 2 * width),
            "some_lanes",
            "waits at simd_sum",
            "has returned",
        );
    }
}

#[test]
fn a_lane_that_is_not_there_must_not_be_read() {
    for device in common::devices() {
        let width = device.properties().simd_width;
        let y = common::output::<u32>(&*device, 256);
        let launcher = |index| ReadLane {
            y: y.view_mut().unwrap(),
            args: FaultArgs { index },
            constants: constants(0),
        };
        common::run(&*device, launcher(width - 1), Grid::x(1, 2 * width)).unwrap();
        assert_fault!(
            device,
            launcher(width),
            Grid::x(1, 2 * width),
            "read_lane",
            "simd_shuffle",
            "reads lane"
        );
        // The last SIMD-group has three threads.
        common::run(&*device, launcher(2), Grid::x(1, width + 3)).unwrap();
        assert_fault!(
            device,
            launcher(3),
            Grid::x(1, width + 3),
            "read_lane",
            "that has 3 threads"
        );
    }
}

#[test]
fn an_asynchronous_copy_arrives_when_it_is_waited_for() {
    let device = device();
    let values: Vec<[u32; 4]> = (0..128).map(|i| [i, i + 1, i + 2, i + 3]).collect();
    let x = device.upload_new("x", &values).unwrap();
    let y = common::output::<[u32; 4]>(&*device, 128);
    let launcher = |waits| CopyThroughThreadgroup {
        x: x.view(),
        y: y.view_mut().unwrap(),
        constants: FaultsConstants { waits, ..constants(0) },
    };
    common::run(&*device, launcher(1), Grid::x(1, 64)).unwrap();
    assert_eq!(device.download_all(&y).unwrap()[..64], values[..64]);
    assert_fault!(
        device,
        launcher(0),
        Grid::x(1, 64),
        "copy_through_threadgroup",
        "uninitialised: threadgroup memory \"tile\"[0]",
    );
    let stages = CopyTwoStages { x: x.view(), y: y.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, stages, Grid::x(1, 64)).unwrap();
    assert_eq!(device.download_all(&y).unwrap(), values);
}

#[test]
fn before_the_previous_dispatch_is_done_only_what_nobody_writes_is_touched() {
    let device = device();
    let x = device.upload_new("x", &[1_u32; 8]).unwrap();
    let y = common::output::<u32>(&*device, 8);
    let launcher = |early| TouchEarly {
        x: x.view(),
        y: y.view_mut().unwrap(),
        constants: FaultsConstants { early, ..constants(0) },
    };
    common::run(&*device, launcher(0), Grid::x(1, 8)).unwrap();
    // Weights may be read early.
    common::run(&*device, launcher(1), Grid::x(1, 8)).unwrap();
    assert_fault!(
        device,
        launcher(2),
        Grid::x(1, 8),
        "touch_early",
        "\"y\" is written before wait_for_previous",
    );
    let increment = Increment { y: x.view_mut().unwrap(), constants: constants(0) };
    common::run(&*device, increment, Grid::x(1, 8)).unwrap();
    common::run(&*device, launcher(0), Grid::x(1, 8)).unwrap();
    assert_fault!(
        device,
        launcher(1),
        Grid::x(1, 8),
        "touch_early",
        "\"x\" is read before wait_for_previous",
    );
}

/// Barriers until the clock of the race check starts again.
const ROUND: u32 = 1 << 21;

#[test]
fn races_are_found_and_right_kernels_pass_however_many_barriers_there_are() {
    let device = device();
    let x = device.upload_new("x", &[0_u32; 8]).unwrap();
    let y = common::output::<u32>(&*device, 2);
    let increment = || Increment { y: x.view_mut().unwrap(), constants: constants(DEVICE_BARRIER) };
    let barriers = |index, meeting| ManyBarriers {
        y: y.view_mut().unwrap(),
        args: FaultArgs { index },
        constants: constants(meeting),
    };
    // The clock stands shortly before its end when x is stamped, and shortly after its start next time.
    common::run(&*device, barriers(ROUND - 50, DEVICE_BARRIER), Grid::x(1, 2)).unwrap();
    common::run(&*device, increment(), Grid::x(1, 8)).unwrap();
    common::run(&*device, barriers(100, DEVICE_BARRIER), Grid::x(1, 2)).unwrap();
    assert_eq!(device.download_all(&y).unwrap(), [1, 0]);
    common::run(&*device, increment(), Grid::x(1, 8)).unwrap();
    assert_eq!(device.download_all(&x).unwrap(), [2; 8]);
    assert_fault!(device, barriers(ROUND, 0), Grid::x(1, 2), "many_barriers", "data race: \"y\"[");
}
