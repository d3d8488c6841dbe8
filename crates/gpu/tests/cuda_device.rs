//! The `cuda` device on a GPU. Run with `MARLIN_TEST_DEVICE=cuda`; otherwise every test says that it was
//! not run.
#![cfg(all(feature = "cuda", any(target_os = "linux", windows)))]

use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use half::{bf16, f16};
use marlin_backend::HostBytes;
use marlin_gpu::cuda::{Cuda, PipelineStatistics, Settings, devices};
use marlin_gpu::{Buffer, Command, CommandList, Device, GpuError, Region};
use marlin_kernels::activation::{ActivationConstants, GatedActivation, GatedActivationArgs};
use marlin_kernels::{Element, Grid, View, ViewMut};
use marlin_placement::{AccessPattern, DeviceAccess, Direction, HostAccess, StorageMode};

const SILU: u32 = 0;
const GELU: u32 = 1;
const RELU: u32 = 2;

/// The GPU, unless tests are not meant to run on it.
fn open(cubin_folder: Option<PathBuf>) -> Option<Cuda> {
    if std::env::var_os("MARLIN_TEST_DEVICE").is_none_or(|device| device != "cuda") {
        println!("not tested: MARLIN_TEST_DEVICE is not cuda");
        return None;
    }
    Some(Cuda::open_with(Settings { index: 0, cubin_folder }).unwrap())
}

/// Appends the kernel over `rows` × `columns`.
fn activate<T: Element>(
    list: &mut CommandList,
    gate_up: View<'_, T>,
    out: ViewMut<'_, T>,
    rows: u32,
    columns: u32,
    activation: u32,
) {
    let threads = 128;
    let grid = Grid::x((rows * columns.div_ceil(8)).div_ceil(threads), threads);
    let launcher = GatedActivation {
        gate_up,
        out,
        args: GatedActivationArgs { rows, columns },
        constants: ActivationConstants { activation, whole: false },
        elements: PhantomData,
    };
    list.launch(launcher, grid);
}

/// The definition, in double precision.
fn reference(activation: u32, gate: f64, up: f64) -> f64 {
    let activated = match activation {
        SILU => gate / (1.0 + (-gate).exp()),
        GELU => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh())
        }
        _ => gate.max(0.0),
    };
    activated * up
}

/// Numbers between -8 and 8.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i as f32 * 0.618_034).fract() - 0.5) * 16.0).collect()
}

