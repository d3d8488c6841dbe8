//! What the host may do with memory of the emulated device, and what a recording refuses.

mod common;

use std::sync::Arc;

use marlin_backend::{HostBytes, HostOwner};
use marlin_gpu::emulated::{ADOPTION_ALIGNMENT, Emulated, EmulatedOptions};
use marlin_gpu::{Command, CommandList, Device, GpuError, Region};
use marlin_kernels::test_kernels::faults::{
    FaultArgs, FaultsConstants, Increment, NeedsWidth, ReadAt, WriteAt,
};
use marlin_kernels::{BindError, Grid};
use marlin_placement::{AccessPattern, DeviceAccess, HostAccess, StorageMode};

const CONSTANTS: FaultsConstants = FaultsConstants { has_x: true, meeting: 0, waits: 1, early: 0 };

fn words(values: &[u32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

#[test]
fn the_host_does_not_reach_private_memory() {
    let device = common::emulated(32, true);
    let x = device.upload_new("weights", &[1_u32, 2, 3]).unwrap();
    let mut out = [0; 4];
    let error = |access| GpuError::HostAccess {
        access,
        label: "weights".to_owned(),
        mode: StorageMode::Private,
    };
    assert_eq!(device.read(x.allocation(), 0, &mut out), Err(error("read")));
    assert_eq!(device.write(x.allocation(), 0, &out), Err(error("write")));
    assert_eq!(device.download_all(&x).unwrap(), [1, 2, 3]);
}

/// y[0] = x[0], with x written by the host.
fn read_first(device: &dyn Device, x: &marlin_gpu::Buffer<u32>) -> Result<u32, GpuError> {
    let y = common::output::<u32>(device, 1);
    let launcher = ReadAt {
        x: x.view(),
        y: y.view_mut().unwrap(),
        args: FaultArgs { index: 0 },
        constants: CONSTANTS,
    };
    common::run(device, launcher, Grid::x(1, 1))?;
    Ok(device.download_all(&y)?[0])
}

#[test]
fn a_managed_write_is_seen_only_after_did_modify_where_memory_is_not_shared() {
    for unified in [false, true] {
        let device = common::emulated(32, unified);
        let x = device.allocate::<u32>("step", 2, AccessPattern::STEP_INPUT).unwrap();
        device.write(x.allocation(), 0, words(&[5, 6])).unwrap();
        if !unified {
            let error = read_first(&*device, &x).unwrap_err().to_string();
            assert!(error.contains("uninitialised: \"x\"[0]"), "{error}");
        }
        device.did_modify(x.allocation(), 0..8).unwrap();
        assert_eq!(read_first(&*device, &x), Ok(5));
        device.write(x.allocation(), 0, words(&[9])).unwrap();
        // One memory: there is nothing to say. Two: the device still has the old value.
        assert_eq!(read_first(&*device, &x), Ok(if unified { 9 } else { 5 }));
        device.did_modify(x.allocation(), 0..4).unwrap();
        assert_eq!(read_first(&*device, &x), Ok(9));
        // The mirror is the host's to read.
        let mut out = [0; 4];
        device.read(x.allocation(), 4, &mut out).unwrap();
        assert_eq!(out, 6_u32.to_ne_bytes());
    }
}

#[test]
fn the_host_does_not_touch_memory_of_a_submission_in_flight() {
    for unified in [false, true] {
        let device = common::emulated(32, unified);
        let pattern = AccessPattern::new(HostAccess::ReadsBack, DeviceAccess::ReadsWrites);
        let y = device.allocate::<u32>("counter", 1, pattern).unwrap();
        let step = device.allocate::<u32>("step", 1, AccessPattern::STEP_INPUT).unwrap();
        device.write(y.allocation(), 0, words(&[0])).unwrap();
        device.write(step.allocation(), 0, words(&[0])).unwrap();
        device.did_modify(step.allocation(), 0..4).unwrap();
        let mut commands = CommandList::new("token");
        let read = ReadAt {
            x: step.view(),
            y: y.view_mut().unwrap(),
            args: FaultArgs { index: 0 },
            constants: CONSTANTS,
        };
        let increment = Increment { y: y.view_mut().unwrap(), constants: CONSTANTS };
        commands.launch(read, Grid::x(1, 1)).launch(increment, Grid::x(1, 1));
        let recording = device.record(commands).unwrap();
        let first = device.submit(&recording).unwrap();
        let second = device.submit(&recording).unwrap();
        let mut out = [0; 4];
        let error = |access, label: &str| GpuError::InFlight {
            access,
            label: label.to_owned(),
            submission: "token".to_owned(),
        };
        assert_eq!(device.read(y.allocation(), 0, &mut out), Err(error("read", "counter")));
        assert_eq!(device.write(step.allocation(), 0, &out), Err(error("write", "step")));
        assert_eq!(device.did_modify(step.allocation(), 0..4), Err(error("write", "step")));
        first.wait().unwrap();
        assert_eq!(device.read(y.allocation(), 0, &mut out), Err(error("read", "counter")));
        second.wait().unwrap();
        device.read(y.allocation(), 0, &mut out).unwrap();
        assert_eq!(u32::from_ne_bytes(out), 1);
        // A submission that is dropped was waited for.
        drop(device.submit(&recording).unwrap());
        device.read(y.allocation(), 0, &mut out).unwrap();
    }
}

/// Part of some bytes.
struct Part(Vec<u8>, std::ops::Range<usize>);

impl HostOwner for Part {
    fn bytes(&self) -> &[u8] {
        &self.0[self.1.clone()]
    }
}

/// `len` bytes that start `skip` past a page's start.
fn pages(skip: usize, len: usize) -> HostBytes {
    let bytes = vec![7; 4 * ADOPTION_ALIGNMENT];
    let address = bytes.as_ptr() as usize;
    let start = address.next_multiple_of(ADOPTION_ALIGNMENT) - address + skip;
    HostBytes::new(Arc::new(Part(bytes, start..start + len)))
}

#[test]
fn host_memory_is_adopted_only_in_whole_pages() {
    let device = common::emulated(32, true);
    let adopt = |skip, len| {
        device.adopt_at("file", pages(skip, len), std::panic::Location::caller()).map(|_| ())
    };
    adopt(0, 2 * ADOPTION_ALIGNMENT).unwrap();
    for (skip, len, what) in
        [(4096, ADOPTION_ALIGNMENT, "address is 4096"), (0, 20_000, "length is 3616")]
    {
        let error = adopt(skip, len).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let discrete = common::emulated(32, false);
    let site = std::panic::Location::caller();
    let refused = discrete.adopt_at("file", pages(0, ADOPTION_ALIGNMENT), site);
    assert!(matches!(refused, Err(GpuError::NotAdoptable { .. })));
}

#[test]
fn adopted_memory_is_read_in_place_and_never_written() {
    let device = common::emulated(32, true);
    let site = std::panic::Location::caller();
    let file = device.adopt_at("file", pages(0, ADOPTION_ALIGNMENT), site).unwrap();
    let y = common::output::<u32>(&*device, 1);
    let launcher = ReadAt {
        x: marlin_kernels::View::new(&file, 16, 4).unwrap(),
        y: y.view_mut().unwrap(),
        args: FaultArgs { index: 3 },
        constants: CONSTANTS,
    };
    common::run(&*device, launcher, Grid::x(1, 1)).unwrap();
    assert_eq!(device.download_all(&y).unwrap(), [0x0707_0707]);
    let read_only = BindError::ReadOnly { label: "file".to_owned() };
    assert_eq!(marlin_kernels::ViewMut::<u32>::new(&file, 0, 4).err(), Some(read_only.clone()));
    assert_eq!(device.write(&file, 0, &[1]), Err(read_only.clone().into()));
    assert_eq!(device.upload(&file, 0, &[1]), Err(read_only.into()));
    let report = device.ledger().report();
    assert!(report.copies.iter().all(|c| c.event.label != "upload"), "adopted, not uploaded");
}

fn launch_error(device: &dyn Device, commands: CommandList) -> String {
    match device.record(commands).map(|_| ()) {
        Err(error @ GpuError::Launch { .. }) => error.to_string(),
        other => panic!("expected a refused launch, found {other:?}"),
    }
}

#[test]
fn a_kernel_runs_only_at_the_width_that_it_needs() {
    for device in common::devices() {
        let y = common::output::<u32>(&*device, 32);
        let mut commands = CommandList::new("test");
        let launcher = NeedsWidth { y: y.view_mut().unwrap(), constants: CONSTANTS };
        commands.launch(launcher, Grid::x(1, 32));
        let width = device.properties().simd_width;
        if width == 32 {
            device.run(commands).unwrap();
        } else {
            let error = launch_error(&*device, commands);
            assert!(error.contains(&format!("SIMD-groups of 32 threads, the device has {width}")));
        }
    }
}

#[test]
fn a_threadgroup_has_at_most_1024_threads() {
    let device = common::emulated(32, true);
    let y = common::output::<u32>(&*device, 1);
    for (threads, fits) in [(1, true), (1024, true), (0, false), (1025, false)] {
        let mut commands = CommandList::new("test");
        let args = FaultArgs { index: 0 };
        let launcher = WriteAt { y: y.view_mut().unwrap(), args, constants: CONSTANTS };
        commands.launch(launcher, Grid::x(1, threads));
        if fits {
            device.run(commands).unwrap();
        } else {
            let error = launch_error(&*device, commands);
            assert!(error.contains(&format!("{threads} threads in a threadgroup")), "{error}");
        }
    }
}

#[test]
fn the_launcher_sizes_at_most_32_kib_of_threadgroup_memory() {
    use marlin_kernels::test_kernels::simd::SimdBarrierOrders;
    let device = common::emulated(32, true);
    let x = device.upload_new("x", &[0_u32; 32]).unwrap();
    let out = common::output::<u32>(&*device, 32);
    for (tile, fits) in [(8192, true), (8193, false)] {
        let mut commands = CommandList::new("test");
        let launcher = SimdBarrierOrders { x: x.view(), out: out.view_mut().unwrap(), tile };
        commands.launch(launcher, Grid::x(1, 32));
        if fits {
            device.run(commands).unwrap();
        } else {
            let error = launch_error(&*device, commands);
            assert!(error.contains("32772 bytes of threadgroup memory"), "{error}");
        }
    }
}

#[test]
fn a_dispatch_does_not_bind_one_range_as_input_and_output() {
    let device = common::emulated(32, true);
    let x = device.upload_new("x", &[3_u32; 8]).unwrap();
    for (output, fits) in [(4..8, true), (3..8, false)] {
        let mut commands = CommandList::new("test");
        let launcher = ReadAt {
            x: x.slice(0..4).unwrap(),
            y: x.slice_mut(output).unwrap(),
            args: FaultArgs { index: 0 },
            constants: CONSTANTS,
        };
        commands.launch(launcher, Grid::x(1, 4));
        if fits {
            device.run(commands).unwrap();
        } else {
            let error = launch_error(&*device, commands);
            assert!(error.contains("\"x\" and \"y\" share bytes of \"x\""), "{error}");
        }
    }
}

#[test]
fn memory_of_one_device_is_not_bound_on_another() {
    let device = common::emulated(32, true);
    let other = common::emulated(32, true);
    let x = other.upload_new("x", &[3_u32; 8]).unwrap();
    let mut commands = CommandList::new("test");
    let launcher = Increment { y: x.view_mut().unwrap(), constants: CONSTANTS };
    commands.launch(launcher, Grid::x(1, 8));
    let foreign = GpuError::ForeignAllocation { label: "x".to_owned() };
    assert_eq!(device.record(commands).map(|_| ()).err(), Some(foreign.clone()));
    assert_eq!(device.download_all(&x), Err(foreign));
}

#[test]
fn copies_and_fills_run_in_order_and_copies_carry_what_was_never_written() {
    let device = common::emulated(32, false);
    let x = device.upload_new("x", &[1_u32, 2, 3, 4]).unwrap();
    let half = device.allocate::<u32>("half", 4, AccessPattern::DEVICE_ONLY).unwrap();
    let region = |b: &marlin_gpu::Buffer<u32>, offset, bytes| Region {
        allocation: b.allocation().clone(),
        offset,
        bytes,
    };
    let mut commands = CommandList::new("test");
    commands
        .push(Command::Fill { region: region(&x, 0, 4), value: 1 })
        .push(Command::Copy { source: region(&x, 0, 8), destination: region(&half, 8, 8) });
    device.run(commands).unwrap();
    assert_eq!(device.download_all(&half).unwrap()[2..], [0x0101_0101, 2]);
    let mut commands = CommandList::new("test");
    commands.push(Command::Copy { source: region(&half, 0, 16), destination: region(&x, 0, 16) });
    device.run(commands).unwrap();
    let error = read_first(&*device, &x).unwrap_err().to_string();
    assert!(error.contains("uninitialised: \"x\"[0]"), "{error}");
    let mut commands = CommandList::new("test");
    commands.push(Command::Copy { source: region(&x, 0, 8), destination: region(&x, 4, 8) });
    let error = launch_error(&*device, commands);
    assert!(error.contains("expected ranges apart"), "{error}");
}

#[test]
fn the_ledger_counts_what_happened() {
    let device = common::emulated(32, false);
    let x = device.upload_new("x", &[1_u32; 8]).unwrap();
    let increment = Increment { y: x.view_mut().unwrap(), constants: CONSTANTS };
    common::run(&*device, increment, Grid::x(1, 8)).unwrap();
    assert_eq!(device.download_all(&x).unwrap(), [2; 8]);
    let report = device.ledger().report();
    let copies: Vec<_> =
        report.copies.iter().map(|c| (c.event.label, c.event.count, c.event.bytes)).collect();
    assert_eq!(copies, [("upload", 1, 32), ("download", 1, 32)]);
    let dispatches: Vec<_> = report.dispatches.iter().map(|e| (e.label, e.count)).collect();
    assert_eq!(dispatches, [("increment", 1)]);
    assert_eq!(report.waits.iter().map(|e| e.count).sum::<u64>(), 1);
    assert_eq!(report.submissions.iter().map(|e| e.count).sum::<u64>(), 1);
    // Waiting, submitting and dispatching are counted where they happen; a dispatch is told by the line
    // that put it on the list.
    assert!(report.dispatches[0].site.contains("common/mod.rs"), "{}", report.dispatches[0].site);
    let accesses: Vec<_> =
        report.buffers[0].accesses.iter().map(|a| (a.kernel, a.reads, a.writes)).collect();
    assert_eq!(accesses, [("increment", 1, 1)]);
    let buffer = &report.buffers[0];
    assert_eq!((buffer.name.as_str(), buffer.bytes), ("x", 32));
    assert!(buffer.site.contains("emulated_placement.rs"), "{}", buffer.site);
}

#[test]
fn a_device_has_the_memory_that_was_asked_for() {
    let options = EmulatedOptions { total_bytes: 1000, ..EmulatedOptions::default() };
    let device: Box<dyn Device> = Box::new(Emulated::new(options).unwrap());
    let first = device.allocate::<u8>("first", 600, AccessPattern::DEVICE_ONLY).unwrap();
    let error = device.allocate::<u8>("second", 600, AccessPattern::DEVICE_ONLY).unwrap_err();
    assert_eq!(
        error,
        GpuError::OutOfMemory { label: "second".to_owned(), needed: 600, free: 400, total: 1000 }
    );
    drop(first);
    device.allocate::<u8>("second", 600, AccessPattern::DEVICE_ONLY).unwrap();
}

#[test]
fn only_widths_that_devices_have_can_be_asked_for() {
    for simd_width in [0, 4, 12, 128] {
        let options = EmulatedOptions { simd_width, ..EmulatedOptions::default() };
        let error = Emulated::new(options).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("expected 8, 16, 32 or 64"), "{error}");
    }
}

#[test]
fn no_allocation_is_larger_than_the_device_allows() {
    let options = EmulatedOptions { max_buffer_bytes: 1000, ..EmulatedOptions::default() };
    let device: Box<dyn Device> = Box::new(Emulated::new(options).unwrap());
    assert_eq!(device.properties().max_buffer_bytes, 1000);
    let pattern = AccessPattern::DEVICE_ONLY;
    let first = device.allocate::<u8>("first", 1000, pattern).unwrap();
    let error = device.allocate::<u8>("second", 1001, pattern).unwrap_err();
    let expected = GpuError::OutOfMemory {
        label: "second".to_owned(),
        needed: 1001,
        free: 1000,
        total: EmulatedOptions::default().total_bytes,
    };
    assert_eq!(error, expected);
    drop(first);
}

/// A buffer can be a range of an allocation that others share: its views and bounds are its own.
#[test]
fn a_part_of_an_allocation_is_bound_at_its_offset() {
    let device = common::emulated(32, true);
    let whole = device.upload_new("whole", &[1_u32, 2, 3, 4, 5, 6]).unwrap();
    let part =
        |offset, len| marlin_gpu::Buffer::<u32>::part_of(whole.allocation().clone(), offset, len);
    let middle = part(8, 3).unwrap();
    assert_eq!((middle.len(), middle.offset()), (3, 8));
    assert_eq!(device.download_all(&middle).unwrap(), [3, 4, 5]);
    assert_eq!(read_first(&*device, &middle).unwrap(), 3);
    let out_of_bounds = |error| matches!(error, BindError::OutOfBounds { .. });
    assert!(middle.slice(1..4).is_err_and(out_of_bounds), "past the part, inside the allocation");
    assert!(part(12, 4).is_err_and(out_of_bounds));
    assert!(part(2, 1).is_err_and(|error| matches!(error, BindError::Misaligned { .. })));
}

#[test]
fn a_lost_device_answers_everything_with_what_happened() {
    let options = EmulatedOptions { lost_after: Some(1), ..EmulatedOptions::default() };
    let device: Box<dyn Device> = Box::new(Emulated::new(options).unwrap());
    let x = device.upload_new("x", &[7_u32]).unwrap();
    let shared = device.allocate::<u32>("shared", 1, AccessPattern::READ_BACK).unwrap();
    assert_eq!(read_first(&*device, &x).unwrap(), 7);
    // The second submission starts, and does not come back.
    let mut list = CommandList::new("copy");
    let region = |buffer: &marlin_gpu::Buffer<u32>| Region {
        allocation: buffer.allocation().clone(),
        offset: 0,
        bytes: 4,
    };
    list.push(Command::Copy { source: region(&x), destination: region(&shared) });
    let recording = device.record(list).unwrap();
    let error = device.submit(&recording).unwrap().wait().unwrap_err();
    let expected = GpuError::Lost {
        device: "emulated".to_owned(),
        reason: "submission 2 did not come back".to_owned(),
    };
    assert_eq!(error, expected);
    let lost = |result: Result<(), GpuError>| assert_eq!(result, Err(expected.clone()));
    lost(device.submit(&recording).map(drop));
    lost(device.read(shared.allocation(), 0, &mut [0; 4]));
    lost(device.write(shared.allocation(), 0, &[0; 4]));
    lost(device.upload(x.allocation(), 0, &[0; 4]));
    lost(device.download(x.allocation(), 0, &mut [0; 4]));
    lost(device.did_modify(shared.allocation(), 0..4));
    lost(device.allocate::<u8>("more", 1, AccessPattern::DEVICE_ONLY).map(drop));
    lost(device.free_bytes().map(drop));
}
