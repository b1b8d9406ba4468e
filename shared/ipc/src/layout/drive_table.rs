//! What a backend's successor must know of a physical drive that it takes over: kept by the keeper beside the drive's
//! descriptors, mapped by the backend alone, never by a worker.
//!
//! Each change is one word that is stored last, so that the backend may die between any two: what stands here then is at
//! most behind what was done, in the direction said at the word.

use super::{Layout, SegmentHeader};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Most I/O queue pairs of a drive that are noted.
pub const MAX_DRIVE_QUEUES: usize = 128;

/// The drive table.
#[repr(C)]
pub struct DriveTableLayout {
    /// Kind, version, owner; the epoch is raised by each successor.
    pub header: SegmentHeader,
    /// Which drive, and what is mapped.
    pub space: DriveSpace,
    /// Who has which queue pair, by its identifier less 1.
    pub queues: [DriveQueue; MAX_DRIVE_QUEUES],
}

/// The drive and its address space. Addresses and lengths are bytes.
#[repr(C, align(64))]
pub struct DriveSpace {
    /// The PCI function: domain times 65,536, bus times 256, device times 8, function. Set before the table is kept.
    pub address: AtomicU64,
    /// All that is mapped lies from the first up to the second. Set before the table is kept.
    pub window: [AtomicU64; 2],
    /// So much is mapped at least: raised after memory was mapped, lowered before it is unmapped.
    pub mapped: AtomicU64,
}

/// Who has a queue pair.
#[repr(C)]
pub struct DriveQueue {
    /// [`queue_user`]. Stored last when it becomes a worker's, and before anybody else may have the identifier.
    pub user: AtomicU32,
    /// The worker's process.
    pub pid: AtomicU32,
    /// When that started, in the kernel's ticks since the machine did: process ids are used again. 0: not known.
    pub started: AtomicU64,
}

/// Values of [`DriveQueue::user`].
pub mod queue_user {
    /// Nobody.
    pub const FREE: u32 = 0;
    /// The backend itself: free when that is dead.
    pub const BACKEND: u32 = 1;
    /// A worker, which may ring its doorbells until it says that it does not, or is dead.
    pub const WORKER: u32 = 2;
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for DriveTableLayout {
    const KIND: u32 = u32::from_le_bytes(*b"DRVT");
    const VERSION: u32 = 1;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}
