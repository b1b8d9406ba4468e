//! The channel segment: one worker's ring of requests to a backend and the ring of completions back, with a list of
//! memory ranges for each request that needs more than the two in its entry. Made by the backend, mapped by both.
//!
//! What the words of an entry mean is said here; `bdev::ring` writes and checks them. A list belongs to the request
//! that has its slot number, and is written before the entry is published. Memory of lists is touched only when a
//! request is long enough to need it; slots are used last in, first out.

use super::{Layout, SegmentHeader};
use crate::ring::{RingControl, RingEntry, RingView};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Most requests that one channel has outstanding.
pub const MAX_CHANNEL_DEPTH: usize = 256;
/// Most memory ranges of one request: 4 MiB of scattered 4-KiB pages and a misaligned start; and not a multiple of a
/// page in bytes, so that the lists' first lines do not all fall into one set of the cache.
pub const MAX_REQUEST_RANGES: usize = 1028;
/// Memory ranges that an entry itself holds.
pub const INLINE_RANGES: usize = 2;
/// Words of a submission entry. Word 0: operation in bits 0 to 7, [`entry_flags`] in bits 8 to 15, number of ranges in
/// bits 16 to 31, slot in bits 32 to 63. Word 1: device offset in bytes. Word 2: length in bytes. Word 3: trace id.
/// Words 4 to 7: two ranges of two words (word 4 is the source offset of a Copy, which has no ranges). A range's first
/// word: region id in bits 0 to 31, length in bits 32 to 63; its second word: offset in the region.
pub const SUBMISSION_WORDS: usize = 8;
/// Words of a completion entry. Word 0: slot. Word 1: outcome code, 0 for success.
pub const COMPLETION_WORDS: usize = 2;

/// Bits of a submission entry's flags.
pub mod entry_flags {
    /// Force unit access.
    pub const FUA: u8 = 1;
    /// Write zeroes may deallocate.
    pub const DEALLOCATE: u8 = 2;
    /// The ranges stand in the slot's list, not in the entry.
    pub const LIST: u8 = 4;
}

/// The channel segment.
#[repr(C)]
pub struct ChannelLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// Entries in use of each ring; a power of two. Set by the backend before it hands the segment over; each side
    /// reads it once.
    pub depth: AtomicU32,
    /// Not 0 once the backend may grant a lease in place of this ring, which it could not when it was asked. Set by the
    /// backend; the worker then asks for another channel, and closes this one when nothing is outstanding.
    pub superseded: AtomicU32,
    submission_control: RingControl,
    completion_control: RingControl,
    submissions: [RingEntry<SUBMISSION_WORDS>; MAX_CHANNEL_DEPTH],
    completions: [RingEntry<COMPLETION_WORDS>; MAX_CHANNEL_DEPTH],
    lists: [RangeList; MAX_CHANNEL_DEPTH],
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for ChannelLayout {
    const KIND: u32 = u32::from_le_bytes(*b"CHAN");
    const VERSION: u32 = 1;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}

impl ChannelLayout {
    /// The ring of requests; `None` for a depth that is no power of two or past the maximum.
    #[inline]
    pub fn submissions(&self, depth: usize) -> Option<RingView<'_, SUBMISSION_WORDS>> {
        RingView::new(&self.submission_control, &self.submissions, depth)
    }

    /// The ring of completions; `None` as above.
    #[inline]
    pub fn completions(&self, depth: usize) -> Option<RingView<'_, COMPLETION_WORDS>> {
        RingView::new(&self.completion_control, &self.completions, depth)
    }

    /// The list of a slot; `None` for a slot that does not exist.
    #[inline]
    pub fn list(&self, slot: usize) -> Option<&RangeList> {
        self.lists.get(slot)
    }
}

/// Memory ranges of one request, two words each.
#[repr(C, align(64))]
pub struct RangeList(pub [[AtomicU64; 2]; MAX_REQUEST_RANGES]);

const _: () = assert!(!size_of::<RangeList>().is_multiple_of(4096));
const _: () = assert!(MAX_CHANNEL_DEPTH.is_power_of_two());
