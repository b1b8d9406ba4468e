//! The limits segment, one per subsystem: how many commands and bytes a second its namespaces and its controllers may do,
//! and how far each allowance is used up. Every worker of every controller of the subsystem maps it, so that all of them
//! together keep to one limit.
//!
//! A rate is kept by a single number, the time at which all that was let pass so far is paid for: a command moves it on by
//! what it costs at that rate, and goes when it is not ahead of the clock by more than a burst. There is nothing to
//! refill, and nobody who would have to.
//!
//! Rates are written by the frontend alone; the times by workers, and by the frontend when it changes a rate.

use super::{Layout, MAX_NAMESPACES, SegmentHeader};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most controllers of one subsystem, by CNTLID - 1.
pub const MAX_CONTROLLERS: usize = 1024;
/// Rates of one row, in the order of [`Rate`].
pub const RATES: usize = 6;

/// What a rate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Rate {
    /// Commands a second.
    Iops = 0,
    /// Commands a second that read.
    ReadIops = 1,
    /// Commands a second that write.
    WriteIops = 2,
    /// Bytes a second.
    Bandwidth = 3,
    /// Bytes a second that are read.
    ReadBandwidth = 4,
    /// Bytes a second that are written.
    WriteBandwidth = 5,
}

/// The limits segment.
#[repr(C)]
pub struct LimitsLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// Raised (Release) after any row changed.
    pub generation: LimitsGeneration,
    /// Namespaces by NSID - 1.
    pub namespaces: [LimitRow; MAX_NAMESPACES],
    /// Controllers by CNTLID - 1.
    pub controllers: [LimitRow; MAX_CONTROLLERS],
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for LimitsLayout {
    const KIND: u32 = u32::from_le_bytes(*b"LIMT");
    const VERSION: u32 = 1;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}

/// A number on a line of its own.
#[repr(C, align(64))]
pub struct LimitsGeneration(pub AtomicU64);

/// The limits of one namespace or controller.
#[repr(C, align(64))]
pub struct LimitRow {
    /// Raised (Release) by every change of the rates below.
    pub generation: AtomicU64,
    /// By [`Rate`]: commands or bytes a second, 0 for no limit.
    pub rates: [AtomicU64; RATES],
    /// How far each rate is used up.
    pub due: DueTimes,
}

/// By [`Rate`]: nanoseconds of CLOCK_MONOTONIC at which all that was let pass is paid for.
#[repr(C, align(64))]
pub struct DueTimes(pub [AtomicU64; RATES]);

const _: () = assert!(size_of::<LimitRow>() == 128);

impl LimitRow {
    /// Sets the rates; what was used of those that change is forgotten. True if any changed. The frontend then raises
    /// [`LimitsLayout::generation`].
    pub fn set(&self, rates: [u64; RATES]) -> bool {
        let mut changed = false;
        for ((rate, due), new) in self.rates.iter().zip(&self.due.0).zip(rates) {
            // Relaxed: there is one writer of rates, and a worker that sees an older one beside a newer time lets one
            // command more pass, or less.
            if rate.load(Ordering::Relaxed) != new {
                due.store(0, Ordering::Relaxed);
                rate.store(new, Ordering::Relaxed);
                changed = true;
            }
        }
        if changed {
            // Release: pairs with the Acquire in `load`; whoever sees the number sees the rates.
            self.generation.fetch_add(1, Ordering::Release);
        }
        changed
    }

    /// The rates, with the number of their last change.
    pub fn load(&self) -> (u64, [u64; RATES]) {
        // Acquire: pairs with the Release in `set`.
        let generation = self.generation.load(Ordering::Acquire);
        let rate = |index: usize| self.rates[index % RATES].load(Ordering::Relaxed);
        (generation, std::array::from_fn(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segment;

    #[test]
    fn a_rate_that_changes_begins_anew_and_others_go_on() {
        let segment = Segment::<LimitsLayout>::create("limits", 1).unwrap();
        let row = &segment.namespaces[3];
        assert_eq!(row.load(), (0, [0; RATES]));
        assert!(row.set([100, 0, 0, 4096, 0, 0]));
        row.due.0[Rate::Iops as usize].store(7, Ordering::Relaxed);
        row.due.0[Rate::Bandwidth as usize].store(8, Ordering::Relaxed);
        assert!(!row.set([100, 0, 0, 4096, 0, 0]), "nothing changes");
        assert!(row.set([200, 0, 0, 4096, 0, 0]));
        assert_eq!(row.load(), (2, [200, 0, 0, 4096, 0, 0]));
        let due = |rate: Rate| row.due.0[rate as usize].load(Ordering::Relaxed);
        assert_eq!((due(Rate::Iops), due(Rate::Bandwidth)), (0, 8));
    }
}
