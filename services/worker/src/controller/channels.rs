//! Channels: what waits for one, what one completed, and what becomes of one whose backend is gone. On the hot path.

use super::{Controller, Request};
use crate::namespaces::Entry;
use crate::slots::{Flight, Kind};
use bdev::channel::Channel;
use bdev::request::{ErrorKind, Op, Outcome};
use nvme::nvm;
use nvme_spec::Status;

/// Nanoseconds that a command waits for a channel that is not open before it fails: a backend that restarts is back
/// long before.
pub const CHANNEL_WAIT: u64 = 5_000_000_000;
/// Waiting commands that are tried per poll.
const RETRIES: usize = 32;

impl Controller {
    /// Tries waiting commands again. Returns how many got on.
    pub(super) fn retry(&mut self, now: u64) -> usize {
        if self.pause.is_paused() {
            return 0;
        }
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

    pub(super) fn retry_one(&mut self, slot: u16, now: u64) {
        let flight = *self.slots.flight(slot);
        let Flight { sqid, cid, .. } = flight;
        let row = usize::from(flight.namespace);
        let closed = self.namespaces.get(row).is_none_or(Entry::is_closed);
        if closed && now.saturating_sub(flight.since) > CHANNEL_WAIT {
            let (status, command) = (Status::INTERNAL_PATH_ERROR, self.command_of(slot));
            self.trace_failed(slot, sqid, cid, status, &command);
            return self.abort_slot(slot, status);
        }
        if self.is_waiting_traced(slot, now) {
            self.retry_traced(slot, &flight, now);
        } else {
            self.retry_untraced(slot, &flight, now);
        }
        let waits = self.waiting.back() == Some(&slot);
        if waits {
            // Another wait goes on from the first.
            self.slots.flight_mut(slot).since = flight.since;
        }
        if waits || self.slots.submitted().last() == Some(&slot) {
            self.slots.flight_mut(slot).again |= flight.again;
        }
    }

    fn retry_untraced(&mut self, slot: u16, flight: &Flight, now: u64) {
        match flight.kind {
            Kind::Steps(_) => self.run_steps(slot, now),
            Kind::Fused(second) => self.start_fused(flight.sqid, [slot, second], now),
            Kind::Single => {
                let command = self.command_of(slot);
                self.start_other(flight.sqid, slot, &command, 0, now);
                if self.slots.submitted().last() == Some(&slot) {
                    // It is as slow as both together.
                    let submitted = self.slots.flight_mut(slot);
                    (submitted.started, submitted.since) = (flight.since, now);
                }
            }
            Kind::Orphan => self.slots.give(slot),
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

    pub(super) fn completed_request(&mut self, tag: u32, outcome: Outcome, now: u64) {
        // A tag that is not in flight is a mistake of the channel's: there is nobody to tell.
        let Some(slot) = self.slots.retire(tag) else { return };
        let flight = *self.slots.flight(slot);
        let Flight { sqid, cid, op, bytes, .. } = flight;
        let status = nvm::status(op, outcome);
        let row = usize::from(flight.namespace);
        let traced = self.tracing.is_traced(&flight, now);
        if traced {
            self.trace_outcome(slot, &flight);
        }
        if outcome == Err(ErrorKind::Gone) && self.may_go_again(&flight) {
            let mut again = Flight::new(sqid, cid, flight.namespace, Kind::Single);
            again.again = true;
            self.wait(slot, again, now);
            if traced {
                self.trace_progress(slot);
            }
            return;
        }
        if flight.kind != Kind::Orphan {
            self.count(row, op, u64::from(bytes), status);
            if outcome.is_err() {
                let command = self.command_of(slot);
                self.record_error(slot, sqid, cid, status, &command);
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
        if traced {
            self.trace_progress(slot);
        }
    }

    /// Whether a command whose backend died, and of which nothing is under way any more, is sent on once more instead of
    /// failing: what comes to the same whether it was carried out before or not. Once, or one that kills backends would kill
    /// them all.
    #[cold]
    fn may_go_again(&self, flight: &Flight) -> bool {
        let same = match flight.op {
            Op::Read | Op::Write | Op::Flush | Op::Compare | Op::Verify => true,
            Op::WriteZeroes | Op::Deallocate => true,
            Op::CompareAndWrite | Op::Copy => false,
        };
        let lost = self.namespaces.get(usize::from(flight.namespace)).is_some_and(Entry::is_lost);
        flight.kind == Kind::Single && same && lost && !flight.again
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

    /// What that backend had under way has ended.
    #[cold]
    pub(super) fn backend_ended(&mut self, row: usize, channel: usize) {
        self.namespaces.end(row, channel);
        self.await_acknowledgement();
    }

    pub(super) fn ask_for_channel(&mut self, row: usize, generation: Option<u32>) {
        if let Some(generation) = generation {
            let force_ring = self.namespaces.get(row).is_some_and(|entry| entry.force_ring);
            let request = Request::OpenChannel { namespace: row, generation, force_ring };
            self.requests.push_back(request);
        }
    }
}
