//! Guest addresses to regions, in the controller segment. On the hot path where a translation misses the cache.
//!
//! Two levels: a root sorted by first address, leaves of sorted rows. One writer ([`DmaWriter`], the frontend) changes
//! rows in place, in steps that a successor can finish wherever the writer died; readers in other processes look rows
//! up between two equal, even generations ([`DmaTable::lookup`]), try a bounded number of times and trust no index.
//! The table translates addresses to (region, offset); what a region is, it does not know ([`crate::guest_memory`]).

mod attach;
mod edit;
mod unmaps;
mod writer;

#[cfg(test)]
mod tests;

pub use unmaps::{Unmaps, unmaps_since};
pub use writer::{DmaWriter, Mapped};

use crate::iova::Iova;
use crate::layout::MAX_REGIONS;
use std::ops::BitOr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Most rows of one table: what the vfio-user server promises its client (`max_dma_maps`).
pub const MAX_ROWS: usize = 65_535;
/// Rows of a leaf, so that a leaf is a page.
const LEAF_ROWS: usize = 126;
/// Leaves. Two neighbours with at most [`LEAF_ROWS`] rows together can be merged, hence a table of [`MAX_ROWS`] rows
/// always finds a leaf: see the assertion.
const LEAVES: usize = 1040;
/// Attempts of a reader before it gives up until later; some tens of microseconds of a writer that is not scheduled.
const RETRIES: usize = 1000;
/// Region field of a row that has no memory behind it.
const NO_REGION: u32 = u32::MAX;

const _: () = assert!(LEAVES / 2 * (LEAF_ROWS + 1) > MAX_ROWS);
const _: () = assert!(size_of::<Leaf>() == 4096);

/// The table; one writer, many readers.
#[repr(C, align(4096))]
pub struct DmaTable {
    edit: EditIntent,
    unmap: UnmapIntent,
    root: Root,
    leaves: [Leaf; LEAVES],
}

/// The change of one leaf or of the root that is under way; a successor of the writer finishes it.
#[repr(C, align(64))]
struct EditIntent {
    /// An `edit::Kind`, stored last; 0 for none.
    kind: AtomicU64,
    /// The leaf.
    leaf: AtomicU64,
    /// Where rows are inserted or removed.
    position: AtomicU64,
    /// How many.
    amount: AtomicU64,
    /// Rows before the change.
    count: AtomicU64,
    /// The row that is being copied; those before it in the order of the shift are in place.
    cursor: AtomicU64,
    /// The new row: start, size, offset, target.
    row: [AtomicU64; 4],
}

/// The unmap under way.
#[repr(C, align(64))]
struct UnmapIntent {
    /// The number that `dma_version` will have, stored last; 0 for none.
    version: AtomicU64,
    iova: AtomicU64,
    size: AtomicU64,
}

#[repr(C, align(64))]
struct Root {
    /// Odd while the root changes.
    generation: AtomicU64,
    /// Leaves in use.
    count: AtomicU64,
    /// At most the first address of the leaf, above the last of the leaf before.
    firsts: [AtomicU64; LEAVES],
    /// Index of the leaf.
    leaves: [AtomicU64; LEAVES],
}

#[repr(C, align(64))]
struct Leaf {
    /// Odd while the leaf changes.
    generation: AtomicU64,
    /// Rows in use.
    count: AtomicU64,
    reserved: [AtomicU64; 6],
    /// First addresses, ascending.
    starts: [AtomicU64; LEAF_ROWS],
    rows: [RowBody; LEAF_ROWS],
}

#[repr(C)]
struct RowBody {
    size: AtomicU64,
    offset: AtomicU64,
    /// Region in the low half, access in the high half.
    target: AtomicU64,
}

/// A region of one controller: a small integer below [`MAX_REGIONS`], chosen by the frontend. Whoever reads one from
/// a segment or ring looks it up with a bound; the number itself promises nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct RegionId(pub u32);

