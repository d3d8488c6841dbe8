//! What goes wrong is named: the device, the kernel, the memory.

use marlin_gpu::metal::MetalDevice;
use marlin_gpu::metal::api::{EncoderFailure, Failure, PipelineLimits};
use marlin_gpu::metal::double::{Call, Double, Options};
use marlin_gpu::{Command, CommandList, Device, GpuError};
use marlin_kernels::bytes::{CopyBytes, CopyBytesArgs};
use marlin_kernels::{BindError, Grid, ViewMut};
use marlin_placement::AccessPattern;

use super::{device, region, settings};

/// A list with one dispatch, and the memory that it uses.
fn dispatching(device: &dyn Device) -> Result<CommandList, GpuError> {
    let x = device.upload_new("x", &[1u8; 32])?;
    let mut list = CommandList::new("step");
    let (source, destination) = (x.slice(0..8)?, x.slice_mut(8..16)?);
    list.launch(
        CopyBytes { source, destination, args: CopyBytesArgs { count: 8 } },
        Grid::x(1, 64),
    );
    Ok(list)
}

#[test]
fn a_gpu_that_the_kernels_do_not_run_on_is_refused_by_name() {
    for (family, found) in [(Some(6), "Apple GPU family 6"), (None, "not an Apple GPU")] {
        let mut options = Options::default();
        options.description.apple_family = family;
        let error = MetalDevice::over(Double::new(options), &settings()).err().expect("refused");
        let text = error.to_string();
        assert!(matches!(error, GpuError::Unavailable { device: "metal", .. }));
        assert!(text.contains("Apple M1") && text.contains(found), "{text}");
    }
}

#[test]
fn what_the_device_says_of_itself_comes_from_metal() {
    let (device, _) = device(Options::default());
    let properties = device.properties();
    assert_eq!((properties.kind, properties.architecture.as_str()), ("metal", "apple7"));
    assert_eq!((properties.simd_width, properties.max_threads), (32, 1024));
    assert_eq!((properties.threadgroup_bytes, properties.compute_units), (32768, 8));
    assert_eq!(properties.adoption_alignment, 16384);
}

#[test]
fn too_much_memory_is_refused_with_what_is_free() {
    let (device, _) = device(Options::default());
    let error = device.allocate::<u8>("model", 12 << 30, AccessPattern::DEVICE_ONLY).unwrap_err();
    let GpuError::OutOfMemory { label, needed, free, total } = error else {
        panic!("{error}");
    };
    assert_eq!((label.as_str(), needed, total), ("model", 12 << 30, 11_453_251_584));
    // One buffer may not be larger than Metal's limit, however much is free.
    assert_eq!(free, 8_589_934_592);
    assert!(device.free_bytes().unwrap() < total);
}

#[test]
fn a_kernel_that_does_not_compile_is_named_with_the_log() -> Result<(), GpuError> {
    let mut options = Options::default();
    options.broken.insert("bytes".to_owned(), "program_source:7: error".to_owned());
    let (device, _) = device(options);
    let error = device.record(dispatching(&*device)?).err().expect("refused");
    assert_eq!(
        error,
        GpuError::Compile {
            kernel: "copy_bytes".to_owned(),
            target: "apple7".to_owned(),
            log: "program_source:7: error".to_owned()
        }
    );
    Ok(())
}

#[test]
fn a_pipeline_that_cannot_run_the_launch_is_refused() -> Result<(), GpuError> {
    let limits = Options::default().limits;
    for (limits, part) in [
        (PipelineLimits { max_threads: 32, ..limits }, "64 threads in a threadgroup"),
        (PipelineLimits { simd_width: 64, ..limits }, "SIMD-groups have 64 threads, expected 32"),
        (PipelineLimits { threadgroup_bytes: 40_000, ..limits }, "40000 bytes of threadgroup"),
    ] {
        let (device, _) = device(Options { limits, ..Options::default() });
        let error = device.record(dispatching(&*device)?).err().expect("refused");
        assert!(matches!(&error, GpuError::Launch { kernel, .. } if kernel == "copy_bytes"));
        assert!(error.to_string().contains(part), "{error}");
    }
    Ok(())
}

