//! The self-test passes on the emulated device and on the CPU, and fails on a device that is wrong.

mod common;

use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;

use marlin_backend::HostBytes;
use marlin_cpu::CpuBackend;
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_gpu::selftest::{Check, Outcome, check_backend, check_device};
use marlin_gpu::{CommandList, Device, DeviceProperties, GpuError, Recording, Submission};
use marlin_kernels::{Allocation, PipelineKey};
use marlin_placement::{AccessPattern, Ledger};

fn assert_passes(checks: &[Check], least: usize) {
    let failed: Vec<&Check> = checks.iter().filter(|check| check.failed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let passed = checks.iter().filter(|check| matches!(check.outcome, Outcome::Passed { .. }));
    assert!(passed.count() >= least, "{checks:#?}");
}

#[test]
fn the_emulated_device_passes() {
    for unified in [true, false] {
        let mut told = Vec::new();
        let device = common::emulated(32, unified);
        let checks = check_device(&*device, &mut |check| told.push(check.clone()));
        assert_eq!(told, checks);
        assert_passes(&checks, 90);
        // Only what the device says that it cannot do is left out.
        let skipped: Vec<_> =
            checks.iter().filter(|check| matches!(check.outcome, Outcome::Skipped(_))).collect();
        assert_eq!(skipped.len(), usize::from(!unified), "{skipped:?}");
    }
}

#[test]
fn a_small_model_passes_on_the_cpu_and_over_a_device() {
    let cpu = CpuBackend::new(std::num::NonZeroUsize::new(1)).unwrap();
    assert_passes(&check_backend(&cpu, &mut |_| {}), 6);
    let device: Arc<dyn Device> = common::emulated(32, true).into();
    let gpu = GpuBackend::new(device, Activations::F16);
    assert_passes(&check_backend(&gpu, &mut |_| {}), 6);
}

/// A device whose downloads have one bit wrong.
struct Wrong(Box<dyn Device>);

impl Device for Wrong {
    fn properties(&self) -> &DeviceProperties {
        self.0.properties()
    }
    fn ledger(&self) -> &Arc<Ledger> {
        self.0.ledger()
    }
    fn allocate_at(
        &self,
        label: &str,
        bytes: u64,
        pattern: AccessPattern,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        self.0.allocate_at(label, bytes, pattern, site)
    }
    fn adopt_at(
        &self,
        label: &str,
        bytes: HostBytes,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        self.0.adopt_at(label, bytes, site)
    }
    fn write(&self, to: &Arc<dyn Allocation>, offset: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.0.write(to, offset, bytes)
    }
    fn did_modify(&self, of: &Arc<dyn Allocation>, range: Range<u64>) -> Result<(), GpuError> {
        self.0.did_modify(of, range)
    }
    fn read(&self, of: &Arc<dyn Allocation>, at: u64, out: &mut [u8]) -> Result<(), GpuError> {
        self.0.read(of, at, out)
    }
    fn upload(&self, to: &Arc<dyn Allocation>, at: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.0.upload(to, at, bytes)
    }
    fn download(&self, of: &Arc<dyn Allocation>, at: u64, out: &mut [u8]) -> Result<(), GpuError> {
        self.0.download(of, at, out)?;
        if let Some(last) = out.last_mut() {
            *last ^= 0x40;
        }
        Ok(())
    }
    fn compile(&self, pipeline: &PipelineKey) -> Result<(), GpuError> {
        self.0.compile(pipeline)
    }
    fn record(&self, commands: CommandList) -> Result<Arc<dyn Recording>, GpuError> {
        self.0.record(commands)
    }
    fn submit(&self, recording: &Arc<dyn Recording>) -> Result<Box<dyn Submission>, GpuError> {
        self.0.submit(recording)
    }
}

#[test]
fn a_wrong_bit_is_found_by_every_check_that_looks_at_results() {
    let device = Wrong(common::emulated(32, true));
    let checks = check_device(&device, &mut |_| {});
    // What is left looks at shared memory, or asks only for a refusal.
    let passed: Vec<&str> =
        checks.iter().filter(|check| !check.failed()).map(|check| check.name.as_str()).collect();
    assert!(passed.len() < checks.len() / 10, "{passed:#?}");
    assert!(checks.iter().filter(|check| check.group == "linear").all(Check::failed));
}
