//! Mappings at addresses that GPUs with large pages can adopt. Linux places a mapping at a multiple of its own page, which is
//! smaller than Apple's, and takes a place only from those who have reserved one.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::ALIGNMENT;

/// A whole file, read-only, at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub(super) struct Mapping {
    /// What was reserved, the mapping in it.
    reserved: NonNull<libc::c_void>,
    reserved_len: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its pages like a boxed slice, and nobody writes them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes, which are at least one, of `file`.
    ///
    /// # Safety
    /// Nobody changes or truncates the file while it is mapped.
    pub(super) unsafe fn new(file: &File, len: usize) -> io::Result<Self> {
        let too_long = || io::Error::from(io::ErrorKind::FileTooLarge);
        let reserved_len = len.checked_add(ALIGNMENT).ok_or_else(too_long)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches no other memory.
        let reserved = unsafe {
            libc::mmap(std::ptr::null_mut(), reserved_len, libc::PROT_NONE, flags, -1, 0)
        };
        let base = match NonNull::new(reserved) {
            Some(base) if reserved != libc::MAP_FAILED => base,
            _ => return Err(io::Error::last_os_error()),
        };
        let skipped = (reserved as usize).next_multiple_of(ALIGNMENT) - reserved as usize;
        // SAFETY: fewer than `ALIGNMENT` bytes were skipped, so that the mapping, `len` bytes, is inside what was
        // reserved just now; nobody else knows of that.
        let start = unsafe {
            let at = reserved.byte_add(skipped);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            libc::mmap(at, len, libc::PROT_READ, flags, file.as_raw_fd(), 0)
        };
        match NonNull::new(start) {
            Some(at) if start != libc::MAP_FAILED => {
                Ok(Self { reserved: base, reserved_len, start: at.cast(), len })
            }
            _ => {
                let error = io::Error::last_os_error();
                // SAFETY: reserved above, and nothing points into it.
                unsafe { libc::munmap(reserved, reserved_len) };
                Err(error)
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped at `start` until this is dropped, and the caller of `new` has promised that
        // they do not change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Lets the system drop the pages that lie in `range`, which is inside the mapping.
    pub(super) fn release(&self, range: &Range<usize>) {
        // SAFETY: asking for the size of a page has no conditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).unwrap_or(ALIGNMENT);
        let start = range.start / page * page;
        // SAFETY: from the beginning of a page inside the mapping to a byte inside it; the pages are a file's that nobody
        // writes, so they come back with the same contents.
        unsafe {
            let at = self.start.as_ptr().add(start);
            // A system that does not take the advice keeps the pages, which is as well.
            libc::madvise(at.cast(), range.end - start, libc::MADV_DONTNEED);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` reserved, the file's pages in it; borrows of the bytes have ended.
        unsafe { libc::munmap(self.reserved.as_ptr(), self.reserved_len) };
    }
}
