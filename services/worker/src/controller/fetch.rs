//! From the doorbell to the log. On the hot path.
//!
//! Order: room in the completion queue is reserved; entries are copied once into slots; the head is published once for
//! the batch; only then is the first command looked at.

use super::{Controller, Fetched};
use crate::doorbells::{Doorbells, Shadow, store_event_index};
use crate::queue_pair::{SQE, Sq, State};
use crate::slots;
use ipc::guest_memory::{LineAt, RegionTable};
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::queues::FailureReason;
use nvme::queue::InvalidDoorbell;
use nvme_spec::command::{CommandDword0, Fuse};
use std::sync::atomic::Ordering;

impl Controller {
    /// Looks at the doorbells of the queues whose turn it is, and serves those that rang.
    #[inline]
    pub(super) fn scan(&mut self, now: u64) -> usize {
        let mut work = 0;
        if let Some(shadow) = &mut self.shadow {
            // Its memory may come later than its address, or be unmapped and come back; until then the page counts.
            shadow.resolve(&self.memory);
        }
        if let Some(qid) = self.rotation.only() {
            return self.serve(qid, now);
        }
        for turn in 0..self.rotation.hot_count() {
            let qid = self.rotation.hot(turn);
            let served = self.serve(qid, now);
            self.rotation.note(turn, served > 0);
            work += served;
        }
        self.rotation.next_turn();
        if self.rotation.has_cold() {
            work += self.scan_cold(now);
        }
        work
    }

    /// Looks at one line of doorbells of queues that were idle for long.
    fn scan_cold(&mut self, now: u64) -> usize {
        let mut work = 0;
        let mut line = self.rotation.next_cold_line();
        while let Some(qid) = line.next_queue() {
            let served = self.serve(qid, now);
            if served > 0 {
                self.rotation.warm(qid);
                work += served;
            }
        }
        work
    }

