//! Guest memory: the client's memory objects mapped into this process, and the way from a guest address to a pointer.
//! On the hot path: a translation that hits the cache costs a few nanoseconds, allocates nothing and makes no system
//! call.
//!
//! A [`Region`] is one mapping of one memfd. A [`RegionTable`] holds a controller's regions by their small ids. A
//! [`MemRange`] names memory in rings and lists, a [`HostSlice`] is memory at hand, [`GuestMemory`] leads from an
//! address to either. No reference to guest memory exists: everything is a copy, an atomic access or a raw pointer.

mod memory;
mod region;
mod slice;
mod table;

#[cfg(test)]
mod tests;

pub use crate::dma_table::{Access, RegionId};
pub use memory::{DmaFault, DmaFaultKind, GuestMemory};
pub use region::{Region, RegionError, RegionKey, RegionPolicy};
pub use slice::{Hint, HostSlice, Line, LineAt};
pub use table::RegionTable;

/// A range of one region: what travels in rings and lists instead of pointers. Whoever takes one out of shared memory
/// resolves it by [`RegionTable::host`], which checks every field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct MemRange {
    /// The region.
    pub region: RegionId,
    /// Bytes.
    pub len: u32,
    /// First byte in the region.
    pub offset: u64,
}

const _: () = assert!(size_of::<MemRange>() == 16);

impl MemRange {
    /// As two words, for memory that consists of atomics.
    #[inline]
    pub const fn to_words(self) -> [u64; 2] {
        [self.region.0 as u64 | (self.len as u64) << 32, self.offset]
    }

    /// From two words; any bit pattern is a value.
    #[inline]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [low, offset] = words;
        Self { region: RegionId(low as u32), len: (low >> 32) as u32, offset }
    }

    /// This range and `next` as one, if `next` starts where this one ends.
    #[inline]
    pub fn merged(self, next: Self) -> Option<Self> {
        let adjacent = self.region == next.region
            && self.offset.checked_add(u64::from(self.len)) == Some(next.offset);
        let len = self.len.checked_add(next.len)?;
        adjacent.then_some(Self { len, ..self })
    }
}
