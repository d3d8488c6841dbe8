//! Host memory that the driver was told of, so that kernels can read it in place.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use marlin_backend::HostBytes;

use super::context::Context;
use super::driver::{DevicePointer, HOST_REGISTER_MAPPED, HOST_REGISTER_READ_ONLY};
use crate::GpuError;

/// What the address of adopted memory must be a multiple of: the widest element of a kernel.
pub(super) const ALIGNMENT: usize = 16;

/// What the operating system maps memory in. Registering more than a page's worth beyond the bytes
/// would be wrong; smaller pages than this do not exist where CUDA runs.
const PAGE: usize = 4096;

/// Whole pages of host memory, registered until dropped. Owns a share of the bytes.
pub(super) struct Registration {
    context: Arc<Context>,
    start: usize,
    len: usize,
    pub(super) device_pointer: DevicePointer,
    _bytes: HostBytes,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Work in flight may still read the pages.
        if self.context.synchronize().is_ok() {
            // SAFETY: registered with this address when `self` was made.
            unsafe { (self.context.driver.host_unregister)(self.start as *mut _) };
        }
    }
}

/// The pages that are registered now: the driver refuses to register one twice, and tensors of one
/// file share pages.
#[derive(Default)]
pub(super) struct Registrations(Mutex<Vec<Weak<Registration>>>);

impl Registrations {
    /// The registration that holds `bytes`, and where on the device they begin.
    pub(super) fn adopt(
        &self,
        context: &Arc<Context>,
        label: &str,
        bytes: &HostBytes,
        read_only_supported: bool,
    ) -> Result<(Arc<Registration>, DevicePointer), GpuError> {
        let refuse = |reason: String| GpuError::NotAdoptable { label: label.to_owned(), reason };
        let address = bytes.as_ptr() as usize;
        if bytes.is_empty() {
            return Err(refuse("it has no bytes".to_owned()));
        }
        if !address.is_multiple_of(ALIGNMENT) {
            return Err(refuse(format!(
                "it begins at address {address:#x}, expected a multiple of {ALIGNMENT}"
            )));
        }
        // Every page that the bytes touch is mapped as a whole, so the ends may be widened.
        let start = address / PAGE * PAGE;
        let len = (address + bytes.len()).next_multiple_of(PAGE) - start;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|registration| registration.strong_count() > 0);
        for other in known.iter().filter_map(Weak::upgrade) {
            if start >= other.start && start + len <= other.start + other.len {
                let offset = (address - other.start) as u64;
                let pointer = other.device_pointer + offset;
                return Ok((other, pointer));
            }
            if start < other.start + other.len && other.start < start + len {
                return Err(refuse(format!(
                    "it shares a page of {PAGE} bytes with memory that is adopted already: adopt both as one"
                )));
            }
        }
        let driver = context.driver;
        context.enter()?;
        let pointer = start as *mut std::ffi::c_void;
        let flags =
            HOST_REGISTER_MAPPED | if read_only_supported { HOST_REGISTER_READ_ONLY } else { 0 };
        // SAFETY: the pages are mapped and stay so while the registration holds its share of the
        // bytes; kernels only read them.
        let mut code = unsafe { (driver.host_register)(pointer, len, flags) };
        if code != 0 && read_only_supported {
            // Some drivers say that they can and then cannot for this kind of memory.
            // SAFETY: as above.
            code = unsafe { (driver.host_register)(pointer, len, HOST_REGISTER_MAPPED) };
        }
        if code != 0 {
            return Err(refuse(format!("cuMemHostRegister: {}", driver.describe(code))));
        }
        let mut registration = Registration {
            context: context.clone(),
            start,
            len,
            device_pointer: 0,
            _bytes: bytes.clone(),
        };
        // SAFETY: the address was registered above.
        let code =
            unsafe { (driver.host_device_pointer)(&mut registration.device_pointer, pointer, 0) };
        driver.check("cuMemHostGetDevicePointer", code)?;
        let registration = Arc::new(registration);
        known.push(Arc::downgrade(&registration));
        let offset = (address - start) as u64;
        Ok((registration.clone(), registration.device_pointer + offset))
    }
}
