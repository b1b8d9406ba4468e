//! The log of unmapped ranges, from the reader's side.

use crate::iova::Iova;
use crate::layout::controller::{ControllerLayout, UNMAP_LOG};
use std::sync::atomic::{Ordering, fence};

/// What [`unmaps_since`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmaps {
    /// Every range up to this `dma_version` was reported.
    Known(u64),
    /// Some records are gone: up to this `dma_version`, anything may have been unmapped.
    Everything(u64),
}

/// Reports the ranges (first address, bytes) that were unmapped after the version `seen`, oldest first.
/// `(Iova(0), u64::MAX)` is the whole address space.
///
/// On [`Unmaps::Everything`] the ranges that were reported are to be ignored. The time is bounded by the log's length.
pub fn unmaps_since(
    layout: &ControllerLayout,
    seen: u64,
    report: &mut impl FnMut(Iova, u64),
) -> Unmaps {
    // Acquire: pairs with the Release in `DmaWriter`; the records up to this version are written.
    let version = layout.signals.dma_version.load(Ordering::Acquire);
    let behind = version.wrapping_sub(seen);
    // The writer fills the next record before it raises the version: one record fewer is safe to read.
    let safe = UNMAP_LOG as u64 - 1;
    if behind > safe {
        return Unmaps::Everything(version);
    }
    for number in 1..=behind {
        let record = &layout.unmaps[(seen.wrapping_add(number) % UNMAP_LOG as u64) as usize];
        report(Iova(record.iova.load(Ordering::Relaxed)), record.size.load(Ordering::Relaxed));
    }
    // Acquire: whoever read a word of a newer record sees a version that tells so.
    fence(Ordering::Acquire);
    let now = layout.signals.dma_version.load(Ordering::Relaxed);
    if now.wrapping_sub(seen) > safe { Unmaps::Everything(now) } else { Unmaps::Known(version) }
}
