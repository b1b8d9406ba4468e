//! The in-flight log: a slot of the queues segment for each command, and what only this process knows of it. On the
//! hot path.
//!
//! Free slots are used last in, first out, so that a shallow queue stays in a few cache lines. The segment is written,
//! never read back for a decision, except for the copy of a command that had to wait: its own log entry.

use bdev::request::Op;
use ipc::iova::Iova;
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::queues::{InFlightSlot, SlotState};
use nvme_spec::command::Command;
use std::sync::atomic::Ordering;

/// Pieces of guest memory that are told apart for one command; a command with more is taken to touch what lies between
/// its last ones as well, which makes an unmap wait for it needlessly, never too short.
const EXTENTS: usize = 4;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request.
    Single,
    /// The first of a fused pair; the second is in that slot.
    Fused(u16),
    /// Several requests, which that entry of the pool holds.
    Steps(u16),
    /// Its queue is gone (reset, failure): the outcome is dropped.
    Orphan,
}

/// What this process knows of a command in flight beside its log entry.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    /// Submission queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Row of the namespace table.
    pub namespace: u16,
    /// Place in the list of submitted commands.
    place: u16,
    /// What becomes of it.
    pub kind: Kind,
    /// What was asked of the block device.
    pub op: Op,
    /// Bytes of data.
    pub bytes: u32,
    /// Time of the first attempt, if it waits.
    pub since: u64,
    /// Not 0: the first unmap that touches its memory.
    pub unmap_version: u64,
    extents: [(u64, u64); EXTENTS],
    extent_count: u8,
}

impl Flight {
    const NONE: Self = Self {
        sqid: 0,
        cid: 0,
        namespace: 0,
        place: 0,
        kind: Kind::Orphan,
        op: Op::Flush,
        bytes: 0,
        since: 0,
        unmap_version: 0,
        extents: [(0, 0); EXTENTS],
        extent_count: 0,
    };

    /// A command that is taken up now.
    pub fn new(sqid: u16, cid: u16, namespace: u16, kind: Kind) -> Self {
        Self { sqid, cid, namespace, kind, ..Self::NONE }
    }

    /// Remembers the guest memory that the command's requests touch.
    pub fn touch(&mut self, ranges: impl Iterator<Item = (Iova, u32)>) {
        self.extent_count = 0;
        for (iova, length) in ranges {
            let last = iova.0.saturating_add(u64::from(length).saturating_sub(1));
            match self.extents.get_mut(usize::from(self.extent_count)) {
                Some(free) => {
                    *free = (iova.0, last);
                    self.extent_count += 1;
                }
                None => {
                    let span = &mut self.extents[EXTENTS - 1];
                    *span = (span.0.min(iova.0), span.1.max(last));
                }
            }
        }
    }

    /// Whether the command touches any of the `size` bytes at `iova`.
    pub fn touches(&self, iova: Iova, size: u64) -> bool {
        let last = iova.0.saturating_add(size.saturating_sub(1));
        let extents = &self.extents[..usize::from(self.extent_count).min(EXTENTS)];
        size > 0 && extents.iter().any(|&(from, to)| from <= last && iova.0 <= to)
    }
}

/// Slots of one controller on this worker.
pub struct Slots {
    free: Box<[u16]>,
    free_count: usize,
    flights: Box<[Flight]>,
    submitted: Vec<u16>,
}

impl Slots {
    /// All free.
    pub fn new() -> Self {
        Self {
            // The top of the stack is slot 0.
            free: (0..MAX_IN_FLIGHT as u16).rev().collect(),
            free_count: MAX_IN_FLIGHT,
            flights: vec![Flight::NONE; MAX_IN_FLIGHT].into_boxed_slice(),
            submitted: Vec::with_capacity(MAX_IN_FLIGHT),
        }
    }

    /// Slots that are free.
    #[inline]
    pub fn free_count(&self) -> usize {
        self.free_count
    }

    /// Takes a free slot.
    #[inline]
    pub fn take(&mut self) -> Option<u16> {
        let top = self.free_count.checked_sub(1)?;
        let slot = *self.free.get(top)?;
        self.free_count = top;
        Some(slot)
    }

