//! Completing. On the hot path: a command that succeeded and was a whole request is handed back at once.

use std::time::Instant;

use nvme_spec::command::CommandDword0;
use nvme_spec::nvm::IoDword12;
use nvme_spec::{CommandId, Lba, NvmOpcode, Status};

use super::slot::{NONE, Slot, State};
use super::{Completed, Next, QueuePair};
use crate::error::IoError;
use crate::memory::DmaBuffer;
use crate::namespace::Namespace;
use crate::prp::Lists;
use crate::request::{Request, Shape};
use crate::retry::retryable;

impl QueuePair {
    /// The next request that is over, if there is one. Cheap when there is none; it also keeps time.
    #[inline(always)]
    pub fn next_completion(&mut self) -> Option<Completed> {
        match self.next(|_, _, _| None)? {
            Next::Over(completed) => Some(completed),
            Next::Repeated(_) => None,
        }
    }

    /// As [`next_completion`](Self::next_completion), but a request that succeeded may go again at once, with its buffer,
    /// its number and its length, to the block that `place` returns. `place` sees its number and its buffer, with what was
    /// read. Only what goes as one command of `namespace` is sent again; everything else is over. As with
    /// [`submit`](Self::submit), the controller hears of it by [`ring`](Self::ring).
    #[inline(always)]
    pub fn next_or_repeat(
        &mut self,
        namespace: &Namespace,
        mut place: impl FnMut(u64, &DmaBuffer) -> Option<Lba>,
    ) -> Option<Next> {
        // While a split request waits, slots are to come free.
        let starved = self.ack_at == 0;
        self.next(|slot, cid, lists| match starved {
            false => repeat(slot, cid, namespace, lists, &mut place),
            true => None,
        })
    }

    /// The next completion; `again` makes the entry of what is sent again from the slot of what succeeded.
    #[inline(always)]
    fn next(
        &mut self,
        mut again: impl FnMut(&mut Slot, u16, &Lists) -> Option<[u64; 8]>,
    ) -> Option<Next> {
        loop {
            if self.budget == 0 {
                match self.housekeep() {
                    None if self.cold.dead => return None,
                    None => {}
                    some => return some.map(Next::Over),
                }
            }
            let Some(high) = self.cq.peek() else {
                self.budget = self.budget.saturating_sub(1);
                return None;
            };
            // SQHD, SQID, CID, then phase and status.
            let (sqhd, sqid) = (high as u16, (high >> 16) as u16);
            let (cid, status) = ((high >> 32) as u16, (high >> 49) as u16);
            let slot =
                self.slots.get_mut(usize::from(cid)).filter(|slot| slot.state == State::Whole);
            let Some(slot) = slot.filter(|_| status == 0 && sqid == self.qid) else {
                if let Some(completed) = self.complete_other(high) {
                    return Some(Next::Over(completed));
                }
                continue;
            };
            let token = slot.token;
            if let Some(entry) = again(slot, cid, &self.lists) {
                slot.epoch = self.epoch;
                self.sq.push(entry);
                self.sqhd = sqhd;
                self.took_entry();
                return Some(Next::Repeated(token));
            }
            slot.state = State::Free;
            slot.next = self.free;
            let buffer = slot.buffer.take();
            self.free = cid;
            self.sqhd = sqhd;
            self.in_flight -= 1;
            self.took_entry();
            return Some(Next::Over(Completed { token, buffer, result: Ok(0) }));
        }
    }

    /// Goes past an entry of the completion queue.
    #[inline]
    fn took_entry(&mut self) {
        self.cq.advance();
        self.unacked += 1;
        if self.unacked >= self.ack_at {
            self.took_many();
        }
    }

    /// What is to be done now and then, or with every completion while a split request waits.
    #[cold]
    #[inline(never)]
    fn took_many(&mut self) {
        if self.unacked >= self.ack_interval() {
            self.ack();
        }
        if self.ack_at == 0 {
            self.feed();
            self.ring();
        }
    }

