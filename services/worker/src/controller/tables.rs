//! Follows the controller segment: settings, queues, namespaces, unmaps, resets, aborts; and answers by number.

use super::{Controller, MAX_TRANSFER};
use crate::doorbells::Shadow;
use crate::queue_pair::{CQE, Cq, QueueMemory, SQE, Sq, State};
use crate::slots::{Flight, Kind};
use ipc::dma_table::{Unmaps, unmaps_since};
use ipc::guest_memory::Access;
use ipc::iova::Iova;
use ipc::layout::controller::{ControllerState, QueueState, Signals};
use ipc::layout::queues::{FailureReason, SlotState};
use ipc::layout::{MAX_IN_FLIGHT, MAX_QUEUE_ENTRIES, MAX_QUEUES};
use nvme::prp::PageShift;
use nvme::queue::arbitration::burst;
use nvme::queue::completion::CompletionQueue;
use nvme::queue::submission::SubmissionQueue;
use nvme_spec::Status;
use std::sync::atomic::Ordering;

/// Numbers of the controller segment that were seen, and which of them are still to be acknowledged.
#[derive(Default)]
pub(super) struct Seen {
    version: u64,
    dma_version: u64,
    reset_generation: u64,
    abort_number: u64,
    started: bool,
    pending: bool,
    /// What is pending is to be looked at even if the poll does nothing.
    look: bool,
}

impl Seen {
    /// Whether a number moved. One line of the segment.
    #[inline]
    pub(super) fn is_outdated(&self, signals: &Signals) -> bool {
        // Acquire: pairs with the frontend's Release; what the numbers stand for is written.
        let version = signals.version.load(Ordering::Acquire);
        let dma_version = signals.dma_version.load(Ordering::Acquire);
        let reset = signals.reset_generation.load(Ordering::Acquire);
        version != self.version
            || dma_version != self.dma_version
            || reset != self.reset_generation
            || !self.started
    }

    /// Whether something is still to be acknowledged, and a poll that did this much may have changed that.
    #[inline]
    pub(super) fn is_pending(&self, work: usize) -> bool {
        self.pending && (self.look || work > 0)
    }

    fn look(&mut self) {
        (self.pending, self.look) = (true, true);
    }
}

impl Controller {
    /// Takes in what the frontend changed. The reset comes first: nothing of the old is served after it was seen.
    #[cold]
    pub(super) fn take_in(&mut self, now: u64) {
        // Acquire, all three: pair with the frontend's Release.
        let signals = &self.layout.signals;
        let reset = signals.reset_generation.load(Ordering::Acquire);
        let version = signals.version.load(Ordering::Acquire);
        if reset != self.seen.reset_generation || !self.seen.started {
            self.seen.reset_generation = reset;
            self.drop_queues();
            self.recover();
        }
        let dma_version = self.layout.signals.dma_version.load(Ordering::Acquire);
        if dma_version != self.seen.dma_version || !self.seen.started {
            self.take_in_unmaps();
        }
        if version != self.seen.version || !self.seen.started {
            self.seen.version = version;
            self.load_settings();
            self.load_queues();
            self.load_namespaces();
            self.load_limits();
            self.load_pause(now);
            self.trace_pauses();
            self.take_in_abort(now);
        }
        self.seen.started = true;
        self.seen.look();
    }

    /// Acknowledges what is in effect. What has to wait is looked at again when a poll has done something. The cost does
    /// not grow with the commands in flight: a block device that keeps some for ever must not slow the others down.
    #[cold]
    pub(super) fn acknowledge(&mut self) {
        self.seen.look = false;
        let idle = self.slots.submitted().is_empty();
        let old = self.slots.orphans();
        // A shutdown is complete when no block device has anything of this controller any more.
        let held = self.pause.holds_any() || !self.limits.is_idle();
        let waits = held || !self.waiting.is_empty();
        let stopped = self.state != ControllerState::Stopped || (idle && !waits);
        let drained = self.remove_drained_queues() && self.namespaces_drained() && stopped;
        self.close_finished_channels();
        let oldest = self.slots.oldest_unmap();
        let dma_version = oldest.map_or(self.seen.dma_version, |version| version - 1);

        let acknowledged = &self.queues.acknowledged;
        let mut moved = false;
        // Release, all: what the number stands for was done before.
        let mut raise = |counter: &ipc::sync::AtomicU64, value: u64| {
            if counter.load(Ordering::Relaxed) != value {
                counter.store(value, Ordering::Release);
                moved = true;
            }
        };
        raise(&acknowledged.dma_version, dma_version);
        raise(&acknowledged.abort_number, self.seen.abort_number);
        let settled = self.pause.settled(idle);
        if let Some(number) = settled {
            raise(&acknowledged.pause_number, number);
        }
        if old == 0 {
            raise(&acknowledged.reset_generation, self.seen.reset_generation);
        }
        if drained {
            raise(&acknowledged.version, self.seen.version);
        }
        let (told, still) = match self.namespaces.paused().any() {
            true => self.acknowledge_pauses(),
            false => (false, true),
        };
        self.kick |= moved || told;
        let unsettled = settled.is_none() || !still;
        self.seen.pending = !drained || old > 0 || oldest.is_some() || unsettled;
    }

