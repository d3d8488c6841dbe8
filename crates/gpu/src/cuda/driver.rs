//! The CUDA driver's functions, found in its library at run time.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

use super::KIND;
use crate::GpuError;

/// A handle of the driver: context, stream, event, module, function, graph.
///
/// Equal handles are the same object; what may be done with one follows from where it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Handle(*mut c_void);

// SAFETY: a handle is a name that the driver looks up; its functions may be called from any thread
// (CUDA Driver API, "Context management": calls are thread safe).
unsafe impl Send for Handle {}
// SAFETY: as above; a shared handle is only copied.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) const NULL: Self = Self(std::ptr::null_mut());
}

/// An address in the device's memory.
pub(super) type DevicePointer = u64;

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub(super) struct KernelNodeParams {
    pub(super) function: Handle,
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared_bytes: c_uint,
    pub(super) parameters: *mut *mut c_void,
    pub(super) extra: *mut *mut c_void,
    pub(super) kernel: Handle,
    pub(super) context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
pub(super) struct MemsetNodeParams {
    pub(super) destination: DevicePointer,
    pub(super) pitch: usize,
    pub(super) value: c_uint,
    pub(super) element_bytes: c_uint,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// `CUgraphEdgeData`.
#[repr(C)]
pub(super) struct EdgeData {
    from_port: u8,
    to_port: u8,
    kind: u8,
    reserved: [u8; 5],
}

impl EdgeData {
    /// From `CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC`, `CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC`: the second
    /// kernel may begin when every threadgroup of the first has said so or ended, and waits itself for the
    /// first one's end.
    pub(super) const PROGRAMMATIC: Self =
        Self { from_port: 1, to_port: 0, kind: 1, reserved: [0; 5] };
}

/// `cuGraphAddDependencies_v2`.
pub(super) type AddDependencies = unsafe extern "system" fn(
    Handle,
    *const Handle,
    *const Handle,
    *const EdgeData,
    usize,
) -> c_int;

/// One end of a `CUDA_MEMCPY3D`.
#[repr(C)]
pub(super) struct CopyEnd {
    pub(super) x_bytes: usize,
    pub(super) y: usize,
    pub(super) z: usize,
    pub(super) level: usize,
    pub(super) memory_type: c_int,
    pub(super) host: *const c_void,
    pub(super) device: DevicePointer,
    pub(super) array: Handle,
    pub(super) reserved: *mut c_void,
    pub(super) pitch: usize,
    pub(super) height: usize,
}

impl CopyEnd {
    /// `CU_MEMORYTYPE_UNIFIED`: the driver sees from the address whether it is the device's memory or
    /// pinned memory of the host.
    const UNIFIED: c_int = 4;

    /// Linear memory from `address` on.
    pub(super) fn linear(address: DevicePointer, bytes: usize) -> Self {
        Self {
            x_bytes: 0,
            y: 0,
            z: 0,
            level: 0,
            memory_type: Self::UNIFIED,
            host: std::ptr::null(),
            device: address,
            array: Handle::NULL,
            reserved: std::ptr::null_mut(),
            pitch: bytes,
            height: 1,
        }
    }
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
pub(super) struct CopyParams {
    pub(super) source: CopyEnd,
    pub(super) destination: CopyEnd,
    pub(super) width_bytes: usize,
    pub(super) height: usize,
    pub(super) depth: usize,
}

/// `CUdevice_attribute`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Attribute {
    MaxThreadsPerBlock = 1,
    WarpSize = 10,
    MultiprocessorCount = 16,
    ComputeCapabilityMajor = 75,
    ComputeCapabilityMinor = 76,
    MaxSharedMemoryPerBlockOptIn = 97,
    HostRegisterSupported = 99,
    ReadOnlyHostRegisterSupported = 113,
}

/// `CUresult` values that mean something here.
pub(super) mod status {
    pub(in crate::cuda) const SUCCESS: i32 = 0;
    pub(in crate::cuda) const OUT_OF_MEMORY: i32 = 2;
    pub(in crate::cuda) const NO_DEVICE: i32 = 100;
    pub(in crate::cuda) const NOT_READY: i32 = 600;
    /// What a kernel that went wrong leaves behind: illegal address, time limit, assertion, stack
    /// error, illegal instruction, misaligned address, address space, program counter, failure.
    pub(in crate::cuda) const FAULTS: [i32; 9] = [700, 702, 710, 714, 715, 716, 717, 718, 719];
    /// What the device is gone for, whoever asked for what: unavailable, memory errors that cannot be corrected, the
    /// same of a link between devices, a destroyed context.
    pub(super) const LOST: [i32; 4] = [46, 214, 220, 709];
}

/// `CU_EVENT_DEFAULT`.
pub(super) const EVENT_DEFAULT: c_uint = 0;
/// `CU_STREAM_NON_BLOCKING`.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`.
pub(super) const HOST_ALLOC_MAPPED: c_uint = 1 | 2;
/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP`.
pub(super) const HOST_REGISTER_MAPPED: c_uint = 1 | 2;
/// `CU_MEMHOSTREGISTER_READ_ONLY`.
pub(super) const HOST_REGISTER_READ_ONLY: c_uint = 8;
/// `CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES`.
pub(super) const FUNCTION_SHARED_BYTES: c_int = 1;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(super) const FUNCTION_MAX_DYNAMIC_SHARED_BYTES: c_int = 8;

macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($ty:ty),*);)*) => {
        /// The loaded driver. Every function is as the CUDA Driver API declares the symbol of that name.
        pub(super) struct Driver {
            $(pub(super) $field: unsafe extern "system" fn($($ty),*) -> c_int,)*
            /// From CUDA 12.3 on.
            pub(super) graph_add_dependencies: Option<AddDependencies>,
            /// `major · 1000 + minor · 10`.
            pub(super) version: u32,
        }

        fn symbols(library: &Library, file: &str) -> Result<Driver, GpuError> {
            Ok(Driver {
                $($field: {
                    // SAFETY: the type is the symbol's declaration in the CUDA Driver API.
                    let found = unsafe { library.get(concat!($symbol, "\0").as_bytes()) };
                    *found.map_err(|_| unavailable(format!(
                        "{file} has no {}: a driver for CUDA 12.0 or later is needed", $symbol
                    )))?
                },)*
                graph_add_dependencies: {
                    let name = b"cuGraphAddDependencies_v2\0";
                    // SAFETY: the type is the symbol's declaration in the CUDA Driver API.
                    let found = unsafe { library.get::<AddDependencies>(name) };
                    found.ok().map(|symbol| *symbol)
                },
                version: 0,
            })
        }
    };
}

functions! {
    init = "cuInit": fn(c_uint);
    driver_version = "cuDriverGetVersion": fn(*mut c_int);
    error_name = "cuGetErrorName": fn(c_int, *mut *const c_char);
    error_string = "cuGetErrorString": fn(c_int, *mut *const c_char);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_get = "cuDeviceGet": fn(*mut c_int, c_int);
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    device_total_memory = "cuDeviceTotalMem_v2": fn(*mut usize, c_int);
    primary_context_retain = "cuDevicePrimaryCtxRetain": fn(*mut Handle, c_int);
    primary_context_release = "cuDevicePrimaryCtxRelease_v2": fn(c_int);
    context_set_current = "cuCtxSetCurrent": fn(Handle);
    memory_info = "cuMemGetInfo_v2": fn(*mut usize, *mut usize);
    memory_allocate = "cuMemAlloc_v2": fn(*mut DevicePointer, usize);
    memory_free = "cuMemFree_v2": fn(DevicePointer);
    host_allocate = "cuMemHostAlloc": fn(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost": fn(*mut c_void);
    host_device_pointer = "cuMemHostGetDevicePointer_v2": fn(*mut DevicePointer, *mut c_void, c_uint);
    host_register = "cuMemHostRegister_v2": fn(*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister": fn(*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2": fn(DevicePointer, *const c_void, usize, Handle);
    copy_to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, DevicePointer, usize, Handle);
    stream_create = "cuStreamCreate": fn(*mut Handle, c_uint);
    stream_destroy = "cuStreamDestroy_v2": fn(Handle);
    stream_synchronize = "cuStreamSynchronize": fn(Handle);
    event_create = "cuEventCreate": fn(*mut Handle, c_uint);
    event_destroy = "cuEventDestroy_v2": fn(Handle);
    event_record = "cuEventRecord": fn(Handle, Handle);
    event_synchronize = "cuEventSynchronize": fn(Handle);
    event_query = "cuEventQuery": fn(Handle);
    event_elapsed = "cuEventElapsedTime": fn(*mut f32, Handle, Handle);
    module_load = "cuModuleLoadData": fn(*mut Handle, *const c_void);
    module_unload = "cuModuleUnload": fn(Handle);
    module_function = "cuModuleGetFunction": fn(*mut Handle, Handle, *const c_char);
    function_attribute = "cuFuncGetAttribute": fn(*mut c_int, c_int, Handle);
    function_set_attribute = "cuFuncSetAttribute": fn(Handle, c_int, c_int);
    graph_create = "cuGraphCreate": fn(*mut Handle, c_uint);
    graph_destroy = "cuGraphDestroy": fn(Handle);
    graph_add_kernel = "cuGraphAddKernelNode_v2": fn(*mut Handle, Handle, *const Handle, usize, *const KernelNodeParams);
    graph_add_copy = "cuGraphAddMemcpyNode": fn(*mut Handle, Handle, *const Handle, usize, *const CopyParams, Handle);
    graph_add_fill = "cuGraphAddMemsetNode": fn(*mut Handle, Handle, *const Handle, usize, *const MemsetNodeParams, Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags": fn(*mut Handle, Handle, u64);
    graph_exec_destroy = "cuGraphExecDestroy": fn(Handle);
    graph_upload = "cuGraphUpload": fn(Handle, Handle);
    graph_launch = "cuGraphLaunch": fn(Handle, Handle);
}

/// What the operating system's loader said.
pub(super) fn loader_words(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string())
}

fn unavailable(reason: String) -> GpuError {
    GpuError::Unavailable { device: KIND, reason }
}

/// The library's names, best first.
const LIBRARIES: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    // The second is where Windows puts its driver for the Linux that it hosts.
    &["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"]
};

impl Driver {
    /// The driver, loaded by the first call and never unloaded.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] with what was looked for.
    pub(super) fn get() -> Result<&'static Self, GpuError> {
        static DRIVER: OnceLock<Result<Driver, GpuError>> = OnceLock::new();
        DRIVER.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, GpuError> {
        let mut failures = Vec::new();
        let found = LIBRARIES.iter().find_map(|name| {
            // SAFETY: the driver's library runs no code of ours; its initialisers are NVIDIA's own.
            match unsafe { Library::new(*name) } {
                Ok(library) => Some((library, *name)),
                Err(error) => {
                    failures.push(format!("{name} ({})", loader_words(&error)));
                    None
                }
            }
        });
        let Some((library, name)) = found else {
            return Err(unavailable(format!(
                "NVIDIA's driver is not installed: found no {}",
                failures.join(", ")
            )));
        };
        let mut driver = symbols(&library, name)?;
        // The functions above must stay valid for the rest of the process.
        std::mem::forget(library);
        // SAFETY: no preconditions.
        let code = unsafe { (driver.init)(0) };
        if code != status::SUCCESS {
            let what = driver.describe(code);
            return Err(unavailable(if code == status::NO_DEVICE {
                format!("{name} finds no GPU ({what})")
            } else {
                format!("{name} does not start: {what}")
            }));
        }
        let mut version = 0;
        // SAFETY: the argument points to an integer.
        let code = unsafe { (driver.driver_version)(&mut version) };
        driver.check("cuDriverGetVersion", code)?;
        driver.version = version.unsigned_abs();
        Ok(driver)
    }

    /// The major version of CUDA that the driver knows.
    pub(super) fn cuda_major(&self) -> u32 {
        self.version / 1000
    }

    /// `CUDA_ERROR_…: what it means`.
    pub(super) fn describe(&self, code: i32) -> String {
        let text = |function: unsafe extern "system" fn(c_int, *mut *const c_char) -> c_int| {
            let mut out: *const c_char = std::ptr::null();
            // SAFETY: the argument points to a pointer; the driver sets it to a string that lives
            // as long as the library, or to null for codes that it does not know.
            let known = unsafe { function(code, &mut out) } == status::SUCCESS && !out.is_null();
            known.then(|| {
                // SAFETY: not null, so a string of the driver's.
                unsafe { CStr::from_ptr(out) }.to_string_lossy().into_owned()
            })
        };
        match (text(self.error_name), text(self.error_string)) {
            (Some(name), Some(meaning)) => format!("{name} ({code}): {meaning}"),
            _ => format!("error {code}"),
        }
    }

    /// Turns a result code into an error of the function `call`.
    pub(super) fn check(&self, call: &'static str, code: i32) -> Result<(), GpuError> {
        if code == status::SUCCESS {
            return Ok(());
        }
        Err(failure(call, code, self.describe(code)))
    }
}

/// The error of a function that returned `code`, which means `reason`.
fn failure(call: &'static str, code: i32, reason: String) -> GpuError {
    if status::LOST.contains(&code) {
        return GpuError::Lost {
            device: "NVIDIA GPU".to_owned(),
            reason: format!("{call}: {reason}"),
        };
    }
    GpuError::Driver { call, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the *CUDA Driver API Reference*, "CUresult".
    #[test]
    fn a_device_that_is_gone_is_lost_and_everything_else_is_an_error_of_the_driver() {
        const DEVICE_UNAVAILABLE: i32 = 46;
        const ECC_UNCORRECTABLE: i32 = 214;
        const INVALID_VALUE: i32 = 1;
        for code in [DEVICE_UNAVAILABLE, ECC_UNCORRECTABLE] {
            let error = failure("cuGraphLaunch", code, format!("error {code}"));
            assert!(matches!(&error, GpuError::Lost { .. }), "{error}");
            assert!(error.to_string().contains(&format!("cuGraphLaunch: error {code}")), "{error}");
        }
        for code in [INVALID_VALUE, status::OUT_OF_MEMORY, status::FAULTS[0]] {
            let error = failure("cuGraphLaunch", code, format!("error {code}"));
            assert!(matches!(&error, GpuError::Driver { .. }), "{error}");
        }
    }
}
