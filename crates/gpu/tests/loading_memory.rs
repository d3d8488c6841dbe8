//! How much memory of the host's loading takes beside the file: slices in work, however large the model is, and none of
//! a packed file.
//!
//! The device here has no memory: it counts what it is given and forgets it, so that what is allocated is the loader's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use marlin_backend::{
    Backend, FragmentBytes, HostBytes, Norm, Program, ProgramBuilder, Weight, WeightSource,
};
use marlin_formats::Format;
use marlin_formats::fragment::FragmentLayout;
use marlin_gpu::model::{Activations, GpuBackend};
use marlin_gpu::{CommandList, Device, DeviceProperties, GpuError, Recording, Submission};
use marlin_kernels::{Allocation, PipelineKey};
use marlin_placement::{AccessPattern, Device as MemoryKind, Ledger};

/// Counts the bytes that are allocated, and the most that were at once.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise about `pointer` and `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a moment.
        grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise about `pointer`, `layout` and `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A device with memory of its own that keeps nothing.
struct Forgetful {
    properties: DeviceProperties,
    ledger: Arc<Ledger>,
    uploaded: AtomicU64,
}

#[derive(Debug)]
struct Forgotten {
    label: String,
    bytes: u64,
}

impl Allocation for Forgotten {
    fn label(&self) -> &str {
        &self.label
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn writable(&self) -> bool {
        true
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn not_here<T>(call: &'static str) -> Result<T, GpuError> {
    Err(GpuError::Driver { call, reason: "this device only takes weights".to_owned() })
}

impl Forgetful {
    fn new() -> Arc<Self> {
        let properties = DeviceProperties {
            name: "forgetful".to_owned(),
            kind: "forgetful",
            architecture: "none".to_owned(),
            memory: MemoryKind::Discrete,
            total_bytes: 1 << 40,
            simd_width: 32,
            max_threads: 1024,
            threadgroup_bytes: 32768,
            compute_units: 1,
            adoption_alignment: 4096,
            max_buffer_bytes: 1 << 40,
        };
        let ledger = Arc::new(Ledger::for_memory(MemoryKind::Discrete));
        Arc::new(Self { properties, ledger, uploaded: AtomicU64::new(0) })
    }
}

impl Device for Forgetful {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }
    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
    fn allocate_at(
        &self,
        label: &str,
        bytes: u64,
        _: AccessPattern,
        _: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        Ok(Arc::new(Forgotten { label: label.to_owned(), bytes }))
    }
    fn adopt_at(
        &self,
        _: &str,
        _: HostBytes,
        _: &'static Location<'static>,
    ) -> Result<Arc<dyn Allocation>, GpuError> {
        not_here("adopt")
    }
    fn write(&self, _: &Arc<dyn Allocation>, _: u64, _: &[u8]) -> Result<(), GpuError> {
        not_here("write")
    }
    fn did_modify(&self, _: &Arc<dyn Allocation>, _: Range<u64>) -> Result<(), GpuError> {
        not_here("did_modify")
    }
    fn read(&self, _: &Arc<dyn Allocation>, _: u64, _: &mut [u8]) -> Result<(), GpuError> {
        not_here("read")
    }
    fn upload(&self, to: &Arc<dyn Allocation>, at: u64, bytes: &[u8]) -> Result<(), GpuError> {
        assert!(at + bytes.len() as u64 <= to.bytes(), "{} at {at}", to.label());
        self.uploaded.fetch_add(bytes.len() as u64, Relaxed);
        Ok(())
    }
    fn download(&self, _: &Arc<dyn Allocation>, _: u64, _: &mut [u8]) -> Result<(), GpuError> {
        not_here("download")
    }
    fn compile(&self, _: &PipelineKey) -> Result<(), GpuError> {
        not_here("compile")
    }
    fn record(&self, _: CommandList) -> Result<Arc<dyn Recording>, GpuError> {
        not_here("record")
    }
    fn submit(&self, _: &Arc<dyn Recording>) -> Result<Box<dyn Submission>, GpuError> {
        not_here("submit")
    }
}

const COLUMNS: usize = 2048;

/// A table and a head of `rows` rows each, of zeros.
fn program(backend: &dyn Backend, format: Format, rows: usize, packed: bool) -> Program {
    let zeros = |len: usize| HostBytes::from(vec![0_u8; len]);
    let matrix = |name: &str| -> Weight {
        let source = if packed {
            let layout = FragmentLayout::new(format, rows, COLUMNS, 1.0).expect("a layout");
            let [codes, scales, mins, supers] = layout.sizes().map(zeros);
            let fragments = FragmentBytes { codes, scales, mins, supers };
            WeightSource::packed(name, format, rows, COLUMNS, fragments)
        } else {
            let bytes = format.sizes(rows, COLUMNS).expect("sizes").data;
            WeightSource::plain(name, format, rows, COLUMNS, zeros(bytes))
        };
        backend.place(&source).expect("a place")
    };
    let norm = WeightSource::plain("norm", Format::F32, 1, COLUMNS, zeros(4 * COLUMNS));
    let norm = Norm { weight: backend.place(&norm).expect("a place"), eps: 1e-5, offset: 0.0 };
    let mut b = ProgramBuilder::new();
    let x = b.embed(&matrix("table"), 1.0);
    let x = b.select_outputs(x);
    let h = b.rms_norm(x, &norm).expect("a norm");
    let [logits] = b.linear(h, [(&matrix("head"), None)]).expect("a product");
    b.finish(logits, None).expect("a program")
}

/// The most bytes that loading two matrices of `rows` rows allocates at once, and the bytes that it uploads.
fn load(format: Format, rows: usize, packed: bool) -> (usize, u64) {
    let device = Forgetful::new();
    let backend = GpuBackend::new(device.clone(), Activations::F16);
    let program = program(&backend, format, rows, packed);
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    backend.load(&program, &mut |_| {}).expect("room for everything");
    let peak = PEAK.load(Relaxed) - before;
    let report = device.ledger.report();
    let host = marlin_placement::Direction::HostToHost;
    let copied = report.copied_bytes(marlin_placement::Phase::Load, host);
    assert_eq!(copied == 0, packed, "{copied} bytes reordered");
    (peak, device.uploaded.load(Relaxed))
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn loading_takes_a_few_slices_of_memory_however_large_the_model_is() {
    const MIB: usize = 1 << 20;
    let format: Format = "q4_0".parse().expect("a format");
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    // A slice has 2 MiB of codes and its scales; beside them there are threads and lists.
    let most = workers * 3 * MIB + MIB;
    // Enough slices for every worker, and four times as many.
    let rows = workers * 2 * MIB / (COLUMNS / 2);
    let (small, uploaded) = load(format, rows, false);
    let (large, four_times) = load(format, 4 * rows, false);
    assert!(small <= most && large <= most, "{small} and {large} bytes, expected at most {most}");
    assert!(large <= small + MIB, "{large} bytes for four times what took {small}");
    assert!(four_times > 3 * uploaded && four_times as usize > 4 * large, "{four_times}");
    // A packed file goes to the device as it is.
    let (packed, again) = load(format, 4 * rows, true);
    assert!(packed <= MIB, "{packed} bytes");
    assert_eq!(again, four_times);
}
