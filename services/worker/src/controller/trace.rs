//! Traced commands. Off the hot path, which asks one question a batch: whether a command's turn has come.
//!
//! A sampled command is timed in all its stages: on its own, beside the rest of its batch, and completed at once. What was
//! not sampled and took long, or failed, is recorded with what is known of it anyway: the reactor's clock tells when its
//! channel got it, to the grain of some polls; what a lease served at once took no time of anybody else's.

use super::Controller;
use super::run::row_of;
use crate::namespaces::{Entry, Shut};
use crate::slots::Flight;
use crate::tracer::Tracer;
use bdev::channel::{Channel, Submitted};
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::latency::LatencyOf;
use ipc::layout::telemetry::{CAPTURED, Policy, TraceRecord, TraceSide, trace_reason};
use nvme::nvm::{Io, Work};
use nvme_spec::Status;
use nvme_spec::command::{Command, NvmOpcode};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sampled commands that a block device has, or that wait for their interrupt; further ones are counted as dropped.
const MAX_OPEN: usize = 64;

/// A controller's part in tracing.
pub(super) struct Tracing {
    tracer: Option<Arc<Tracer>>,
    policy: Policy,
    /// Commands that pass before the next one is sampled.
    left: u32,
    /// Commands that are captured before that goes on, each of them; while there are any, `left` is 0.
    capture: u32,
    /// While commands are captured: what `left` would be.
    turn: u32,
    /// Nanoseconds from which a command is slow.
    slow: u64,
    /// Sampled commands in flight, by slot.
    open: Vec<(u16, TraceRecord)>,
    /// Sampled commands that were posted, with their completion queue and the number of interrupts before.
    posted: Vec<(TraceRecord, usize, u64)>,
    /// The command in hand is recorded by others than [`Controller::trace_failed`].
    in_hand: bool,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            tracer: None,
            policy: Policy::default(),
            left: u32::MAX,
            capture: 0,
            turn: u32::MAX,
            slow: u64::MAX,
            open: Vec::new(),
            posted: Vec::new(),
            in_hand: false,
        }
    }
}

impl Tracing {
    /// Whether one of the next `count` commands is sampled.
    #[inline(always)]
    pub(super) fn is_due(&mut self, count: usize) -> bool {
        match self.left.checked_sub(count as u32) {
            Some(left) => {
                self.left = left;
                false
            }
            None => true,
        }
    }

    /// Commands that pass before the next one is sampled.
    fn set_turn(&mut self, turn: u32) {
        self.turn = turn;
        self.left = if self.capture > 0 { 0 } else { turn };
    }

    /// Forgets commands in flight: their queues are gone.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.posted.clear();
    }

    /// Whether a command waits for its interrupt.
    #[inline]
    pub(super) fn awaits_interrupt(&self) -> bool {
        !self.posted.is_empty()
    }

    /// Whether a command that its channel got at the reactor's time `started` (0: not known) and has ended at `now` is
    /// recorded.
    #[inline]
    pub(super) fn is_traced(&self, flight: &Flight, now: u64) -> bool {
        let slow = flight.started != 0 && now.saturating_sub(flight.started) >= self.slow;
        flight.trace != 0 || slow
    }
}

impl Controller {
    /// Has commands traced by `tracer`, and by its policy as it is now.
    pub fn trace_by(&mut self, tracer: Arc<Tracer>) {
        let policy = tracer.policy();
        let tracing = &mut self.tracing;
        tracing.policy = policy;
        tracing.set_turn(match policy.sample {
            0 => u32::MAX,
            sample => sample - 1,
        });
        // Without anybody who takes records out there is no use in looking for slow ones.
        tracing.slow = if tracer.records() { policy.slow_ns() } else { u64::MAX };
        tracing.open.reserve(MAX_OPEN);
        tracing.posted.reserve(MAX_OPEN);
        tracing.tracer = Some(tracer);
    }

    /// Records the next `count` commands, whatever the policy; 0 ends that. Fused pairs are left out, as are commands
    /// beyond those that can be open at a time.
    pub fn capture(&mut self, count: u32) {
        let tracing = &mut self.tracing;
        let turn = if tracing.capture > 0 { tracing.turn } else { tracing.left };
        tracing.capture = if tracing.tracer.is_some() { count } else { 0 };
        tracing.set_turn(turn);
    }

