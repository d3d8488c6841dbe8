//! One GPU.

use std::ffi::{CStr, c_char};
use std::ops::Range;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use marlin_backend::HostBytes;
use marlin_kernels::{Allocation, PipelineKey};
use marlin_placement::{
    AccessPattern, Device as MemoryKind, DeviceAccess, Direction, Ledger, Tally,
};

use super::KIND;
use super::buffer::{CudaAllocation, Memory, lock};
use super::commands::{self, Timeline};
use super::context::{Context, attribute};
use super::cubin_cache::CubinCache;
use super::driver::{Attribute, Driver, status};
use super::nvrtc::Nvrtc;
use super::pipeline::{PipelineStatistics, Pipelines, Variant};
use super::registration::{ALIGNMENT, Registrations};
use super::staging::Staging;
use crate::device::{Device, DeviceProperties, Recording, Submission};
use crate::kernel_cache::folder_of_user;
use crate::{Command, CommandList, GpuError};

/// The oldest compute capability that the kernels' instructions exist on: `cp.async`, conversions to
/// bf16, warp reductions (PTX ISA, "Target ISA notes").
const OLDEST: (u32, u32) = (8, 0);

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which GPU, in the driver's order (`CUDA_VISIBLE_DEVICES` applies).
    pub index: usize,
    /// Where compiled kernels are kept; `None` keeps none.
    pub cubin_folder: Option<PathBuf>,
}

impl Settings {
    /// The GPU `index`, with compiled kernels in the user's cache folder: `kernels/cuda` below
    /// `$MARLIN_CACHE`, or below `metal-marlin` in the operating system's.
    pub fn new(index: usize) -> Self {
        Self { index, cubin_folder: folder_of_user(KIND) }
    }
}

/// Every GPU that the driver finds, in its order.
///
/// # Errors
/// [`GpuError::Unavailable`] without a driver or a GPU.
pub fn devices() -> Result<Vec<DeviceProperties>, GpuError> {
    let driver = Driver::get()?;
    let mut count = 0;
    // SAFETY: the argument points to an integer.
    let code = unsafe { (driver.device_count)(&mut count) };
    if code != status::NO_DEVICE {
        driver.check("cuDeviceGetCount", code)?;
    }
    if count <= 0 {
        return Err(unavailable("the driver finds no GPU".to_owned()));
    }
    (0..count).map(|ordinal| describe(driver, ordinal).map(|(properties, _)| properties)).collect()
}

fn unavailable(reason: String) -> GpuError {
    GpuError::Unavailable { device: KIND, reason }
}

/// What the driver says of a GPU, and its compute capability.
fn describe(driver: &Driver, ordinal: i32) -> Result<(DeviceProperties, (u32, u32)), GpuError> {
    let mut device = 0;
    // SAFETY: the first argument points to an integer.
    let code = unsafe { (driver.device_get)(&mut device, ordinal) };
    driver.check("cuDeviceGet", code)?;
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: the driver writes at most as many bytes as it is told, the last one zero.
    let code = unsafe { (driver.device_name)(name.as_mut_ptr(), 256, device) };
    driver.check("cuDeviceGetName", code)?;
    // SAFETY: the name ends in zero, in any case at its last byte, which the driver leaves zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut total = 0;
    // SAFETY: the first argument points to a size.
    let code = unsafe { (driver.device_total_memory)(&mut total, device) };
    driver.check("cuDeviceTotalMem", code)?;
    let get = |which| attribute(driver, device, which);
    let capability =
        (get(Attribute::ComputeCapabilityMajor)?, get(Attribute::ComputeCapabilityMinor)?);
    let properties = DeviceProperties {
        name,
        kind: KIND,
        architecture: format!("sm_{}{}", capability.0, capability.1),
        memory: MemoryKind::Discrete,
        total_bytes: total as u64,
        simd_width: get(Attribute::WarpSize)?,
        max_threads: get(Attribute::MaxThreadsPerBlock)?,
        threadgroup_bytes: get(Attribute::MaxSharedMemoryPerBlockOptIn)?,
        compute_units: get(Attribute::MultiprocessorCount)?,
        adoption_alignment: ALIGNMENT,
        max_buffer_bytes: total as u64,
    };
    Ok((properties, capability))
}

