//! Traced commands. Off the hot path, which asks one question a batch: whether a command's turn has come.
//!
//! A command that is traced has a record from its fetch to its completion ([`open::Open`]), in which its stages are timed as
//! it comes through them. Whose turn it is, or what is captured, is timed on its own, beside the rest of its batch, and
//! completed at once. Whatever leaves the hot path anyway (for a limit, as a fused pair, with several requests) has a
//! record from there on, which goes its way only if the command turns out slow, or fails. Of other commands that took
//! long, or failed, is told what is known of them anyway: the reactor's clock tells when its channel got it, to the grain
//! of some polls; what a lease served at once took no time of anybody else's.

mod open;
mod run;
mod waits;

use super::Controller;
use crate::slots::{Flight, Kind};
use crate::tracer::Tracer;
use bdev::channel::Submitted;
use bdev::request::ErrorKind;
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::latency::LatencyOf;
use ipc::layout::limits::Limit;
use ipc::layout::telemetry::{Policy, TraceRecord, TraceSide, trace_reason};
use nvme_spec::Status;
use nvme_spec::command::{Command, NvmOpcode};
use open::Open;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Traced commands that wait for their interrupt; further ones are told of without that. All of them are looked at in each
/// poll.
const MAX_POSTED: usize = 256;

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
    /// Somebody captures, who may have got all.
    capturing: bool,
    /// Nanoseconds from which a command is slow.
    slow: u64,
    /// Commands in flight that have a record.
    open: Open,
    /// Traced commands that were posted, with their completion queue and the number of interrupts before.
    posted: Vec<(TraceRecord, usize, u64)>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            tracer: None,
            policy: Policy::default(),
            left: u32::MAX,
            capture: 0,
            turn: u32::MAX,
            capturing: false,
            slow: u64::MAX,
            open: Open::default(),
            posted: Vec::new(),
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

    /// Captures so many commands more, in place of those of which there is no record.
    fn capture_again(&mut self, lost: u32) {
        if lost > 0 && self.capturing {
            let turn = if self.capture > 0 { self.turn } else { self.left };
            self.capture = self.capture.saturating_add(lost);
            self.set_turn(turn);
        }
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
        flight.trace != 0 || self.is_slow(flight.started, now)
    }

    /// Whether what began at the reactor's time `began` (0: not known) takes long at `now`.
    #[inline]
    fn is_slow(&self, began: u64, now: u64) -> bool {
        began != 0 && now.saturating_sub(began) >= self.slow
    }

    /// What a channel is told of a slot's command, so that its backend records its part: the trace, or 0.
    pub(super) fn told(&self, slot: u16) -> u64 {
        let Some(record) = self.open.get(slot) else { return 0 };
        let exported = self.tracer.as_ref().is_some_and(|tracer| tracer.records());
        let sampled = record.reason & trace_reason::SAMPLED != 0 && exported;
        if sampled || record.is_captured() { record.trace } else { 0 }
    }

    /// Notes the time of a stage of a slot's command.
    fn note(&mut self, slot: u16, note: impl FnOnce(&mut TraceRecord, u64)) {
        if let (Some(record), Some(tracer)) = (self.open.get_mut(slot), &self.tracer) {
            note(record, tracer.now());
        }
    }

    /// A slot's command was checked.
    pub(super) fn translated(&mut self, slot: u16) {
        self.note(slot, |record, now| {
            if record.translated == 0 {
                (record.translated, record.submitted) = (now, now);
            }
        });
    }

    /// The limit that a slot's command waits for.
    pub(super) fn limited_by(&mut self, slot: u16, limit: Option<Limit>) {
        if let Some(record) = self.open.get_mut(slot) {
            record.limit = limit;
        }
    }

    /// What a slot's command moves, as far as it has one request.
    pub(super) fn moves(&mut self, slot: u16, bytes: u64) {
        if let Some(record) = self.open.get_mut(slot) {
            record.bytes = bytes;
        }
    }

    /// A channel was handed a request of a slot's command, which moves `bytes` beside others.
    pub(super) fn requested(&mut self, slot: u16, bytes: u64, submitted: Submitted, by_ring: bool) {
        if matches!(submitted, Submitted::Full | Submitted::Done(Err(ErrorKind::Gone))) {
            return;
        }
        let told = self.told(slot) != 0;
        if let Some(record) = self.open.get_mut(slot) {
            record.done = 0;
            record.bytes = record.bytes.saturating_add(bytes);
            record.requests = record.requests.saturating_add(1);
            if by_ring && told {
                record.reason |= trace_reason::RING;
                record.by_ring = record.by_ring.saturating_add(1);
            }
        }
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
        tracing.open.reserve();
        tracing.posted.reserve_exact(MAX_POSTED.saturating_sub(tracing.posted.len()));
        tracing.tracer = Some(tracer);
    }

    /// Records the next `count` commands, whatever the policy; 0 ends that. A fused pair counts as one. Records that find
    /// no room are made up for by later ones.
    pub fn capture(&mut self, count: u32) {
        let tracing = &mut self.tracing;
        let turn = if tracing.capture > 0 { tracing.turn } else { tracing.left };
        tracing.capture = if tracing.tracer.is_some() { count } else { 0 };
        tracing.capturing = tracing.capture > 0;
        tracing.set_turn(turn);
    }

    /// A channel has ended a request of a command of which [`Tracing::is_traced`] holds.
    #[cold]
    pub(super) fn trace_outcome(&mut self, slot: u16, flight: &Flight) {
        if flight.kind == Kind::Orphan {
            return;
        }
        if flight.trace == 0 {
            self.trace_late(slot, flight, trace_reason::SLOW);
            self.tracing.requested(slot, 0, Submitted::Pending, false);
        }
        self.tracing.note(slot, |record, now| record.done = now);
    }

    /// A command that has a record was brought on its way, or got on: it is with a channel, or waits, or has ended.
    #[cold]
    pub(super) fn trace_progress(&mut self, slot: u16) {
        let Some(record) = self.tracing.open.get(slot) else { return };
        let (trace, held_back) = (record.trace, record.held != 0 && record.started == 0);
        if held_back || self.goes_on(slot) {
            self.slots.flight_mut(slot).trace = trace;
        } else {
            self.conclude(slot);
        }
    }

    /// Whether a command that was just looked at is with a channel, or waits.
    fn goes_on(&self, slot: u16) -> bool {
        self.slots.submitted().last() == Some(&slot)
            || self.waiting.back() == Some(&slot)
            || self.pause.last_held() == Some(slot)
    }

    /// A command that has its outcome is completed, and its record goes on its way.
    fn conclude(&mut self, slot: u16) {
        let Some(tracer) = self.tracing.tracer.clone() else { return };
        let Some(open::Entry { slot, second, mut record }) = self.tracing.open.remove(slot) else {
            return;
        };
        if record.done == 0 {
            record.done = tracer.now();
        }
        if waits::is_paused(&record) {
            record.resumed = record.done;
        }
        if record.requests == 0 && record.submitted <= record.translated {
            // No block device was asked, and none waited for.
            record.submitted = 0;
        }
        self.commit();
        if self.failure.is_some() {
            return;
        }
        record.posted = tracer.now();
        record.status = self.outcome_of(slot, second).into_bits();
        let latency = record.posted.saturating_sub(record.fetched);
        if record.status != 0 {
            record.reason |= trace_reason::FAILED;
        }
        if latency >= self.tracing.policy.slow_ns() {
            record.reason |= trace_reason::SLOW;
        }
        if record.reason & trace_reason::SAMPLED != 0 {
            let histogram = &self.queues.latency[class(&record) as usize];
            histogram.record(latency);
            if tracer.records() {
                histogram.show(latency, record.trace, tracer.wall());
            }
        }
        if record.reason & trace_reason::REASONS == 0 && !record.is_captured() {
            return;
        }
        let sq = self.sqs.get(usize::from(record.sqid)).and_then(Option::as_ref);
        let cqid = sq.map_or(0, |sq| sq.cqid);
        let owed = self.owed & 1_u128.checked_shl(cqid as u32).unwrap_or(0) != 0;
        if owed && self.tracing.posted.len() < MAX_POSTED {
            let interrupts = self.queues.acknowledged.interrupts.load(Ordering::Relaxed);
            self.tracing.posted.push((record, cqid, interrupts));
        } else if !tracer.record(&record) && record.is_captured() {
            self.tracing.capture_again(1);
        }
    }

    /// What a command that was completed has come to; of a pair, what it was that failed.
    fn outcome_of(&self, slot: u16, second: Option<u16>) -> Status {
        let of = |slot: u16| {
            let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
            Status::from_raw(log.outcome.load(Ordering::Relaxed) as u16)
        };
        let first = of(slot);
        match second {
            Some(second) if first.is_success() || first.code() == Status::ABORTED_FAILED_FUSED => {
                of(second)
            }
            _ => first,
        }
    }

    /// Interrupts were raised, or the guest needs none any more.
    #[cold]
    pub(super) fn trace_signalled(&mut self) {
        let Some(tracer) = &self.tracing.tracer else { return };
        let now = tracer.now();
        let interrupts = self.queues.acknowledged.interrupts.load(Ordering::Relaxed);
        let (owed, mut lost) = (self.owed, 0);
        self.tracing.posted.retain_mut(|(record, cqid, before)| {
            let waits = owed & 1_u128.checked_shl(*cqid as u32).unwrap_or(0) != 0;
            if !waits {
                record.signalled = if interrupts == *before { 0 } else { now };
                lost += u32::from(!tracer.record(record) && record.is_captured());
            }
            waits
        });
        self.tracing.capture_again(lost);
    }

    /// A command has failed. One that has a record is told of when it has ended.
    #[cold]
    pub(super) fn trace_failed(
        &self,
        slot: u16,
        sqid: u16,
        cid: u16,
        status: Status,
        command: &Command,
    ) {
        let Some(tracer) = self.tracing.tracer.as_ref().filter(|tracer| tracer.records()) else {
            return;
        };
        if self.tracing.open.get(slot).is_some() {
            return;
        }
        let mut record = self.record_of(tracer, sqid, command, trace_reason::FAILED);
        (record.cid, record.status) = (cid, status.into_bits());
        record.fetched = tracer.now();
        tracer.record(&record);
    }

    fn record_of(&self, tracer: &Tracer, sqid: u16, command: &Command, reason: u8) -> TraceRecord {
        let opcode = command.nvm_opcode();
        // These two have something else in its place.
        let has_lba = !matches!(opcode, NvmOpcode::DATASET_MANAGEMENT | NvmOpcode::FLUSH);
        TraceRecord {
            reason,
            opcode: opcode.0,
            sqid,
            cid: command.cid().0,
            nsid: command.nsid.0,
            lba: if has_lba { command.slba().0 } else { 0 },
            ..TraceRecord::new(tracer.trace(), self.id(), TraceSide::Worker)
        }
    }
}

/// As the counters class them: a pair is its write.
fn class(record: &TraceRecord) -> LatencyOf {
    match NvmOpcode(record.opcode) {
        _ if record.is_fused() => LatencyOf::Write,
        NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY => LatencyOf::Read,
        NvmOpcode::WRITE => LatencyOf::Write,
        _ => LatencyOf::Other,
    }
}