/// What a device may do with memory, from the device's view: `READ` is a transfer from host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Access(u32);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The device may read.
    pub const READ: Self = Self(1);
    /// The device may write.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(3);

    /// From bits (1 read, 2 write); others are dropped.
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 3)
    }

    /// As bits (1 read, 2 write).
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether everything in `wanted` is allowed.
    #[inline]
    pub const fn contains(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

impl BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRow {
    /// First address.
    pub iova: Iova,
    /// Bytes, not 0.
    pub size: u64,
    /// The memory, or `None` for a mapping without a descriptor: DMA to it fails.
    pub region: Option<RegionId>,
    /// Where in the region the row starts, in bytes.
    pub offset: u64,
    /// What the client allows.
    pub access: Access,
}

impl DmaRow {
    /// The last address of the row.
    fn last(&self) -> u64 {
        self.iova.0.saturating_add(self.size.saturating_sub(1))
    }

    fn words(&self) -> [u64; 4] {
        let region = self.region.map_or(NO_REGION, |region| region.0);
        let target = u64::from(region) | u64::from(self.access.bits()) << 32;
        [self.iova.0, self.size, self.offset, target]
    }

    fn from_words([iova, size, offset, target]: [u64; 4]) -> Self {
        let region = target as u32;
        let region = ((region as usize) < MAX_REGIONS).then_some(RegionId(region));
        let access = Access::from_bits((target >> 32) as u32);
        Self { iova: Iova(iova), size, region, offset, access }
    }
}

/// Why the table could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// The range is empty, wraps around, or names a region that cannot be.
    #[error("dma range {iova}+{size:#x} is invalid")]
    Invalid {
        /// First address.
        iova: Iova,
        /// Bytes.
        size: u64,
    },
    /// Another row covers a part of the range (EEXIST).
    #[error("dma range {iova}+{size:#x} overlaps the mapping at {other}")]
    Overlap {
        /// First address.
        iova: Iova,
        /// Bytes.
        size: u64,
        /// First address of the other row.
        other: Iova,
    },
    /// No row lies there (ENOENT).
    #[error("dma range {iova}+{size:#x} is not mapped")]
    NotMapped {
        /// First address.
        iova: Iova,
        /// Bytes.
        size: u64,
    },
    /// A row lies partly in the range (EINVAL).
    #[error("dma range {iova}+{size:#x} covers a part of the mapping at {other}")]
    Partial {
        /// First address.
        iova: Iova,
        /// Bytes.
        size: u64,
        /// First address of that row.
        other: Iova,
    },
    /// There are [`MAX_ROWS`] rows (ENOSPC).
    #[error("dma table is full")]
    Full,
    /// What stands in the table cannot have been written by a [`DmaWriter`].
    #[error("dma table is corrupt: {0}")]
    Corrupt(&'static str),
}

/// The table did not hold still; to be tried again later. Also what a corrupt table or a writer that died within a
/// change (until its successor is there) looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dma table is being changed")]
pub struct Busy;

impl DmaTable {
    /// The row that covers `iova`. From any process, beside a writer at work; time bounded, whatever the bytes are.
    pub fn lookup(&self, iova: Iova) -> Result<Option<DmaRow>, Busy> {
        for _ in 0..RETRIES {
            if let Some(found) = self.attempt(iova.0) {
                return Ok(found.filter(|row| iova.0.wrapping_sub(row.iova.0) < row.size));
            }
            std::hint::spin_loop();
        }
        Err(Busy)
    }

    /// The last row that starts at or below `iova`, within its leaf; the outer `None` if the table moved.
    #[inline]
    fn attempt(&self, iova: u64) -> Option<Option<DmaRow>> {
        // Acquire: pairs with the Release stores of `edit`; what is read below is at least as new.
        let root_generation = self.root.generation.load(Ordering::Acquire);
        let leaves = bounded(&self.root.count, LEAVES);
        if root_generation & 1 != 0 {
            return None;
        }
        if leaves == 0 {
            fence(Ordering::Acquire);
            let still = self.root.generation.load(Ordering::Relaxed) == root_generation;
            return still.then_some(None);
        }
        let position = upper_bound(&self.root.firsts[..leaves], iova).saturating_sub(1);
        let index = self.root.leaves[position].load(Ordering::Relaxed);
        let leaf = self.leaves.get(usize::try_from(index).ok()?)?;
        // Acquire: as above.
        let leaf_generation = leaf.generation.load(Ordering::Acquire);
        if leaf_generation & 1 != 0 {
            return None;
        }
        let rows = bounded(&leaf.count, LEAF_ROWS);
        let row = upper_bound(&leaf.starts[..rows], iova).checked_sub(1).map(|at| leaf.row(at));
        // Acquire: whoever read a word of a newer change sees that change's generation below.
        fence(Ordering::Acquire);
        let still = leaf.generation.load(Ordering::Relaxed) == leaf_generation
            && self.root.generation.load(Ordering::Relaxed) == root_generation;
        still.then_some(row)
    }
}

impl Leaf {
    /// A copy of the row at `at`, which the caller has bounded by [`LEAF_ROWS`].
    #[inline]
    fn row(&self, at: usize) -> DmaRow {
        let body = &self.rows[at];
        DmaRow::from_words([
            self.starts[at].load(Ordering::Relaxed),
            body.size.load(Ordering::Relaxed),
            body.offset.load(Ordering::Relaxed),
            body.target.load(Ordering::Relaxed),
        ])
    }
}

/// A count from the segment, at most `limit`.
#[inline]
fn bounded(count: &AtomicU64, limit: usize) -> usize {
    count.load(Ordering::Relaxed).min(limit as u64) as usize
}

/// How many of the ascending `keys` are at most `key`; some number up to their length if they do not ascend.
#[inline]
fn upper_bound(keys: &[AtomicU64], key: u64) -> usize {
    let mut base = 0;
    let mut size = keys.len();
    while size > 1 {
        let half = size / 2;
        // No branch: which half it is cannot be predicted.
        base = if keys[base + half].load(Ordering::Relaxed) <= key { base + half } else { base };
        size -= half;
    }
    base + usize::from(size == 1 && keys[base].load(Ordering::Relaxed) <= key)
}
