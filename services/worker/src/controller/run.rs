//! From the log to a block device and back. On the hot path.
//!
//! While one command of a batch is submitted, the next one is parsed already and what it will copy is being loaded. A
//! command whose channel is full or not open waits, and is parsed anew from its log entry when its turn comes: nothing
//! that was checked is kept.

use super::{Controller, LISTS};
use crate::namespaces::{Entry, Namespaces, Shut};
use crate::slots::{Flight, Kind, logged};
use bdev::channel::{Channel, Need, Submitted};
use bdev::request::{ErrorKind, Op};
use ipc::guest_memory::GuestMemory;
use ipc::layout::MAX_IN_FLIGHT;
use nvme::nvm::{self, Io, Work};
use nvme::range_list::RangeList;
use nvme_spec::Status;
use nvme_spec::command::{Command, Fuse};

/// A command that was looked at.
#[derive(Clone, Copy)]
pub(super) struct Checked {
    row: usize,
    io: Io,
    /// It is a transfer that passed. Whatever else it is shows when its turn comes.
    passed: bool,
}

impl Checked {
    /// Nothing.
    pub(super) const NONE: Self = Self { row: 0, io: Io::new(Op::Flush, 0, 0), passed: false };
}

/// The row of the namespace table that a command names.
#[inline(always)]
pub(super) fn row_of(command: &Command) -> usize {
    (command.nsid.0 as usize).wrapping_sub(1)
}

