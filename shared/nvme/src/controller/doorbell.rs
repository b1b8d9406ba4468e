//! Doorbells that the client writes by message, and what workers report about those that it writes itself.

use crate::admin::event::Event;
use crate::controller::Controller;
use crate::controller::effect::{Context, Effect, WorkerSeat};
use crate::controller::state::State;
use ipc::Iova;
use ipc::layout::MAX_QUEUES;
use ipc::layout::controller::QueueState;
use ipc::layout::queues::FailureReason;
use nvme_spec::QueueId;
use nvme_spec::register::{DoorbellKind, doorbell_at};
use std::sync::atomic::{AtomicU32, Ordering};

/// Doorbell values that the host was told of, plus 1, so that it is told of each once.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Submission queue tails.
    tails: [u32; MAX_QUEUES],
    /// Completion queue heads.
    heads: [u32; MAX_QUEUES],
}

impl Default for Told {
    fn default() -> Self {
        Self { tails: [0; MAX_QUEUES], heads: [0; MAX_QUEUES] }
    }
}

/// Place of a queue's doorbell in the doorbell page and in the buffers of Doorbell Buffer Config.
pub(crate) fn doorbell_index(qid: QueueId, kind: DoorbellKind) -> usize {
    usize::from(qid.0) * 2 + usize::from(kind == DoorbellKind::CompletionHead)
}

impl Controller {
    /// A queue begins with its doorbell at 0 (NVMe Base 2.0c 3.1.3.20 and 3.1.3.21), and leaves none behind: not every
    /// host clears what a former queue of the same identifier left in mapped memory or in the shadow buffer. Nobody
    /// rings meanwhile: before the completion of its creation, and after that of its deletion, the queue is not there.
    pub(crate) fn clear_doorbell(&self, index: usize, cx: &mut Context<'_>) {
        cx.doorbells.store(index, 0);
        let settings = &self.segment.settings;
        if settings.shadow_enabled.load(Ordering::Relaxed) != 1 {
            return;
        }
        for buffer in [&settings.shadow_doorbells, &settings.shadow_event_indexes] {
            let at = buffer.load(Ordering::Relaxed).wrapping_add(4 * index as u64);
            // A buffer that is not there is nobody's doorbell.
            cx.memory.write(Iova(at), &[0; 4]).ok();
        }
    }

    /// The client wrote a doorbell by message, at `offset` in BAR0. A value that is possible is stored in the doorbell
    /// page, and whoever serves the queue is to look: [`Controller::process_admin`] for queue 0 (call it after this),
    /// the workers for others ([`Effect::KickWorkers`]). Without CSTS.RDY nothing happens; a doorbell of a queue that
    /// is not there, or a value past its end, is an error event for the host.
    pub fn doorbell_written(&mut self, offset: u64, data: &[u8], cx: &mut Context<'_>) {
        let (Ok(bytes), State::Enabled) = (<[u8; 4]>::try_from(data), self.state) else {
            return;
        };
        let value = u32::from_le_bytes(bytes);
        let entries = doorbell_at(self.cap().dstrd(), offset)
            .and_then(|(qid, kind)| Some((qid, kind, self.entries_of(qid, kind)?)));
        match entries {
            None => self.raise(Event::InvalidDoorbellRegister),
            Some((_, _, entries)) if value >= entries => self.raise(Event::InvalidDoorbellValue),
            Some((qid, kind, _)) => {
                cx.doorbells.store(doorbell_index(qid, kind), value);
                if !qid.is_admin() {
                    cx.effect(Effect::KickWorkers);
                }
            }
        }
        self.deliver(cx);
    }

    /// Entries of the queue, if it is there.
    fn entries_of(&self, qid: QueueId, kind: DoorbellKind) -> Option<u32> {
        if qid.is_admin() {
            return Some(match kind {
                DoorbellKind::SubmissionTail => self.admin.sq_entries(),
                DoorbellKind::CompletionHead => self.admin.cq_entries(),
            });
        }
        let index = usize::from(qid.0);
        let (state, entries) = match kind {
            DoorbellKind::SubmissionTail => {
                let row = self.segment.submission_queues.get(index)?;
                (&row.state, &row.entries)
            }
            DoorbellKind::CompletionHead => {
                let row = self.segment.completion_queues.get(index)?;
                (&row.state, &row.entries)
            }
        };
        let there = state.load(Ordering::Relaxed) != QueueState::Free as u32;
        there.then(|| entries.load(Ordering::Relaxed))
    }

    /// Takes over what workers reported: failures, errors for the log, invalid doorbells.
    pub(crate) fn collect_reports(&mut self, cx: &mut Context<'_>) {
        let mut invalid = false;
        let mut failed = false;
        for (index, seat) in cx.workers.iter().enumerate() {
            self.errors.collect(index, &seat.queues);
            failed |= seat.attached
                && seat.queues.acknowledged.failure.load(Ordering::Acquire)
                    != FailureReason::None as u32;
            if self.state == State::Enabled {
                invalid |= self.finds_invalid(index, seat);
            }
        }
        if failed && self.state != State::Disabled {
            self.fail(cx);
        }
        if invalid {
            self.raise(Event::InvalidDoorbellValue);
        }
    }

    /// Whether the worker reports a doorbell value that the host was not told of.
    fn finds_invalid(&mut self, worker: usize, seat: &WorkerSeat) -> bool {
        let (segment, told, queues) = (&self.segment, &mut self.admin.told, &seat.queues);
        let active = |state: &AtomicU32, placed: &AtomicU32| {
            state.load(Ordering::Relaxed) != QueueState::Free as u32
                && placed.load(Ordering::Relaxed) as usize == worker
        };
        let mut found = false;
        let tails = segment.submission_queues.iter().zip(&queues.submission_queues);
        for ((row, position), told) in tails.zip(&mut told.tails) {
            if active(&row.state, &row.worker) {
                found |=
                    is_new(&row.generation, &position.generation, &position.invalid_doorbell, told);
            }
        }
        let heads = segment.completion_queues.iter().zip(&queues.completion_queues);
        for ((row, position), told) in heads.zip(&mut told.heads) {
            if active(&row.state, &row.worker) {
                found |=
                    is_new(&row.generation, &position.generation, &position.invalid_doorbell, told);
            }
        }
        found
    }
}

/// Whether a position of this very queue reports a value that was not told of; remembers it.
fn is_new(queue: &AtomicU32, position: &AtomicU32, reported: &AtomicU32, told: &mut u32) -> bool {
    // Acquire: pairs with the worker's Release of the report.
    let reported = reported.load(Ordering::Acquire);
    let same = queue.load(Ordering::Relaxed) == position.load(Ordering::Relaxed);
    if !same || reported == 0 || reported == *told {
        return false;
    }
    *told = reported;
    true
}
