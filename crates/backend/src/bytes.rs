//! Bytes of the host's that outlive the borrow they came from.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Owns bytes that others look into: a memory-mapped file, a vector.
pub trait HostOwner: Send + Sync {
    /// The bytes; always the same ones.
    fn bytes(&self) -> &[u8];

    /// Says that `range` will not be read again soon. A mapped file may drop the pages,
    /// which come back from the file if they are read after all.
    fn release(&self, _range: Range<usize>) {}
}

impl HostOwner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A range of bytes together with a share in whatever owns them. Cloning is cheap and copies
/// no data, so a weight can be adopted where it lies.
#[derive(Clone)]
pub struct HostBytes {
    owner: Arc<dyn HostOwner>,
    range: Range<usize>,
}

impl HostBytes {
    /// All of `owner`'s bytes.
    pub fn new(owner: Arc<dyn HostOwner>) -> Self {
        let len = owner.bytes().len();
        Self { owner, range: 0..len }
    }

    /// No bytes.
    pub fn empty() -> Self {
        Self::from(Vec::new())
    }

    /// A part of these bytes, `range` counted from their start; `None` if it is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len() })
    }

    /// Says that these bytes will not be read again soon; see [`HostOwner::release`].
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }
}

impl Deref for HostBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl From<Vec<u8>> for HostBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl fmt::Debug for HostBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBytes({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_relative_and_checked() {
        let bytes = HostBytes::from((0u8..10).collect::<Vec<_>>());
        let part = bytes.slice(2..8).unwrap();
        assert_eq!(&*part, &[2, 3, 4, 5, 6, 7]);
        assert_eq!(&*part.slice(1..3).unwrap(), &[3, 4]);
        assert!(part.slice(0..7).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = part.slice(3..1);
        assert!(reversed.is_none());
    }
}