    /// Gives a slot back.
    #[inline]
    pub fn give(&mut self, slot: u16) {
        debug_assert!(self.free_count < MAX_IN_FLIGHT, "a slot is given back twice");
        if let Some(top) = self.free.get_mut(self.free_count) {
            *top = slot;
            self.free_count += 1;
        }
    }

    /// What is known of a command in flight.
    pub fn flight(&self, slot: u16) -> &Flight {
        &self.flights[usize::from(slot) % MAX_IN_FLIGHT]
    }

    /// The same, to be changed.
    pub fn flight_mut(&mut self, slot: u16) -> &mut Flight {
        &mut self.flights[usize::from(slot) % MAX_IN_FLIGHT]
    }

    /// A block device has a request of this command from now on.
    pub fn submit(&mut self, slot: u16) {
        let place = self.submitted.len() as u16;
        self.flight_mut(slot).place = place;
        self.submitted.push(slot);
    }

    /// The block device is done with it. False if it had no such request: a channel that reports twice, or makes tags
    /// up.
    pub fn retire(&mut self, tag: u32) -> Option<u16> {
        let slot = u16::try_from(tag).ok().filter(|&slot| usize::from(slot) < MAX_IN_FLIGHT)?;
        let place = usize::from(self.flight(slot).place);
        if self.submitted.get(place) != Some(&slot) {
            return None;
        }
        self.submitted.swap_remove(place);
        if let Some(&moved) = self.submitted.get(place) {
            self.flight_mut(moved).place = place as u16;
        }
        Some(slot)
    }

    /// Commands of which a block device has a request.
    pub fn submitted(&self) -> &[u16] {
        &self.submitted
    }
}

/// Logs a command: not in effect before the head that passed it is published. The completion queue is part of the later
/// note, and known already.
#[inline(always)]
pub fn log(slot: &InFlightSlot, words: &[u64; 8], fetch: u64, command: u32, cqid: usize) {
    for (to, &word) in slot.sqe.iter().zip(words) {
        to.store(word, Ordering::Relaxed);
    }
    slot.fetch.store(fetch, Ordering::Relaxed);
    slot.command.store(command, Ordering::Relaxed);
    slot.group.store((cqid as u32) << 16, Ordering::Relaxed);
    // Release: whoever reads this state sees the command.
    slot.state.store(SlotState::Logged as u32, Ordering::Release);
}

/// The command of a log entry of our own.
pub fn logged(slot: &InFlightSlot) -> Command {
    Command::from_words(std::array::from_fn(|word| slot.sqe[word].load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_last_in_first_out() {
        let mut slots = Slots::new();
        let first = slots.take().unwrap();
        let second = slots.take().unwrap();
        assert_ne!(first, second);
        slots.give(first);
        assert_eq!(slots.take(), Some(first));
        for _ in 2..MAX_IN_FLIGHT {
            assert!(slots.take().is_some());
        }
        assert_eq!(slots.take(), None);
    }

    #[test]
    fn tags_that_are_not_in_flight_are_refused() {
        let mut slots = Slots::new();
        let (a, b) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!(slots.retire(u32::from(a)), None);
        slots.submit(a);
        slots.submit(b);
        assert_eq!(slots.retire(u32::from(a)), Some(a));
        assert_eq!(slots.retire(u32::from(a)), None);
        assert_eq!(slots.retire(u32::MAX), None);
        assert_eq!(slots.retire(u32::from(b)), Some(b));
        assert!(slots.submitted().is_empty());
    }

    #[test]
    fn touched_memory_is_never_forgotten() {
        let mut flight = Flight::new(1, 1, 0, Kind::Single);
        let pages: Vec<u64> = (0..20).map(|page| page * 0x10_000).collect();
        flight.touch(pages.iter().map(|&page| (Iova(page), 4096)));
        for &page in &pages {
            assert!(flight.touches(Iova(page + 4095), 1));
            assert!(flight.touches(Iova(0), u64::MAX));
        }
        assert!(!flight.touches(Iova(4096), 4096), "the first extents are exact");
        assert!(!flight.touches(Iova(0), 0));
        flight.touch(std::iter::empty());
        assert!(!flight.touches(Iova(0), u64::MAX));
    }
}
