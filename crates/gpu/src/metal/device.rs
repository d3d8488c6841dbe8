//! One GPU.

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
use super::api::{Api, Description};
use super::archive_cache::ArchiveCache;
use super::buffer::{Memory, MetalAllocation};
use super::commands;
use super::context::{Context, lock};
use super::pipeline::{PipelineStatistics, Pipelines};
use super::staging::Staging;
use crate::device::{Device, DeviceProperties, Recording, Submission};
use crate::kernel_cache::folder_of_user;
use crate::{CommandList, GpuError};

/// The oldest Apple GPU family that the kernels' functions exist on: `simdgroup_matrix` and the reductions of
/// SIMD-groups (Metal Feature Set Tables).
const OLDEST_FAMILY: u32 = 7;
/// Threads of a SIMD-group on every Apple GPU of that family and later; each pipeline's `threadExecutionWidth` is checked
/// against it.
const SIMD_WIDTH: u32 = 32;
/// GPU cores of the smallest chip of the family (M1), for a system that does not tell.
const FEWEST_CORES: u32 = 7;

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which GPU, in Metal's order.
    pub index: usize,
    /// Where compiled kernels are kept; `None` keeps none.
    pub cache_folder: Option<PathBuf>,
    /// Names every dispatch, so that the error of a command buffer tells how far it came. Costs some time in each step.
    pub signposts: bool,
}

impl Settings {
    /// The GPU `index`, with compiled kernels in the user's cache folder: `kernels/metal` below
    /// `$MARLIN_CACHE`, or below `metal-marlin` in the operating system's.
    pub fn new(index: usize) -> Self {
        Self { index, cache_folder: folder_of_user(KIND), signposts: false }
    }
}

pub(super) fn unavailable(reason: String) -> GpuError {
    GpuError::Unavailable { device: KIND, reason }
}

/// What is known of a device from what Metal says of it.
pub(super) fn properties(description: &Description) -> DeviceProperties {
    let family = description.apple_family;
    DeviceProperties {
        name: description.name.clone(),
        kind: KIND,
        architecture: family.map_or("other".to_owned(), |family| format!("apple{family}")),
        memory: if description.unified { MemoryKind::Unified } else { MemoryKind::Discrete },
        total_bytes: description.working_set_bytes,
        simd_width: SIMD_WIDTH,
        max_threads: description.max_threads,
        threadgroup_bytes: description.threadgroup_bytes,
        compute_units: description.cores.unwrap_or(FEWEST_CORES),
        adoption_alignment: description.page_bytes,
        max_buffer_bytes: description.max_buffer_bytes,
    }
}

/// A GPU, through `A`.
pub struct MetalDevice<A: Api> {
    properties: DeviceProperties,
    ledger: Arc<Ledger>,
    context: Arc<Context<A>>,
    pipelines: Pipelines<A>,
    staging: Arc<Mutex<Staging<A>>>,
    waits: Tally,
    submissions: Tally,
    downloads: Tally,
    uploads: Tally,
    modifications: Tally,
}

impl<A: Api> MetalDevice<A> {
    /// A device over `api`; [`Settings::index`] was used to find that.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] for a GPU that the kernels do not run on.
    pub fn over(api: A, settings: &Settings) -> Result<Self, GpuError> {
        let description = api.describe();
        let properties = properties(&description);
        if description.apple_family.is_none_or(|family| family < OLDEST_FAMILY) {
            let found = match description.apple_family {
                Some(family) => format!("Apple GPU family {family}"),
                None => "not an Apple GPU".to_owned(),
            };
            return Err(unavailable(format!(
                "{} is {found}, expected Apple GPU family {OLDEST_FAMILY} or later (M1, A14)",
                properties.name
            )));
        }
        let context = Context::new(api, properties.clone(), settings.signposts)?;
        let cache = ArchiveCache::new(settings.cache_folder.clone());
        let ledger = Arc::new(Ledger::for_memory(properties.memory));
        Ok(Self {
            pipelines: Pipelines::new(&context, &description.system, cache),
            staging: Arc::new(Mutex::new(Staging::new(&context))),
            waits: ledger.waits("submission"),
            submissions: ledger.submissions("command buffer"),
            downloads: ledger.copies(Direction::DeviceToHost, "download"),
            uploads: ledger.copies(Direction::HostToDevice, "upload"),
            modifications: ledger.copies(Direction::HostToDevice, "did_modify"),
            properties,
            ledger,
            context,
        })
    }