fn check_activation<T: Element>(
    device: &dyn Device,
    from: impl Fn(f32) -> T,
    to: impl Fn(T) -> f64,
    relative: f64,
) {
    for (rows, columns) in [(1u32, 1u32), (3, 7), (5, 1000), (17, 129)] {
        for activation in [SILU, GELU, RELU] {
            let values: Vec<T> =
                numbers((rows * columns * 2) as usize).into_iter().map(&from).collect();
            let gate_up = device.upload_new("gate_up", &values).unwrap();
            let len = (rows * columns) as usize;
            let out = device.allocate::<T>("out", len, AccessPattern::DEVICE_ONLY).unwrap();
            let mut list = CommandList::new("activation");
            activate(&mut list, gate_up.view(), out.view_mut().unwrap(), rows, columns, activation);
            let completed = device.run(list).unwrap();
            assert!(completed.gpu_time.is_some());
            let found = device.download_all(&out).unwrap();
            for (index, found) in found.into_iter().enumerate() {
                let (row, column) = (index / columns as usize, index % columns as usize);
                let gate = row * 2 * columns as usize + column;
                let up = to(values[gate + columns as usize]);
                let expected = reference(activation, to(values[gate]), up);
                let found = to(found);
                // 1 + tanh cancels where the gate is far below zero: what is left is a rounding
                // error of the products' size.
                let cancelled = f64::from(f32::EPSILON) * (to(values[gate]) * up).abs();
                assert!(
                    (found - expected).abs() <= relative * expected.abs() + cancelled,
                    "{rows}×{columns}, activation {activation}, element {index}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn gated_activation_is_right_in_every_element_type() {
    let Some(cuda) = open(None) else { return };
    check_activation::<f32>(&cuda, |v| v, f64::from, 1e-5);
    check_activation::<f16>(&cuda, f16::from_f32, |v| v.to_f64(), 1.5e-3);
    check_activation::<bf16>(&cuda, bf16::from_f32, |v| v.to_f64(), 1e-2);
}

#[test]
fn a_buffer_that_is_read_and_written_by_one_dispatch_is_right() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let columns = 1000usize;
    let values = numbers(2 * columns);
    let both = device.upload_new("both", &values).unwrap();
    let mut list = CommandList::new("in place");
    let out = both.slice_mut(0..columns).unwrap();
    activate(&mut list, both.view(), out, 1, columns as u32, RELU);
    device.run(list).unwrap();
    let found = device.download_all(&both).unwrap();
    for c in 0..columns {
        assert_eq!(found[c], values[c].max(0.0) * values[columns + c]);
        assert_eq!(found[columns + c], values[columns + c]);
    }
}

/// `f(x)` of one row: a step input, a private scratch buffer, a result that is read back.
struct Step {
    input: Buffer<f32>,
    output: Buffer<f32>,
}

const COLUMNS: usize = 256;

impl Step {
    fn new(device: &dyn Device) -> Self {
        Self {
            input: device.allocate("input", 2 * COLUMNS, AccessPattern::STEP_INPUT).unwrap(),
            output: device.allocate("output", COLUMNS, AccessPattern::READ_BACK).unwrap(),
        }
    }

    fn list(&self, label: &str) -> CommandList {
        let mut list = CommandList::new(label);
        let out = self.output.view_mut().unwrap();
        activate(&mut list, self.input.view(), out, 1, COLUMNS as u32, RELU);
        list
    }

    /// Gate and up so that the result is `value` everywhere.
    fn write(&self, device: &dyn Device, value: f32) {
        let mut both = vec![1.0f32; COLUMNS];
        both.resize(2 * COLUMNS, value);
        device.write(self.input.allocation(), 0, bytemuck::cast_slice(&both)).unwrap();
    }

    fn did_modify(&self, device: &dyn Device) {
        let bytes = (2 * COLUMNS * size_of::<f32>()) as u64;
        device.did_modify(self.input.allocation(), 0..bytes).unwrap();
    }

    fn read(&self, device: &dyn Device) -> Result<Vec<f32>, GpuError> {
        let mut out = vec![0.0f32; COLUMNS];
        device.read(self.output.allocation(), 0, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
}

#[test]
fn managed_memory_reaches_kernels_when_it_is_said_to_be_modified() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let step = Step::new(device);
    step.write(device, 3.0);
    step.did_modify(device);
    let recording = device.record(step.list("step")).unwrap();
    device.submit(&recording).unwrap().wait().unwrap();
    assert_eq!(step.read(device).unwrap(), [3.0; COLUMNS]);
    step.write(device, 4.0);
    device.submit(&recording).unwrap().wait().unwrap();
    assert_eq!(step.read(device).unwrap(), [3.0; COLUMNS], "written, but not said so");
    step.did_modify(device);
    device.submit(&recording).unwrap().wait().unwrap();
    assert_eq!(step.read(device).unwrap(), [4.0; COLUMNS]);
}

#[test]
fn a_graph_is_replayed_and_each_submission_sees_the_input_that_came_before_it() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let step = Step::new(device);
    let history = device.allocate::<f32>("history", 100 * COLUMNS, AccessPattern::DEVICE_ONLY);
    let history = history.unwrap();
    let mut submissions = Vec::new();
    let recordings: Vec<_> = (0..100u64)
        .map(|i| {
            let mut list = step.list("step");
            let bytes = (COLUMNS * size_of::<f32>()) as u64;
            list.push(Command::Copy {
                source: Region { allocation: step.output.allocation().clone(), offset: 0, bytes },
                destination: Region {
                    allocation: history.allocation().clone(),
                    offset: i * bytes,
                    bytes,
                },
            });
            device.record(list).unwrap()
        })
        .collect();
    for (i, recording) in recordings.iter().enumerate() {
        step.write(device, i as f32);
        step.did_modify(device);
        submissions.push(device.submit(recording).unwrap());
    }
    let last = submissions.pop().unwrap();
    last.wait().unwrap();
    assert_eq!(step.read(device).unwrap(), [99.0; COLUMNS]);
    let found = device.download_all(&history).unwrap();
    for (i, row) in found.chunks(COLUMNS).enumerate() {
        assert_eq!(row, [i as f32; COLUMNS], "submission {i}");
    }
}

#[test]
fn shared_memory_is_out_of_reach_while_a_submission_uses_it() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let step = Step::new(device);
    step.write(device, 2.0);
    step.did_modify(device);
    let recording = device.record(step.list("the step")).unwrap();
    let submission = device.submit(&recording).unwrap();
    let error = step.read(device).unwrap_err();
    assert!(
        matches!(&error, GpuError::InFlight { access: "read", label, submission }
            if label == "output" && submission == "the step"),
        "{error}"
    );
    let error = device.write(step.output.allocation(), 0, &[0; 4]).unwrap_err();
    assert!(matches!(error, GpuError::InFlight { access: "write", .. }), "{error}");
    submission.wait().unwrap();
    assert_eq!(step.read(device).unwrap(), [2.0; COLUMNS]);
    // Dropping a submission waits for it too.
    drop(device.submit(&recording).unwrap());
    step.read(device).unwrap();
}

#[test]
fn the_host_cannot_reach_private_memory_except_through_staging() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let buffer = device.allocate::<f32>("private", 4, AccessPattern::DEVICE_ONLY).unwrap();
    let mut out = [0u8; 16];
    for result in
        [device.write(buffer.allocation(), 0, &out), device.read(buffer.allocation(), 0, &mut out)]
    {
        let error = result.unwrap_err();
        assert!(
            matches!(error, GpuError::HostAccess { mode: StorageMode::Private, .. }),
            "{error}"
        );
    }
    device.upload(buffer.allocation(), 4, bytemuck::cast_slice(&[1.0f32, 2.0, 3.0])).unwrap();
    device.upload(buffer.allocation(), 0, bytemuck::cast_slice(&[7.0f32])).unwrap();
    assert_eq!(device.download_all(&buffer).unwrap(), [7.0, 1.0, 2.0, 3.0]);
    assert!(matches!(device.upload(buffer.allocation(), 8, &[0; 9]), Err(GpuError::Bind(_))));
}

#[test]
fn uploads_larger_than_the_staging_ring_arrive_whole() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    // Two ends that lie across slots, and many small ones in between.
    let mut bytes: Vec<u8> = (0..(37 << 20) + 13).map(|i: u32| (i % 251) as u8).collect();
    let buffer = device.allocate::<u8>("large", bytes.len(), AccessPattern::DEVICE_ONLY).unwrap();
    device.upload(buffer.allocation(), 0, &bytes).unwrap();
    for i in 0..1000usize {
        let at = i * 37_003;
        bytes[at..at + 5].copy_from_slice(&[i as u8; 5]);
        device.upload(buffer.allocation(), at as u64, &[i as u8; 5]).unwrap();
    }
    assert!(device.download_all(&buffer).unwrap() == bytes);
    let report = device.ledger().report();
    let uploads = report.copies.iter().find(|c| c.event.label == "upload").unwrap();
    assert_eq!(uploads.direction, Direction::HostToDevice);
    assert_eq!((uploads.event.count, uploads.event.bytes), (1001, bytes.len() as u64 + 5000));
}

