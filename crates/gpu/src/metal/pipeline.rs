//! From a kernel's source to a pipeline of Metal's.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use marlin_kernels::signature::{ElementType, ScalarType};
use marlin_kernels::{PipelineKey, Target, source};

use super::api::{Api, PipelineLimits, PipelineRequest};
use super::archive_cache::ArchiveCache;
use super::context::{Context, lock};
use crate::GpuError;
use crate::kernel_cache::Key;

/// Where a device's pipelines came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStatistics {
    /// Compiled in this process.
    pub compiled: u64,
    /// Read from the cache folder.
    pub from_disk: u64,
}

/// A kernel, ready to run.
pub(super) struct Pipeline<A: Api> {
    pub(super) state: A::Pipeline,
    pub(super) limits: PipelineLimits,
    /// The kernel's symbol.
    pub(super) symbol: String,
}

/// A file's source with its type parameters set: all of its kernels are in one library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LibraryKey {
    file: &'static str,
    elements: [Option<ElementType>; 2],
}

struct Library<A: Api> {
    library: A::Library,
    source: String,
}

/// A pipeline, and the threads of a threadgroup where they are known.
pub(super) type Wanted = (PipelineKey, Option<u32>);

/// Every pipeline of a device.
pub(super) struct Pipelines<A: Api> {
    context: Arc<Context<A>>,
    cache: ArchiveCache,
    /// What machine code depends on besides the source: GPU and operating system.
    system: String,
    libraries: Mutex<HashMap<LibraryKey, Arc<Library<A>>>>,
    loaded: Mutex<HashMap<Wanted, Arc<Pipeline<A>>>>,
    compiled: AtomicU64,
    from_disk: AtomicU64,
}

impl<A: Api> Pipelines<A> {
    pub(super) fn new(context: &Arc<Context<A>>, system: &str, cache: ArchiveCache) -> Self {
        let properties = &context.properties;
        Self {
            context: context.clone(),
            cache,
            system: format!("{} {} {system}", properties.name, properties.architecture),
            libraries: Mutex::default(),
            loaded: Mutex::default(),
            compiled: AtomicU64::new(0),
            from_disk: AtomicU64::new(0),
        }
    }

    pub(super) fn statistics(&self) -> PipelineStatistics {
        PipelineStatistics {
            compiled: self.compiled.load(Relaxed),
            from_disk: self.from_disk.load(Relaxed),
        }
    }

    /// The pipelines of `wanted`, in this order; what is not loaded yet is compiled on several threads, libraries first.
    pub(super) fn get_all(&self, wanted: &[Wanted]) -> Result<Vec<Arc<Pipeline<A>>>, GpuError> {
        let missing = missing_of(&self.loaded, wanted.iter().copied());
        let library = |(pipeline, _): &Wanted| LibraryKey {
            file: pipeline.kernel.file,
            elements: pipeline.elements,
        };
        let mut first_of: HashMap<LibraryKey, PipelineKey> = HashMap::new();
        for one in &missing {
            first_of.entry(library(one)).or_insert(one.0);
        }
        let files = missing_of(&self.libraries, missing.iter().map(library));
        each(&files, &self.libraries, |file| self.compile_library(&first_of[file]))?;
        each(&missing, &self.loaded, |one| {
            let compiled = lock(&self.libraries)[&library(one)].clone();
            self.load(&compiled, one)
        })?;
        let loaded = lock(&self.loaded);
        Ok(wanted.iter().map(|key| loaded[key].clone()).collect())
    }

    /// The library that a pipeline's kernel is in.
    fn compile_library(&self, pipeline: &PipelineKey) -> Result<Library<A>, GpuError> {
        let source = source(pipeline, Target::Metal);
        let api = &self.context.api;
        let library = api
            .pooled(|| api.library(pipeline.kernel.file, &source))
            .map_err(|log| self.error(pipeline, log))?;
        Ok(Library { library, source })
    }

    /// From the cache folder, or compiled and put there.
    fn load(&self, library: &Library<A>, wanted: &Wanted) -> Result<Pipeline<A>, GpuError> {
        let (pipeline, threads) = wanted;
        let symbol = pipeline.symbol();
        let types = pipeline.kernel.constants.iter().map(|(_, ty)| *ty);
        let constants: Vec<(ScalarType, u32)> =
            types.zip(pipeline.constants.bits().iter().copied()).collect();
        let request =
            PipelineRequest { function: &symbol, constants: &constants, threads: *threads };
        let key = Key::of(&[
            &library.source,
            &symbol,
            &format!("{:?} {threads:?}", pipeline.constants),
            &self.system,
        ]);
        let api = &self.context.api;
        let archived = self.cache.find(key).and_then(|path| {
            api.pooled(|| api.archived_pipeline(&library.library, &request, &path)).ok()
        });
        let state = match archived {
            Some(state) => {
                self.from_disk.fetch_add(1, Relaxed);
                state
            }
            None => {
                let unfinished = self.cache.unfinished(key);
                let keep = unfinished.as_ref().map(|unfinished| unfinished.part());
                let state = api
                    .pooled(|| api.pipeline(&library.library, &request, keep))
                    .map_err(|log| self.error(pipeline, log))?;
                if let Some(unfinished) = unfinished {
                    unfinished.keep();
                }
                self.compiled.fetch_add(1, Relaxed);
                state
            }
        };
        let limits = api.limits(&state);
        let expected = self.context.properties.simd_width;
        if limits.simd_width != expected {
            return Err(GpuError::Launch {
                kernel: symbol,
                reason: format!(
                    "its SIMD-groups have {} threads, expected {expected}",
                    limits.simd_width
                ),
            });
        }
        Ok(Pipeline { state, limits, symbol })
    }

    fn error(&self, pipeline: &PipelineKey, log: String) -> GpuError {
        let target = self.context.properties.architecture.clone();
        GpuError::Compile { kernel: pipeline.symbol(), target, log }
    }
}

/// The keys that `known` lacks, each once.
fn missing_of<K: Copy + Eq + Hash, V>(
    known: &Mutex<HashMap<K, V>>,
    wanted: impl Iterator<Item = K>,
) -> Vec<K> {
    let known = lock(known);
    let mut out = Vec::new();
    for key in wanted {
        if !known.contains_key(&key) && !out.contains(&key) {
            out.push(key);
        }
    }
    out
}

/// Makes an entry for every key, several at a time; the first error, if there is one.
fn each<K: Copy + Eq + Hash + Sync, V: Send + Sync>(
    keys: &[K],
    into: &Mutex<HashMap<K, Arc<V>>>,
    make: impl Fn(&K) -> Result<V, GpuError> + Sync,
) -> Result<(), GpuError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for keys in keys.chunks(cores.min(8)) {
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = keys.iter().map(|key| scope.spawn(|| make(key))).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut into = lock(into);
        for (key, result) in keys.iter().zip(results) {
            let made = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            into.insert(*key, Arc::new(made));
        }
    }
    Ok(())
}