    /// Where its pipelines came from so far.
    pub fn pipeline_statistics(&self) -> PipelineStatistics {
        self.pipelines.statistics()
    }

    fn own<'a>(
        &self,
        allocation: &'a Arc<dyn Allocation>,
    ) -> Result<&'a MetalAllocation<A>, GpuError> {
        MetalAllocation::of(allocation, &self.context)
    }
}

/// `offset..offset + len` in units of the host's; both were checked against an allocation.
fn host_range(offset: u64, len: u64) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    start..start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX))
}

impl<A: Api> Device for MetalDevice<A> {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn free_bytes(&self) -> Result<u64, GpuError> {
        Ok(self.context.free_bytes())
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
        Ok(Arc::new(MetalAllocation::new(&self.context, label, bytes, writable, tally)?))
    }

    fn adopt_at(
        &self,
        label: &str,
        bytes: HostBytes,
        site: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        if self.properties.memory == MemoryKind::Discrete {
            let reason = "the device has memory of its own".to_owned();
            return Err(GpuError::NotAdoptable { label: label.to_owned(), reason });
        }
        let adopted = MetalAllocation::adopt(&self.context, label, bytes, |len| {
            self.ledger.buffer_at(label, AccessPattern::ADOPTED, len, site)
        })?;
        Ok(Arc::new(adopted))
    }

    fn write(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        let len = bytes.len() as u64;
        own.check_range(offset, len)?;
        let last_use = lock(&own.last_use);
        own.check_host_access("write", *last_use)?;
        self.context.api.write(&own.buffer, host_range(offset, len).start, bytes);
        own.tally.host_wrote(len);
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
        let last_use = lock(&own.last_use);
        if own.memory == Memory::Managed && len > 0 {
            own.check_host_access("write", *last_use)?;
            self.context.api.did_modify(&own.buffer, host_range(range.start, len));
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
        let len = out.len() as u64;
        own.check_range(offset, len)?;
        let last_use = lock(&own.last_use);
        own.check_host_access("read", *last_use)?;
        self.context.api.read(&own.buffer, host_range(offset, len).start, out);
        own.tally.host_read(len);
        Ok(())
    }

    fn upload(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        let len = bytes.len() as u64;
        own.check_range(offset, len)?;
        match own.memory {
            Memory::Private => {
                let start = host_range(offset, len).start;
                lock(&self.staging).upload(&own.buffer, own.bytes, start, bytes)?;
                self.uploads.record(len);
                Ok(())
            }
            Memory::Managed => {
                self.write(allocation, offset, bytes)?;
                self.did_modify(allocation, offset..offset + len)
            }
            Memory::Shared => self.write(allocation, offset, bytes),
            Memory::Adopted => Err(own.no_host_access("write")),
        }
    }

    fn download(
        &self,
        allocation: &Arc<dyn Allocation>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), GpuError> {
        let own = self.own(allocation)?;
        let len = out.len() as u64;
        own.check_range(offset, len)?;
        let start = host_range(offset, len).start;
        // Nothing is submitted meanwhile.
        let _started = lock(&self.context.timeline.started);
        let mut staging = lock(&self.staging);
        self.context.timeline.wait_for_all();
        match own.memory {
            // Nothing runs, so that the host may look at what is its own anyway.
            Memory::Shared | Memory::Adopted => self.context.api.read(&own.buffer, start, out),
            Memory::Private | Memory::Managed => staging.download(&own.buffer, start, out)?,
        }
        self.downloads.record(len);
        Ok(())
    }

    fn compile(&self, pipeline: &PipelineKey) -> Result<(), GpuError> {
        self.pipelines.get_all(&[(*pipeline, None)]).map(drop)
    }

    fn record(&self, commands: CommandList) -> Result<Arc<dyn Recording>, GpuError> {
        let recording = commands::record(&self.context, &self.ledger, &self.pipelines, commands)?;
        Ok(Arc::new(recording))
    }

    fn submit(&self, recording: &Arc<dyn Recording>) -> Result<Box<dyn Submission>, GpuError> {
        let tallies = [&self.waits, &self.submissions];
        commands::submit(&self.context, &self.staging, tallies, recording)
    }
}
