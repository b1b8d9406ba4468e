//! The journal of the vfio-user message in hand: which step of peek, act, reply, consume it has reached.

use std::sync::atomic::AtomicU64;

/// One page of the controller segment.
#[repr(C, align(4096))]
pub struct JournalPage {
    words: [AtomicU64; 512],
}
