//! From the log to a block device and back. On the hot path.
//!
//! While one command of a batch is submitted, the next one is parsed already and what it will copy is being loaded. A
//! command whose channel is full or not open waits, and is parsed anew from its log entry when its turn comes: nothing
//! that was checked is kept.

use super::{Controller, Fetched, LISTS, Request};
use crate::namespaces::{Entry, Namespaces};
use crate::slots::{Flight, Kind, logged};
use bdev::channel::{Channel, Need, Submitted};
use bdev::request::{ErrorKind, Op, Outcome};
use ipc::guest_memory::GuestMemory;
use ipc::layout::MAX_IN_FLIGHT;
use nvme::nvm::{self, Io, Ranges, Step, Work};
use nvme::range_list::RangeList;
use nvme_spec::Status;
use nvme_spec::command::{Command, Fuse};
use std::sync::atomic::Ordering;

/// Nanoseconds that a command waits for a channel that is not open before it fails: a backend that restarts is back
/// long before.
pub const CHANNEL_WAIT: u64 = 5_000_000_000;
/// Waiting commands that are tried per poll.
const RETRIES: usize = 32;
/// Requests of one command that are run before others get their turn.
const STEP_BUDGET: usize = 8;

/// A command that was checked.
#[derive(Clone, Copy)]
pub(super) struct Checked {
    row: usize,
    work: Result<Work, Status>,
}

impl Checked {
    /// Nothing.
    pub(super) const NONE: Self = Self { row: 0, work: Ok(Work::Nothing) };
}

