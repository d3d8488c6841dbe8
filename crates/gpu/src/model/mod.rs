//! Models on a device: [`Backend`] written once over [`Device`].
//!
//! | module | reason |
//! |---|---|
//! | `weight` | what a file's tensors become: matrices that are used together lie together |
//! | `place` | bringing them to the device, in slices, past the host's memory |
//! | `adopt` | or leaving them where they lie, in the mapped file |
//! | `plan` | a program's ops as steps over matrices, vectors and tensors |
//! | `places` | which tensors share memory, and which lie side by side |
//! | `sharing` | norms that the products around them can do |
//! | `memory` | activations, KV caches, sampler state and what passes between host and device |
//! | `encode` | a step as a command list |
//! | `executor` | steps in flight |

mod adopt;
mod encode;
mod executor;
mod memory;
mod place;
mod places;
mod plan;
mod sharing;
mod weight;

use std::sync::Arc;

use half::{bf16, f16};
use marlin_backend::{
    Backend, BackendError, Ceilings, Executor, ExecutorOptions, Program, TunedProduct, Weight,
    WeightSource,
};
use marlin_kernels::Element;
use marlin_placement::{AccessPattern, Direction, Ledger, Tally};

use crate::ops::gemm_batch::partial_room;
use crate::tuning::{Operands, Product, Tuned, Tuning, measure};
use crate::{Device, GpuError};
use executor::GpuExecutor;
use plan::Plan;
use weight::GpuWeight;

/// What activations are kept as between ops; sums are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Half precision: what tensor units multiply, and the most precise of their formats.
    #[default]
    F16,
    /// As far as f32 reaches, with 8 bits: for models whose residuals outgrow 65504.
    Bf16,
    /// For comparisons: no tensor units, and twice the bytes.
    F32,
}

/// An element type of activations.
pub(crate) trait Activation: Element {
    /// Its value.
    fn to_f32(self) -> f32;
}

impl Activation for f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Activation for bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Activation for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

/// What the backend shares with its weights and executors.
pub(crate) struct Shared {
    pub(crate) device: Arc<dyn Device>,
    tuning: Tuning,
    pack: Tally,
    adopted: adopt::Adopted,
}

impl Shared {
    /// The device's error as a backend's.
    pub(crate) fn error(&self, error: GpuError) -> BackendError {
        let backend = self.device.properties().kind;
        match error {
            GpuError::OutOfMemory { label, needed, free, .. } => BackendError::DoesNotFit {
                what: format!("\"{label}\""),
                device: self.device.properties().name.clone(),
                needed,
                free,
            },
            GpuError::Lost { device, reason } => BackendError::DeviceLost { device, reason },
            other => BackendError::Device { backend, problem: other.to_string() },
        }
    }

    /// The same for what was not done because it cannot be.
    fn unsupported(&self, what: String) -> BackendError {
        BackendError::Unsupported { backend: self.device.properties().kind, what }
    }
}

/// Runs programs on a device.
pub struct GpuBackend {
    shared: Arc<Shared>,
    activations: Activations,
}

impl GpuBackend {
    /// A backend over `device`.
    pub fn new(device: Arc<dyn Device>, activations: Activations) -> Self {
        let pack = device
            .ledger()
            .copies(Direction::HostToHost, "order weights as kernels read them, slice by slice");
        let tuning = Tuning::of_user(device.properties());
        let adopted = adopt::Adopted::default();
        Self { shared: Arc::new(Shared { device, tuning, pack, adopted }), activations }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.shared.device
    }