#[test]
fn launches_that_no_device_can_do_are_refused() -> Result<(), GpuError> {
    let (device, _) = device(Options::default());
    let x = device.upload_new("x", &[1u8; 32])?;
    let copy = |from: std::ops::Range<usize>, to: std::ops::Range<usize>, grid: Grid| {
        let mut list = CommandList::new("step");
        let launcher = CopyBytes {
            source: x.slice(from)?,
            destination: x.slice_mut(to)?,
            args: CopyBytesArgs { count: 8 },
        };
        list.launch(launcher, grid);
        device.record(list).map(drop)
    };
    assert_eq!(copy(0..8, 8..16, Grid::x(1, 64)), Ok(()));
    let overlap = copy(0..8, 4..12, Grid::x(1, 64)).unwrap_err().to_string();
    assert!(overlap.contains("share bytes of \"x\""), "{overlap}");
    let threads = copy(0..8, 8..16, Grid::x(1, 2048)).unwrap_err().to_string();
    assert!(threads.contains("expected 1 to 1024 in all"), "{threads}");

    let other = super::device(Options::default()).0;
    let foreign = other.upload_new("foreign", &[1u8; 32])?;
    let mut list = CommandList::new("step");
    list.push(Command::Fill { region: region(foreign.allocation(), 0, 4), value: 0 });
    let error = device.record(list).err().expect("refused");
    assert!(matches!(error, GpuError::ForeignAllocation { .. }));

    let inputs = device.allocate::<u8>("inputs", 8, AccessPattern::STEP_INPUT)?;
    assert!(matches!(
        ViewMut::<u8>::new(inputs.allocation(), 0, 8),
        Err(BindError::ReadOnly { .. })
    ));
    let mut list = CommandList::new("step");
    list.push(Command::Fill { region: region(inputs.allocation(), 0, 4), value: 0 });
    let error = device.record(list).err().expect("refused");
    assert!(matches!(error, GpuError::Bind(BindError::ReadOnly { .. })));
    Ok(())
}

#[test]
fn a_command_buffer_that_stops_names_its_kernels() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let recording = device.record(dispatching(&*device)?)?;
    // The upload of "x" comes first and is well.
    device.submit(&recording)?.wait()?;
    double.fail_next(Failure {
        code: 3,
        message: "Caused GPU Address Fault Error".to_owned(),
        encoders: Vec::new(),
    });
    let error = device.submit(&recording)?.wait().unwrap_err();
    let GpuError::Fault { kernel, message } = &error else { panic!("{error}") };
    assert_eq!(kernel, "copy_bytes");
    assert!(message.contains("\"step\"") && message.contains("Address Fault"), "{message}");

    // What no kernel can cause is the driver's error; the next submission runs.
    double.fail_next(Failure {
        code: 8,
        message: "Insufficient Memory".to_owned(),
        encoders: Vec::new(),
    });
    let error = device.submit(&recording)?.wait().unwrap_err();
    assert!(matches!(error, GpuError::Driver { .. }), "{error}");
    device.submit(&recording)?.wait()?;
    Ok(())
}

#[test]
fn with_signposts_the_encoder_tells_how_far_it_came() -> Result<(), GpuError> {
    let double = Double::new(Options::default());
    let settings = marlin_gpu::metal::Settings { signposts: true, ..settings() };
    let device = MetalDevice::over(double.clone(), &settings)?;
    let recording = device.record(dispatching(&device)?)?;
    device.submit(&recording)?.wait()?;
    let posts = double.take_calls();
    assert!(posts.contains(&Call::Signpost { text: "copy_bytes".to_owned() }));
    double.fail_next(Failure {
        code: 2,
        message: "Caused GPU Timeout Error".to_owned(),
        encoders: vec![EncoderFailure {
            label: "step".to_owned(),
            state: "faulted",
            signposts: vec!["rms_norm_f16".to_owned(), "gemm_f16".to_owned()],
        }],
    });
    let error = device.submit(&recording)?.wait().unwrap_err();
    let GpuError::Fault { kernel, message } = &error else { panic!("{error}") };
    assert_eq!(kernel, "rms_norm_f16 or gemm_f16");
    assert!(message.contains("encoder \"step\" faulted with gemm_f16 encoded last"), "{message}");
    Ok(())
}

#[test]
fn an_upload_that_fails_is_told_by_the_submission_after_it() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let recording = device.record(dispatching(&*device)?)?;
    double.fail_next(Failure {
        code: 11,
        message: "Device Removed".to_owned(),
        encoders: Vec::new(),
    });
    let submission = device.submit(&recording)?;
    let error = submission.wait().unwrap_err().to_string();
    assert!(error.contains("staged copy") && error.contains("Device Removed"), "{error}");
    assert!(error.starts_with("the device Apple M1 was lost"), "{error}");
    // It is told once.
    device.submit(&recording)?.wait()?;
    Ok(())
}

#[test]
fn a_submission_is_done_when_it_and_all_before_it_are() -> Result<(), GpuError> {
    let (device, _) = device(Options::default());
    let recording = device.record(dispatching(&*device)?)?;
    let (first, second) = (device.submit(&recording)?, device.submit(&recording)?);
    assert!(!first.is_done() && !second.is_done());
    assert!(second.wait()?.gpu_time.is_some());
    assert!(first.is_done());
    Ok(())
}

/// `MTLCommandBufferErrorDeviceRemoved`.
#[test]
fn a_device_that_was_removed_is_lost() -> Result<(), GpuError> {
    let (device, double) = device(Options::default());
    let recording = device.record(dispatching(&*device)?)?;
    device.submit(&recording)?.wait()?;
    double.fail_next(Failure {
        code: 11,
        message: "the device was removed".to_owned(),
        encoders: Vec::new(),
    });
    let error = device.submit(&recording)?.wait().unwrap_err();
    let GpuError::Lost { device, reason } = &error else { panic!("{error}") };
    assert_eq!(device, "Apple M1");
    assert!(reason.contains("recording \"step\" stopped") && reason.contains("code 11"), "{error}");
    Ok(())
}
