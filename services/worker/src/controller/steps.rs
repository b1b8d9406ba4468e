//! Commands of several requests: Dataset Management, Copy, and a Flush of all namespaces.

use super::run::row_of;
use super::{Controller, LISTS};
use crate::slots::{Flight, Kind};
use bdev::channel::{Channel, Submitted};
use bdev::request::{ErrorKind, Op};
use nvme::nvm::{self, Io, Ranges, Step};
use nvme_spec::Status;
use nvme_spec::command::{Command, NvmOpcode};

/// Requests of one command that are run before others get their turn.
const STEP_BUDGET: usize = 8;

impl Controller {
    #[cold]
    pub(super) fn begin_steps(
        &mut self,
        sqid: u16,
        slot: u16,
        command: &Command,
        ranges: Ranges,
        list: usize,
        now: u64,
    ) {
        self.watched(sqid, slot, None, |this| {
            this.load_steps(sqid, slot, command, ranges, list, now);
        });
    }

    fn load_steps(
        &mut self,
        sqid: u16,
        slot: u16,
        command: &Command,
        ranges: Ranges,
        list: usize,
        now: u64,
    ) {
        let (row, cid) = (row_of(command), command.cid().0);
        let single = Flight::new(sqid, cid, row as u16, Kind::Single);
        if self.namespaces.paused().has(row) {
            // One that is held takes nothing from others.
            return self.wait(slot, single, now);
        }
        let Some(entry) = self.free_steps.pop() else { return self.wait(slot, single, now) };
        let view = self.namespaces.get(row).and_then(|entry| entry.view);
        let (Some(steps), Some(view)) = (self.steps.get_mut(usize::from(entry)), view) else {
            return self.wait(slot, single, now);
        };
        let list = &self.lists[list % LISTS];
        if let Err(status) = steps.load(ranges, row, &view, &self.memory, list) {
            self.free_steps.push(entry);
            return self.refuse(sqid, slot, command, status);
        }
        self.tracing.translated(slot);
        *self.slots.flight_mut(slot) = Flight::new(sqid, cid, row as u16, Kind::Steps(entry));
        self.run_steps(slot, now);
    }

    /// Flush of all namespaces.
    #[cold]
    pub(super) fn flush_all(&mut self, sqid: u16, slot: u16, cid: u16, now: u64) {
        self.watched(sqid, slot, None, |this| this.flush_each(sqid, slot, cid, now));
    }

    fn flush_each(&mut self, sqid: u16, slot: u16, cid: u16, now: u64) {
        let paused = self.namespaces.paused();
        if let Some(row) = paused.rows().next() {
            return self.wait(slot, Flight::new(sqid, cid, row as u16, Kind::Single), now);
        }
        let first = self.namespaces.attached().next();
        let Some(first) = first else {
            let command = self.command_of(slot);
            let status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
            return self.refuse(sqid, slot, &command, status);
        };
        let single = Flight::new(sqid, cid, first as u16, Kind::Single);
        let Some(entry) = self.free_steps.pop() else { return self.wait(slot, single, now) };
        if let Some(steps) = self.steps.get_mut(usize::from(entry)) {
            steps.clear();
            for namespace in self.namespaces.attached() {
                steps.push(Step { namespace, io: Io::new(Op::Flush, 0, 0) });
            }
        }
        self.tracing.translated(slot);
        *self.slots.flight_mut(slot) = Flight::new(sqid, cid, first as u16, Kind::Steps(entry));
        self.run_steps(slot, now);
    }

    /// Goes on with a command of several requests.
    #[cold]
    pub(super) fn run_steps(&mut self, slot: u16, now: u64) {
        let mut flight = *self.slots.flight(slot);
        let Kind::Steps(entry) = flight.kind else { return };
        // A wait to come begins then.
        flight.since = 0;
        let told = self.tracing.told(slot);
        for _ in 0..STEP_BUDGET {
            let step = self.steps.get(usize::from(entry)).and_then(nvm::Steps::current);
            let Some(Step { namespace, io }) = step else {
                return self.finish_steps(slot, Status::SUCCESS);
            };
            let Some(row) = self.namespaces.get_mut(namespace) else { return };
            match row.view {
                None => {
                    return self.finish_steps(slot, Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
                }
                Some(view) if view.formatting => {
                    return self.finish_steps(slot, Status::FORMAT_IN_PROGRESS);
                }
                Some(view) if view.write_protected && io.op.writes() => {
                    let status = Status::NAMESPACE_WRITE_PROTECTED.with_dnr();
                    return self.finish_steps(slot, status);
                }
                Some(_) => {}
            }
            flight.namespace = namespace as u16;
            // A pause waits for what has begun.
            let shut = row.is_retiring() || row.still;
            let channel = row.channel.as_mut().filter(|_| !shut);
            let Some(channel) = channel else { return self.wait(slot, flight, now) };
            let request = io.request(&[], u32::from(slot), told);
            let before = channel.with_backend();
            let submitted = channel.submit(&request, self.memory.regions(), now);
            let by_ring = channel.with_backend() > before;
            self.tracing.requested(slot, io.length, submitted, by_ring);
            match submitted {
                Submitted::Done(Ok(())) => {
                    self.charge_step(namespace, &io, now);
                    self.count(namespace, io.op, io.length, Status::SUCCESS);
                    if let Some(steps) = self.steps.get_mut(usize::from(entry)) {
                        steps.advance();
                    }
                }
                Submitted::Done(Err(ErrorKind::Gone)) => {
                    self.lose_channel(namespace);
                    return self.wait(slot, flight, now);
                }
                Submitted::Done(outcome) => {
                    let (status, command) = (nvm::status(io.op, outcome), self.command_of(slot));
                    self.count(namespace, io.op, io.length, status);
                    self.record_error(slot, flight.sqid, flight.cid, status, &command);
                    return self.finish_steps(slot, status);
                }
                Submitted::Pending => {
                    row.unpublished = true;
                    self.charge_step(namespace, &io, now);
                    (flight.op, flight.bytes) = (io.op, io.length.min(u64::from(u32::MAX)) as u32);
                    *self.slots.flight_mut(slot) = flight;
                    return self.slots.submit(slot);
                }
                Submitted::Full => return self.wait(slot, flight, now),
            }
        }
        self.wait(slot, flight, now);
    }

    /// Completes a command of several requests. A Copy that failed says in dword 0 which range was the first not copied.
    pub(super) fn finish_steps(&mut self, slot: u16, status: Status) {
        let Flight { sqid, cid, kind, .. } = *self.slots.flight(slot);
        let Kind::Steps(entry) = kind else { return };
        let done = self.steps.get(usize::from(entry)).map_or(0, nvm::Steps::done);
        self.free_steps.push(entry);
        let copies = self.command_of(slot).nvm_opcode() == NvmOpcode::COPY;
        let dw0 = if copies && !status.is_success() { done } else { 0 };
        self.finish(slot, sqid, cid, status, dw0);
    }
}
