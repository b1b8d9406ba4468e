//! The in-flight log: a slot of the queues segment for each command, and what only this process knows of it. On the
//! hot path.
//!
//! Free slots are used last in, first out, so that a shallow queue stays in a few cache lines. The segment is written,
//! never read back for a decision, except for the copy of a command that had to wait: its own log entry.

use bdev::request::Op;
use ipc::guest_memory::Line;
use ipc::iova::Iova;
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::queues::{InFlightSlot, SlotState};
use nvme_spec::command::Command;
use std::collections::VecDeque;
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
    /// Time of the first attempt, if it waits; of one without a record that waited, when a block device got it.
    pub since: u64,
    /// Reactor's time at which a block device got it, or of the first attempt if it waited; 0 if that is not known.
    pub started: u64,
    /// Low half of its trace id if it has a record of its stages, else 0.
    pub trace: u64,
    /// Not 0: the first unmap that touches its memory.
    pub unmap_version: u64,
    /// It was sent on before, to a backend that died.
    pub again: bool,
    /// A version of the controller segment is acknowledged when it has ended ([`Slots::hold`]).
    held: bool,
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
        started: 0,
        trace: 0,
        unmap_version: 0,
        again: false,
        held: false,
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
    /// Orphans among the submitted.
    orphans: usize,
    /// Held commands among the submitted.
    held: usize,
    /// Commands that an unmap touched, and its version, oldest first. Of some of them that have ended since.
    unmapped: VecDeque<(u16, u64)>,
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
            orphans: 0,
            held: 0,
            unmapped: VecDeque::new(),
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
        debug_assert_ne!(
            self.flight(slot).kind,
            Kind::Orphan,
            "a command without a queue is submitted"
        );
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
        let flight = self.flight(slot);
        if flight.held || flight.kind == Kind::Orphan {
            self.forget(slot);
        }
        Some(slot)
    }

    #[cold]
    fn forget(&mut self, slot: u16) {
        let flight = self.flight_mut(slot);
        let held = std::mem::take(&mut flight.held);
        let orphan = flight.kind == Kind::Orphan;
        self.held -= usize::from(held);
        self.orphans -= usize::from(orphan);
    }

    /// The queues of all submitted commands are gone.
    pub fn orphan(&mut self) {
        self.orphans = self.submitted.len();
        for index in 0..self.submitted.len() {
            let slot = self.submitted[index];
            self.flight_mut(slot).kind = Kind::Orphan;
        }
    }

    /// Submitted commands whose queues are gone.
    pub fn orphans(&self) -> usize {
        self.orphans
    }

    /// Notes which of the submitted commands something waits for, in place of those that were noted before.
    pub fn hold(&mut self, wanted: impl Fn(&Flight) -> bool) {
        self.held = 0;
        for index in 0..self.submitted.len() {
            let flight = self.flight_mut(self.submitted[index]);
            flight.held = wanted(flight);
            self.held += usize::from(flight.held);
        }
    }

    /// Submitted commands that something waits for.
    pub fn held(&self) -> usize {
        self.held
    }

    /// An unmap of this version touches these bytes. Versions never fall.
    pub fn unmap(&mut self, iova: Iova, size: u64, version: u64) {
        for index in 0..self.submitted.len() {
            let slot = self.submitted[index];
            let flight = self.flight_mut(slot);
            if flight.unmap_version == 0 && flight.touches(iova, size) {
                flight.unmap_version = version;
                self.unmapped.push_back((slot, version));
            }
        }
        if self.unmapped.len() > 2 * MAX_IN_FLIGHT {
            // Behind one that does not end, most have.
            let mut marked = std::mem::take(&mut self.unmapped);
            marked.retain(|mark| self.is_unmapped(mark));
            self.unmapped = marked;
        }
    }

    /// Version of the oldest unmap that touches a submitted command.
    pub fn oldest_unmap(&mut self) -> Option<u64> {
        while let Some(mark) = self.unmapped.front() {
            if self.is_unmapped(mark) {
                return Some(mark.1);
            }
            self.unmapped.pop_front();
        }
        None
    }

    /// Whether a mark is that of a command which is still submitted: another one in its slot has another version.
    fn is_unmapped(&self, &(slot, version): &(u16, u64)) -> bool {
        let flight = self.flight(slot);
        flight.unmap_version == version && self.is_submitted(slot)
    }

    /// Whether a block device has a request of that command.
    pub fn is_submitted(&self, slot: u16) -> bool {
        self.submitted.get(usize::from(self.flight(slot).place)) == Some(&slot)
    }

    /// Commands of which a block device has a request.
    pub fn submitted(&self) -> &[u16] {
        &self.submitted
    }
}

