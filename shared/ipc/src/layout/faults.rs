//! The faults segment, one per host: what the rules for injected faults count. Made by the manager; workers add to it.

use super::{Layout, SegmentHeader};
use std::sync::atomic::AtomicU64;

/// Most rules of a host.
pub const MAX_FAULTS: usize = 64;

/// The faults segment.
#[repr(C)]
pub struct FaultsLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// What each rule counts. Several workers add, so additions are atomic.
    pub rules: [FaultCounters; MAX_FAULTS],
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for FaultsLayout {
    const KIND: u32 = u32::from_le_bytes(*b"FALT");
    const VERSION: u32 = 1;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}

/// What one rule counts.
#[repr(C, align(64))]
pub struct FaultCounters {
    /// Requests that the rule is about.
    pub seen: AtomicU64,
    /// Of these, requests that it hit.
    pub hit: AtomicU64,
}
