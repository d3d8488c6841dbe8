//! NVIDIA's run-time compiler, found on the machine at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::KIND;
use super::driver::loader_words;
use crate::GpuError;

/// Environment variable that names NVRTC's library, or a folder to find it in: one that holds the
/// library, a Python `site-packages`, or a CUDA toolkit.
pub const NVRTC_VARIABLE: &str = "MARLIN_NVRTC";

type Program = *mut c_void;

/// The loaded compiler.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    version: (u32, u32),
    architectures: Vec<u32>,
    path: PathBuf,
    /// Keeps the functions valid.
    _library: Library,
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC {}.{} ({})", self.version.0, self.version.1, self.path.display())
    }
}

/// What code is made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// A GPU's own instructions: `sm_80`, `sm_90a`.
    Real(String),
    /// PTX, which the driver translates: `compute_90`. For GPUs newer than the compiler.
    Virtual(String),
}

impl Architecture {
    /// As the compiler's option takes it.
    pub fn name(&self) -> &str {
        match self {
            Self::Real(name) | Self::Virtual(name) => name,
        }
    }
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the driver loads: a cubin, or PTX with its final zero byte.
    pub image: Vec<u8>,
    /// Warnings, and the assembler's words on registers and spills.
    pub log: String,
}

/// CUDA's major versions whose libraries are known, newest first.
const MAJORS: [u32; 3] = [13, 12, 11];

/// The library's file names for one major version. NVRTC's name kept 11.2 through all of CUDA 11.
fn file_names(major: u32) -> &'static [&'static str] {
    match (cfg!(windows), major) {
        (false, 13) => &["libnvrtc.so.13"],
        (false, 12) => &["libnvrtc.so.12"],
        (false, _) => &["libnvrtc.so.11.2"],
        (true, 13) => &["nvrtc64_130_0.dll"],
        (true, 12) => &["nvrtc64_120_0.dll"],
        (true, _) => &["nvrtc64_112_0.dll"],
    }
}

/// Where a folder that a person names may keep the library: the folder itself, NVIDIA's wheels below
/// `site-packages`, a toolkit.
const SUBFOLDERS: [&str; 8] = [
    "",
    "lib",
    "lib64",
    "bin",
    "bin/x64",
    "nvidia/cu13/lib",
    "nvidia/cuda_nvrtc/lib",
    "nvidia/cuda_nvrtc/bin",
];

/// Every place to look, in order. `most` is the newest major version that the driver can load the
/// output of; a place that a person named is always looked at.
fn candidates(named: Option<&Path>, most: Option<u32>) -> Vec<PathBuf> {
    let majors: Vec<u32> =
        MAJORS.into_iter().filter(|major| most.is_none_or(|most| *major <= most)).collect();
    let names: Vec<&str> = majors.iter().flat_map(|major| file_names(*major)).copied().collect();
    let below = |folder: &Path, out: &mut Vec<PathBuf>| {
        for name in &names {
            out.extend(SUBFOLDERS.iter().map(|sub| folder.join(sub).join(name)));
        }
    };
    let mut out = Vec::new();
    if let Some(named) = named {
        if named.is_dir() {
            below(named, &mut out);
        } else {
            out.push(named.to_owned());
        }
        return out;
    }
    // First as the system's loader finds it.
    out.extend(names.iter().map(PathBuf::from));
    if let Some(toolkit) = std::env::var_os("CUDA_PATH").or_else(|| std::env::var_os("CUDA_HOME")) {
        below(Path::new(&toolkit), &mut out);
    }
    if cfg!(unix) {
        for major in &majors {
            below(Path::new(&format!("/usr/local/cuda-{major}")), &mut out);
        }
        below(Path::new("/usr/local/cuda"), &mut out);
    }
    out
}

