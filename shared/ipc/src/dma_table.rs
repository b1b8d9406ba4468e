//! Guest addresses to regions, in the controller segment.

use std::sync::atomic::AtomicU64;

/// The table; one writer, many readers.
#[repr(C, align(64))]
pub struct DmaTable {
    generation: AtomicU64,
}
