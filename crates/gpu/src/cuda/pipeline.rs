//! From a kernel's source to a function of the driver's.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use marlin_kernels::{PipelineKey, Target, source};

use super::context::Context;
use super::cubin_cache::CubinCache;
use super::driver::{FUNCTION_MAX_DYNAMIC_SHARED_BYTES, FUNCTION_SHARED_BYTES, Handle};
use super::nvrtc::{Architecture, Compiled, Nvrtc};
use crate::GpuError;
use crate::kernel_cache::Key;

/// What a pipeline is compiled for besides its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Threads of a threadgroup along x, y, z, where they are known: the compiler then gives the
    /// kernel as many registers as that allows, and sizes fold.
    pub threads: Option<[u32; 3]>,
    /// A dispatch binds memory that it writes a second time, so that pointers may alias.
    pub aliased: bool,
}

impl Variant {
    /// NVRTC's options. Divisions, square roots and denormals stay as IEEE 754 has them: kernels say
    /// where they want it fast.
    fn options(&self) -> Vec<String> {
        let mut out = vec![
            "--std=c++17".to_owned(),
            "--device-as-default-execution-space".to_owned(),
            // For profilers and sanitizers; the code is the same.
            "--generate-line-info".to_owned(),
            "--ptxas-options=-v".to_owned(),
            // Metal's attributes, and functions of the header that a kernel does not use.
            "--diag-suppress=1097,177".to_owned(),
        ];
        if let Some(threads) = self.threads {
            for (axis, count) in ["X", "Y", "Z"].iter().zip(threads) {
                out.push(format!("--define-macro=MARLIN_THREADS_{axis}={count}"));
            }
        }
        if self.aliased {
            out.push("--define-macro=MARLIN_ALIASED".to_owned());
        }
        out
    }
}

fn entry_name(pipeline: &PipelineKey) -> String {
    format!("entry_{}", pipeline.symbol())
}

/// Whether the body of the kernel `name` in `source` has a `wait_for_previous()`.
fn waits_itself(name: &str, source: &str) -> bool {
    let body = source.split_once(&format!("kernel void {name}(")).map_or("", |(_, rest)| rest);
    let body = body.split_once("\nkernel void ").map_or(body, |(body, _)| body);
    body.lines().any(|line| line.trim_start().starts_with("wait_for_previous();"))
}

/// Compiles a pipeline without any device: what continuous integration does for every kernel.
///
/// # Errors
/// [`GpuError::Compile`] with the compiler's log.
pub fn compile(
    nvrtc: &Nvrtc,
    pipeline: &PipelineKey,
    variant: &Variant,
    architecture: &Architecture,
) -> Result<Compiled, GpuError> {
    let source = source(pipeline, Target::Cuda);
    nvrtc.compile(&pipeline.symbol(), &source, architecture, &variant.options())
}

/// Where a device's pipelines came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineStatistics {
    /// Compiled in this process.
    pub compiled: u64,
    /// Read from the cache folder.
    pub from_disk: u64,
}

/// A loaded kernel.
pub(super) struct Pipeline {
    context: Arc<Context>,
    module: Handle,
    pub(super) function: Handle,
    /// Bytes of threadgroup memory that the kernel declares itself.
    pub(super) static_bytes: u32,
    /// The kernel waits for the dispatch before it by itself, and may begin before that is done.
    pub(super) waits_itself: bool,
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: loaded by this context; recordings that use the function keep `self` alive.
            unsafe { (self.context.driver.module_unload)(self.module) };
        }
    }
}

/// Every pipeline of a device.
pub(super) struct Pipelines {
    context: Arc<Context>,
    nvrtc: Nvrtc,
    architecture: Architecture,
    shared_limit: u32,
    /// Whether the GPU and the driver can begin a dispatch before the one before it is done.
    overlaps: bool,
    cache: CubinCache,
    loaded: Mutex<HashMap<(PipelineKey, Variant), Arc<Pipeline>>>,
    compiled: AtomicU64,
    from_disk: AtomicU64,
}

