//! The lease of a drive's queue pair: made by the backend that has the drive, mapped by it and by the worker that uses the
//! queue pair. Beside it go the queues' own memory and the doorbells.
//!
//! Each word has one writer, said at its structure. Nothing in it is believed further than its reader checks.

use super::{Layout, MAX_REGIONS, SegmentHeader};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// The lease segment.
#[repr(C)]
pub struct DriveLeaseLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// Set before the segment is handed over, never changed.
    pub terms: DriveTerms,
    /// The backend's.
    pub lender: LenderWords,
    /// The worker's.
    pub holder: HolderWords,
    /// Where the drive reaches the client's memory, by region id; written by the backend.
    pub regions: [DriveRegion; MAX_REGIONS],
}

/// Queue pair and namespace. Offsets, lengths and sizes are bytes.
#[repr(C, align(128))]
pub struct DriveTerms {
    /// Queue Identifier.
    pub qid: AtomicU64,
    /// Commands outstanding at a time.
    pub depth: AtomicU64,
    /// Entries of the completion queue.
    pub cq_size: AtomicU64,
    /// Where the completion queue lies in the queues' memory, which begins with the submission queue.
    pub cq_at: AtomicU64,
    /// Where the PRP lists lie in it.
    pub lists_at: AtomicU64,
    /// Where a page of zeroes lies in it, and buffers after that.
    pub room_at: AtomicU64,
    /// Base two logarithm of a memory page (CC.MPS).
    pub page_shift: AtomicU64,
    /// First address of the queues' memory in the drive's address space.
    pub iova: AtomicU64,
    /// Doorbell Stride (CAP.DSTRD).
    pub dstrd: AtomicU64,
    /// The doorbells' first byte: its offset in BAR0.
    pub doorbells_first: AtomicU64,
    /// The same in the doorbells' descriptor.
    pub doorbells_at: AtomicU64,
    /// Their bytes.
    pub doorbells_len: AtomicU64,
    /// Bytes of a buffer.
    pub buffer_len: AtomicU64,
    /// Buffers.
    pub buffers: AtomicU64,
    /// [`drive_flags`].
    pub flags: AtomicU64,
    /// Namespace Identifier.
    pub nsid: AtomicU64,
    /// Base two logarithm of a logical block.
    pub block_shift: AtomicU64,
    /// Size of the namespace.
    pub size: AtomicU64,
    /// Most data of one command.
    pub data_max: AtomicU64,
    /// No command crosses a multiple of this; 0 for none.
    pub boundary: AtomicU64,
    /// Most of one Write Zeroes; 0 if there is none.
    pub zeroes_max: AtomicU64,
    /// Most of one Verify; 0 if there is none.
    pub verify_max: AtomicU64,
    /// Nanoseconds before a command is sent again, by CRD.
    pub delays: [AtomicU64; 4],
}

/// Bits of [`DriveTerms::flags`].
pub mod drive_flags {
    /// The namespace may be written.
    pub const WRITABLE: u64 = 1;
    /// Write Zeroes may give the space back.
    pub const ZEROES_DEALLOCATE: u64 = 2;
    /// The drive compares.
    pub const COMPARE: u64 = 4;
    /// There is a cache to be flushed.
    pub const VOLATILE_CACHE: u64 = 8;
    /// The doorbells' descriptor is a VFIO device; otherwise it is a memory object.
    pub const DEVICE_DOORBELLS: u64 = 16;
    /// A descriptor of shadow doorbells goes along.
    pub const SHADOW: u64 = 32;
    /// A descriptor of an event goes along, which completions signal while [`super::LenderWords::interrupts`] says so.
    pub const EVENT: u64 = 64;
}

/// What the backend says.
#[repr(C, align(128))]
pub struct LenderWords {
    /// How often the queues were taken away, times 4, and one of [`lease_state`].
    pub state: AtomicU32,
    /// Not 0: something must not be disturbed by writes of the holder, which go by the ring meanwhile.
    pub exclusive: AtomicU32,
    /// Not 0: completions signal the lease's event.
    pub interrupts: AtomicU32,
}

/// Low two bits of [`LenderWords::state`].
pub mod lease_state {
    /// The queue pair may be used.
    pub const UP: u32 = 0;
    /// It may not be touched: the drive was reset, or is about to be lost. It comes up again, or is over.
    pub const DOWN: u32 = 1;
    /// The lease is over: the drive does nothing of it any more.
    pub const OVER: u32 = 2;
    /// The state of a word.
    pub const MASK: u32 = 3;
    /// What a word grows by from one time to the next.
    pub const STEP: u32 = 4;
}

/// What the worker says.
#[repr(C, align(128))]
pub struct HolderWords {
    /// The last [`LenderWords::state`] that was DOWN or OVER and that it obeys; [`u32::MAX`] when it has let go of the
    /// lease.
    pub obeyed: AtomicU32,
    /// Not 0 while commands are outstanding.
    pub busy: AtomicU32,
    /// Not 0 while commands that change the device are outstanding.
    pub writes: AtomicU32,
    /// A command identifier plus 1 that is to be aborted; the backend sets it to 0 again.
    pub abort: AtomicU32,
    /// Not 0: commands are not answered though aborted; the backend sets it to 0 again.
    pub hang: AtomicU32,
    /// How often it slept while commands were outstanding, times 2, and 1 more while it does: whoever sleeps wants
    /// interrupts, whom nobody listens to otherwise.
    pub sleeps: AtomicU32,
}

/// Where a region is in the drive's address space.
#[repr(C)]
pub struct DriveRegion {
    /// [`region_place`], or its first address. Written to 0 first and to its value last.
    pub place: AtomicU64,
    /// Device and inode of the memory object.
    pub key: [AtomicU64; 2],
}

/// Values of [`DriveRegion::place`] that are no addresses.
pub mod region_place {
    /// Not known yet.
    pub const UNKNOWN: u64 = 0;
    /// Out of the drive's reach.
    pub const BEYOND: u64 = 1;
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for DriveLeaseLayout {
    const KIND: u32 = u32::from_le_bytes(*b"DRVL");
    const VERSION: u32 = 2;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}