#[test]
fn adopted_memory_is_read_where_it_lies() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let values = numbers(2 * 5000);
    let bytes: Vec<u8> = bytemuck::cast_slice(&values).to_vec();
    // Room for the test to choose where the values begin.
    let mut padded = vec![0u8; bytes.len() + 64];
    let aligned = padded.as_ptr().align_offset(16);
    padded[aligned..aligned + bytes.len()].copy_from_slice(&bytes);
    let owner = HostBytes::from(padded);
    let here = std::panic::Location::caller();
    let part = owner.slice(aligned..aligned + bytes.len()).unwrap();
    let adopted = device.adopt_at("adopted", part, here).unwrap();
    let before = device.ledger().report().copies.len();
    let out = device.allocate::<f32>("out", 5000, AccessPattern::READ_BACK).unwrap();
    let mut list = CommandList::new("adopted");
    let view = View::new(&adopted, 0, 2 * 5000).unwrap();
    activate(&mut list, view, out.view_mut().unwrap(), 1, 5000, RELU);
    device.run(list).unwrap();
    let mut found = vec![0.0f32; 5000];
    device.read(out.allocation(), 0, bytemuck::cast_slice_mut(&mut found)).unwrap();
    for c in 0..5000 {
        assert_eq!(found[c], values[c].max(0.0) * values[5000 + c]);
    }
    assert_eq!(device.ledger().report().copies.len(), before, "nothing was copied");
    assert!(ViewMut::<f32>::new(&adopted, 0, 4).is_err(), "adopted memory is read-only");

    let odd = owner.slice(aligned + 4..aligned + 64).unwrap();
    let error = device.adopt_at("odd", odd, here).map(drop).unwrap_err();
    assert!(matches!(error, GpuError::NotAdoptable { .. }), "{error}");
    // The same pages a second time are no second registration.
    let again = owner.slice(aligned + 16..aligned + 64).unwrap();
    drop(device.adopt_at("again", again, here).unwrap());
    drop(adopted);
    let all = owner.slice(aligned..aligned + 64).unwrap();
    drop(device.adopt_at("after", all, here).unwrap());
}