impl Pipelines {
    pub(super) fn new(
        context: Arc<Context>,
        nvrtc: Nvrtc,
        architecture: Architecture,
        shared_limit: u32,
        overlaps: bool,
        cache: CubinCache,
    ) -> Self {
        Self {
            context,
            nvrtc,
            architecture,
            shared_limit,
            overlaps,
            cache,
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

    /// The pipelines of `wanted`, in this order; what is not loaded yet is compiled on several threads.
    pub(super) fn get_all(
        &self,
        wanted: &[(PipelineKey, Variant)],
    ) -> Result<Vec<Arc<Pipeline>>, GpuError> {
        let mut missing: Vec<(PipelineKey, Variant)> = Vec::new();
        {
            let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            for key in wanted {
                if !loaded.contains_key(key) && !missing.contains(key) {
                    missing.push(*key);
                }
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for keys in missing.chunks(cores.min(8)) {
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = keys
                    .iter()
                    .map(|(pipeline, variant)| scope.spawn(|| self.load(pipeline, variant)))
                    .collect();
                threads.into_iter().map(|thread| thread.join()).collect()
            });
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, result) in keys.iter().zip(results) {
                let pipeline = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                loaded.insert(*key, Arc::new(pipeline));
            }
        }
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(wanted.iter().map(|key| loaded[key].clone()).collect())
    }

    /// From the cache folder, or compiled and put there.
    fn load(&self, pipeline: &PipelineKey, variant: &Variant) -> Result<Pipeline, GpuError> {
        let symbol = pipeline.symbol();
        let source = source(pipeline, Target::Cuda);
        let options = variant.options();
        let (major, minor) = self.nvrtc.version();
        let key = Key::of(&[
            &source,
            &options.join("\n"),
            self.architecture.name(),
            &format!("NVRTC {major}.{minor}, driver {}", self.context.driver.version),
        ]);
        if let Some(image) = self.cache.find(key)
            && let Ok(pipeline) = self.load_image(pipeline, &source, &image)
        {
            self.from_disk.fetch_add(1, Relaxed);
            return Ok(pipeline);
        }
        let compiled = self.nvrtc.compile(&symbol, &source, &self.architecture, &options)?;
        let loaded = self.load_image(pipeline, &source, &compiled.image)?;
        self.cache.keep(key, &compiled.image);
        self.compiled.fetch_add(1, Relaxed);
        Ok(loaded)
    }

    fn load_image(
        &self,
        pipeline: &PipelineKey,
        source: &str,
        image: &[u8],
    ) -> Result<Pipeline, GpuError> {
        let driver = self.context.driver;
        self.context.enter()?;
        let mut loaded = Pipeline {
            context: self.context.clone(),
            module: Handle::NULL,
            function: Handle::NULL,
            static_bytes: 0,
            waits_itself: self.overlaps && waits_itself(pipeline.kernel.name, source),
        };
        // SAFETY: the image is a whole cubin or PTX text, straight from the compiler or checked
        // against its digest; the context is current.
        let code = unsafe { (driver.module_load)(&mut loaded.module, image.as_ptr().cast()) };
        driver.check("cuModuleLoadData", code)?;
        let name = CString::new(entry_name(pipeline))
            .unwrap_or_else(|_| unreachable!("an identifier has no zero byte"));
        // SAFETY: the module was loaded above; the name ends in zero.
        let code =
            unsafe { (driver.module_function)(&mut loaded.function, loaded.module, name.as_ptr()) };
        driver.check("cuModuleGetFunction", code)?;
        let mut bytes = 0;
        // SAFETY: the first argument points to an integer; the function is the module's.
        let code = unsafe {
            (driver.function_attribute)(&mut bytes, FUNCTION_SHARED_BYTES, loaded.function)
        };
        driver.check("cuFuncGetAttribute", code)?;
        loaded.static_bytes = bytes.unsigned_abs();
        if pipeline.kernel.threadgroup.is_some() {
            // Without this a launch may ask for 48 KiB at most (CUDA C++ Programming Guide,
            // "Shared memory", compute capability 8.0 and later).
            let most = self.shared_limit.saturating_sub(loaded.static_bytes);
            // SAFETY: the function is the module's; the driver checks the value.
            let code = unsafe {
                (driver.function_set_attribute)(
                    loaded.function,
                    FUNCTION_MAX_DYNAMIC_SHARED_BYTES,
                    i32::try_from(most).unwrap_or(i32::MAX),
                )
            };
            driver.check("cuFuncSetAttribute", code)?;
        }
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::waits_itself;

    #[test]
    fn a_kernel_that_waits_itself_is_told_from_its_neighbours() {
        let source = "\nkernel void first(\n) {\n    wait_for_previous();\n}\n\
                      \nkernel void first_reduce(\n) {\n    // No wait_for_previous();\n}\n";
        assert!(waits_itself("first", source));
        assert!(!waits_itself("first_reduce", source));
        assert!(!waits_itself("none", source));
    }
}