/// Checks a command that is a transfer; its memory goes to `list`.
#[inline(always)]
fn check(
    command: &Command,
    namespaces: &Namespaces,
    settings: &nvm::Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Option<Io> {
    let view = namespaces.get(row_of(command))?.view.as_ref()?;
    nvm::transfer(command, view, settings, memory, list)
}

impl Controller {
    /// Runs the commands that were just fetched from a queue.
    #[inline]
    pub(super) fn run_batch(&mut self, qid: usize, fuses: u8, now: u64) {
        if self.tracing.is_due(self.batch.len()) {
            return self.run_traced_batch(qid, fuses, now);
        }
        if self.limits.any {
            self.hold_back(qid, now);
        }
        if fuses != Fuse::NORMAL.0 {
            return self.run_fused_batch(qid, now);
        }
        if self.namespaces.any_copies() {
            return self.run_copying_batch(qid, now);
        }
        for index in 0..self.batch.len() {
            let Some(fetched) = self.batch.get(index) else { return };
            let (slot, command) = (fetched.slot, fetched.command());
            let cid = command.cid().0;
            let (row, list) = (row_of(command), &mut self.lists[0]);
            match check(command, &self.namespaces, &self.settings, &self.memory, list) {
                Some(io) => self.submit(qid as u16, slot, cid, row, io, 0, now),
                None => {
                    let command = *command;
                    self.start_other(qid as u16, slot, &command, 0, now);
                }
            }
            if self.failure.is_some() {
                return self.abandon(index + 1);
            }
        }
    }

    /// Runs one command of a batch, as [`Self::run_batch`] does, for a batch that needs more than that for another one.
    #[inline(never)]
    pub(super) fn run_one(&mut self, qid: u16, slot: u16, command: &Command, now: u64) {
        let (row, list) = (row_of(command), &mut self.lists[0]);
        match check(command, &self.namespaces, &self.settings, &self.memory, list) {
            Some(io) => self.submit(qid, slot, command.cid().0, row, io, 0, now),
            None => self.start_other(qid, slot, command, 0, now),
        }
    }

    /// The same where channels copy: two commands are checked ahead, and what they will copy is being loaded.
    pub(super) fn run_copying_batch(&mut self, qid: usize, now: u64) {
        self.check_ahead(0);
        self.load(0, Need::Now);
        self.check_ahead(1);
        for index in 0..self.batch.len() {
            self.check_ahead(index + 2);
            self.load(index + 1, Need::Next);
            let Some(fetched) = self.batch.get(index) else { return };
            let (slot, command) = (fetched.slot, fetched.command());
            let cid = command.cid().0;
            let &Checked { row, io, passed } = &self.checked[index % LISTS];
            if passed {
                self.submit(qid as u16, slot, cid, row, io, index, now);
            } else {
                let command = *command;
                self.start_other(qid as u16, slot, &command, index, now);
            }
            if self.failure.is_some() {
                return self.abandon(index + 1);
            }
        }
    }

    /// Checks a command of the batch, if there is one, and touches what it will copy.
    #[inline(always)]
    pub(super) fn check_ahead(&mut self, index: usize) {
        let Some(fetched) = self.batch.get(index) else { return };
        let (command, list) = (fetched.command(), &mut self.lists[index % LISTS]);
        let io = check(command, &self.namespaces, &self.settings, &self.memory, list);
        let checked = &mut self.checked[index % LISTS];
        checked.passed = io.is_some();
        if let Some(io) = io {
            (checked.row, checked.io) = (row_of(command), io);
        }
        if index > 0 {
            self.load(index, Need::Later);
        }
    }

    /// Starts to load what a checked command of the batch will copy.
    #[inline(always)]
    pub(super) fn load(&mut self, index: usize, need: Need) {
        let Checked { row, io, passed } = &self.checked[index % LISTS];
        if index < self.batch.len()
            && *passed
            && let Some(entry) = self.namespaces.get_mut(*row)
            && let Some(channel) = &mut entry.channel
        {
            let list = &self.lists[index % LISTS];
            channel.load(&io.request(list.ranges(), 0, 0), self.memory.regions(), need);
        }
    }

    /// Gives back the slots of a batch from `index` on: the controller was given up meanwhile.
    #[cold]
    pub(super) fn abandon(&mut self, index: usize) {
        for place in index..self.batch.len() {
            if let Some(slot) = self.batch.get(place).map(|fetched| fetched.slot) {
                self.free_log(slot);
                self.slots.give(slot);
            }
        }
    }

    /// Brings a command on its way that is not a transfer that passed, or that waited. Its memory goes to that list.
    #[cold]
    pub(super) fn start_other(
        &mut self,
        sqid: u16,
        slot: u16,
        command: &Command,
        list: usize,
        now: u64,
    ) {
        let work = self.parse(command, list);
        self.start(sqid, slot, command, work, list, now);
    }

    /// What a command comes to; its memory goes to that list.
    pub(super) fn parse(&mut self, command: &Command, list: usize) -> Result<Work, Status> {
        let view = self.namespaces.get(row_of(command)).and_then(|entry| entry.view.as_ref());
        let view = view.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
        let list = &mut self.lists[list % LISTS];
        nvm::parse(command, view, &self.settings, &self.memory, list)
    }

    /// Brings a parsed command on its way.
    pub(super) fn start(
        &mut self,
        sqid: u16,
        slot: u16,
        command: &Command,
        work: Result<Work, Status>,
        list: usize,
        now: u64,
    ) {
        let (row, cid) = (row_of(command), command.cid().0);
        match work {
            Ok(Work::Io(io)) => self.submit(sqid, slot, cid, row, io, list, now),
            Ok(Work::Nothing) => self.finish(slot, sqid, cid, Status::SUCCESS, 0),
            Ok(Work::Steps(ranges)) => self.begin_steps(sqid, slot, command, ranges, list, now),
            Err(_) if nvm::is_flush_of_all(command) => self.flush_all(sqid, slot, cid, now),
            // The DMA table was just being changed.
            Err(Status::COMMAND_INTERRUPTED) => {
                self.wait(slot, Flight::new(sqid, cid, row as u16, Kind::Single), now);
            }
            Err(status) => self.refuse(sqid, slot, command, status),
        }
    }

    /// Submits the one request of a command.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a command's parts, kept in registers")]
    pub(super) fn submit(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        io: Io,
        list: usize,
        now: u64,
    ) {
        let submitted = match self.namespaces.get_mut(row) {
            Some(Entry { channel: Some(channel), shut: Shut::NOT, .. }) => {
                let ranges = self.lists[list % LISTS].ranges();
                let request = io.request(ranges, u32::from(slot), 0);
                channel.submit(&request, self.memory.regions(), now)
            }
            _ => Submitted::Full,
        };
        if submitted == Submitted::Done(Ok(())) {
            self.tally(row, io.op, io.length);
            self.finish(slot, sqid, cid, Status::SUCCESS, 0);
        } else {
            self.submitted(sqid, slot, cid, row, io, list, submitted, now);
        }
    }

    /// What is not done at once, or not well.
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "a command's parts")]
    pub(super) fn submitted(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        io: Io,
        list: usize,
        submitted: Submitted,
        now: u64,
    ) {
        match submitted {
            Submitted::Done(Err(ErrorKind::Gone)) => {
                self.lose_channel(row);
                self.wait(slot, Flight::new(sqid, cid, row as u16, Kind::Single), now);
            }
            Submitted::Done(outcome) => {
                let status = nvm::status(io.op, outcome);
                self.count(row, io.op, io.length, status);
                if outcome.is_err() {
                    let command = self.command_of(slot);
                    self.record_error(slot, sqid, cid, status, &command);
                }
                self.finish(slot, sqid, cid, status, 0);
            }
            Submitted::Pending => {
                let mut flight = Flight::new(sqid, cid, row as u16, Kind::Single);
                flight.touch(self.lists[list % LISTS].guest_ranges());
                (flight.op, flight.bytes) = (io.op, io.length as u32);
                flight.started = now;
                *self.slots.flight_mut(slot) = flight;
                self.slots.submit(slot);
                if let Some(entry) = self.namespaces.get_mut(row) {
                    entry.unpublished = true;
                }
            }
            Submitted::Full => {
                self.wait(slot, Flight::new(sqid, cid, row as u16, Kind::Single), now);
            }
        }
    }

    /// Completes a command that was found wrong.
    #[cold]
    pub(super) fn refuse(&mut self, sqid: u16, slot: u16, command: &Command, status: Status) {
        let cid = command.cid().0;
        if let Some(row) = nvm::namespace_index(command.nsid) {
            self.count(row, Op::Flush, 0, status);
        }
        self.record_error(slot, sqid, cid, status, command);
        self.finish(slot, sqid, cid, status.with_more(), 0);
    }

    /// Sets a command aside until its channel has room, or its namespace goes on.
    #[cold]
    pub(super) fn wait(&mut self, slot: u16, mut flight: Flight, now: u64) {
        if flight.since == 0 {
            flight.since = now.max(1);
        }
        *self.slots.flight_mut(slot) = flight;
        if self.is_held_up(&flight) {
            return self.hold(slot);
        }
        self.waiting.push_back(slot);
    }

    /// The command of a slot, from the log.
    pub(super) fn command_of(&self, slot: u16) -> Command {
        logged(&self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT])
    }
}