    /// Has the next poll look at what may be acknowledged, or closed.
    pub(super) fn await_acknowledgement(&mut self) {
        self.seen.look();
    }

    /// Lets go of all queues: a reset. Commands that no block device has end here; the others end when it is done.
    pub(super) fn drop_queues(&mut self) {
        while let Some(slot) = self.waiting.pop_front().or_else(|| self.pause.take_held()) {
            self.release_parts(slot);
            self.free_log(slot);
            self.slots.give(slot);
        }
        self.drop_parked();
        while let Some(finished) = self.finished.pop() {
            self.free_log(finished.slot);
            self.slots.give(finished.slot);
        }
        for index in 0..self.slots.submitted().len() {
            let Some(&slot) = self.slots.submitted().get(index) else { break };
            self.release_parts(slot);
        }
        self.slots.orphan();
        self.sqs.iter_mut().for_each(|sq| *sq = None);
        self.cqs.iter_mut().for_each(|cq| *cq = None);
        self.rotation.clear();
        self.vectors.reset();
        self.shadow = None;
        self.owed = 0;
        self.tracing.forget();
    }

    /// Gives up the controller, alone. Nothing more is fetched or posted.
    #[cold]
    pub(super) fn fail(&mut self, reason: FailureReason) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(reason);
        // Release: whoever sees the reason sees that nothing was posted after it.
        self.queues.acknowledged.failure.store(reason as u32, Ordering::Release);
        self.drop_queues();
        self.seen.look();
        self.kick = true;
    }

    /// After a reset: a controller that was given up works again, unless its memory is still the one that faulted.
    fn recover(&mut self) {
        if self.failure.is_none_or(|reason| reason == FailureReason::None) || self.memory.failed() {
            return;
        }
        self.failure = None;
        let failure = &self.queues.acknowledged.failure;
        // Release: nothing of what failed happens after this.
        failure.store(FailureReason::None as u32, Ordering::Release);
    }

    /// Frees what a command has besides its slot.
    pub(super) fn release_parts(&mut self, slot: u16) {
        match self.slots.flight(slot).kind {
            Kind::Steps(entry) => self.free_steps.push(entry),
            Kind::Fused(second) => {
                self.free_log(second);
                self.slots.give(second);
            }
            Kind::Single | Kind::Orphan => {}
        }
    }

    /// Marks a slot's log entry void.
    pub(super) fn free_log(&self, slot: u16) {
        let log = &self.queues.slots[usize::from(slot) % MAX_IN_FLIGHT];
        // Release: nothing of the command happens after this.
        log.state.store(SlotState::Free as u32, Ordering::Release);
    }

    /// Finds queues and buffers anew: memory was taken away.
    pub(super) fn forget_queue_memory(&mut self) {
        self.sqs.iter_mut().flatten().for_each(|sq| sq.memory.forget());
        self.cqs.iter_mut().flatten().for_each(|cq| cq.memory.forget());
        if let Some(shadow) = &mut self.shadow {
            shadow.forget();
            shadow.resolve(&self.memory);
        }
    }

    fn load_settings(&mut self) {
        let settings = &self.layout.settings;
        self.state = match self.layout.signals.state.load(Ordering::Relaxed) {
            value if value == ControllerState::Enabled as u32 => ControllerState::Enabled,
            value if value == ControllerState::Disabled as u32 => ControllerState::Disabled,
            _ => ControllerState::Stopped,
        };
        self.settings.page = PageShift::clamped(settings.page_shift.load(Ordering::Relaxed));
        self.settings.max_transfer =
            settings.max_transfer.load(Ordering::Relaxed).min(MAX_TRANSFER);
        self.settings.write_cache = settings.write_cache.load(Ordering::Relaxed) == 1;
        self.burst = burst(settings.arbitration_burst.load(Ordering::Relaxed));
        self.mapped = settings.doorbells_mapped.load(Ordering::Relaxed) == 1;
        self.vectors.load(settings);
        if settings.shadow_enabled.load(Ordering::Relaxed) != 1 {
            self.shadow = None;
            return;
        }
        let doorbells = Iova(settings.shadow_doorbells.load(Ordering::Relaxed));
        let event_indexes = Iova(settings.shadow_event_indexes.load(Ordering::Relaxed));
        let same = self.shadow.as_ref().is_some_and(|shadow| {
            shadow.doorbells == doorbells && shadow.event_indexes == event_indexes
        });
        if !same {
            // Its memory is looked for when the doorbells are next looked at.
            self.shadow = Some(Shadow::new(doorbells, event_indexes));
        }
    }

    fn load_queues(&mut self) {
        // Completion queues first: submission queues refer to them.
        for qid in 1..MAX_QUEUES {
            let row = &self.layout.completion_queues[qid];
            // Acquire: pairs with the frontend's Release; the row's other fields are written.
            let state = row.state.load(Ordering::Acquire);
            let ours = row.worker.load(Ordering::Relaxed) == self.worker;
            let generation = row.generation.load(Ordering::Relaxed);
            if state != QueueState::Active as u32 || !ours {
                // A queue that is being deleted has no submission queue any more.
                self.cqs[qid] = None;
                self.owed &= !(1 << qid);
                continue;
            }
            if self.cqs[qid].as_ref().is_some_and(|cq| cq.generation == generation) {
                continue;
            }
            let entries = row.entries.load(Ordering::Relaxed).clamp(2, MAX_QUEUE_ENTRIES);
            let base = Iova(row.base.load(Ordering::Relaxed));
            let interrupts = row.interrupts.load(Ordering::Relaxed) == 1;
            let vector = row.vector.load(Ordering::Relaxed) as usize;
            let position = &self.queues.completion_queues[qid];
            position.posted.store(0, Ordering::Relaxed);
            position.invalid_doorbell.store(0, Ordering::Relaxed);
            // Release: the position belongs to this generation from here on.
            position.generation.store(generation, Ordering::Release);
            self.owed &= !(1 << qid);
            self.cqs[qid] = Some(Cq {
                position: CompletionQueue::new(entries),
                memory: QueueMemory::new(base, u64::from(entries) * CQE, Access::WRITE),
                generation,
                valid: true,
                vector: interrupts.then_some(vector),
                head_seen: u64::MAX,
                owed: false,
                was_empty: false,
            });
        }
        for qid in 1..MAX_QUEUES {
            self.load_submission_queue(qid);
        }
    }

    fn load_submission_queue(&mut self, qid: usize) {
        let row = &self.layout.submission_queues[qid];
        // Acquire: pairs with the frontend's Release; the row's other fields are written.
        let state = row.state.load(Ordering::Acquire);
        let generation = row.generation.load(Ordering::Relaxed);
        let wanted =
            state == QueueState::Active as u32 && row.worker.load(Ordering::Relaxed) == self.worker;
        match &mut self.sqs[qid] {
            Some(sq) if wanted && sq.generation == generation => return,
            Some(sq) => {
                sq.state = State::Deleting;
                self.rotation.remove(qid);
                let own = |flight: &Flight| usize::from(flight.sqid) == qid;
                self.abort_waiting(own, Status::ABORTED_SQ_DELETION, usize::MAX);
                // Its successor comes when it is drained (`remove_drained_queues`).
                return;
            }
            None => {}
        }
        let cqid = row.cqid.load(Ordering::Relaxed) as usize;
        if !wanted {
            return;
        }
        let Some(Some(cq)) = self.cqs.get(cqid) else { return };
        let state = if cq.valid { State::Active } else { State::Invalid };
        let entries = row.entries.load(Ordering::Relaxed).clamp(2, MAX_QUEUE_ENTRIES);
        let base = Iova(row.base.load(Ordering::Relaxed));
        let position = &self.queues.submission_queues[qid];
        position.fetched.store(0, Ordering::Relaxed);
        position.invalid_doorbell.store(0, Ordering::Relaxed);
        // Release: the position belongs to this generation from here on.
        position.generation.store(generation, Ordering::Release);
        self.sqs[qid] = Some(Sq {
            position: SubmissionQueue::new(entries, 0),
            memory: QueueMemory::new(base, u64::from(entries) * SQE, Access::READ),
            cqid,
            generation,
            in_flight: 0,
            state,
            event_index_at: 0,
        });
        if state == State::Active {
            self.rotation.insert(qid);
        }
    }

    /// Completes a command that no block device has.
    pub(super) fn abort_slot(&mut self, slot: u16, status: Status) {
        let flight = *self.slots.flight(slot);
        match flight.kind {
            Kind::Steps(entry) => self.free_steps.push(entry),
            Kind::Fused(second) => {
                let other = self.command_of(second).cid().0;
                self.finish(second, flight.sqid, other, status, 0);
            }
            Kind::Single | Kind::Orphan => {}
        }
        self.finish(slot, flight.sqid, flight.cid, status, 0);
        if flight.trace != 0 {
            self.trace_ended_waiting(slot);
        }
    }

    /// Removes deleted queues that have nothing in flight, and takes their successors in. False if some have.
    fn remove_drained_queues(&mut self) -> bool {
        let mut drained = true;
        let mut removed = false;
        for sq in &mut self.sqs {
            match sq {
                Some(queue) if queue.state == State::Deleting && queue.in_flight == 0 => {
                    *sq = None;
                    removed = true;
                }
                Some(queue) if queue.state == State::Deleting => drained = false,
                _ => {}
            }
        }
        if removed {
            (1..MAX_QUEUES).for_each(|qid| self.load_submission_queue(qid));
        }
        drained
    }

    fn load_namespaces(&mut self) {
        for (index, row) in self.layout.namespaces.iter().enumerate() {
            self.requests.extend(self.namespaces.load(index, row));
        }
        // Write protection is in effect when the writes that came before it have ended.
        let Self { slots, namespaces, .. } = self;
        slots.hold(|flight| {
            let view = namespaces.get(usize::from(flight.namespace)).and_then(|entry| entry.view);
            flight.op.writes() && view.is_some_and(|view| view.write_protected)
        });
    }

    fn namespaces_drained(&self) -> bool {
        self.slots.held() == 0
            && self.namespaces.open().iter().all(|&row| !self.namespaces.is_draining(row.into()))
    }

    /// Takes out channels that are of no more use and have nothing outstanding.
    fn close_finished_channels(&mut self) {
        while let Some(channel) = self.namespaces.take_discarded() {
            let garbage = super::Garbage { channel: Some(channel), ..Default::default() };
            self.garbage.push_back(garbage);
        }
        for index in (0..self.namespaces.open().len()).rev() {
            let Some(&row) = self.namespaces.open().get(index) else { continue };
            if let Some(channel) = self.namespaces.take_finished(usize::from(row)) {
                let garbage = super::Garbage { channel: Some(channel), ..Default::default() };
                self.garbage.push_back(garbage);
            }
        }
    }

    /// From here on nothing that was unmapped is found; what is in flight and touches it is marked.
    fn take_in_unmaps(&mut self) {
        let seen = self.seen.dma_version;
        let started = self.seen.started;
        let version = self.memory.refresh();
        let Self { slots, sqs, cqs, shadow, memory, layout, .. } = self;
        let mut number = seen;
        let mut touch = |iova: Iova, size: u64, version: u64| {
            slots.unmap(iova, size, version);
            let sqs = sqs.iter_mut().flatten().map(|sq| &mut sq.memory);
            let cqs = cqs.iter_mut().flatten().map(|cq| &mut cq.memory);
            sqs.chain(cqs).filter(|queue| queue.touches(iova, size)).for_each(QueueMemory::forget);
        };
        let unmaps = unmaps_since(layout, seen, &mut |iova, size| {
            number += 1;
            touch(iova, size, number);
        });
        if matches!(unmaps, Unmaps::Everything(_)) || !started {
            touch(Iova(0), u64::MAX, seen + 1);
        }
        if let Some(shadow) = shadow {
            shadow.forget();
            shadow.resolve(memory);
        }
        self.seen.dma_version = version;
    }

    /// Aborts a command that has not been sent on. NVMe Base 2.0c 5.1.
    fn take_in_abort(&mut self, _now: u64) {
        let settings = &self.layout.settings;
        // Acquire: pairs with the frontend's Release; the command is written.
        let number = settings.abort_number.load(Ordering::Acquire);
        if number == self.seen.abort_number {
            return;
        }
        self.seen.abort_number = number;
        let command = settings.abort_command.load(Ordering::Relaxed);
        let (sqid, cid) = ((command >> 16) as u16, command as u16);
        let is_it = |flight: &Flight| flight.sqid == sqid && flight.cid == cid;
        let found = self.abort_waiting(is_it, Status::ABORT_REQUESTED, 1) > 0;
        let aborted = &self.queues.acknowledged.aborted;
        aborted.store(u32::from(found), Ordering::Relaxed);
    }
}
