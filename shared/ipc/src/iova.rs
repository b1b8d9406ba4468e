//! Guest addresses.

use std::fmt;

/// A guest physical address or, behind a guest's IOMMU, an I/O virtual address, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `bytes` further on, or `None` past the end of the address space.
    #[inline]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// The last address of the range of `size` bytes that starts here; `None` for an empty range and for one that
    /// wraps around.
    #[inline]
    pub fn last_of(self, size: u64) -> Option<Self> {
        self.0.checked_add(size.checked_sub(1)?).map(Self)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl From<u64> for Iova {
    fn from(address: u64) -> Self {
        Self(address)
    }
}

impl From<Iova> for u64 {
    fn from(iova: Iova) -> Self {
        iova.0
    }
}

#[cfg(test)]
mod tests {
    use super::Iova;

    #[test]
    fn last_address_of_a_range_that_wraps_or_is_empty_does_not_exist() {
        assert_eq!(Iova(0x1000).last_of(0x1000), Some(Iova(0x1fff)));
        assert_eq!(Iova(u64::MAX).last_of(1), Some(Iova(u64::MAX)));
        assert_eq!(Iova(u64::MAX).last_of(2), None);
        assert_eq!(Iova(5).last_of(0), None);
        assert_eq!(format!("{} {:x}", Iova(0xabc), Iova(0xabc)), "0xabc abc");
    }
}
