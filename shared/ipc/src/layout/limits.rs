//! The limits segment, one per subsystem: how many commands and bytes a second its namespaces and its controllers may do,
//! and how far each allowance is used up. Every worker of every controller of the subsystem maps it, so that all of them
//! together keep to one limit.
//!
//! A rate is kept by a single number, the time at which all that was let pass so far is paid for: a command moves it on by
//! what it costs at that rate, and goes when it is not ahead of the clock by more than a burst. There is nothing to
//! refill, and nobody who would have to.
//!
//! Rates are written by the frontend alone; the times by workers, and by the frontend when it changes a rate. What was paid
//! at one rate never counts at another: a time begins anew after its rate was written, with a value that it had never
//! before, and a worker moves it on from a value at which it found the rate that it pays by.
//!
//! So whoever waits for one place at a time gets it after those that the others have then, one each, however the steps of
//! all interleave and whoever stalls (`tests`). A worker that dies with a place costs the others what that one is worth.

use super::{Layout, MAX_NAMESPACES, SegmentHeader};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most controllers of one subsystem, by CNTLID - 1.
pub const MAX_CONTROLLERS: usize = 1024;
/// Rates of one row, in the order of [`Rate`].
pub const RATES: usize = 6;

/// What of a rate is saved up while nobody uses it, in nanoseconds: longer than a machine with more threads than cores
/// keeps a worker waiting as a rule, short enough that a second sees a tenth more at most.
pub const BURST: u64 = 100_000_000;

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

impl Rate {
    /// All, by their numbers.
    pub const ALL: [Self; RATES] = [
        Self::Iops,
        Self::ReadIops,
        Self::WriteIops,
        Self::Bandwidth,
        Self::ReadBandwidth,
        Self::WriteBandwidth,
    ];

    /// As the configuration names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::ReadIops => "read_iops",
            Self::WriteIops => "write_iops",
            Self::Bandwidth => "bandwidth",
            Self::ReadBandwidth => "read_bandwidth",
            Self::WriteBandwidth => "write_bandwidth",
        }
    }
}

/// One limit that a command comes under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The controller's; the namespace's if not.
    pub of_controller: bool,
    /// What it is of.
    pub rate: Rate,
}

impl Limit {
    /// As a number of four bits, none of which is 0.
    pub const fn to_bits(self) -> u8 {
        let of_controller = if self.of_controller { RATES as u8 } else { 0 };
        1 + self.rate as u8 + of_controller
    }

    /// From such a number; none for any other.
    pub fn from_bits(bits: u8) -> Option<Self> {
        let index = usize::from(bits).checked_sub(1)?;
        let rate = *Rate::ALL.get(index % RATES)?;
        (index < 2 * RATES).then_some(Self { of_controller: index >= RATES, rate })
    }
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
    const VERSION: u32 = 2;
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
    /// Changes of the rates below; a time below begins with that number after its rate has changed.
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

/// Times that an account is tried to be changed while others change it. Each try that fails is another's that did not.
const TRIES: usize = 64;

impl LimitRow {
    /// Sets the rates; what was used of those that change is forgotten. True if any changed. The frontend then raises
    /// [`LimitsLayout::generation`].
    pub fn set(&self, rates: [u64; RATES]) -> bool {
        let changed = (0..RATES).filter(|&index| self.change(index, rates[index])).count();
        changed > 0
    }

    /// Sets one rate. False if it is the same.
    fn change(&self, index: usize, new: u64) -> bool {
        let rate = &self.rates[index % RATES];
        // Relaxed, both: there is one writer; `forget` orders them.
        if rate.load(Ordering::Relaxed) == new {
            return false;
        }
        rate.store(new, Ordering::Relaxed);
        self.forget(index);
        true
    }

    /// Has the time of a rate that was just written begin anew.
    fn forget(&self, index: usize) {
        let number = self.generation.load(Ordering::Relaxed).wrapping_add(1);
        // Release: pairs with the Acquire in `look`; whoever sees the new time sees the new rate.
        self.due.0[index % RATES].store(number, Ordering::Release);
        // Release: pairs with the Acquire in `load`; whoever sees the number pays at the new time.
        self.generation.store(number, Ordering::Release);
    }

    /// The rates, and the number of the last change that is complete: a rate may be that of a change to come, and places
    /// that are taken by it then are to be taken again under the next number.
    pub fn load(&self) -> (u64, [u64; RATES]) {
        // Acquire: pairs with the Release in `forget`.
        let generation = self.generation.load(Ordering::Acquire);
        let rate = |index: usize| self.rates[index % RATES].load(Ordering::Relaxed);
        (generation, std::array::from_fn(rate))
    }

    /// Takes a place at `rate`, which moves its account on by `price` nanoseconds, from `now` at the earliest. Returns
    /// the time that the account stood at. `None` if the rate is another one by now: nothing was taken then.
    pub fn take(&self, index: usize, rate: u64, price: u64, now: u64) -> Option<u64> {
        for _ in 0..TRIES {
            let before = self.look(index, rate)?;
            let place = before.max(now);
            if self.advance(index, before, place.wrapping_add(price)) {
                return Some(place);
            }
        }
        // In two steps, which need no luck: what others add in between lies on top, as if they had come before.
        let due = &self.due.0[index % RATES];
        due.fetch_max(now, Ordering::Relaxed);
        Some(due.fetch_add(price, Ordering::Relaxed))
    }

    /// Gives a place back. Nothing happens if the rate is another one by now, which has forgotten it; what cannot be given
    /// back for others' hurry is lost.
    pub fn give_back(&self, index: usize, rate: u64, price: u64) {
        for _ in 0..TRIES {
            let Some(before) = self.look(index, rate) else { return };
            if self.advance(index, before, before.saturating_sub(price)) {
                return;
            }
        }
    }

    /// The time that an account stands at, if that is one of `rate`.
    fn look(&self, index: usize, rate: u64) -> Option<u64> {
        // Acquire: pairs with the Release in `forget`.
        let time = self.due.0[index % RATES].load(Ordering::Acquire);
        (self.rates[index % RATES].load(Ordering::Relaxed) == rate).then_some(time)
    }

    /// Moves an account on from where it was seen. False if it stands elsewhere by now.
    fn advance(&self, index: usize, from: u64, to: u64) -> bool {
        let due = &self.due.0[index % RATES];
        // Relaxed: each account is one number, and says nothing of other memory. A change of its rate in between has
        // given it another value.
        due.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests;