/// An NVIDIA GPU.
pub struct Cuda {
    properties: DeviceProperties,
    ledger: Arc<Ledger>,
    context: Arc<Context>,
    pipelines: Pipelines,
    registrations: Registrations,
    read_only_registration: bool,
    staging: Mutex<Staging>,
    timeline: Arc<Timeline>,
    waits: Tally,
    submissions: Tally,
    downloads: Tally,
    uploads: Tally,
    modifications: Tally,
}

impl Cuda {
    /// The GPU `index`, in the driver's order.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] without a driver, such a GPU, or NVRTC, with what was looked for.
    pub fn open(index: usize) -> Result<Self, GpuError> {
        Self::open_with(Settings::new(index))
    }

    /// As [`open`](Self::open), with settings.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(settings: Settings) -> Result<Self, GpuError> {
        let driver = Driver::get()?;
        let count = devices()?.len();
        let Some(ordinal) = i32::try_from(settings.index).ok().filter(|_| settings.index < count)
        else {
            return Err(unavailable(format!(
                "GPU {} was asked for, there are {count}, counted from 0",
                settings.index
            )));
        };
        let (mut properties, capability) = describe(driver, ordinal)?;
        if capability < OLDEST {
            return Err(unavailable(format!(
                "{} has compute capability {}.{}, expected {}.{} or later",
                properties.name, capability.0, capability.1, OLDEST.0, OLDEST.1
            )));
        }
        let nvrtc = Nvrtc::load(Some(driver.cuda_major()))?;
        let architecture = nvrtc.architecture(capability.0, capability.1)?;
        properties.architecture = architecture.name().to_owned();
        let context = Arc::new(Context::new(driver, ordinal)?);
        let read_only_registration = attribute(driver, ordinal, Attribute::HostRegisterSupported)?
            != 0
            && attribute(driver, ordinal, Attribute::ReadOnlyHostRegisterSupported)? != 0;
        let ledger = Arc::new(Ledger::for_memory(properties.memory));
        let pipelines = Pipelines::new(
            context.clone(),
            nvrtc,
            architecture,
            properties.threadgroup_bytes,
            // griddepcontrol is there from sm_90 on (PTX ISA).
            capability >= (9, 0) && driver.graph_add_dependencies.is_some(),
            CubinCache::new(settings.cubin_folder),
        );
        Ok(Self {
            staging: Mutex::new(Staging::new(&context)),
            registrations: Registrations::default(),
            read_only_registration,
            timeline: Arc::default(),
            waits: ledger.waits("submission"),
            submissions: ledger.submissions("graph"),
            downloads: ledger.copies(Direction::DeviceToHost, "download"),
            uploads: ledger.copies(Direction::HostToDevice, "upload"),
            modifications: ledger.copies(Direction::HostToDevice, "did_modify"),
            properties,
            ledger,
            context,
            pipelines,
        })
    }

    /// Where its pipelines came from so far.
    pub fn pipeline_statistics(&self) -> PipelineStatistics {
        self.pipelines.statistics()
    }

    /// Bytes of the device's memory that are free.
    ///
    /// # Errors
    /// The driver failed.
    pub fn free_bytes(&self) -> Result<u64, GpuError> {
        self.context.memory().map(|(free, _)| free)
    }

    fn own<'a>(&self, allocation: &'a Arc<dyn Allocation>) -> Result<&'a CudaAllocation, GpuError> {
        CudaAllocation::of(allocation, &self.context)
    }

    fn check_not_in_flight(
        &self,
        access: &'static str,
        label: &str,
        last_use: u64,
    ) -> Result<(), GpuError> {
        match self.timeline.unfinished(last_use) {
            Some(submission) => {
                Err(GpuError::InFlight { access, label: label.to_owned(), submission })
            }
            None => Ok(()),
        }
    }
}

/// `offset..offset + len` in units of the host's; both were checked against an allocation.
fn host_range(offset: u64, len: usize) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    start..start.saturating_add(len)
}

impl Device for Cuda {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn free_bytes(&self) -> Result<u64, GpuError> {
        Ok(self.context.memory()?.0)
    }

    fn allocate_at(
        &self,
        label: &str,
        bytes: u64,
        pattern: AccessPattern,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        let writable = pattern.device.writes() || pattern.device == DeviceAccess::Unknown;
        let tally = self.ledger.buffer_at(label, pattern, bytes, site);
        Ok(Arc::new(CudaAllocation::new(&self.context, label, bytes, writable, tally)?))
    }