    /// Runs a batch of which a command or several are sampled or captured.
    #[cold]
    pub(super) fn run_sampled_batch(&mut self, qid: usize, now: u64) {
        let count = self.batch.len();
        let sample = self.tracing.policy.sample;
        let capturing = self.tracing.capture > 0;
        let left = if capturing { self.tracing.turn } else { self.tracing.left };
        let mut due = left as usize;
        let tracer = self.tracing.tracer.clone();
        let fetched_at = tracer.as_ref().map_or(0, |tracer| tracer.now());
        for index in 0..count {
            let Some(&fetched) = self.batch.get(index) else { break };
            let (slot, command) = (fetched.slot, *fetched.command());
            let sampled = index == due && sample != 0;
            due += if sampled { sample as usize } else { 0 };
            let captured = self.tracing.capture > 0 && self.tracing.open.len() < MAX_OPEN;
            match &tracer {
                Some(tracer) if sampled || captured => {
                    self.tracing.capture -= u32::from(captured);
                    let mut record = self.record_of(tracer, qid as u16, &command, 0);
                    record.reason = if sampled { trace_reason::SAMPLED } else { 0 };
                    record.trace = if captured { record.trace | CAPTURED } else { record.trace };
                    record.fetched = fetched_at;
                    self.run_sampled(tracer, slot, &command, record, now);
                }
                _ => {
                    self.run_one(qid as u16, slot, &command, now);
                }
            }
            if self.failure.is_some() {
                self.abandon(index + 1);
                break;
            }
        }
        self.tracing.set_turn(match sample {
            0 => u32::MAX,
            _ => due.saturating_sub(count) as u32,
        });
    }

    fn run_sampled(
        &mut self,
        tracer: &Arc<Tracer>,
        slot: u16,
        command: &Command,
        mut record: TraceRecord,
        now: u64,
    ) {
        let (sqid, cid) = (record.sqid, record.cid);
        record.started = tracer.now();
        let row = row_of(command);
        let work = self.parse(command, 0);
        record.translated = tracer.now();
        record.submitted = record.translated;
        self.tracing.in_hand = true;
        match work {
            Ok(Work::Io(io)) => {
                record.bytes = io.length;
                let by_ring = self.submit_sampled(sqid, slot, cid, row, &io, record.trace, now);
                record.reason |= if by_ring { trace_reason::RING } else { 0 };
            }
            other => self.start(sqid, slot, command, other, 0, now),
        }
        self.tracing.in_hand = false;
        if !self.goes_on(slot) {
            record.done = tracer.now();
            self.conclude(tracer, slot, record);
        } else if self.tracing.open.len() < MAX_OPEN {
            self.slots.flight_mut(slot).trace = record.trace;
            self.tracing.open.push((slot, record));
        } else {
            tracer.drop_record();
        }
    }

    /// [`Controller::submit`] of a command whose channel is to know its trace. Whether a backend records its part.
    #[allow(clippy::too_many_arguments, reason = "a command's parts")]
    fn submit_sampled(
        &mut self,
        sqid: u16,
        slot: u16,
        cid: u16,
        row: usize,
        io: &Io,
        trace: u64,
        now: u64,
    ) -> bool {
        let exported = self.tracing.tracer.as_ref().is_some_and(|tracer| tracer.records());
        let told = if exported || trace & CAPTURED != 0 { trace } else { 0 };
        let (submitted, by_ring) = match self.namespaces.get_mut(row) {
            Some(Entry { channel: Some(channel), shut: Shut::NOT, .. }) => {
                let ranges = self.lists[0].ranges();
                let request = io.request(ranges, u32::from(slot), told);
                let submitted = channel.submit(&request, self.memory.regions(), now);
                (submitted, submitted == Submitted::Pending && channel.is_ring())
            }
            _ => (Submitted::Full, false),
        };
        if submitted == Submitted::Done(Ok(())) {
            self.tally(row, io.op, io.length);
            self.finish(slot, sqid, cid, Status::SUCCESS, 0);
        } else {
            self.submitted(sqid, slot, cid, row, *io, 0, submitted, now);
        }
        by_ring
    }

    /// Tries a sampled command again that waited for its channel, so that the backend finds its trace in the ring.
    #[cold]
    pub(super) fn retry_sampled(&mut self, slot: u16, flight: &Flight, now: u64) {
        let Flight { sqid, cid, trace, .. } = *flight;
        let command = self.command_of(slot);
        let before = self.tracing.tracer.as_ref().map_or(0, |tracer| tracer.now());
        let (row, work) = (row_of(&command), self.parse(&command, 0));
        let Ok(Work::Io(io)) = work else {
            return self.start(sqid, slot, &command, work, 0, now);
        };
        self.tracing.in_hand = true;
        let by_ring = self.submit_sampled(sqid, slot, cid, row, &io, trace, now);
        self.tracing.in_hand = false;
        let mut open = self.tracing.open.iter_mut();
        if let Some((_, record)) =
            open.find(|(open, record)| *open == slot && record.trace == trace)
        {
            record.submitted = before;
            record.bytes = io.length;
            record.reason |= if by_ring { trace_reason::RING } else { 0 };
        }
    }

