//! Limits: commands that are over one wait here until it is their turn. Off the hot path, which asks one question a batch:
//! whether anything of this controller is limited.
//!
//! Commands wait in lines, one for each namespace, in the order in which they were fetched. The first of a line takes its
//! place in the account of each rate that concerns it ([`ipc::layout::limits`]) when it comes to stand there, and goes when
//! that place is due; only then the next one takes its own. So controllers and workers that share a rate take turns,
//! however many commands each of them has waiting, and nobody has to look twice. What a command costs that ends while it
//! waits is given back.
//!
//! A waiting command is logged and not sent on: it is aborted, or dropped by a reset, like any other that waits. A queue
//! with more than its share of the slots waiting is not fetched from until some have gone, so that others find room.

mod account;
mod lines;

pub(super) use lines::Limits;

use super::run::row_of;
use super::{Controller, waiting};
use crate::queue_pair::State;
use crate::slots::{Flight, Kind};
use account::{Account, Class, Cost};
use bdev::request::Op;
use ipc::layout::limits::{LimitsLayout, MAX_CONTROLLERS};
use ipc::layout::telemetry::add;
use ipc::layout::{MAX_IN_FLIGHT, MAX_NAMESPACES, MAX_QUEUES};
use ipc::segment::Segment;
use lines::{LINES, Line};
use nvme::nvm::Io;
use nvme_spec::Status;
use nvme_spec::command::{Command, Fuse};
use std::sync::atomic::Ordering;

/// Waiting commands that go in one poll.
const RELEASES: usize = 32;

impl Controller {
    /// Keeps to the limits in `segment`, where the controller has that row. To be called before the first poll.
    pub fn limit_by(&mut self, segment: Segment<LimitsLayout>, row: u32) {
        self.limits = Limits {
            segment: Some(segment),
            row: row as usize,
            spaces: vec![Account::default(); MAX_NAMESPACES],
            lines: vec![Line::EMPTY; LINES],
            next: vec![0; MAX_IN_FLIGHT],
            busy: Vec::with_capacity(LINES),
            ..Limits::default()
        };
    }

    /// Takes in what the frontend changed of the limits, and how many queues share the slots.
    #[cold]
    pub(super) fn load_limits(&mut self) {
        let queues = self.sqs.iter().flatten().count().max(1);
        self.limits.share = (MAX_IN_FLIGHT / 2 / queues).max(1) as u16;
        for qid in 0..self.sqs.len() {
            self.hold_or_fetch(qid);
        }
        let Some(segment) = &self.limits.segment else { return };
        // Acquire: pairs with the frontend's Release; the rows are written.
        let generation = segment.generation.0.load(Ordering::Acquire);
        if self.limits.generation == Some(generation) {
            return;
        }
        self.limits.generation = Some(generation);
        self.limits.own = Account::load(&segment.controllers[self.limits.row % MAX_CONTROLLERS]);
        for (account, row) in self.limits.spaces.iter_mut().zip(&segment.namespaces) {
            *account = Account::load(row);
        }
        let limited = self.limits.spaces.iter().any(Account::is_limited);
        self.limits.any = limited || self.limits.own.is_limited();
        self.limits.give_changed_back();
    }

    /// Sets those commands of the batch aside that are over a limit; the others stay in it.
    #[cold]
    pub(super) fn hold_back(&mut self, qid: usize, now: u64) {
        let (mut kept, mut index) = (0, 0);
        while let Some(fetched) = self.batch.get(index) {
            let (slot, command) = (fetched.slot, *fetched.command());
            let second = self.second_of(index);
            let count = 1 + usize::from(second.is_some());
            if !self.is_held_back(qid, slot, second, &command, now) {
                self.batch.copy_within(index..index + count, kept);
                kept += count;
            } else if self.failure.is_some() {
                self.batch.drain(kept..index + count);
                self.abandon(0);
                return self.batch.clear();
            }
            index += count;
        }
        self.batch.truncate(kept);
    }

