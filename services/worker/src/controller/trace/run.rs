//! Traced commands on their way: each on its own, beside the rest of its batch.

use super::waits;
use crate::controller::Controller;
use crate::controller::run::row_of;
use crate::namespaces::{Entry, Shut};
use crate::slots::{Flight, Kind};
use bdev::channel::{Channel, Submitted};
use ipc::layout::telemetry::{CAPTURED, trace_reason};
use nvme::nvm::{Io, Work};
use nvme_spec::Status;
use nvme_spec::command::{Command, Fuse};

impl Controller {
    /// Runs a batch of which a command or several are sampled or captured.
    #[cold]
    pub(in crate::controller) fn run_traced_batch(&mut self, qid: usize, fuses: u8, now: u64) {
        let count = self.batch.len();
        let sample = self.tracing.policy.sample as usize;
        let capturing = self.tracing.capture > 0;
        let turn = if capturing { self.tracing.turn } else { self.tracing.left };
        let mut due = turn as usize;
        let tracer = self.tracing.tracer.clone();
        let fetched_at = tracer.as_ref().map_or(0, |tracer| tracer.now());
        let plain = fuses == Fuse::NORMAL.0 && !self.limits.any;
        let mut index = 0;
        while let Some(&fetched) = self.batch.get(index) {
            let (slot, command) = (fetched.slot, *fetched.command());
            let second = if plain { None } else { self.second_of(index) };
            index += 1 + usize::from(second.is_some());
            let sampled = sample != 0 && due < index;
            while sample != 0 && due < index {
                due += sample;
            }
            let captured = self.tracing.capture > 0;
            match &tracer {
                Some(tracer) if sampled || captured => {
                    self.tracing.capture -= u32::from(captured);
                    let reason = if sampled { trace_reason::SAMPLED } else { 0 };
                    let mut record = self.record_of(tracer, qid as u16, &command, reason);
                    record.trace = if captured { record.trace | CAPTURED } else { record.trace };
                    record.fetched = fetched_at;
                    self.tracing.open.insert(slot, second, record);
                    self.run_traced(qid, slot, second, &command, now);
                }
                _ if plain => self.run_one(qid as u16, slot, &command, now),
                _ => self.run_other(qid, slot, second, &command, now),
            }
            if self.failure.is_some() {
                self.abandon(index);
                break;
            }
        }
        self.tracing.set_turn(match sample {
            0 => u32::MAX,
            _ => due.saturating_sub(count) as u32,
        });
    }

    /// Runs a command of a batch that may be over a limit, or one of a pair.
    fn run_other(
        &mut self,
        qid: usize,
        slot: u16,
        second: Option<u16>,
        command: &Command,
        now: u64,
    ) {
        if self.limits.any && self.is_held_back(qid, slot, second, command, now) {
            return;
        }
        match command.fuse() {
            Fuse::NORMAL => self.run_one(qid as u16, slot, command, now),
            _ => self.run_fused(qid as u16, slot, second, command, now),
        }
    }

    /// The same of one that has a record.
    fn run_traced(
        &mut self,
        qid: usize,
        slot: u16,
        second: Option<u16>,
        command: &Command,
        now: u64,
    ) {
        if !self.limits.any || !self.is_held_back(qid, slot, second, command, now) {
            self.tracing.note(slot, |record, now| record.started = now);
            match command.fuse() {
                Fuse::NORMAL => self.run_traced_one(qid as u16, slot, command, now),
                _ => self.run_fused(qid as u16, slot, second, command, now),
            }
        }
        self.trace_progress(slot);
    }

    fn run_traced_one(&mut self, sqid: u16, slot: u16, command: &Command, now: u64) {
        let work = self.parse(command, 0);
        self.tracing.translated(slot);
        match work {
            Ok(Work::Io(io)) => self.submit_traced(sqid, slot, command, &io, now),
            other => self.start(sqid, slot, command, other, 0, now),
        }
    }

    /// [`Controller::submit`] of a command whose channel is to know its trace.
    fn submit_traced(&mut self, sqid: u16, slot: u16, command: &Command, io: &Io, now: u64) {
        let (row, cid) = (row_of(command), command.cid().0);
        let told = self.tracing.told(slot);
        self.tracing.moves(slot, io.length);
        let (submitted, by_ring) = match self.namespaces.get_mut(row) {
            Some(Entry { channel: Some(channel), shut: Shut::NOT, .. }) => {
                let request = io.request(self.lists[0].ranges(), u32::from(slot), told);
                let before = channel.with_backend();
                let submitted = channel.submit(&request, self.memory.regions(), now);
                (submitted, channel.with_backend() > before)
            }
            _ => (Submitted::Full, false),
        };
        self.tracing.requested(slot, 0, submitted, by_ring);
        if submitted == Submitted::Done(Ok(())) {
            self.tally(row, io.op, io.length);
            self.finish(slot, sqid, cid, Status::SUCCESS, 0);
        } else {
            self.submitted(sqid, slot, cid, row, *io, 0, submitted, now);
        }
    }

    /// Tries a command again that has a record.
    #[cold]
    pub(in crate::controller) fn retry_traced(&mut self, slot: u16, flight: &Flight, now: u64) {
        self.tracing.note(slot, |record, now| {
            if waits::is_paused(record) {
                record.resumed = now;
            }
            if record.started == 0 {
                record.started = now;
            } else if record.requests == 0 {
                record.submitted = now;
            }
        });
        match flight.kind {
            Kind::Single => {
                let command = self.command_of(slot);
                self.run_traced_one(flight.sqid, slot, &command, now);
            }
            Kind::Fused(second) => self.start_fused(flight.sqid, [slot, second], now),
            Kind::Steps(_) => self.run_steps(slot, now),
            Kind::Orphan => self.slots.give(slot),
        }
        self.trace_progress(slot);
    }
}