#[test]
fn fills_and_copies_run_in_order_on_every_kind_of_memory() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let private = device.allocate::<u8>("private", 1000, AccessPattern::DEVICE_ONLY).unwrap();
    let shared = device.allocate::<u8>("shared", 1000, AccessPattern::READ_BACK).unwrap();
    let region = |buffer: &Buffer<u8>, offset: u64, bytes: u64| Region {
        allocation: buffer.allocation().clone(),
        offset,
        bytes,
    };
    let mut list = CommandList::new("copies");
    list.push(Command::Fill { region: region(&private, 0, 1000), value: 1 });
    list.push(Command::Fill { region: region(&shared, 0, 1000), value: 2 });
    list.push(Command::Fill { region: region(&private, 10, 5), value: 3 });
    list.push(Command::Copy {
        source: region(&private, 8, 9),
        destination: region(&shared, 501, 9),
    });
    device.run(list).unwrap();
    let mut found = vec![0u8; 1000];
    device.read(shared.allocation(), 0, &mut found).unwrap();
    let mut expected = vec![2u8; 1000];
    expected[501..510].copy_from_slice(&[1, 1, 3, 3, 3, 3, 3, 1, 1]);
    assert_eq!(found, expected);
    let copies = device.ledger().report().copies;
    assert_eq!(copies.len(), 1);
    assert_eq!((copies[0].direction, copies[0].event.bytes), (Direction::DeviceToHost, 9));
}

#[test]
fn too_much_memory_is_refused_with_what_is_needed_and_what_is_free() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let total = device.properties().total_bytes;
    let len = usize::try_from(total).unwrap() + 1;
    let error = device.allocate::<u8>("too large", len, AccessPattern::DEVICE_ONLY).unwrap_err();
    let GpuError::OutOfMemory { label, needed, free, total: found } = &error else {
        panic!("{error}");
    };
    assert_eq!((label.as_str(), *needed), ("too large", total + 1));
    assert!(*free > 0 && free <= found, "{error}");
    // The device goes on working.
    device.upload_new("small", &[1u32]).unwrap();
}

#[test]
fn a_cubin_is_compiled_once_and_then_read_from_the_cache_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cubins");
    let statistics = |compiled, from_disk| PipelineStatistics { compiled, from_disk };
    for expected in [statistics(1, 0), statistics(0, 1)] {
        let Some(cuda) = open(Some(path.clone())) else { return };
        let device: &dyn Device = &cuda;
        let step = Step::new(device);
        let recording = device.record(step.list("first")).unwrap();
        device.record(step.list("second")).unwrap();
        step.write(device, 5.0);
        step.did_modify(device);
        device.submit(&recording).unwrap().wait().unwrap();
        assert_eq!(step.read(device).unwrap(), [5.0; COLUMNS]);
        assert_eq!(cuda.pipeline_statistics(), expected);
    }
    // A damaged file is compiled again.
    for file in std::fs::read_dir(&path).unwrap() {
        std::fs::write(file.unwrap().path(), b"damaged").unwrap();
    }
    let Some(cuda) = open(Some(path)) else { return };
    let device: &dyn Device = &cuda;
    device.record(Step::new(device).list("third")).unwrap();
    assert_eq!(cuda.pipeline_statistics(), statistics(1, 0));
}