    /// Whether a command of the batch leaves it, with the second half if it is the first of a pair: set aside over a
    /// limit, or refused as half of a pair, which here, or it might find another half when commands between them are set
    /// aside.
    #[cold]
    pub(super) fn is_held_back(
        &mut self,
        qid: usize,
        slot: u16,
        second: Option<u16>,
        command: &Command,
        now: u64,
    ) -> bool {
        if second.is_none() && matches!(command.fuse(), Fuse::FIRST | Fuse::SECOND) {
            self.refuse(qid as u16, slot, command, Status::ABORTED_MISSING_FUSED);
            return true;
        }
        let Err(line) = self.take_place(command, second.is_some(), now) else { return false };
        let kind = second.map_or(Kind::Single, Kind::Fused);
        if let Kind::Fused(second) = kind {
            self.group(slot, second);
        }
        self.park(qid, line, slot, command, kind, now);
        true
    }

    /// Whether a command may go now; else the line in which it has to wait.
    fn take_place(&mut self, command: &Command, pair: bool, now: u64) -> Result<(), usize> {
        let line = Limits::line_of(row_of(command));
        let waits = self.limits.lines.get(line).is_some_and(|line| line.len > 0);
        if waits {
            return Err(line);
        }
        if self.namespaces.paused().has(line) {
            // It is counted when the namespace goes on.
            return Ok(());
        }
        if !self.limits.own.is_limited() && !self.limits.space(line).is_limited() {
            return Ok(());
        }
        let cost = self.cost_of(line, command, pair);
        let place = self.limits.place(line, cost, now);
        if place.release <= now {
            return Ok(());
        }
        if let Some(line) = self.limits.lines.get_mut(line) {
            line.place = Some(place);
        }
        Err(line)
    }

    fn cost_of(&self, line: usize, command: &Command, pair: bool) -> Cost {
        let space = self.namespaces.get(line).and_then(|entry| entry.view.as_ref());
        Cost::of(command, pair, space, self.settings.max_transfer)
    }

    fn park(
        &mut self,
        qid: usize,
        line: usize,
        slot: u16,
        command: &Command,
        kind: Kind,
        now: u64,
    ) {
        let row = row_of(command) as u16;
        let mut flight = Flight::new(qid as u16, command.cid().0, row, kind);
        flight.since = now.max(1);
        *self.slots.flight_mut(slot) = flight;
        self.join(line, slot);
    }

    /// Puts a command at the end of a line.
    fn join(&mut self, line: usize, slot: u16) {
        self.trace_held_back(slot);
        self.limits.push(line, slot);
        let place = self.limits.lines.get(line).and_then(|line| line.place);
        let first = self.limits.lines.get(line).is_some_and(|line| line.head == slot);
        if let Some(place) = place.filter(|_| first) {
            self.tracing.limited_by(slot, place.limit);
        }
        self.limits.due = self.limits.due.min(place.map_or(0, |place| place.release));
        if let Some(counters) = self.queues.throttled.get(line) {
            add(&counters.commands, 1);
        }
        self.occupy(usize::from(self.slots.flight(slot).sqid));
    }

    /// Has a command wait for its turn that waited for something else. False if nothing of it is limited.
    pub(super) fn line_up(&mut self, slot: u16) -> bool {
        let flight = *self.slots.flight(slot);
        let line = Limits::line_of(usize::from(flight.namespace));
        let limited = self.limits.own.is_limited() || self.limits.space(line).is_limited();
        let waits = self.limits.lines.get(line).is_some_and(|line| line.len > 0);
        if !(waits || self.limits.any && limited) {
            return false;
        }
        self.join(line, slot);
        true
    }

    /// Lets those waiting commands go whose place is due. Returns how many.
    #[cold]
    pub(super) fn release(&mut self, now: u64) -> usize {
        if self.pause.is_paused() {
            self.limits.due = u64::MAX;
            return 0;
        }
        let mut released = 0;
        let paused = self.namespaces.paused();
        self.limits.begin_turn();
        for place in 0..self.limits.busy.len() {
            let Some(line) = self.limits.busy_line(place) else { break };
            if paused.has(line) {
                continue;
            }
            while released < RELEASES
                && let Some(slot) = self.due_in(line, now)
            {
                self.let_go(line, slot, now);
                released += 1;
                if self.failure.is_some() {
                    return released;
                }
            }
        }
        self.limits.due = self.limits.next_due(paused);
        released
    }