/// Checks a command; its memory goes to `list`.
#[inline(always)]
fn check(
    command: &Command,
    namespaces: &Namespaces,
    settings: &nvm::Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Checked {
    let row = (command.nsid.0 as usize).wrapping_sub(1);
    let work = match namespaces.get(row).and_then(|entry| entry.view.as_ref()) {
        Some(view) => nvm::parse(command, view, settings, memory, list),
        None => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
    };
    Checked { row, work }
}

impl Controller {
    /// Runs the commands that were just fetched from a queue.
    #[inline]
    pub(super) fn run_batch(&mut self, qid: usize, fuses: u8, now: u64) {
        if fuses != Fuse::NORMAL.0 {
            return self.run_fused_batch(qid, now);
        }
        if self.namespaces.any_copies() {
            return self.run_copying_batch(qid, now);
        }
        for index in 0..self.batch.len() {
            let Some(Fetched { slot, command }) = self.batch.get(index) else { return };
            let (slot, cid) = (*slot, command.cid().0);
            let list = &mut self.lists[0];
            let Checked { row, work } =
                check(command, &self.namespaces, &self.settings, &self.memory, list);
            self.start(qid as u16, slot, cid, row, work, 0, now);
            if self.failure.is_some() {
                return self.abandon(index + 1);
            }
        }
    }

    /// The same where channels copy: two commands are checked ahead, and what they will copy is being loaded.
    fn run_copying_batch(&mut self, qid: usize, now: u64) {
        self.check_ahead(0);
        self.load(0, Need::Now);
        self.check_ahead(1);
        for index in 0..self.batch.len() {
            self.check_ahead(index + 2);
            self.load(index + 1, Need::Next);
            let Some(Fetched { slot, command }) = self.batch.get(index) else { return };
            let (slot, cid) = (*slot, command.cid().0);
            let Checked { row, work } = self.checked[index % LISTS];
            self.start(qid as u16, slot, cid, row, work, index, now);
            if self.failure.is_some() {
                return self.abandon(index + 1);
            }
        }
    }

    /// Checks a command of the batch, if there is one, and touches what it will copy.
    #[inline(always)]
    fn check_ahead(&mut self, index: usize) {
        let Some(Fetched { command, .. }) = self.batch.get(index) else { return };
        let list = &mut self.lists[index % LISTS];
        self.checked[index % LISTS] =
            check(command, &self.namespaces, &self.settings, &self.memory, list);
        if index > 0 {
            self.load(index, Need::Later);
        }
    }

    /// Starts to load what a checked command of the batch will copy.
    #[inline(always)]
    fn load(&mut self, index: usize, need: Need) {
        let Checked { row, work } = &self.checked[index % LISTS];
        if index < self.batch.len()
            && let Ok(Work::Io(io)) = work
            && let Some(entry) = self.namespaces.get_mut(*row)
            && let Some(channel) = &mut entry.channel
        {
            let list = &self.lists[index % LISTS];
            channel.load(&io.request(list.ranges(), 0, 0), self.memory.regions(), need);
        }
    }

    /// Gives back the slots of a batch from `index` on: the controller was given up meanwhile.
    #[cold]
    fn abandon(&mut self, index: usize) {
        for place in index..self.batch.len() {
            if let Some(&Fetched { slot, .. }) = self.batch.get(place) {
                self.free_log(slot);
                self.slots.give(slot);
            }
        }
    }

    /// Checks a command that waited or may be fused; its memory goes to the first list.
    fn check_again(&mut self, command: &Command) -> Checked {
        let list = &mut self.lists[0];
        check(command, &self.namespaces, &self.settings, &self.memory, list)
    }

    /// Brings a checked command on its way.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a command's parts, kept in registers")]
    fn start(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        work: Result<Work, Status>,
        list: usize,
        now: u64,
    ) {
        match work {
            Ok(Work::Io(io)) => self.submit(sqid, slot, cid, row, &io, list, now),
            other => self.start_other(sqid, slot, cid, row, other, list, now),
        }
    }

    #[cold]
    #[allow(clippy::too_many_arguments, reason = "a command's parts")]
    fn start_other(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        work: Result<Work, Status>,
        list: usize,
        now: u64,
    ) {
        match work {
            Ok(Work::Io(io)) => self.submit(sqid, slot, cid, row, &io, list, now),
            Ok(Work::Nothing) => self.finish(slot, sqid, cid, Status::SUCCESS, 0),
            Ok(Work::Steps(ranges)) => self.begin_steps(sqid, slot, cid, row, ranges, list, now),
            Err(_) if nvm::is_flush_of_all(&self.command_of(slot)) => {
                self.flush_all(sqid, slot, cid, now);
            }
            // The DMA table was just being changed.
            Err(Status::COMMAND_INTERRUPTED) => {
                self.wait(slot, Flight::new(sqid, cid, row as u16, Kind::Single), now);
            }
            Err(status) => self.refuse(sqid, slot, &self.command_of(slot), status),
        }
    }

    /// Submits the one request of a command.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a command's parts, kept in registers")]
    fn submit(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        io: &Io,
        list: usize,
        now: u64,
    ) {
        let submitted = match self.namespaces.get_mut(row) {
            Some(Entry { channel: Some(channel), retiring: false, .. }) => {
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
    fn submitted(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        io: &Io,
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
                    self.record_error(sqid, cid, status, command.nsid, command.slba().0);
                }
                self.finish(slot, sqid, cid, status, 0);
            }
            Submitted::Pending => {
                let mut flight = Flight::new(sqid, cid, row as u16, Kind::Single);
                flight.touch(self.lists[list % LISTS].guest_ranges());
                (flight.op, flight.bytes) = (io.op, io.length as u32);
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
    fn refuse(&mut self, sqid: u16, slot: u16, command: &Command, status: Status) {
        let cid = command.cid().0;
        if let Some(row) = nvm::namespace_index(command.nsid) {
            self.count(row, Op::Flush, 0, status);
        }
        self.record_error(sqid, cid, status, command.nsid, command.slba().0);
        self.finish(slot, sqid, cid, status.with_more(), 0);
    }

    /// Sets a command aside until its channel has room.
    #[cold]
    fn wait(&mut self, slot: u16, mut flight: Flight, now: u64) {
        if flight.since == 0 {
            flight.since = now.max(1);
        }
        *self.slots.flight_mut(slot) = flight;
        self.waiting.push_back(slot);
    }

    /// Tries waiting commands again. Returns how many got on.
    pub(super) fn retry(&mut self, now: u64) -> usize {
        let mut work = 0;
        for _ in 0..self.waiting.len().min(RETRIES) {
            let Some(slot) = self.waiting.pop_front() else { break };
            let before = self.waiting.len();
            self.retry_one(slot, now);
            if self.failure.is_some() {
                break;
            }
            if self.waiting.len() > before {
                // It waits again: what is behind it most likely would, too.
                break;
            }
            work += 1;
        }
        work
    }

    fn retry_one(&mut self, slot: u16, now: u64) {
        let flight = *self.slots.flight(slot);
        let Flight { sqid, cid, .. } = flight;
        let row = usize::from(flight.namespace);
        let closed = self.namespaces.get(row).is_none_or(|entry| entry.channel.is_none());
        if closed && now.saturating_sub(flight.since) > CHANNEL_WAIT {
            self.release_parts(slot);
            return self.finish(slot, sqid, cid, Status::INTERNAL_PATH_ERROR, 0);
        }
        let command = self.command_of(slot);
        match flight.kind {
            Kind::Steps(_) => self.run_steps(slot, now),
            Kind::Fused(second) => self.start_fused(sqid, [slot, second], now),
            Kind::Single => {
                let Checked { row, work } = self.check_again(&command);
                self.start_other(sqid, slot, cid, row, work, 0, now);
            }
            Kind::Orphan => self.slots.give(slot),
        }
        // Another wait goes on from the first.
        if self.waiting.back() == Some(&slot) {
            self.slots.flight_mut(slot).since = flight.since;
        }
    }

    /// Takes in what channels completed.
    pub(super) fn poll_channels(&mut self, now: u64) -> usize {
        let mut work = 0;
        for index in 0..self.namespaces.open().len() {
            let Some(&row) = self.namespaces.open().get(index) else { break };
            let Some(entry) = self.namespaces.get_mut(usize::from(row)) else { continue };
            let Some(channel) = &mut entry.channel else { continue };
            if channel.outstanding() == 0 {
                continue;
            }
            let completed = &mut self.completed;
            channel.poll(now, &mut |tag, outcome| completed.push((tag, outcome)));
            let gone = channel.is_gone();
            while let Some((tag, outcome)) = self.completed.pop() {
                self.completed_request(tag, outcome, now);
                work += 1;
            }
            if gone {
                self.lose_channel(usize::from(row));
            }
        }
        work
    }

    fn completed_request(&mut self, tag: u32, outcome: Outcome, now: u64) {
        // A tag that is not in flight is a mistake of the channel's: there is nobody to tell.
        let Some(slot) = self.slots.retire(tag) else { return };
        let flight = *self.slots.flight(slot);
        let Flight { sqid, cid, op, bytes, .. } = flight;
        let status = nvm::status(op, outcome);
        let row = usize::from(flight.namespace);
        if flight.kind != Kind::Orphan {
            self.count(row, op, u64::from(bytes), status);
            if outcome.is_err() {
                let command = self.command_of(slot);
                self.record_error(sqid, cid, status, command.nsid, command.slba().0);
            }
        }
        match flight.kind {
            Kind::Orphan => {
                self.free_log(slot);
                self.slots.give(slot);
            }
            Kind::Single => self.finish(slot, sqid, cid, status, 0),
            Kind::Fused(second) => self.finish_fused(slot, second, outcome),
            Kind::Steps(entry) if outcome.is_ok() => {
                if let Some(steps) = self.steps.get_mut(usize::from(entry)) {
                    steps.advance();
                }
                self.run_steps(slot, now);
            }
            Kind::Steps(_) => self.finish_steps(slot, status),
        }
    }

    /// Makes the requests of this poll visible to backends.
    pub(super) fn publish_channels(&mut self) {
        for index in 0..self.namespaces.open().len() {
            let Some(&row) = self.namespaces.open().get(index) else { break };
            if let Some(entry) = self.namespaces.get_mut(usize::from(row))
                && entry.unpublished
            {
                entry.unpublished = false;
                if let Some(channel) = &mut entry.channel {
                    channel.publish();
                }
            }
        }
    }

    /// A channel is of no more use: it goes once nothing is outstanding, and another one is asked for.
    #[cold]
    pub(super) fn lose_channel(&mut self, row: usize) {
        let generation = self.namespaces.lose(row);
        self.ask_for_channel(row, generation);
        // It is closed by whoever acknowledges.
        self.await_acknowledgement();
    }

    /// The backend of a channel is gone, which need not be the one that the row's present channel leads to.
    #[cold]
    pub(super) fn backend_gone(&mut self, row: usize, channel: usize) {
        match self.namespaces.is_lost(row, channel) {
            (true, _) => self.lose_channel(row),
            (false, generation) => {
                self.ask_for_channel(row, generation);
                self.await_acknowledgement();
            }
        }
    }

    fn ask_for_channel(&mut self, row: usize, generation: Option<u32>) {
        if let Some(generation) = generation {
            let force_ring = self.namespaces.get(row).is_some_and(|entry| entry.force_ring);
            let request = Request::OpenChannel { namespace: row, generation, force_ring };
            self.requests.push_back(request);
        }
    }

    /// The command of a slot, from the log.
    pub(super) fn command_of(&self, slot: u16) -> Command {
        logged(&self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT])
    }

    // Commands of several requests.

    #[cold]
    #[allow(clippy::too_many_arguments, reason = "a command's parts")]
    fn begin_steps(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        ranges: Ranges,
        list: usize,
        now: u64,
    ) {
        let single = Flight::new(sqid, cid, row as u16, Kind::Single);
        let Some(entry) = self.free_steps.pop() else { return self.wait(slot, single, now) };
        let view = self.namespaces.get(row).and_then(|entry| entry.view);
        let (Some(steps), Some(view)) = (self.steps.get_mut(usize::from(entry)), view) else {
            return self.wait(slot, single, now);
        };
        let list = &self.lists[list % LISTS];
        if let Err(status) = steps.load(ranges, row, &view, &self.memory, list) {
            self.free_steps.push(entry);
            let command = self.command_of(slot);
            return self.refuse(sqid, slot, &command, status);
        }
        *self.slots.flight_mut(slot) = Flight::new(sqid, cid, row as u16, Kind::Steps(entry));
        self.run_steps(slot, now);
    }

    /// Flush of all namespaces.
    #[cold]
    fn flush_all(&mut self, sqid: u16, slot: u16, cid: u16, now: u64) {
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
        *self.slots.flight_mut(slot) = Flight::new(sqid, cid, first as u16, Kind::Steps(entry));
        self.run_steps(slot, now);
    }

    /// Goes on with a command of several requests.
    #[cold]
    fn run_steps(&mut self, slot: u16, now: u64) {
        let mut flight = *self.slots.flight(slot);
        let Kind::Steps(entry) = flight.kind else { return };
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
            let channel = row.channel.as_mut().filter(|_| !row.retiring);
            let Some(channel) = channel else { return self.wait(slot, flight, now) };
            let request = io.request(&[], u32::from(slot), 0);
            match channel.submit(&request, self.memory.regions(), now) {
                Submitted::Done(Ok(())) => {
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
                    let status = nvm::status(io.op, outcome);
                    self.count(namespace, io.op, io.length, status);
                    return self.finish_steps(slot, status);
                }
                Submitted::Pending => {
                    row.unpublished = true;
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
    fn finish_steps(&mut self, slot: u16, status: Status) {
        let Flight { sqid, cid, kind, op, .. } = *self.slots.flight(slot);
        let Kind::Steps(entry) = kind else { return };
        let done = self.steps.get(usize::from(entry)).map_or(0, nvm::Steps::done);
        self.free_steps.push(entry);
        let dw0 = if op == Op::Copy && !status.is_success() { done } else { 0 };
        self.finish(slot, sqid, cid, status, dw0);
    }

    // Fused pairs.

    /// A batch that has halves of fused pairs in it: one command after the other.
    #[cold]
    fn run_fused_batch(&mut self, qid: usize, now: u64) {
        let sqid = qid as u16;
        let mut index = 0;
        while let Some(&Fetched { slot, command }) = self.batch.get(index) {
            index += 1;
            let second = self.batch.get(index).copied();
            match command.fuse() {
                Fuse::NORMAL => {
                    let Checked { row, work } = self.check_again(&command);
                    self.start_other(sqid, slot, command.cid().0, row, work, 0, now);
                }
                Fuse::FIRST => match second.filter(|s| s.command.fuse() == Fuse::SECOND) {
                    Some(second) => {
                        index += 1;
                        self.group(slot, second.slot);
                        self.start_fused(sqid, [slot, second.slot], now);
                    }
                    None => self.refuse(sqid, slot, &command, Status::ABORTED_MISSING_FUSED),
                },
                Fuse::SECOND => self.refuse(sqid, slot, &command, Status::ABORTED_MISSING_FUSED),
                _ => self.refuse(sqid, slot, &command, Status::INVALID_FIELD.with_dnr()),
            }
            if self.failure.is_some() {
                return self.abandon(index);
            }
        }
    }

    /// Marks two slots as one group. A pair is found again by its neighbours' FUSE bits as well, so this may come after
    /// the head was published.
    fn group(&self, first: u16, second: u16) {
        for slot in [first, second] {
            let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
            let completion_queue = log.group.load(Ordering::Relaxed) & !0xFFFF;
            log.group.store(completion_queue | (u32::from(first) + 1), Ordering::Relaxed);
            log.compare_passed.store(0, Ordering::Relaxed);
        }
    }

    #[cold]
    fn start_fused(&mut self, sqid: u16, slots: [u16; 2], now: u64) {
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
        let entry = self.namespaces.get_mut(row).filter(|entry| !entry.retiring);
        let Some(entry) = entry else { return self.wait(first, flight, now) };
        let Some(channel) = &mut entry.channel else { return self.wait(first, flight, now) };
        let request = io.request(list.ranges(), u32::from(first), 0);
        match channel.submit(&request, self.memory.regions(), now) {
            Submitted::Done(Err(ErrorKind::Gone)) => {
                self.lose_channel(row);
                self.wait(first, flight, now);
            }
            Submitted::Done(outcome) => {
                *self.slots.flight_mut(first) = flight;
                self.count(row, io.op, io.length, nvm::status(io.op, outcome));
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

    fn finish_fused(&mut self, first: u16, second: u16, outcome: Outcome) {
        let Flight { sqid, cid, .. } = *self.slots.flight(first);
        let other = self.command_of(second).cid().0;
        let statuses = nvm::fused_outcome(outcome);
        self.finish(first, sqid, cid, statuses.first, 0);
        self.finish(second, sqid, other, statuses.second, 0);
    }
}