    /// An entry that is not the success of a whole request: a piece, a failure, a command as the caller made it, or
    /// something that was never sent.
    #[cold]
    fn complete_other(&mut self, high: u64) -> Option<Completed> {
        let entry = self.cq.entry(high);
        let (cid, status) = (entry.cid.0, entry.status());
        let known = self.slots.get(usize::from(cid)).map(|slot| slot.state);
        match known {
            Some(State::Whole | State::Piece | State::Raw) if entry.sqid.0 == self.qid => {}
            Some(_) | None => {
                self.distrust("it completed an i/o command that was not outstanding");
                return None;
            }
        }
        self.sqhd = entry.sqhd;
        let completed = match status.is_success() {
            true => self.finish(cid, Ok(entry.dw0)),
            false if self.send_again(cid, status) => None,
            false => {
                let aborted = self.slots.get(usize::from(cid)).is_some_and(|slot| slot.aborted);
                let error = match status.code() {
                    Status::ABORT_REQUESTED if aborted => IoError::TimedOut,
                    _ => IoError::Status(status),
                };
                self.finish(cid, Err(error))
            }
        };
        self.took_entry();
        completed
    }

    /// Frees a slot; the request that is over by it, if one is.
    pub(super) fn finish(&mut self, cid: u16, result: Result<u32, IoError>) -> Option<Completed> {
        let slot = self.slots.get_mut(usize::from(cid))?;
        let (token, buffer, parent) = (slot.token, slot.buffer.take(), slot.parent);
        slot.state = State::Free;
        slot.parent = NONE;
        slot.next = self.free;
        self.free = cid;
        self.in_flight = self.in_flight.saturating_sub(1);
        if parent == NONE {
            return Some(Completed { token, buffer, result });
        }
        let record = self.cold.parents.get_mut(usize::from(parent))?;
        record.outstanding = record.outstanding.saturating_sub(1);
        record.error = record.error.or(result.err());
        record.is_over().then(|| self.finish_parent(parent)).flatten()
    }

    /// Frees the record of a split request that is over.
    pub(super) fn finish_parent(&mut self, index: u16) -> Option<Completed> {
        self.cold.waiting.retain(|&waiting| waiting != index);
        self.set_starved(!self.cold.waiting.is_empty());
        self.cold.free_parents.push(index);
        let parent = self.cold.parents.get_mut(usize::from(index))?;
        parent.used = false;
        let result = parent.error.map_or(Ok(0), Err);
        Some(Completed { token: parent.token, buffer: parent.buffer.take(), result })
    }

    /// Sends a failed command again if that is allowed and may help, now or after the delay that its status asks for.
    fn send_again(&mut self, cid: u16, status: Status) -> bool {
        let limit = self.cold.inner.options.retries;
        let Some(slot) = self.slots.get_mut(usize::from(cid)) else { return false };
        if slot.state == State::Raw || slot.aborted || slot.retries >= limit || !retryable(status) {
            return false;
        }
        slot.retries += 1;
        slot.state = State::Delayed;
        let delay = self.cold.delays.delay(status);
        self.cold.counters.retried += 1;
        if delay.is_zero() {
            self.send_slot(cid);
            self.ring();
        } else {
            self.cold.delayed.push((cid, Instant::now() + delay));
        }
        true
    }
}

/// Sends the request of a slot to another place; its entry, if it goes as one command of the namespace.
#[inline(always)]
fn repeat(
    slot: &mut Slot,
    index: u16,
    namespace: &Namespace,
    lists: &Lists,
    place: impl FnOnce(u64, &DmaBuffer) -> Option<Lba>,
) -> Option<[u64; 8]> {
    let limits = namespace.limits;
    let same = slot.nsid == namespace.nsid() && u32::from(slot.block_shift) == limits.block_shift;
    let allowed = slot.opcode == NvmOpcode::READ || namespace.is_writable();
    let buffer = slot.buffer.as_ref()?;
    if !same || !allowed || slot.shape != Shape::Data {
        return None;
    }
    let slba = place(slot.token, buffer)?;
    let blocks = u64::from(IoDword12::from_bits(slot.cdw12).nlb_z()) + 1;
    if !limits.fits(slba, blocks) || slba.0.checked_add(blocks).is_none() {
        return None;
    }
    let data = lists.point(index.into(), buffer.iova().0, buffer.len());
    slot.slba = slba;
    slot.retries = 0;
    slot.aborted = false;
    let cdw0 = CommandDword0::new()
        .with_opcode(slot.opcode.0)
        .with_psdt(data.psdt())
        .with_cid(CommandId(index));
    Some(Request::entry(cdw0, slot.nsid, data.words, slba, slot.cdw12))
}
