//! Traced commands that wait: for a limit, for a channel, for the end of a pause.

use super::Controller;
use crate::slots::{Flight, Kind};
use ipc::layout::telemetry::{TraceRecord, trace_reason};

/// Whether a command waits through a pause now.
pub(super) fn is_paused(record: &TraceRecord) -> bool {
    record.paused != 0 && record.resumed == 0
}

impl Controller {
    /// Gives a command that leaves the hot path a record, if slow and failed ones are told of, so that all its stages are
    /// known then. False if it has one: whoever gave it that calls [`Self::trace_progress`] when it was looked at.
    #[cold]
    fn trace_watch(&mut self, sqid: u16, slot: u16, second: Option<u16>) -> bool {
        if self.tracing.open.get(slot).is_some() {
            return false;
        }
        let tracer = self.tracing.tracer.clone().filter(|tracer| tracer.records());
        let Some(tracer) = tracer else { return false };
        let command = self.command_of(slot);
        let mut record = self.record_of(&tracer, sqid, &command, 0);
        record.fetched = tracer.now();
        record.started = record.fetched;
        self.tracing.open.insert(slot, second, record);
        true
    }

    /// Brings a command on its way that leaves the hot path, with a record if it is to have one.
    pub(in crate::controller) fn watched(
        &mut self,
        sqid: u16,
        slot: u16,
        second: Option<u16>,
        run: impl FnOnce(&mut Self),
    ) {
        let watched = self.trace_watch(sqid, slot, second);
        run(self);
        if watched {
            self.trace_progress(slot);
        }
    }

    /// A command is set aside, since it is over a limit.
    #[cold]
    pub(in crate::controller) fn trace_held_back(&mut self, slot: u16) {
        let Flight { sqid, kind, .. } = *self.slots.flight(slot);
        self.trace_watch(sqid, slot, second_of(kind));
        self.tracing.note(slot, |record, now| {
            // A second time, after a pause, goes on from the first.
            record.held = if record.held == 0 { now } else { record.held };
            (record.started, record.translated, record.submitted) = (0, 0, 0);
        });
        self.keep_trace(slot);
    }

    /// A command that waits has a record from now on, if its channel lets it wait for so long that it is slow already.
    #[inline]
    pub(in crate::controller) fn is_waiting_traced(&mut self, slot: u16, now: u64) -> bool {
        let flight = self.slots.flight(slot);
        let (traced, since) = (flight.trace != 0, flight.since);
        if !traced && self.tracing.is_slow(since, now) {
            self.trace_waiting(slot, trace_reason::SLOW);
        }
        self.slots.flight(slot).trace != 0
    }

    /// A command waits, and has a record from now on, if slow and failed ones are told of.
    #[cold]
    fn trace_waiting(&mut self, slot: u16, reason: u8) {
        if self.tracing.open.get(slot).is_some() {
            return;
        }
        let flight = *self.slots.flight(slot);
        self.trace_late(slot, &flight, reason);
        if let Some(record) = self.tracing.open.get_mut(slot) {
            // Its turn came when it came to wait.
            record.started = record.fetched;
            record.translated = record.fetched;
        }
        self.keep_trace(slot);
    }

    /// A command without a record has one from now on: it waits, or its channel has ended it.
    pub(super) fn trace_late(&mut self, slot: u16, flight: &Flight, reason: u8) {
        let tracer = self.tracing.tracer.clone().filter(|tracer| tracer.records());
        let Some(tracer) = tracer else { return };
        let command = self.command_of(slot);
        let mut record = self.record_of(&tracer, flight.sqid, &command, reason);
        record.bytes = flight.bytes.into();
        let waited = flight.started != 0 && flight.since != 0;
        let began = if flight.started != 0 { flight.started } else { flight.since };
        record.fetched = tracer.at(began);
        record.translated = if waited { record.fetched } else { 0 };
        record.submitted = if waited { tracer.at(flight.since) } else { record.fetched };
        self.tracing.open.insert(slot, second_of(flight.kind), record);
    }

    /// A command that waits ends, otherwise than by its turn.
    #[cold]
    pub(in crate::controller) fn trace_ended_waiting(&mut self, slot: u16) {
        self.tracing.note(slot, |record, now| {
            record.done = now;
            if record.started == 0 {
                record.started = now;
            } else if record.requests == 0 {
                record.submitted = now;
            }
        });
        self.conclude(slot);
    }

    /// A command waits for the end of its namespace's pause.
    #[cold]
    pub(in crate::controller) fn trace_paused(&mut self, slot: u16) {
        self.trace_waiting(slot, 0);
        self.tracing.note(slot, pause);
    }

    /// Notes of all commands that wait whether they do so through a pause: of the controller, or of their namespace.
    #[cold]
    pub(in crate::controller) fn trace_pauses(&mut self) {
        let (all, rows) = (self.pause.is_paused(), self.namespaces.paused());
        for index in 0..if all { self.waiting.len() } else { 0 } {
            if let Some(&slot) = self.waiting.get(index) {
                self.trace_waiting(slot, 0);
            }
        }
        let Self { tracing, slots, .. } = self;
        let Some(tracer) = &tracing.tracer else { return };
        let now = tracer.now();
        for (slot, record) in tracing.open.iter_mut() {
            let row = usize::from(slots.flight(slot).namespace);
            let waits = !slots.is_submitted(slot) && (all || rows.has(row));
            if waits && !is_paused(record) {
                pause(record, now);
            } else if !waits && is_paused(record) {
                record.resumed = now;
            }
        }
    }

    /// What is kept of a command in flight says that it has a record.
    fn keep_trace(&mut self, slot: u16) {
        if let Some(record) = self.tracing.open.get(slot) {
            self.slots.flight_mut(slot).trace = record.trace;
        }
    }
}

/// Several pauses of one command are told of as one, which ends with the last.
fn pause(record: &mut TraceRecord, now: u64) {
    record.paused = if record.paused == 0 { now } else { record.paused };
    record.resumed = 0;
}

fn second_of(kind: Kind) -> Option<u16> {
    match kind {
        Kind::Fused(second) => Some(second),
        Kind::Single | Kind::Steps(_) | Kind::Orphan => None,
    }
}