    fn adopt_at(
        &self,
        label: &str,
        bytes: HostBytes,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        let (registration, pointer) =
            self.registrations.adopt(&self.context, label, &bytes, self.read_only_registration)?;
        let len = bytes.len() as u64;
        Ok(Arc::new(CudaAllocation {
            context: self.context.clone(),
            label: label.to_owned(),
            bytes: len,
            writable: false,
            memory: Memory::Adopted { _registration: registration },
            pointer,
            tally: self.ledger.buffer_at(label, AccessPattern::ADOPTED, len, site),
        }))
    }

    fn write(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        own.check_range(offset, bytes.len() as u64)?;
        let range = host_range(offset, bytes.len());
        match &own.memory {
            Memory::Managed { mirror, .. } => lock(mirror)[range].copy_from_slice(bytes),
            Memory::Shared(shared) => {
                let mut shared = lock(shared);
                self.check_not_in_flight("write", &own.label, shared.last_use)?;
                // SAFETY: no submission in flight uses the memory, and none starts while the lock
                // is held.
                unsafe { shared.pinned.bytes_mut(range) }.copy_from_slice(bytes);
            }
            Memory::Private(_) | Memory::Adopted { .. } => return Err(own.no_host_access("write")),
        }
        own.tally.host_wrote(bytes.len() as u64);
        Ok(())
    }

    fn did_modify(
        &self,
        allocation: &Arc<dyn Allocation>,
        range: Range<u64>,
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        let len = range.end.saturating_sub(range.start);
        own.check_range(range.start, len)?;
        if let Memory::Managed { device, mirror } = &own.memory
            && len > 0
        {
            let mirror = lock(mirror);
            let bytes = &mirror[host_range(range.start, usize::try_from(len).unwrap_or(0))];
            lock(&self.staging).upload(device.pointer + range.start, bytes)?;
            self.modifications.record(len);
        }
        Ok(())
    }

    fn read(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        own.check_range(offset, out.len() as u64)?;
        let range = host_range(offset, out.len());
        match &own.memory {
            Memory::Managed { mirror, .. } => out.copy_from_slice(&lock(mirror)[range]),
            Memory::Shared(shared) => {
                let shared = lock(shared);
                self.check_not_in_flight("read", &own.label, shared.last_use)?;
                // SAFETY: as in `write`.
                out.copy_from_slice(unsafe { shared.pinned.bytes(range) });
            }
            Memory::Private(_) | Memory::Adopted { .. } => return Err(own.no_host_access("read")),
        }
        own.tally.host_read(out.len() as u64);
        Ok(())
    }

    fn upload(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        own.check_range(offset, bytes.len() as u64)?;
        match &own.memory {
            Memory::Private(device) => {
                lock(&self.staging).upload(device.pointer + offset, bytes)?;
                self.uploads.record(bytes.len() as u64);
                Ok(())
            }
            Memory::Managed { .. } => {
                self.write(allocation, offset, bytes)?;
                self.did_modify(allocation, offset..offset + bytes.len() as u64)
            }
            Memory::Shared(_) => self.write(allocation, offset, bytes),
            Memory::Adopted { .. } => Err(own.no_host_access("write")),
        }
    }

    fn download(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        own.check_range(offset, out.len() as u64)?;
        // Everything on the stream comes first, whatever the memory.
        lock(&self.staging).download(own.pointer + offset, out)?;
        self.downloads.record(out.len() as u64);
        Ok(())
    }

    fn compile(&self, pipeline: &PipelineKey) -> Result<(), GpuError> {
        self.pipelines.get_all(&[(*pipeline, Variant::default())]).map(drop)
    }

    fn record(&self, commands: CommandList) -> Result<Arc<dyn Recording>, GpuError> {
        let mut wanted = Vec::new();
        for command in commands.commands() {
            if let Command::Dispatch(dispatch) = command {
                commands::check_dispatch(dispatch, &self.context, &self.properties)?;
                wanted.push((dispatch.pipeline, commands::variant(dispatch)));
            }
        }
        let pipelines = self.pipelines.get_all(&wanted)?;
        let recording =
            commands::record(&self.context, &self.ledger, &self.properties, commands, pipelines)?;
        Ok(Arc::new(recording))
    }

    fn submit(&self, recording: &Arc<dyn Recording>) -> Result<Box<dyn Submission>, GpuError> {
        let tallies = [&self.waits, &self.submissions];
        commands::submit(&self.context, &self.timeline, tallies, recording)
    }
}