    #[inline]
    fn serve(&mut self, qid: usize, now: u64) -> usize {
        let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), self.memory.regions());
        let Some(Some(sq)) = self.sqs.get(qid) else { return 0 };
        let tail = doorbells.tail(qid);
        if tail == sq.position.head() || sq.state != State::Active {
            return 0;
        }
        // It comes while the checks before its use are made.
        sq.memory.prefetch(u64::from(sq.position.head()) * SQE);
        self.serve_rung(qid, tail, now)
    }

    /// Kept apart, so that a look at a doorbell that did not ring saves no registers.
    #[inline(never)]
    fn serve_rung(&mut self, qid: usize, tail: u32, now: u64) -> usize {
        match self.fetch(qid, tail) {
            Ok((0, _)) => 0,
            Ok((fetched, fuses)) => {
                self.run_batch(qid, fuses, now);
                // At once, not after the round: a shallow queue waits for it.
                self.commit();
                fetched
            }
            Err(reason) => {
                self.fail(reason);
                0
            }
        }
    }

    /// Copies the next commands into the log and publishes the head. Returns their number and all their FUSE bits.
    fn fetch(&mut self, qid: usize, tail: u32) -> Result<(usize, u8), FailureReason> {
        let Some(Some(sq)) = self.sqs.get_mut(qid) else { return Ok((0, 0)) };
        let available = match sq.position.available(tail) {
            Ok(available) => available,
            Err(invalid) => {
                self.refuse_tail(qid, invalid);
                return Ok((0, 0));
            }
        };
        let cqid = sq.cqid;
        let Some(Some(cq)) = self.cqs.get_mut(cqid) else { return Ok((0, 0)) };
        let mut wanted = available.min(self.burst);
        if cq.position.room() < wanted {
            let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), self.memory.regions());
            if !cq.valid {
                return Ok((0, 0));
            }
            if let Err(invalid) = cq.position.observe(doorbells.head(cqid)) {
                self.refuse_head(cqid, invalid);
                return Ok((0, 0));
            }
            wanted = wanted.min(cq.position.room());
        }
        let wanted = wanted.min(self.slots.free_count() as u32);
        if wanted == 0 {
            return Ok((0, 0));
        }
        if !sq.memory.is_resolved() {
            sq.memory.resolve(&self.memory).map_err(|_| FailureReason::QueueUnmapped)?;
        }
        let fuses = self.copy_entries(qid, wanted)?;
        if fuses != Fuse::NORMAL.0 {
            self.align_fused(qid, available, cqid);
        }
        let fetched = self.batch.len();
        if fetched == 0 {
            return Ok((0, 0));
        }
        let (Some(Some(sq)), Some(Some(cq))) = (self.sqs.get_mut(qid), self.cqs.get_mut(cqid))
        else {
            return Ok((0, 0));
        };
        cq.position.reserve(fetched as u32);
        sq.in_flight += fetched as u32;
        sq.position.advance(fetched as u32);
        if let Some(shadow) = &self.shadow {
            move_event_index(shadow, self.memory.regions(), qid, sq);
        }
        // Release: whoever sees the head sees the slots before it. A slot at or past it is void.
        self.queues.submission_queues[qid].fetched.store(sq.position.fetched(), Ordering::Release);
        Ok((fetched, fuses))
    }

    /// Copies `count` entries from the head on into slots and into the batch. Returns all their FUSE bits.
    #[inline(always)]
    fn copy_entries(&mut self, qid: usize, count: u32) -> Result<u8, FailureReason> {
        let Some(Some(sq)) = self.sqs.get(qid) else { return Ok(0) };
        let regions = self.memory.regions();
        let whole = sq.memory.contiguous(regions);
        let first = sq.position.fetched();
        let mut fuses = 0;
        self.batch.clear();
        for ahead in 0..count {
            let index = sq.position.index(ahead);
            let line = match &whole {
                Some(queue) => queue.line(index as usize * SQE as usize),
                None => entry_of_piece(sq, regions, index),
            };
            let (Some(line), Some(slot)) = (line, self.slots.take()) else {
                return Err(self.unfetch());
            };
            let line = line.load();
            let cdw0 = CommandDword0::from_bits(line.first() as u32);
            let name = (qid as u32) << 16 | u32::from(cdw0.cid().0);
            let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
            slots::log(log, &line, first + u64::from(ahead), name, sq.cqid);
            fuses |= cdw0.fuse().0;
            self.batch.push(Fetched { line, slot });
        }
        Ok(fuses)
    }

    /// A queue's memory is gone: gives back the slots of the batch.
    #[cold]
    fn unfetch(&mut self) -> FailureReason {
        self.batch.drain(..).for_each(|fetched| self.slots.give(fetched.slot));
        FailureReason::QueueUnmapped
    }

    /// Sees to it that the batch ends with a whole pair: takes the second of a fused pair in as well, or leaves the
    /// first where it is until there is room for both. A first without a second, or in a completion queue that cannot
    /// hold both, stays in the batch, to be refused.
    #[cold]
    fn align_fused(&mut self, qid: usize, available: u32, cqid: usize) {
        let Some(&last) = self.batch.last() else { return };
        let count = self.batch.len() as u32;
        if last.command().fuse() != Fuse::FIRST || count >= available {
            return;
        }
        let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), self.memory.regions());
        let Some(Some(cq)) = self.cqs.get_mut(cqid) else { return };
        if cq.position.entries() < 3 {
            return;
        }
        // A burst that fits never looks at the head: the pair has to.
        if cq.position.room() <= count
            && cq.valid
            && let Err(invalid) = cq.position.observe(doorbells.head(cqid))
        {
            self.refuse_head(cqid, invalid);
        }
        let Some(Some(cq)) = self.cqs.get(cqid) else { return };
        let room = cq.position.room() > count && self.slots.free_count() > 0;
        if count == 1 && room {
            // A burst of one: the pair is one command to arbitration.
            self.slots.give(last.slot);
            self.copy_entries(qid, 2).ok();
        } else if let Some(left) = self.batch.pop() {
            self.slots.give(left.slot);
        }
    }

    /// The host rang a tail that cannot be.
    #[cold]
    fn refuse_tail(&mut self, qid: usize, invalid: InvalidDoorbell) {
        if let Some(Some(sq)) = self.sqs.get_mut(qid) {
            sq.state = State::Invalid;
        }
        self.rotation.remove(qid);
        let position = &self.queues.submission_queues[qid];
        position.invalid_doorbell.store(invalid.0.saturating_add(1), Ordering::Release);
        self.kick = true;
    }

    /// The host rang a head that cannot be: nobody knows any more what room there is, so nothing is fetched for it.
    #[cold]
    pub(super) fn refuse_head(&mut self, cqid: usize, invalid: InvalidDoorbell) {
        if let Some(Some(cq)) = self.cqs.get_mut(cqid) {
            cq.valid = false;
        }
        for (qid, sq) in self.sqs.iter_mut().enumerate() {
            let is_served = |sq: &&mut Sq| matches!(sq.state, State::Active | State::Held);
            if let Some(sq) = sq.as_mut().filter(|sq| sq.cqid == cqid && is_served(sq)) {
                sq.state = State::Invalid;
                self.rotation.remove(qid);
            }
        }
        let position = &self.queues.completion_queues[cqid];
        position.invalid_doorbell.store(invalid.0.saturating_add(1), Ordering::Release);
        self.kick = true;
    }
}

#[cold]
fn entry_of_piece<'a>(sq: &Sq, regions: &'a RegionTable, index: u32) -> Option<LineAt<'a>> {
    sq.memory.entry(regions, index, SQE)?.line(0)
}

/// Keeps the event index of a queue that is being polled behind its head, so that the guest does not ring for nothing
/// each time its tail passes it.
fn move_event_index(shadow: &Shadow, regions: &RegionTable, qid: usize, sq: &mut Sq) {
    let (fetched, entries) = (sq.position.fetched(), sq.position.entries());
    if fetched - sq.event_index_at >= u64::from(entries / 2) {
        sq.event_index_at = fetched;
        let behind = sq.position.head().checked_sub(1).unwrap_or(entries - 1);
        store_event_index(shadow, regions, 2 * qid, behind);
    }
}
