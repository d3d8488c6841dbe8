//! How many cores a GPU has, which Metal does not tell.

use objc2_core_foundation::{CFNumber, CFRetained, CFString};
use objc2_io_kit::{
    IOObjectRelease, IORegistryEntryCreateCFProperty, IORegistryEntryIDMatching,
    IOServiceGetMatchingService,
};

/// What the drivers of Apple's GPUs call it.
const PROPERTY: &str = "gpu-core-count";
/// `kIOMainPortDefault`.
const MAIN_PORT: u32 = 0;

/// The number of cores of the GPU with this `registryID`, where the I/O registry has it.
pub(super) fn of(registry_id: u64) -> Option<u32> {
    // SAFETY: any number may be asked for; the dictionary is made for the call that follows.
    let matching = unsafe { IORegistryEntryIDMatching(registry_id) }?;
    // SAFETY: a mutable dictionary is a dictionary.
    let matching = unsafe { CFRetained::cast_unchecked(matching) };
    // SAFETY: the port is the default one; the call consumes the dictionary.
    let entry = unsafe { IOServiceGetMatchingService(MAIN_PORT, Some(matching)) };
    if entry == 0 {
        return None;
    }
    let name = CFString::from_static_str(PROPERTY);
    // SAFETY: the entry was found above and is released below; no allocator is the default one.
    let property = unsafe { IORegistryEntryCreateCFProperty(entry, Some(&name), None, 0) };
    IOObjectRelease(entry);
    let number = property?.downcast::<CFNumber>().ok()?;
    number.as_i64().and_then(|cores| u32::try_from(cores).ok()).filter(|cores| *cores > 0)
}
