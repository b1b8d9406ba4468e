//! Fused pairs: Compare and Write as one request. NVMe Base 2.0c 6.2.

use super::Controller;
use crate::namespaces::Shut;
use crate::slots::{Flight, Kind};
use bdev::channel::{Channel, Submitted};
use bdev::request::{ErrorKind, Outcome};
use ipc::layout::MAX_IN_FLIGHT;
use nvme::nvm;
use nvme_spec::Status;
use nvme_spec::command::{Command, Fuse};
use std::sync::atomic::Ordering;

impl Controller {
    /// A batch that has halves of fused pairs in it: one command after the other.
    #[cold]
    pub(super) fn run_fused_batch(&mut self, qid: usize, now: u64) {
        let sqid = qid as u16;
        let mut index = 0;
        while let Some(&fetched) = self.batch.get(index) {
            let (slot, command) = (fetched.slot, *fetched.command());
            let second = self.second_of(index);
            index += 1 + usize::from(second.is_some());
            match command.fuse() {
                Fuse::NORMAL => self.start_other(sqid, slot, &command, 0, now),
                _ => self.run_fused(sqid, slot, second, &command, now),
            }
            if self.failure.is_some() {
                return self.abandon(index);
            }
        }
    }

    /// The slot of the second half, if the first one of a pair is at `index` of the batch.
    pub(super) fn second_of(&self, index: usize) -> Option<u16> {
        let (first, second) = (self.batch.get(index)?, self.batch.get(index + 1)?);
        let pair = (first.command().fuse(), second.command().fuse());
        (pair == (Fuse::FIRST, Fuse::SECOND)).then_some(second.slot)
    }

    /// Runs a pair, or refuses what is half of one.
    #[cold]
    pub(super) fn run_fused(
        &mut self,
        sqid: u16,
        slot: u16,
        second: Option<u16>,
        command: &Command,
        now: u64,
    ) {
        match (command.fuse(), second) {
            (Fuse::FIRST, Some(second)) => {
                self.group(slot, second);
                self.start_fused(sqid, [slot, second], now);
            }
            (Fuse::FIRST | Fuse::SECOND, _) => {
                self.refuse(sqid, slot, command, Status::ABORTED_MISSING_FUSED);
            }
            _ => self.refuse(sqid, slot, command, Status::INVALID_FIELD.with_dnr()),
        }
    }

    /// Marks two slots as one group. A pair is found again by its neighbours' FUSE bits as well, so this may come after
    /// the head was published.
    pub(super) fn group(&self, first: u16, second: u16) {
        for slot in [first, second] {
            let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
            let completion_queue = log.group.load(Ordering::Relaxed) & !0xFFFF;
            log.group.store(completion_queue | (u32::from(first) + 1), Ordering::Relaxed);
            log.compare_passed.store(0, Ordering::Relaxed);
        }
    }

    #[cold]
    pub(super) fn start_fused(&mut self, sqid: u16, slots: [u16; 2], now: u64) {
        let [first, second] = slots;
        self.watched(sqid, first, Some(second), |this| this.submit_fused(sqid, slots, now));
    }

    fn submit_fused(&mut self, sqid: u16, slots: [u16; 2], now: u64) {
        let commands = slots.map(|slot| self.command_of(slot));
        let [first, second] = slots;
        let cid = commands[0].cid().0;
        let row = nvm::namespace_index(commands[0].nsid).unwrap_or(usize::MAX);
        let view = self.namespaces.get(row).and_then(|entry| entry.view);
        let list = &mut self.lists[0];
        let parsed = match &view {
            Some(view) => {
                let pair = [&commands[0], &commands[1]];
                nvm::parse_fused(pair, view, &self.settings, &self.memory, list)
            }
            None => Err((0, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())),
        };
        self.tracing.translated(first);
        let mut flight = Flight::new(sqid, cid, row as u16, Kind::Fused(second));
        let io = match parsed {
            Ok(io) => io,
            Err((_, Status::COMMAND_INTERRUPTED)) => return self.wait(first, flight, now),
            Err((at_fault, status)) => {
                for (index, (slot, command)) in slots.into_iter().zip(&commands).enumerate() {
                    let aborted = Status::ABORTED_FAILED_FUSED;
                    let status = if index == at_fault { status } else { aborted };
                    self.refuse(sqid, slot, command, status);
                }
                return;
            }
        };
        let entry = self.namespaces.get_mut(row).filter(|entry| entry.shut == Shut::NOT);
        let Some(entry) = entry else { return self.wait(first, flight, now) };
        let Some(channel) = &mut entry.channel else { return self.wait(first, flight, now) };
        self.tracing.moves(first, io.length);
        let request = io.request(list.ranges(), u32::from(first), self.tracing.told(first));
        let before = channel.with_backend();
        let submitted = channel.submit(&request, self.memory.regions(), now);
        self.tracing.requested(first, 0, submitted, channel.with_backend() > before);
        match submitted {
            Submitted::Done(Err(ErrorKind::Gone)) => {
                self.lose_channel(row);
                self.wait(first, flight, now);
            }
            Submitted::Done(outcome) => {
                *self.slots.flight_mut(first) = flight;
                let status = nvm::status(io.op, outcome);
                self.count(row, io.op, io.length, status);
                if outcome.is_err() {
                    self.record_error(first, sqid, cid, status, &commands[0]);
                }
                self.finish_fused(first, second, outcome);
            }
            Submitted::Pending => {
                entry.unpublished = true;
                flight.touch(list.guest_ranges());
                (flight.op, flight.bytes) = (io.op, io.length as u32);
                *self.slots.flight_mut(first) = flight;
                self.slots.submit(first);
            }
            Submitted::Full => self.wait(first, flight, now),
        }
    }

    pub(super) fn finish_fused(&mut self, first: u16, second: u16, outcome: Outcome) {
        let Flight { sqid, cid, .. } = *self.slots.flight(first);
        let other = self.command_of(second).cid().0;
        let statuses = nvm::fused_outcome(outcome);
        self.finish(first, sqid, cid, statuses.first, 0);
        self.finish(second, sqid, other, statuses.second, 0);
    }
}
