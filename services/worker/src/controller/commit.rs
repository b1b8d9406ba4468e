//! From an outcome to the guest. On the hot path.
//!
//! Order, per command: outcome and position noted in its slot; low half of the entry; high half with the phase, in
//! ascending order. Then, per batch: the tail is published, the slots are free, the guest is signalled.

use super::{COMMIT_BATCH, Controller, Finished};
use crate::doorbells::Doorbells;
use crate::queue_pair::{CQE, Cq};
use ipc::guest_memory::{HostSlice, RegionTable};
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::queues::{ERROR_RECORDS, FailureReason, InFlightSlot, SlotState};
use nvme::queue::completion::Position;
use nvme_spec::command::Command;
use nvme_spec::{CommandId, Completion, QueueId, Status};
use std::sync::atomic::Ordering;

impl Controller {
    /// A command has its outcome. It is completed with its batch.
    #[inline]
    pub(super) fn finish(&mut self, slot: u16, sqid: u16, cid: u16, status: Status, dw0: u32) {
        self.finished.push(Finished { slot, sqid, cid, status, dw0 });
        if self.finished.len() >= COMMIT_BATCH {
            self.commit();
        }
    }

    /// Completes what has its outcome.
    #[inline]
    pub(super) fn commit(&mut self) {
        if !self.finished.is_empty() {
            self.commit_some();
        }
    }

    #[inline(never)]
    fn commit_some(&mut self) {
        if let Err(reason) = self.commit_finished() {
            self.fail(reason);
        }
    }

    #[inline(always)]
    fn commit_finished(&mut self) -> Result<(), FailureReason> {
        // Whatever was copied from memory that is gone is not data: nothing is posted then.
        if self.memory.failed() {
            return Err(FailureReason::MemoryFault);
        }
        self.flush_tally();
        let mut start = 0;
        while let Some(&Finished { sqid, .. }) = self.finished.get(start) {
            start = self.post_run(usize::from(sqid), start)?;
        }
        for finished in &self.finished {
            let slot = &self.queues.slots[usize::from(finished.slot) % MAX_IN_FLIGHT];
            // Release: a slot that is free was posted before.
            slot.state.store(SlotState::Free as u32, Ordering::Release);
            self.slots.give(finished.slot);
        }
        self.finished.clear();
        Ok(())
    }

    /// Posts the completions from `start` on that are of one submission queue. Returns where those of another begin.
    #[inline(always)]
    fn post_run(&mut self, qid: usize, start: usize) -> Result<usize, FailureReason> {
        let (Some(Some(sq)), run) = (self.sqs.get_mut(qid), &self.finished[start..]) else {
            return Ok(start + 1);
        };
        let (cqid, sqhd) = (sq.cqid, sq.position.head() as u16);
        let Some(Some(cq)) = self.cqs.get_mut(cqid) else { return Ok(start + 1) };
        if !cq.memory.is_resolved() {
            cq.memory.resolve(&self.memory).map_err(|_| FailureReason::QueueUnmapped)?;
        }
        let regions = self.memory.regions();
        if cq.vector.is_some() && !cq.owed {
            let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), regions);
            // A head that cannot be is refused when it is next needed.
            cq.position.observe(doorbells.head(cqid)).ok();
            cq.was_empty = cq.position.is_empty();
            cq.owed = true;
            self.owed |= 1 << cqid;
        }
        let whole = cq.memory.contiguous(regions);
        let mut posted = 0;
        for &Finished { slot, sqid, cid, status, dw0 } in run {
            if usize::from(sqid) != qid {
                break;
            }
            posted += 1;
            let position = cq.position.post();
            note(&self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT], position, status, dw0);
            let entry = Completion::new(QueueId(sqid), CommandId(cid), sqhd, status)
                .with_dw0(dw0)
                .with_phase(position.phase);
            let written = match &whole {
                Some(queue) => write(queue, position.index as usize * CQE as usize, entry),
                None => write_piece(cq, regions, position.index, entry),
            };
            if !written {
                return Err(FailureReason::QueueUnmapped);
            }
        }
        // Release: whoever sees the tail sees the entries and the notes before it.
        let tail = &self.queues.completion_queues[cqid].posted;
        tail.store(cq.position.posted(), Ordering::Release);
        sq.in_flight = sq.in_flight.saturating_sub(posted as u32);
        Ok(start + posted)
    }

    /// Writes an error down for the Error Information log page.
    #[cold]
    pub(super) fn record_error(
        &self,
        slot: u16,
        sqid: u16,
        cid: u16,
        status: Status,
        command: &Command,
    ) {
        let (nsid, lba) = (command.nsid, command.slba().0);
        self.trace_failed(slot, sqid, cid, status, command);
        let count = self.queues.acknowledged.error_count.load(Ordering::Relaxed);
        let record = &self.queues.errors[(count % ERROR_RECORDS as u64) as usize];
        record.command.store(u32::from(sqid) << 16 | u32::from(cid), Ordering::Relaxed);
        record.status.store(u32::from(status.into_bits()), Ordering::Relaxed);
        // No parameter is named.
        record.location.store(0xFFFF, Ordering::Relaxed);
        record.nsid.store(nsid.0, Ordering::Relaxed);
        record.lba.store(lba, Ordering::Relaxed);
        // Release: whoever sees the count sees the record.
        let counter = &self.queues.acknowledged.error_count;
        counter.store(count.wrapping_add(1), Ordering::Release);
    }
}

/// Notes outcome and position; the completion queue and the group are in the slot since it was logged.
#[inline(always)]
fn note(slot: &InFlightSlot, position: Position, status: Status, dw0: u32) {
    let outcome = u64::from(dw0) << 32 | u64::from(status.into_bits());
    slot.outcome.store(outcome, Ordering::Relaxed);
    slot.cq_position.store(position.counter, Ordering::Relaxed);
    // Release: whoever sees the state sees the note.
    slot.state.store(SlotState::Noted as u32, Ordering::Release);
}

/// Writes an entry: the half with the phase last, with Release, so that the guest, which reads the phase first, finds
/// the rest of the entry and the data there.
#[inline(always)]
fn write(queue: &HostSlice<'_>, at: usize, entry: Completion) -> bool {
    queue.store_words(at, entry.into_halves())
}

#[cold]
fn write_piece(cq: &Cq, regions: &RegionTable, index: u32, entry: Completion) -> bool {
    cq.memory.entry(regions, index, CQE).is_some_and(|piece| write(&piece, 0, entry))
}
