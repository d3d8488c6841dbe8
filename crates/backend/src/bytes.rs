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

    /// Where they are in their owner's bytes.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Bytes of their owner.
    pub fn owner_len(&self) -> usize {
        self.owner.bytes().len()
    }

    /// Tells their owner from others that are alive.
    pub fn owner_address(&self) -> usize {
        Arc::as_ptr(&self.owner).cast::<()>() as usize
    }

    /// Whether `other` looks into the same owner's bytes.
    pub fn has_owner_of(&self, other: &Self) -> bool {
        self.owner_address() == other.owner_address()
    }

    /// Bytes `range` of the owner; `None` if it is out of bounds.
    pub fn of_owner(&self, range: Range<usize>) -> Option<Self> {
        Self::new(self.owner.clone()).slice(range)
    }

    /// These bytes and those after them, which `next` must be, as one; `None` if it is not.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let follows = self.has_owner_of(next) && self.range.end == next.range.start;
        follows.then(|| Self { owner: self.owner.clone(), range: self.range.start..next.range.end })
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

    #[test]
    fn neighbours_of_one_owner_are_one() {
        let bytes = HostBytes::from((0u8..10).collect::<Vec<_>>());
        let [a, b] = [bytes.slice(2..4).unwrap(), bytes.slice(4..9).unwrap()];
        assert_eq!(&*a.joined(&b).unwrap(), &[2, 3, 4, 5, 6, 7, 8]);
        assert!(b.joined(&a).is_none() && a.joined(&bytes.slice(5..9).unwrap()).is_none());
        let other = HostBytes::from((0u8..10).collect::<Vec<_>>()).slice(4..9).unwrap();
        assert!(a.joined(&other).is_none());
        assert_eq!(&*a.of_owner(0..3).unwrap(), &[0, 1, 2]);
        assert!(a.of_owner(0..11).is_none());
    }
}
