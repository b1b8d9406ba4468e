//! Records of commands that are under way, by their slots.

use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::telemetry::{TraceRecord, trace_reason};

/// No place.
const NONE: u16 = u16::MAX;

const _: () = assert!(MAX_IN_FLIGHT < NONE as usize);

/// The records. There is one for each slot at most, so there is room for all.
#[derive(Default)]
pub(super) struct Open {
    entries: Vec<Entry>,
    /// Place in `entries` by slot.
    places: Vec<u16>,
}

/// A command that is under way.
pub(super) struct Entry {
    pub(super) slot: u16,
    /// The second half of a fused pair, whose slot leads here as well.
    pub(super) second: Option<u16>,
    pub(super) record: TraceRecord,
}

impl Open {
    /// Makes room for all, once. Memory that no record comes to is never touched.
    pub(super) fn reserve(&mut self) {
        self.places.resize(MAX_IN_FLIGHT, NONE);
        self.entries.reserve_exact(MAX_IN_FLIGHT - self.entries.len().min(MAX_IN_FLIGHT));
    }

    /// Puts a command's record there; one that was left of the slot's last command goes.
    pub(super) fn insert(&mut self, slot: u16, second: Option<u16>, record: TraceRecord) {
        self.remove(slot);
        let mut record = record;
        if let Some(second) = second {
            self.remove(second);
            record.reason |= trace_reason::FUSED;
        }
        if self.entries.len() < self.entries.capacity() {
            self.entries.push(Entry { slot, second, record });
            self.lead_to(self.entries.len() - 1);
        }
    }

    /// The record of a slot's command.
    pub(super) fn get(&self, slot: u16) -> Option<&TraceRecord> {
        let place = self.places.get(usize::from(slot))?;
        self.entries.get(usize::from(*place)).map(|entry| &entry.record)
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut TraceRecord> {
        let place = self.places.get(usize::from(slot))?;
        self.entries.get_mut(usize::from(*place)).map(|entry| &mut entry.record)
    }

    /// All, by slot: of a pair by that of the first half.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut TraceRecord)> {
        self.entries.iter_mut().map(|entry| (entry.slot, &mut entry.record))
    }

    /// Takes it out.
    pub(super) fn remove(&mut self, slot: u16) -> Option<Entry> {
        let place = usize::from(*self.places.get(usize::from(slot))?);
        if place >= self.entries.len() {
            return None;
        }
        let entry = self.entries.swap_remove(place);
        self.lead(entry.slot, entry.second, NONE);
        self.lead_to(place);
        Some(entry)
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        while let Some(entry) = self.entries.pop() {
            self.lead(entry.slot, entry.second, NONE);
        }
    }

    /// Has the slots of the entry at `place`, if there is one, lead to it.
    fn lead_to(&mut self, place: usize) {
        if let Some(&Entry { slot, second, .. }) = self.entries.get(place) {
            self.lead(slot, second, place as u16);
        }
    }

    fn lead(&mut self, slot: u16, second: Option<u16>, place: u16) {
        for slot in [Some(slot), second].into_iter().flatten() {
            if let Some(lead) = self.places.get_mut(usize::from(slot)) {
                *lead = place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::layout::telemetry::TraceSide;

    fn record(trace: u64) -> TraceRecord {
        TraceRecord::new(trace, 1, TraceSide::Worker)
    }

    #[test]
    fn every_slot_has_room_and_leads_to_its_own_record() {
        let mut open = Open::default();
        open.insert(3, None, record(1));
        assert_eq!(open.get(3), None, "nothing is traced yet");
        open.reserve();
        let slots = MAX_IN_FLIGHT as u16;
        for slot in 0..slots {
            open.insert(slot, None, record(u64::from(slot) + 1));
        }
        // Taken out in another order than they came.
        for slot in (0..slots).map(|slot| (slot * 7) % slots) {
            let entry = open.remove(slot).expect("it is there");
            assert_eq!((entry.slot, entry.record.trace), (slot, u64::from(slot) + 1));
            assert!(open.remove(slot).is_none());
        }
        assert_eq!(open.get(u16::MAX), None);
    }

    #[test]
    fn both_halves_of_a_pair_lead_to_one_record() {
        let mut open = Open::default();
        open.reserve();
        open.insert(9, None, record(1));
        open.insert(5, Some(6), record(2));
        assert!(open.get(5).is_some_and(TraceRecord::is_fused));
        assert_eq!(open.get(6), open.get(5));
        open.remove(9);
        assert_eq!(open.get(6).map(|record| record.trace), Some(2), "it moved");
        assert_eq!(open.remove(5).and_then(|entry| entry.second), Some(6));
        assert_eq!(open.get(6), None);
        open.insert(5, Some(6), record(3));
        open.insert(6, None, record(4));
        assert_eq!((open.get(5), open.get(6).map(|record| record.trace)), (None, Some(4)));
        open.clear();
        assert_eq!(open.get(6), None);
    }
}