impl Nvrtc {
    /// Finds and loads the compiler: `$MARLIN_NVRTC`, then the system's library folders, then CUDA
    /// toolkits. `most` is the newest major version to take, where the driver sets one.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] with what was looked for.
    pub fn load(most: Option<u32>) -> Result<Self, GpuError> {
        let named = std::env::var_os(NVRTC_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
        let candidates = candidates(named.as_deref(), most);
        let mut failures = Vec::new();
        for path in &candidates {
            // A full path that is not there needs no words of the loader's.
            if path.parent().is_some_and(|folder| !folder.as_os_str().is_empty()) && !path.exists()
            {
                continue;
            }
            match Self::open(path) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => failures.push(format!("{}: {error}", path.display())),
            }
        }
        let names: Vec<&str> =
            MAJORS.iter().flat_map(|major| file_names(*major)).copied().collect();
        let place = named.map_or_else(
            || "the system's library folders and the CUDA toolkit".to_owned(),
            |path| format!("{NVRTC_VARIABLE}={}", path.display()),
        );
        Err(GpuError::Unavailable {
            device: KIND,
            reason: format!(
                "NVIDIA's run-time compiler was not found: looked for {} in {place} ({}). \
                 `pip install nvidia-cuda-nvrtc` brings it; set {NVRTC_VARIABLE} to its folder",
                names.join(", "),
                if failures.is_empty() { "no such file".to_owned() } else { failures.join("; ") }
            ),
        })
    }

    fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: NVRTC's initialisers are NVIDIA's own and run no code of ours.
        let library = unsafe { Library::new(path) }.map_err(|e| loader_words(&e))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the symbol's declaration in NVRTC's documentation.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                    .map_err(|_| format!("has no {}", $name))?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
            symbol!("nvrtcVersion");
        let count: unsafe extern "C" fn(*mut c_int) -> c_int = symbol!("nvrtcGetNumSupportedArchs");
        let list: unsafe extern "C" fn(*mut c_int) -> c_int = symbol!("nvrtcGetSupportedArchs");
        let (mut major, mut minor, mut len) = (0, 0, 0);
        // SAFETY: the arguments point to integers.
        let failed = unsafe { version(&mut major, &mut minor) != 0 || count(&mut len) != 0 };
        let mut architectures = vec![0; usize::try_from(len).unwrap_or(0)];
        // SAFETY: the array has as many elements as the library said that it writes.
        if failed || unsafe { list(architectures.as_mut_ptr()) } != 0 {
            return Err("does not say its version".to_owned());
        }
        Ok(Self {
            create: symbol!("nvrtcCreateProgram"),
            destroy: symbol!("nvrtcDestroyProgram"),
            compile: symbol!("nvrtcCompileProgram"),
            log_size: symbol!("nvrtcGetProgramLogSize"),
            log: symbol!("nvrtcGetProgramLog"),
            cubin_size: symbol!("nvrtcGetCUBINSize"),
            cubin: symbol!("nvrtcGetCUBIN"),
            ptx_size: symbol!("nvrtcGetPTXSize"),
            ptx: symbol!("nvrtcGetPTX"),
            error_string: symbol!("nvrtcGetErrorString"),
            version: (major.unsigned_abs(), minor.unsigned_abs()),
            architectures: architectures.into_iter().map(i32::unsigned_abs).collect(),
            path: path.to_owned(),
            _library: library,
        })
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The file that it was loaded from, as it was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to compile for, for a GPU of compute capability `major`.`minor`: its own instructions where the
    /// compiler knows them (from 9.0 on with those that only this generation has), otherwise PTX.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] if the compiler no longer knows so old a GPU.
    pub fn architecture(&self, major: u32, minor: u32) -> Result<Architecture, GpuError> {
        let wanted = major * 10 + minor;
        if self.architectures.contains(&wanted) {
            let suffix = if major >= 9 { "a" } else { "" };
            return Ok(Architecture::Real(format!("sm_{wanted}{suffix}")));
        }
        let older = self.architectures.iter().filter(|known| **known < wanted).max();
        older.map(|known| Architecture::Virtual(format!("compute_{known}"))).ok_or_else(|| {
            GpuError::Unavailable {
                device: KIND,
                reason: format!("{self:?} does not compile for compute capability {major}.{minor}"),
            }
        })
    }

