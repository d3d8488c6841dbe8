//! Weights where they lie: on memory that the device shares with the host it reads a packed file's own pages, and what
//! kernels bind are ranges of them.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use marlin_backend::HostBytes;
use marlin_kernels::{Allocation, Element};
use marlin_placement::Device as Memory;

use crate::{Buffer, Device, GpuError};

/// Kernels load up to so many bytes at once, from addresses that are multiples of it.
const VECTOR_BYTES: usize = 16;

/// Whole pages of a mapped file that the device reads.
struct Window {
    pages: HostBytes,
    /// Weights that lie in it keep it alive.
    allocation: Weak<dyn Allocation>,
}

/// The windows of one device.
#[derive(Default)]
pub(super) struct Adopted {
    windows: Mutex<Vec<Window>>,
}

impl Adopted {
    /// Adopts the pages that hold `wanted`, in as few allocations as the device's limits allow, unless they are
    /// adopted already. What cannot be adopted is left to be copied. The windows last as long as what is returned, or
    /// as what [`buffer`](Self::buffer) makes of them.
    ///
    /// # Errors
    /// The device failed.
    #[track_caller]
    pub(super) fn open(
        &self,
        device: &dyn Device,
        wanted: &[HostBytes],
    ) -> Result<Vec<Arc<dyn Allocation>>, GpuError> {
        let properties = device.properties();
        if properties.memory == Memory::Discrete {
            return Ok(Vec::new());
        }
        let site = Location::caller();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.allocation.strong_count() > 0);
        let mut opened = Vec::new();
        for bytes in by_owner(wanted) {
            let Some(whole) = bytes.first().and_then(|b| b.of_owner(0..b.owner_len())) else {
                continue;
            };
            let missing: Vec<Range<usize>> = bytes
                .iter()
                .filter(|b| !windows.iter().any(|window| window.holds(b)))
                .map(|b| b.range())
                .collect();
            let page = properties.adoption_alignment;
            let most = usize::try_from(properties.max_buffer_bytes).unwrap_or(usize::MAX);
            if !(whole.as_ptr() as usize).is_multiple_of(page) {
                continue;
            }
            for range in cover(missing, page, whole.len() / page * page, most / page * page) {
                let Some(pages) = whole.slice(range) else { continue };
                let label = match windows.len() {
                    0 => "mapped weights".to_owned(),
                    number => format!("mapped weights {}", number + 1),
                };
                match device.adopt_at(&label, pages.clone(), site) {
                    Ok(allocation) => {
                        windows.push(Window { pages, allocation: Arc::downgrade(&allocation) });
                        opened.push(allocation);
                    }
                    Err(GpuError::NotAdoptable { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(opened)
    }

    /// `bytes` as a range of a window; `None` where none holds it, or kernels could not load vectors there.
    pub(super) fn buffer<T: Element>(&self, bytes: &HostBytes) -> Option<Buffer<T>> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.iter().find(|window| window.holds(bytes))?;
        let offset = bytes.range().start - window.pages.range().start;
        if !offset.is_multiple_of(VECTOR_BYTES) {
            return None;
        }
        let allocation = window.allocation.upgrade()?;
        Buffer::part_of(allocation, offset as u64, bytes.len() / size_of::<T>()).ok()
    }
}

impl Window {
    fn holds(&self, bytes: &HostBytes) -> bool {
        let (own, asked) = (self.pages.range(), bytes.range());
        let inside = own.start <= asked.start && asked.end <= own.end;
        inside && self.pages.has_owner_of(bytes) && self.allocation.strong_count() > 0
    }
}

/// `wanted`, by owner.
fn by_owner(wanted: &[HostBytes]) -> Vec<Vec<&HostBytes>> {
    let mut owners: Vec<Vec<&HostBytes>> = Vec::new();
    let mut numbers = HashMap::new();
    for bytes in wanted {
        let number = *numbers.entry(bytes.owner_address()).or_insert_with(|| {
            owners.push(Vec::new());
            owners.len() - 1
        });
        owners[number].push(bytes);
    }
    owners
}

/// Ranges of whole pages, each of at most `most` bytes and none past `end`, that hold the ranges of `wanted`, each
/// in one of them; what does not fit is left out.
fn cover(mut wanted: Vec<Range<usize>>, page: usize, end: usize, most: usize) -> Vec<Range<usize>> {
    wanted.sort_unstable_by_key(|range| (range.start, range.end));
    let mut windows: Vec<Range<usize>> = Vec::new();
    for range in wanted {
        let pages = range.start / page * page..range.end.next_multiple_of(page);
        if pages.end > end || pages.len() > most {
            continue;
        }
        match windows.last_mut() {
            Some(last) if pages.end.max(last.end) - last.start <= most => {
                last.end = last.end.max(pages.end);
            }
            _ => windows.push(pages),
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_that_fits_is_in_one_window_of_whole_pages() {
        let wanted = || vec![90..100, 10..30, 30..55, 57..60, 60..90];
        for (page, end, most) in [(8, 200, 200), (8, 200, 48), (16, 112, 32), (1, 95, 30)] {
            let windows = cover(wanted(), page, end, most);
            for window in &windows {
                assert_eq!((window.start % page, window.end % page), (0, 0));
                assert!(window.len() <= most && window.end <= end, "{window:?}");
            }
            for range in wanted() {
                let pages = range.start / page * page..range.end.next_multiple_of(page);
                let fits = pages.len() <= most && pages.end <= end;
                let held = windows.iter().any(|w| w.start <= range.start && range.end <= w.end);
                assert_eq!(held, fits, "{range:?} in {windows:?}");
            }
        }
        assert_eq!(cover(wanted(), 8, 200, 200).first(), Some(&(8..104)));
    }
}