    /// Takes the first of a line out if its place is due; it gets a place if it has none.
    fn due_in(&mut self, line: usize, now: u64) -> Option<u16> {
        let &Line { head, place, .. } = self.limits.lines.get(line).filter(|line| line.len > 0)?;
        let place = place.unwrap_or_else(|| {
            let pair = matches!(self.slots.flight(head).kind, Kind::Fused(_));
            let cost = self.cost_of(line, &self.command_of(head), pair);
            let place = self.limits.place(line, cost, now);
            self.tracing.limited_by(head, place.limit);
            place
        });
        let due = place.release <= now;
        if let Some(line) = self.limits.lines.get_mut(line) {
            line.place = (!due).then_some(place);
        }
        if due { self.limits.pop(line) } else { None }
    }

    fn let_go(&mut self, line: usize, slot: u16, now: u64) {
        let flight = self.slots.flight_mut(slot);
        let (sqid, since) = (flight.sqid, flight.since);
        // From here on it waits for its channel, if at all.
        flight.since = now.max(1);
        if let Some(counters) = self.queues.throttled.get(line) {
            add(&counters.waited_ns, now.saturating_sub(since));
        }
        self.unpark(usize::from(sqid));
        self.retry_one(slot, now);
    }

    /// One command more of this queue waits here, or for its namespace.
    pub(super) fn occupy(&mut self, qid: usize) {
        if let Some(parked) = self.limits.parked.get_mut(qid) {
            *parked += 1;
        }
        self.hold_or_fetch(qid);
    }

    /// One less.
    pub(super) fn unpark(&mut self, qid: usize) {
        if let Some(parked) = self.limits.parked.get_mut(qid) {
            *parked = parked.saturating_sub(1);
        }
        self.hold_or_fetch(qid);
    }

    /// Stops fetching from a queue that has its share of the slots waiting, or goes on.
    fn hold_or_fetch(&mut self, qid: usize) {
        let (Some(Some(sq)), Some(&parked)) = (self.sqs.get_mut(qid), self.limits.parked.get(qid))
        else {
            return;
        };
        sq.state = match sq.state {
            State::Active if parked >= self.limits.share => State::Held,
            State::Held if parked < self.limits.share => State::Active,
            state => state,
        };
    }

    /// Counts what a part of a Copy moves, which the commands that follow pay for.
    #[cold]
    pub(super) fn charge_step(&mut self, row: usize, io: &Io, now: u64) {
        if self.limits.any && io.op == Op::Copy {
            let cost = Cost { class: Class::Write, commands: 0, bytes: io.length };
            self.limits.place(Limits::line_of(row), cost, now);
        }
    }

    /// Ends commands that are `wanted` and wait here, at most `most`. Returns how many.
    #[cold]
    pub(super) fn abort_parked(
        &mut self,
        wanted: impl Fn(&Flight) -> bool,
        status: Status,
        most: usize,
    ) -> usize {
        let mut found = 0;
        for line in 0..self.limits.lines.len() {
            let head = |limits: &Limits| limits.lines.get(line).map(|line| line.head);
            let before = head(&self.limits);
            found += self.abort_in(waiting::Line::Limit(line), &wanted, status, most - found);
            if head(&self.limits) != before {
                self.limits.give_back(line);
            }
        }
        found
    }

    /// Drops all waiting commands: a reset.
    pub(super) fn drop_parked(&mut self) {
        while let Some(line) = self.limits.busy.pop().map(usize::from) {
            self.limits.give_back(line);
            while let Some(slot) = self.limits.pop(line) {
                self.release_parts(slot);
                self.free_log(slot);
                self.slots.give(slot);
            }
        }
        self.limits.parked = [0; MAX_QUEUES];
        self.limits.due = u64::MAX;
    }
}