    /// Compiles `source`, whose entry point is `kernel`, with `options` besides the architecture's.
    ///
    /// # Errors
    /// [`GpuError::Compile`] with the compiler's log.
    pub fn compile(
        &self,
        kernel: &str,
        source: &str,
        architecture: &Architecture,
        options: &[String],
    ) -> Result<Compiled, GpuError> {
        let error = |log: String| GpuError::Compile {
            kernel: kernel.to_owned(),
            target: architecture.name().to_owned(),
            log,
        };
        let text = |text: &str| {
            CString::new(text).map_err(|_| error("a zero byte in the source or an option".into()))
        };
        let (source, name) = (text(source)?, text(&format!("{kernel}.cu"))?);
        let mut arguments = vec![text(&format!("--gpu-architecture={}", architecture.name()))?];
        for option in options {
            arguments.push(text(option)?);
        }
        let pointers: Vec<*const c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
        let mut program = OpenProgram { nvrtc: self, handle: std::ptr::null_mut() };
        // SAFETY: both texts end in zero and outlive the call; there are no headers.
        let code = unsafe {
            (self.create)(
                &mut program.handle,
                source.as_ptr(),
                name.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        if code != 0 {
            return Err(error(self.describe("nvrtcCreateProgram", code)));
        }
        // SAFETY: the program was made above; `pointers` are texts that end in zero.
        let code =
            unsafe { (self.compile)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.fetch(self.log_size, self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if code != 0 {
            let what = self.describe("nvrtcCompileProgram", code);
            return Err(error(if log.is_empty() { what } else { log }));
        }
        let image = match architecture {
            Architecture::Real(_) => program.fetch(self.cubin_size, self.cubin),
            Architecture::Virtual(_) => program.fetch(self.ptx_size, self.ptx),
        };
        let image = image.map_err(|code| error(self.describe("nvrtcGetCUBIN", code)))?;
        Ok(Compiled { image, log })
    }

    fn describe(&self, call: &str, code: c_int) -> String {
        // SAFETY: the library returns a string of its own for every code.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) };
        format!("{call}: {}", text.to_string_lossy())
    }
}

/// A program of the compiler's, destroyed when dropped.
struct OpenProgram<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl OpenProgram<'_> {
    /// Asks for a size and then for that many bytes.
    fn fetch(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, c_int> {
        let mut len = 0;
        // SAFETY: the program lives as long as `self`; the argument points to a size.
        let code = unsafe { size(self.handle, &mut len) };
        if code != 0 {
            return Err(code);
        }
        let mut out = vec![0u8; len];
        // SAFETY: `out` has as many bytes as the library said that it writes.
        let code = unsafe { get(self.handle, out.as_mut_ptr().cast()) };
        if code != 0 { Err(code) } else { Ok(out) }
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: made by this library and not destroyed before.
            unsafe { (self.nvrtc.destroy)(&mut self.handle) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_compilers_than_the_driver_are_passed_over() {
        let found = candidates(None, Some(12));
        let newer = Path::new(file_names(13)[0]);
        assert!(found.iter().all(|path| path.file_name() != newer.file_name()), "{found:?}");
        assert!(found.contains(&PathBuf::from(file_names(12)[0])), "{found:?}");
    }

    #[test]
    fn a_named_file_is_the_only_candidate() {
        let path = Path::new("/nowhere/libnvrtc.so.99");
        assert_eq!(candidates(Some(path), Some(12)), [path]);
    }

    #[test]
    fn a_named_folder_may_be_site_packages() {
        let folder = std::env::temp_dir();
        let found = candidates(Some(&folder), None);
        let wheel = folder.join("nvidia/cu13/lib").join(file_names(13)[0]);
        assert!(found.contains(&wheel), "{found:?}");
    }
}