/// Logs a command: not in effect before the head that passed it is published. The completion queue is part of the later
/// note, and known already.
#[inline(always)]
pub fn log(slot: &InFlightSlot, line: &Line, fetch: u64, command: u32, cqid: usize) {
    line.store(&slot.sqe);
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
        for slot in [a, b] {
            *slots.flight_mut(slot) = Flight::new(1, slot, 0, Kind::Single);
            slots.submit(slot);
        }
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

    /// A command on the 4096 bytes at `iova`.
    fn submit_at(slots: &mut Slots, iova: u64) -> u16 {
        let slot = slots.take().unwrap();
        let mut flight = Flight::new(1, slot, 0, Kind::Single);
        flight.touch([(Iova(iova), 4096)].into_iter());
        *slots.flight_mut(slot) = flight;
        slots.submit(slot);
        slot
    }

    fn end(slots: &mut Slots, slot: u16) {
        assert_eq!(slots.retire(u32::from(slot)), Some(slot));
        slots.give(slot);
    }

    #[test]
    fn oldest_unmap_is_that_of_a_command_which_is_still_under_way() {
        let mut slots = Slots::new();
        let (a, b) = (submit_at(&mut slots, 0), submit_at(&mut slots, 4096));
        slots.unmap(Iova(1 << 30), 4096, 4);
        assert_eq!(slots.oldest_unmap(), None, "it touches nothing");
        slots.unmap(Iova(4096), 4096, 5);
        slots.unmap(Iova(0), u64::MAX, 6);
        assert_eq!(slots.oldest_unmap(), Some(5));
        end(&mut slots, b);
        assert_eq!(slots.oldest_unmap(), Some(6));
        let again = submit_at(&mut slots, 4096);
        assert_eq!(again, b, "another command in the same slot");
        assert_eq!(slots.oldest_unmap(), Some(6));
        end(&mut slots, a);
        assert_eq!(slots.oldest_unmap(), None);
        slots.unmap(Iova(4096), 1, 7);
        assert_eq!(slots.oldest_unmap(), Some(7));
    }

    #[test]
    fn marks_do_not_grow_behind_a_command_that_never_ends() {
        let mut slots = Slots::new();
        submit_at(&mut slots, 0);
        slots.unmap(Iova(0), 4096, 1);
        for version in 2..10 * MAX_IN_FLIGHT as u64 {
            let slot = submit_at(&mut slots, 4096);
            slots.unmap(Iova(4096), 4096, version);
            end(&mut slots, slot);
        }
        assert!(slots.unmapped.len() <= 2 * MAX_IN_FLIGHT);
        assert_eq!(slots.oldest_unmap(), Some(1));
    }

    #[test]
    fn what_is_waited_for_is_counted_down_as_it_ends() {
        let mut slots = Slots::new();
        let all: Vec<u16> = (0..4).map(|page| submit_at(&mut slots, page * 4096)).collect();
        slots.hold(|flight| flight.cid != all[0]);
        assert_eq!(slots.held(), 3);
        slots.hold(|flight| flight.cid == all[1] || flight.cid == all[2]);
        assert_eq!(slots.held(), 2);
        end(&mut slots, all[1]);
        end(&mut slots, all[0]);
        assert_eq!((slots.held(), slots.orphans()), (1, 0));
        slots.orphan();
        assert_eq!((slots.held(), slots.orphans()), (1, 2));
        let late = submit_at(&mut slots, 0);
        end(&mut slots, late);
        end(&mut slots, all[3]);
        end(&mut slots, all[2]);
        assert_eq!((slots.held(), slots.orphans()), (0, 0));
    }
}