#[test]
fn launches_that_the_device_cannot_do_are_refused_when_they_are_recorded() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let step = Step::new(device);
    let launch = |grid: Grid| {
        let mut list = CommandList::new("wrong");
        let launcher = GatedActivation {
            gate_up: step.input.view(),
            out: step.output.view_mut().unwrap(),
            args: GatedActivationArgs { rows: 1, columns: COLUMNS as u32 },
            constants: ActivationConstants { activation: SILU, whole: false },
            elements: PhantomData,
        };
        list.launch(launcher, grid);
        device.record(list).map(drop)
    };
    launch(Grid::x(1, 1024)).unwrap();
    for grid in [Grid::x(1, 1025), Grid::x(1, 0), Grid::xy(1, 65_536, 32)] {
        let error = launch(grid).unwrap_err();
        assert!(matches!(error, GpuError::Launch { .. }), "{error}");
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    let (Some(cuda), Some(other)) = (open(None), open(None)) else { return };
    let (device, other): (&dyn Device, &dyn Device) = (&cuda, &other);
    let step = Step::new(other);
    let error = device.record(step.list("foreign")).map(drop).unwrap_err();
    assert!(matches!(error, GpuError::ForeignAllocation { .. }), "{error}");
    let error = device.write(step.input.allocation(), 0, &[0]).unwrap_err();
    assert!(matches!(error, GpuError::ForeignAllocation { .. }), "{error}");
}

#[test]
fn the_ledger_counts_what_a_step_does() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let step = Step::new(device);
    let recording = device.record(step.list("step")).unwrap();
    let before = device.ledger().report().buffers.len();
    for i in 0..10 {
        step.write(device, i as f32);
        step.did_modify(device);
        device.submit(&recording).unwrap().wait().unwrap();
        step.read(device).unwrap();
    }
    let report = device.ledger().report();
    assert_eq!(report.buffers.len(), before, "a steady step allocates nothing");
    let dispatches = report.dispatches.iter().find(|d| d.label == "gated_activation").unwrap();
    assert_eq!(dispatches.count, 10);
    assert_eq!(report.waits.iter().map(|w| w.count).sum::<u64>(), 10);
    assert_eq!(report.submissions.iter().map(|s| s.count).sum::<u64>(), 10);
    let accesses = |i: usize| -> Vec<_> {
        report.buffers[i].accesses.iter().map(|a| (a.kernel, a.reads, a.writes)).collect()
    };
    assert_eq!(accesses(0), [("gated_activation", 10, 0)]);
    assert_eq!(accesses(1), [("gated_activation", 0, 10)]);
    let modified = report.copies.iter().find(|c| c.event.label == "did_modify").unwrap();
    assert_eq!((modified.event.count, modified.event.bytes), (10, 10 * 2 * COLUMNS as u64 * 4));
    let modes: Vec<_> = report.buffers.iter().map(|b| (b.name.as_str(), b.mode)).collect();
    assert_eq!(modes, [("input", StorageMode::Managed), ("output", StorageMode::Shared)]);
    assert_eq!(report.buffers[1].host_read_bytes, 10 * COLUMNS as u64 * 4);
}

#[test]
fn devices_lists_the_gpu_that_opens() {
    let Some(cuda) = open(None) else { return };
    let listed = devices().unwrap();
    let properties = cuda.properties();
    println!("{properties:?}");
    assert_eq!(listed[0].name, properties.name);
    assert_eq!(properties.simd_width, 32);
    assert!(properties.total_bytes > 1 << 30 && properties.threadgroup_bytes > 48 << 10);
    let error = Cuda::open(listed.len()).map(drop).unwrap_err().to_string();
    assert!(error.contains(&listed.len().to_string()), "{error}");
}

/// Leaves the process's context unusable, so it runs alone: `--ignored`.
#[test]
#[ignore = "no other test may run in the same process"]
fn a_kernel_that_goes_astray_is_reported_with_the_recordings_name() {
    let Some(cuda) = open(None) else { return };
    let device: &dyn Device = &cuda;
    let pattern = AccessPattern::new(HostAccess::None, DeviceAccess::ReadsWrites);
    let gate_up = device.allocate::<f32>("gate_up", 16, pattern).unwrap();
    let out = device.allocate::<f32>("out", 16, pattern).unwrap();
    let mut list = CommandList::new("far too many rows");
    activate(&mut list, gate_up.view(), out.view_mut().unwrap(), 1 << 14, 1 << 16, SILU);
    let error = device.run(list).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, GpuError::Fault { .. }), "{text}");
    assert!(text.contains("gated_activation_f32") && text.contains("far too many rows"), "{text}");
    let kept: Arc<_> = out.allocation().clone();
    drop(kept);
}
