//! Libraries and pipelines: compiled once, kept on disk as archives, found again.

use std::fs;
use std::path::Path;

use half::f16;
use marlin_gpu::metal::double::{Call, Double, Options};
use marlin_gpu::metal::{MetalDevice, PipelineStatistics, Settings};
use marlin_gpu::ops::norm::{NormWeight, add_rms_norm, rms_norm};
use marlin_gpu::{CommandList, Device, GpuError};
use marlin_placement::AccessPattern;

/// Two kernels of one file.
fn norms(device: &dyn Device) -> Result<CommandList, GpuError> {
    let own = |name: &str| device.allocate::<f16>(name, 128, AccessPattern::DEVICE_ONLY);
    let (x, y, residual) = (own("x")?, own("y")?, own("residual")?);
    let weight = device.upload_new("weight", &[1.0f32; 128])?;
    let norm = NormWeight { weight: weight.view(), epsilon: 1e-5, offset: 0.0 };
    let mut list = CommandList::new("norms");
    rms_norm(&mut list, x.view(), norm, y.view_mut()?, 1)?;
    add_rms_norm(&mut list, x.view(), residual.view_mut()?, norm, y.view_mut()?, 1)?;
    rms_norm(&mut list, x.view(), norm, y.view_mut()?, 1)?;
    Ok(list)
}

fn opened(folder: Option<&Path>, options: Options) -> (MetalDevice<Double>, Double) {
    let double = Double::new(options);
    let cache_folder = folder.map(Path::to_owned);
    let settings = Settings { index: 0, cache_folder, signposts: false };
    (MetalDevice::over(double.clone(), &settings).unwrap(), double)
}

fn compilations(double: &Double) -> Vec<String> {
    let mut out: Vec<String> = double
        .take_calls()
        .iter()
        .filter(|call| matches!(call, Call::NewLibrary { .. } | Call::NewPipeline { .. }))
        .map(Call::to_string)
        .collect();
    out.sort();
    out
}

#[test]
fn a_file_is_compiled_once_and_each_kernel_for_the_threads_that_it_has() -> Result<(), GpuError> {
    let (device, double) = opened(None, Options::default());
    device.record(norms(&device)?)?;
    assert_eq!(
        compilations(&double),
        [
            "library norm",
            "pipeline add_rms_norm_f16 of Some(64) threads from its library",
            "pipeline rms_norm_f16 of Some(64) threads from its library",
        ]
    );
    device.record(norms(&device)?)?;
    assert!(compilations(&double).is_empty());
    assert_eq!(device.pipeline_statistics(), PipelineStatistics { compiled: 2, from_disk: 0 });
    Ok(())
}

#[test]
fn the_next_process_finds_the_archives_and_another_system_does_not() -> Result<(), GpuError> {
    let folder = tempfile::tempdir().unwrap();
    let (device, _) = opened(Some(folder.path()), Options::default());
    device.record(norms(&device)?)?;
    drop(device);

    let (device, double) = opened(Some(folder.path()), Options::default());
    device.record(norms(&device)?)?;
    let found = compilations(&double);
    assert_eq!(found.iter().filter(|call| call.ends_with("from its archive")).count(), 2);
    assert_eq!(device.pipeline_statistics(), PipelineStatistics { compiled: 0, from_disk: 2 });

    let mut newer = Options::default();
    newer.description.system = "Version 26.1".to_owned();
    let (device, _) = opened(Some(folder.path()), newer);
    device.record(norms(&device)?)?;
    assert_eq!(device.pipeline_statistics().compiled, 2);
    Ok(())
}

#[test]
fn damaged_archives_are_compiled_again() -> Result<(), GpuError> {
    let folder = tempfile::tempdir().unwrap();
    let (device, _) = opened(Some(folder.path()), Options::default());
    device.record(norms(&device)?)?;
    let mut archives = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "metalar") {
            fs::write(&path, "rubbish").unwrap();
            archives += 1;
        }
    }
    assert_eq!(archives, 2);
    let (device, _) = opened(Some(folder.path()), Options::default());
    device.record(norms(&device)?)?;
    assert_eq!(device.pipeline_statistics(), PipelineStatistics { compiled: 2, from_disk: 0 });
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_written_costs_nothing_but_the_cache() -> Result<(), GpuError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (device, _) = opened(Some(file.path()), Options::default());
    device.record(norms(&device)?)?;
    assert_eq!(device.pipeline_statistics().compiled, 2);
    Ok(())
}