    /// A command that [`Tracing::is_traced`] got on: it is with a channel again, or waits again, or has ended.
    #[cold]
    pub(super) fn trace_progress(&mut self, slot: u16, flight: &Flight) {
        let Some(tracer) = self.tracing.tracer.clone() else { return };
        let ended = !self.goes_on(slot);
        let place = self.tracing.open.iter().position(|(open, record)| {
            *open == slot && flight.trace != 0 && record.trace == flight.trace
        });
        if !ended {
            if place.is_some() {
                self.slots.flight_mut(slot).trace = flight.trace;
            }
            return;
        }
        let mut record = match place {
            Some(place) => self.tracing.open.swap_remove(place).1,
            None => {
                let command = self.command_of(slot);
                let reason = if flight.trace == 0 { trace_reason::SLOW } else { 0 };
                let mut record = self.record_of(&tracer, flight.sqid, &command, reason);
                record.bytes = flight.bytes.into();
                record.fetched = tracer.at(flight.started);
                record.submitted = record.fetched;
                record
            }
        };
        record.done = tracer.now();
        self.conclude(&tracer, slot, record);
    }

    /// Whether a command that was just looked at is with a channel, or waits.
    fn goes_on(&self, slot: u16) -> bool {
        self.slots.submitted().last() == Some(&slot)
            || self.waiting.back() == Some(&slot)
            || self.pause.last_held() == Some(slot)
    }

    /// A command that has its outcome is completed, and its record goes on its way.
    fn conclude(&mut self, tracer: &Tracer, slot: u16, mut record: TraceRecord) {
        self.commit();
        record.posted = tracer.now();
        let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
        record.status = log.outcome.load(Ordering::Relaxed) as u16;
        let latency = record.posted.saturating_sub(record.fetched);
        if record.status != 0 {
            record.reason |= trace_reason::FAILED;
        }
        if latency >= self.tracing.policy.slow_ns() {
            record.reason |= trace_reason::SLOW;
        }
        if record.reason & trace_reason::SAMPLED != 0 {
            let histogram = &self.queues.latency[class(record.opcode) as usize];
            histogram.record(latency);
            if tracer.records() {
                histogram.show(latency, record.trace, tracer.wall());
            }
        }
        let sq = self.sqs.get(usize::from(record.sqid)).and_then(Option::as_ref);
        let cqid = sq.map_or(0, |sq| sq.cqid);
        let owed = self.owed & 1_u128.checked_shl(cqid as u32).unwrap_or(0) != 0;
        if owed && self.tracing.posted.len() < MAX_OPEN {
            let interrupts = self.queues.acknowledged.interrupts.load(Ordering::Relaxed);
            self.tracing.posted.push((record, cqid, interrupts));
        } else {
            tracer.record(&record);
        }
    }

    /// Interrupts were raised, or the guest needs none any more.
    #[cold]
    pub(super) fn trace_signalled(&mut self) {
        let Some(tracer) = &self.tracing.tracer else { return };
        let now = tracer.now();
        let interrupts = self.queues.acknowledged.interrupts.load(Ordering::Relaxed);
        let owed = self.owed;
        self.tracing.posted.retain_mut(|(record, cqid, before)| {
            let waits = owed & 1_u128.checked_shl(*cqid as u32).unwrap_or(0) != 0;
            if !waits {
                record.signalled = if interrupts == *before { 0 } else { now };
                tracer.record(record);
            }
            waits
        });
    }

    /// A command that was not sampled has failed.
    #[cold]
    pub(super) fn trace_failed(&self, sqid: u16, cid: u16, status: Status, command: &Command) {
        let Some(tracer) = self.tracing.tracer.as_ref().filter(|tracer| tracer.records()) else {
            return;
        };
        if self.tracing.in_hand {
            return;
        }
        let mut record = self.record_of(tracer, sqid, command, trace_reason::FAILED);
        (record.cid, record.status) = (cid, status.into_bits());
        record.fetched = tracer.now();
        tracer.record(&record);
    }

    /// The command in hand is recorded, or not, by whoever ends it.
    #[inline]
    pub(super) fn trace_in_hand(&mut self, in_hand: bool) {
        self.tracing.in_hand = in_hand;
    }

    fn record_of(&self, tracer: &Tracer, sqid: u16, command: &Command, reason: u8) -> TraceRecord {
        TraceRecord {
            trace: tracer.trace(),
            controller: self.id(),
            side: TraceSide::Worker,
            reason,
            opcode: command.nvm_opcode().0,
            status: 0,
            sqid,
            cid: command.cid().0,
            nsid: command.nsid.0,
            lba: command.slba().0,
            bytes: 0,
            fetched: 0,
            started: 0,
            translated: 0,
            submitted: 0,
            done: 0,
            posted: 0,
            signalled: 0,
        }
    }
}

/// As the counters class them.
fn class(opcode: u8) -> LatencyOf {
    match NvmOpcode(opcode) {
        NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY => LatencyOf::Read,
        NvmOpcode::WRITE => LatencyOf::Write,
        _ => LatencyOf::Other,
    }
}
