//! The kernels compiled for the host, and the interface to the code around them
//! (`compat/host/execution.h`, whose layouts are repeated here).

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use crate::PipelineKey;

/// Flags of a [`HostRegion`].
pub mod region_flags {
    /// Kernels may write it.
    pub const WRITABLE: u32 = 1;
    /// Only what the dispatch itself wrote may be read.
    pub const OUTPUT: u32 = 2;
    /// An optional buffer that is not bound.
    pub const ABSENT: u32 = 4;
    /// Some command wrote it.
    pub const CHANGES: u32 = 16;
}

/// Memory that a kernel's pointer may reach.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HostRegion {
    /// The first byte.
    pub base: *mut u8,
    /// Number of bytes.
    pub bytes: u64,
    /// One byte a byte, 0 where nothing was ever written; null where everything was.
    pub initialised: *mut u8,
    /// One stamp a byte, of the last write; null where the dispatch writes nothing.
    pub writes: *mut u32,
    /// The same of the last read.
    pub reads: *mut u32,
    /// The parameter's name, ending in a zero.
    pub name: *const c_char,
    /// [`region_flags`].
    pub flags: u32,
    /// Not 0 where a read must be looked at beyond its bounds.
    pub checked: u32,
}

/// One dispatch.
#[derive(Debug)]
#[repr(C)]
pub struct HostLaunch {
    /// By binding index; unused where bytes are bound inline.
    pub regions: *mut HostRegion,
    /// By binding index; unused where a buffer is bound.
    pub inlines: *const *const c_void,
    /// Bits of the specialisation constants.
    pub constants: *const u32,
    /// Threadgroups along x, y, z.
    pub threadgroups: [u32; 3],
    /// Threads of a threadgroup along x, y, z.
    pub threads: [u32; 3],
    /// Threads in a SIMD-group.
    pub simd_width: u32,
    /// Number of regions.
    pub region_count: u32,
    /// Bytes of the threadgroup memory that the launcher sizes.
    pub threadgroup_bytes: u32,
    /// The moment before the dispatch; after it, the moment after it.
    pub clock: u32,
    /// Goes up when the clock starts again and all stamps are void.
    pub generation: u32,
    /// Room for a fault's description.
    pub fault_bytes: u32,
    /// Where a fault is described, ending in a zero.
    pub fault: *mut c_char,
}

type HostEntry = unsafe extern "C" fn(*mut HostLaunch) -> i32;

include!(concat!(env!("OUT_DIR"), "/host_entries.rs"));

unsafe extern "C" {
    fn marlin_host_new() -> *mut c_void;
    fn marlin_host_free(state: *mut c_void);
    fn marlin_host_use(state: *mut c_void);
}

/// A kernel that [`HostState::run`] can run.
#[derive(Clone, Copy, Debug)]
pub struct HostKernel(HostEntry);

/// The compiled kernel of `pipeline`; `None` if its file was not compiled for these types.
pub fn host_entry(pipeline: &PipelineKey) -> Option<HostKernel> {
    let symbol = pipeline.symbol();
    ENTRIES
        .iter()
        .find(|(file, name, _)| *file == pipeline.kernel.file && *name == symbol)
        .map(|(_, _, entry)| HostKernel(*entry))
}

/// Fibers and threadgroup memory of one device.
#[derive(Debug)]
pub struct HostState(NonNull<c_void>);

// SAFETY: the state is plain memory with no tie to the thread that made it; `run` takes `&mut`, so one
// thread at a time uses it.
unsafe impl Send for HostState {}

impl HostState {
    /// Room for one threadgroup; `None` if the system has none.
    pub fn new() -> Option<Self> {
        // SAFETY: the function takes nothing and gives null or memory that `drop` hands back.
        NonNull::new(unsafe { marlin_host_new() }).map(Self)
    }

    /// Runs a dispatch to its end or first fault; whether there was none.
    ///
    /// # Safety
    /// Every pointer in `launch` is valid for what its field says, by `kernel`'s parameters, and nothing else
    /// touches that memory meanwhile. `launch.threads` has 1 to 1024 threads, `simd_width` is from 8 to 64,
    /// `threadgroup_bytes` at most 32768.
    pub unsafe fn run(&mut self, kernel: HostKernel, launch: &mut HostLaunch) -> bool {
        // SAFETY: the state is alive; it is this thread's until the next call sets another.
        unsafe { marlin_host_use(self.0.as_ptr()) };
        // SAFETY: the caller vouches for the launch; the entry is one of ours, with this signature.
        unsafe { kernel.0(launch) == 0 }
    }
}

impl Drop for HostState {
    fn drop(&mut self) {
        // SAFETY: made by `marlin_host_new`, freed once.
        unsafe { marlin_host_free(self.0.as_ptr()) };
    }
}
