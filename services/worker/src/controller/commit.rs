//! From an outcome to the guest. On the hot path.
//!
//! Order, per command: outcome and position noted in its slot; low half of the entry; high half with the phase, in
//! ascending order. Then, per batch: the tail is published, the slots are free, the guest is signalled.

use super::{COMMIT_BATCH, Controller, Finished};
use crate::doorbells::Doorbells;
use crate::queue_pair::CQE;
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::queues::{ERROR_RECORDS, FailureReason, SlotState};
use nvme_spec::{Completion, Nsid, QueueId, Status};
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
        if self.finished.is_empty() {
            return;
        }
        // Whatever was copied from memory that is gone is not data: nothing is posted then.
        if self.memory.failed() {
            self.fail(FailureReason::MemoryFault);
            return;
        }
        let mut posted = 0_u128;
        for index in 0..self.finished.len() {
            let finished = self.finished[index];
            match self.post(finished, &mut posted) {
                Ok(()) => {}
                Err(reason) => {
                    self.fail(reason);
                    return;
                }
            }
        }
        let mut left = posted;
        while left != 0 {
            let cqid = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some(Some(cq)) = self.cqs.get(cqid) {
                // Release: whoever sees the tail sees the entries and the notes before it.
                let tail = &self.queues.completion_queues[cqid].posted;
                tail.store(cq.position.posted(), Ordering::Release);
            }
        }
        for finished in &self.finished {
            let slot = &self.queues.slots[usize::from(finished.slot) % MAX_IN_FLIGHT];
            // Release: a slot that is free was posted before.
            slot.state.store(SlotState::Free as u32, Ordering::Release);
            self.slots.give(finished.slot);
        }
        self.finished.clear();
    }

    /// Notes and writes one completion.
    #[inline]
    fn post(&mut self, finished: Finished, posted: &mut u128) -> Result<(), FailureReason> {
        let Finished { slot, sqid, cid, status, dw0 } = finished;
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(sqid)) else { return Ok(()) };
        sq.in_flight = sq.in_flight.saturating_sub(1);
        let cqid = sq.cqid;
        let Some(Some(cq)) = self.cqs.get_mut(cqid) else { return Ok(()) };
        if !cq.memory.is_resolved() {
            cq.memory.resolve(&self.memory).map_err(|_| FailureReason::QueueUnmapped)?;
        }
        let regions = self.memory.regions();
        if *posted & 1 << cqid == 0 {
            *posted |= 1 << cqid;
            if cq.vector.is_some() && !cq.owed {
                let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), regions);
                // A head that cannot be is refused when it is next needed.
                cq.position.observe(doorbells.head(cqid)).ok();
                cq.was_empty = cq.position.is_empty();
                cq.owed = true;
                self.owed |= 1 << cqid;
            }
        }
        let position = cq.position.post();
        let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
        let outcome = u64::from(dw0) << 32 | u64::from(status.into_bits());
        let group = log.group.load(Ordering::Relaxed) & 0xFFFF;
        log.outcome.store(outcome, Ordering::Relaxed);
        log.cq_position.store(position.counter, Ordering::Relaxed);
        log.group.store((cqid as u32) << 16 | group, Ordering::Relaxed);
        // Release: whoever sees the state sees the note.
        log.state.store(SlotState::Noted as u32, Ordering::Release);

        let sqhd = sq.position.head() as u16;
        let entry = Completion::new(QueueId(sqid), nvme_spec::CommandId(cid), sqhd, status)
            .with_dw0(dw0)
            .with_phase(position.phase);
        let [low, high] = entry.into_halves();
        let written = match cq.memory.contiguous(regions) {
            Some(queue) => {
                let at = position.index as usize * CQE as usize;
                // Release: pairs with the guest, which reads the phase first: the rest of the entry, the data and the
                // note are there before it.
                queue.store_u64(at, low, Ordering::Relaxed)
                    && queue.store_u64(at + 8, high, Ordering::Release)
            }
            None => cq.memory.entry(regions, position.index, CQE).is_some_and(|queue| {
                queue.store_u64(0, low, Ordering::Relaxed)
                    && queue.store_u64(8, high, Ordering::Release)
            }),
        };
        if written { Ok(()) } else { Err(FailureReason::QueueUnmapped) }
    }

    /// Writes an error down for the Error Information log page.
    #[cold]
    pub(super) fn record_error(&self, sqid: u16, cid: u16, status: Status, nsid: Nsid, lba: u64) {
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
