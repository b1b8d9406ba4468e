//! Layouts of the segments: `#[repr(C)]` structures of atomics, versioned, the same in every process.

#[cfg(not(loom))]
pub mod channel;
pub mod controller;
#[cfg(not(loom))]
pub mod drive_lease;
pub mod drive_table;
pub mod faults;
pub mod latency;
#[cfg(not(loom))]
pub mod limits;
pub mod queues;
#[cfg(not(loom))]
pub mod telemetry;

use std::sync::atomic::{AtomicU32, AtomicU64};

/// Most queue pairs of one controller, the admin queue included (queue identifiers 0 to 127).
pub const MAX_QUEUES: usize = 128;
/// Most entries of one I/O queue (CAP.MQES + 1).
pub const MAX_QUEUE_ENTRIES: u32 = 4096;
/// Most namespaces of one subsystem; a namespace's table index is its NSID - 1.
pub const MAX_NAMESPACES: usize = 256;
/// Most distinct memory objects (memfds) of one client; far above what a machine's memory layout needs.
pub const MAX_REGIONS: usize = 512;
/// Most MSI-X vectors of one controller (128 work with every known guest; 512 break Windows).
pub const MAX_VECTORS: usize = 128;
/// Most commands that one worker has in flight for one controller; further ones stay in their submission queue.
pub const MAX_IN_FLIGHT: usize = 4096;

/// The first 64 bytes of every segment.
#[repr(C, align(64))]
pub struct SegmentHeader {
    /// [`SegmentHeader::MAGIC`].
    pub magic: AtomicU64,
    /// Which layout follows, [`Layout::KIND`].
    pub kind: AtomicU32,
    /// The layout's version, [`Layout::VERSION`].
    pub version: AtomicU32,
    /// Bytes of the whole segment.
    pub size: AtomicU64,
    /// The owner's epoch: raised when a successor takes over, after the predecessor's death is proven.
    pub epoch: AtomicU64,
    /// The object that the segment belongs to, low and high half of a random 128-bit id.
    pub id: [AtomicU64; 2],
}

impl SegmentHeader {
    /// "VIREOSEG" read as a little-endian integer.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"VIREOSEG");
}

/// A structure that may lie in a segment.
///
/// # Safety
/// The type is `#[repr(C)]`, starts with a [`SegmentHeader`], consists of atomics (and arrays and structures of them)
/// alone, so that every bit pattern is a valid value and zero is the initial one.
pub unsafe trait Layout: Sized + Send + Sync {
    /// Tells layouts apart; four ASCII letters.
    const KIND: u32;
    /// Raised whenever the layout changes; a reader refuses any other.
    const VERSION: u32;
    /// The header, which every layout starts with.
    fn header(&self) -> &SegmentHeader;
}

/// Text of at most `8 * WORDS` bytes of UTF-8 in a segment, zero-filled.
#[repr(C)]
pub struct SharedText<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> SharedText<WORDS> {
    /// Stores `text`, cut at the capacity. The writer orders it by a later Release store of its own.
    pub fn store(&self, text: &str) {
        let mut bytes = text.bytes();
        for word in &self.0 {
            let chunk: [u8; 8] = std::array::from_fn(|_| bytes.next().unwrap_or(0));
            word.store(u64::from_le_bytes(chunk), std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// A copy of the text; bytes that are no UTF-8 are replaced.
    pub fn load(&self) -> String {
        let bytes: Vec<u8> = self
            .0
            .iter()
            .flat_map(|word| word.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes())
            .take_while(|&byte| byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
