//! The backend: its threads, its kernels and its book.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use marlin_backend::{
    Backend, BackendError, Ceilings, Executor, ExecutorOptions, Program, Weight, WeightSource,
};
use marlin_placement::Ledger;

use crate::executor::CpuExecutor;
use crate::isa::{Isa, IsaError, Kernels, MultiplyKernel, kernels};
use crate::kernels::prefetch;
use crate::memory::WeightMemory;
use crate::pool::Pool;
use crate::weight::place;

/// What the backend shares with its executors.
pub(crate) struct Inner {
    pub(crate) pool: Pool,
    pub(crate) kernels: &'static Kernels,
    pub(crate) ledger: Arc<Ledger>,
    /// How far ahead of their use weights are asked for, in bytes; 0 for not at all.
    pub(crate) prefetch_distance: usize,
    memory: WeightMemory,
}

/// Runs programs on this machine's processor.
pub struct CpuBackend {
    inner: Arc<Inner>,
}

/// Why the backend could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// About the instruction set.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The system refused a thread.
    #[error("cannot start {threads} worker threads")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
}

impl CpuBackend {
    /// A backend with so many threads (by default one per core that this process may use),
    /// and the instruction set that [`Isa::from_environment`] chooses.
    ///
    /// # Errors
    /// If `MARLIN_CPU` asks for something that is not there, or threads cannot be started.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self, CpuError> {
        Self::with_isa(threads, Isa::from_environment()?)
    }

    /// The same with a given instruction set.
    ///
    /// # Errors
    /// If the processor lacks it, or threads cannot be started.
    pub fn with_isa(threads: Option<NonZeroUsize>, isa: Isa) -> Result<Self, CpuError> {
        let kernels = kernels(isa)?;
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        let pool = Pool::new(threads)
            .map_err(|source| CpuError::Threads { threads: threads.get(), source })?;
        let ledger = Arc::new(Ledger::new());
        let memory = WeightMemory::default();
        let inner =
            Inner { pool, kernels, ledger, prefetch_distance: prefetch::distance(), memory };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.inner.kernels.isa
    }

    /// Threads of a step.
    pub fn threads(&self) -> usize {
        self.inner.pool.threads()
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn description(&self) -> String {
        let threads = self.threads();
        format!("{}, {threads} thread{}", self.isa(), if threads == 1 { "" } else { "s" })
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.inner.ledger
    }

    fn place(&self, source: &WeightSource) -> Result<Weight, BackendError> {
        let Inner { pool, ledger, memory, .. } = &*self.inner;
        Ok(Arc::new(place(source, pool, memory, ledger)?))
    }

    fn compile(
        &self,
        program: Program,
        options: &ExecutorOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(CpuExecutor::new(self.inner.clone(), &program, options.clone())?))
    }

    /// Reads a buffer much larger than the caches, and multiplies in registers, on all
    /// threads at once; the best of several rounds each, since anything that disturbs a
    /// round can only make it slower.
    fn measure_ceilings(&self) -> Ceilings {
        let kernels = self.inner.kernels;
        let vector = self.measure_multiply(kernels.multiply);
        let matrix = kernels.multiply_matrix.map(|kernel| self.measure_multiply(kernel));
        Ceilings {
            read_bytes_per_s: self.measure_read(),
            multiply_adds_per_s: matrix.unwrap_or(vector),
            vector_multiply_adds_per_s: matrix.map(|_| vector),
        }
    }
}

impl CpuBackend {
    fn measure_read(&self) -> f64 {
        const PER_THREAD: usize = 128 << 20;
        /// How far ahead the rounds ask, in turn.
        const AHEAD: [usize; 4] = [0, 4 << 10, 16 << 10, 16 << 10];
        let Inner { pool, kernels, .. } = &*self.inner;
        let bytes = PER_THREAD * pool.threads();
        // Not part of any run, so in a book of its own.
        let memory = WeightMemory::default();
        let Ok(buffer) = memory.buffer(&Ledger::new(), "ceiling", bytes) else {
            return f64::NAN;
        };
        // SAFETY: the buffer is ours; touching its pages makes them real memory.
        unsafe { buffer.as_ptr::<u8>().write_bytes(1, bytes) };
        let mut best = f64::INFINITY;
        for round in 0..8 {
            let start = Instant::now();
            pool.run(&|worker| {
                // SAFETY: each thread reads its own part of the buffer.
                let sum = unsafe {
                    let part = buffer.as_ptr::<u8>().add(worker.index * PER_THREAD);
                    (kernels.read)(part, PER_THREAD, AHEAD[round % AHEAD.len()])
                };
                std::hint::black_box(sum);
            });
            best = best.min(start.elapsed().as_secs_f64());
        }
        bytes as f64 / best
    }

    fn measure_multiply(&self, kernel: MultiplyKernel) -> f64 {
        /// Short beside a round's time, for any instruction set.
        const PIECE: u64 = 1_000;
        /// About what a round of reading takes: bursts of a clock that is shared with neighbours
        /// are nothing that a prompt could have.
        const ROUND: Duration = Duration::from_millis(10);
        let pool = &self.inner.pool;
        let mut best = 0.0f64;
        for _ in 0..8 {
            let done = AtomicU64::new(0);
            let start = Instant::now();
            pool.run(&|_| {
                let mut own = 0;
                while start.elapsed() < ROUND {
                    // SAFETY: the table is this processor's; there are no pointers.
                    own += unsafe { kernel(PIECE) };
                }
                done.fetch_add(own, Relaxed);
            });
            best = best.max(done.into_inner() as f64 / start.elapsed().as_secs_f64());
        }
        best
    }
}