    /// The plan of `program`, with its weights on the device. `sessions` bytes are wanted beside them.
    fn place_all(
        &self,
        program: &Program,
        session: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Plan, BackendError> {
        let plan = Plan::new(&self.shared, program)?;
        self.refuse_without_room(&plan, session)?;
        let in_file = plan.in_file(&self.shared)?;
        // Held until the weights in them are.
        let _windows = self
            .shared
            .adopted
            .open(&*self.shared.device, &in_file)
            .map_err(|e| self.shared.error(e))?;
        plan.place(&self.shared, progress)?;
        Ok(plan)
    }

    /// Measures the products of `program` with so many tokens each.
    fn tune_products<T: Activation>(
        &self,
        program: &Program,
        tokens: &[usize],
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<TunedProduct>, BackendError> {
        let plan = self.place_all(program, 0, &mut |_| {})?;
        let (shared, device) = (&self.shared, &*self.shared.device);
        let products = plan.products();
        let most = tokens.iter().copied().max().unwrap_or(1);
        let layouts = || products.iter().map(|(of, _)| of[0].layout());
        let columns = layouts().map(|layout| layout.cols).max().unwrap_or(1);
        let rows = layouts().map(|layout| layout.rows).max().unwrap_or(1);
        let error = |e| shared.error(e);
        let x = device.upload_new("tuning x", &vec![T::zeroed(); most * columns]).map_err(error)?;
        let y = device.upload_new("tuning y", &vec![T::zeroed(); most * rows]).map_err(error)?;
        let rooms = layouts().map(|l| partial_room(device.properties(), l, most));
        let room = rooms.max().unwrap_or(0).max(1);
        let partial = device
            .allocate::<f32>("tuning partial sums", room, AccessPattern::DEVICE_ONLY)
            .map_err(error)?;
        let all = products.len() * tokens.len();
        let mut found = Vec::new();
        let work = products.iter().flat_map(|product| tokens.iter().map(move |t| (product, *t)));
        for (done, ((matrices, gated), tokens)) in work.enumerate() {
            progress(done, all);
            let product = Product::new(&matrices[0], tokens, *gated);
            if matrices[0].layout().cols % 8 != 0 || (!again && shared.tuning.knows(&product)) {
                continue;
            }
            let operands = Operands { x: &x, y: &y, partial: &partial };
            found.extend(measure(device, matrices, tokens, *gated, &operands).map_err(error)?);
        }
        progress(all, all);
        let kept = shared.tuning.keep(&found);
        kept.map_err(|e| BackendError::Device {
            backend: self.name(),
            problem: format!("the cache of tuned products cannot be written: {e}"),
        })?;
        let tuned = |t: &Tuned| TunedProduct {
            rows: t.product.rows,
            columns: t.product.columns,
            gated: t.product.gated,
            tokens: t.product.tokens,
            default_us: t.default_microseconds,
            tuned_us: t.microseconds,
        };
        Ok(found.iter().map(tuned).collect())
    }

    /// Refuses, before anything is begun, what the device has no room for.
    fn refuse_without_room(&self, plan: &Plan, session: u64) -> Result<(), BackendError> {
        let device = &self.shared.device;
        let needed = plan.bytes_to_place(&self.shared)? + session;
        let free = device.free_bytes().map_err(|e| self.shared.error(e))?;
        if needed <= free {
            return Ok(());
        }
        Err(BackendError::DoesNotFit {
            what: match session {
                0 => "the model's weights".to_owned(),
                _ => "the model's weights with this session's KV cache and activations".to_owned(),
            },
            device: device.properties().name.clone(),
            needed,
            free,
        })
    }
}

impl Backend for GpuBackend {
    fn name(&self) -> &'static str {
        self.shared.device.properties().kind
    }

    fn description(&self) -> String {
        let properties = self.shared.device.properties();
        let activations = match self.activations {
            Activations::F16 => "f16",
            Activations::Bf16 => "bf16",
            Activations::F32 => "f32",
        };
        format!("{} ({}), {activations} activations", properties.name, properties.architecture)
    }

    fn ledger(&self) -> &Arc<Ledger> {
        self.shared.device.ledger()
    }

    fn place(&self, source: &WeightSource) -> Result<Weight, BackendError> {
        Ok(Arc::new(GpuWeight::new(&self.shared, source)?))
    }

    fn places_at_once(&self) -> bool {
        false
    }

    fn load(&self, program: &Program, progress: &mut dyn FnMut(u64)) -> Result<(), BackendError> {
        self.place_all(program, 0, progress).map(drop)
    }

    fn check_room(&self, program: &Program, options: &ExecutorOptions) -> Result<(), BackendError> {
        let plan = Plan::new(&self.shared, program)?;
        let session = match self.activations {
            Activations::F16 => memory::bytes::<f16>(&self.shared, &plan, options),
            Activations::Bf16 => memory::bytes::<bf16>(&self.shared, &plan, options),
            Activations::F32 => memory::bytes::<f32>(&self.shared, &plan, options),
        };
        self.refuse_without_room(&plan, session?)
    }

    fn compile(
        &self,
        program: Program,
        options: &ExecutorOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        fn executor<T: Activation>(
            backend: &GpuBackend,
            program: &Program,
            options: &ExecutorOptions,
        ) -> Result<Box<dyn Executor>, BackendError> {
            let shared = &backend.shared;
            let bytes = memory::bytes::<T>(shared, &Plan::new(shared, program)?, options)?;
            let plan = backend.place_all(program, bytes, &mut |_| {})?;
            Ok(Box::new(GpuExecutor::<T>::new(shared.clone(), plan, options.clone())?))
        }
        match self.activations {
            Activations::F16 => executor::<f16>(self, &program, options),
            Activations::Bf16 => executor::<bf16>(self, &program, options),
            Activations::F32 => executor::<f32>(self, &program, options),
        }
    }

    fn tune(
        &self,
        program: &Program,
        tokens: &[usize],
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<TunedProduct>, BackendError> {
        if self.shared.device.properties().simd_width != 32 {
            return Ok(Vec::new());
        }
        match self.activations {
            Activations::F16 => self.tune_products::<f16>(program, tokens, again, progress),
            Activations::Bf16 => self.tune_products::<bf16>(program, tokens, again, progress),
            // Products in f32 have nothing to choose.
            Activations::F32 => Ok(Vec::new()),
        }
    }

    fn measure_ceilings(&self) -> Ceilings {
        crate::bench::backend_ceilings(&*self.shared.device)
    }
}
