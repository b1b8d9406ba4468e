//! Commands (and duties without a command) that wait for workers or a backend.

use crate::controller::Controller;
use crate::controller::doorbell::doorbell_index;
use crate::controller::effect::{Context, Effect, Request, Ticket, WorkerSeat};
use crate::namespace::Protection;
use ipc::layout::controller::QueueState;
use nvme_spec::command::Command;
use nvme_spec::register::DoorbellKind;
use nvme_spec::{CommandId, Nsid, QueueId, Status};
use std::sync::atomic::{AtomicU32, Ordering};

/// Most admin commands that wait at a time; more stay in the admin submission queue.
pub(crate) const MAX_WORK: usize = 32;

/// Something that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// The admin command to complete; `None` if there is none, or none any more.
    pub cid: Option<CommandId>,
    /// What it waits for.
    pub step: Step,
}

/// What is waited for, and all that is needed to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// One worker, or all, to take over a version; then the command has this outcome.
    Settling {
        /// The only worker that matters, if it is one.
        worker: Option<usize>,
        /// The version.
        version: u64,
        /// The command's outcome.
        outcome: Result<u32, Status>,
    },
    /// A worker to serve the controller, so that the completion queue of this command can be created.
    PlacingCq(Command),
    /// The worker to have nothing of a submission queue in flight.
    DeletingSq {
        /// The queue.
        qid: QueueId,
        /// Its worker.
        worker: usize,
        /// The version that says Deleting.
        version: u64,
    },
    /// The worker to have nothing of a completion queue in flight.
    DeletingCq {
        /// The queue.
        qid: QueueId,
        /// Its worker.
        worker: usize,
        /// The version that says Deleting.
        version: u64,
    },
    /// Another abort to be answered: there is one at a time.
    AbortQueued {
        /// The queue of the command to abort.
        sqid: QueueId,
        /// The command to abort.
        target: CommandId,
    },
    /// The worker's answer to an abort.
    Aborting {
        /// The worker of the queue.
        worker: usize,
        /// The abort's number.
        number: u64,
    },
    /// All workers to have nothing in flight to a namespace that is to be formatted.
    Draining {
        /// The namespace.
        nsid: Nsid,
        /// The version that says Formatting.
        version: u64,
    },
    /// All controllers to have nothing in flight to the namespace.
    FormatDraining(Format),
    /// The backend to format it.
    Formatting(Format, Ticket),
    /// The backend to make durable what was written before the write cache was turned off.
    Flushing(Ticket),
    /// The write protection to be stored.
    Protecting {
        /// The namespace, or all.
        nsid: Nsid,
        /// The new protection.
        protection: Protection,
        /// Names the request.
        ticket: Ticket,
    },
}

impl Work {
    /// Whether a backend is at it.
    pub(crate) fn awaits_backend(&self) -> bool {
        matches!(self.step, Step::Formatting(..) | Step::Flushing(_) | Step::Protecting { .. })
    }

    /// Whether a backend formats this namespace.
    pub(crate) fn formats(&self, nsid: Nsid) -> bool {
        matches!(&self.step, Step::Formatting(format, _) if format.nsid == nsid)
    }
}

/// A format to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// The namespace.
    pub nsid: Nsid,
    /// New logical block size as a shift.
    pub block_shift: u32,
    /// User Data Erase.
    pub erase: bool,
}

/// How far a piece of work came.
enum Progress {
    /// It still waits.
    Waits(Step),
    /// It goes on to wait for something else, which may have happened already.
    Next(Step),
    /// It is over, with this outcome.
    Over(Result<u32, Status>),
}

impl Controller {
    /// Goes on with everything whose wait is over. Each piece takes at most three steps.
    pub(crate) fn advance_work(&mut self, cx: &mut Context<'_>) {
        let mut index = 0;
        while let Some(Work { cid, mut step }) = self.work.get(index).cloned() {
            let outcome = loop {
                match self.advance(step, cx) {
                    Progress::Next(next) => step = next,
                    Progress::Waits(next) => break Err(next),
                    Progress::Over(outcome) => break Ok(outcome),
                }
            };
            match outcome {
                Err(step) => {
                    if let Some(work) = self.work.get_mut(index) {
                        work.step = step;
                    }
                    index += 1;
                }
                Ok(outcome) => {
                    self.work.remove(index);
                    if let Some(cid) = cid {
                        self.finish(cid, outcome);
                    }
                }
            }
        }
    }

    /// What a reset leaves of the work: what a backend does already. A format that is not that far does not happen.
    pub(crate) fn abandon_work(&mut self, cx: &mut Context<'_>) {
        let mut work = std::mem::take(&mut self.work);
        for abandoned in &work {
            if let Step::FormatDraining(format) = abandoned.step {
                cx.subsystem.end_format(format.nsid, None);
                cx.effect(Effect::SubsystemChanged);
            }
        }
        work.retain_mut(|work| {
            work.cid = None;
            work.awaits_backend() || matches!(work.step, Step::Draining { .. })
        });
        self.work = work;
        self.synchronise(None, cx);
    }

    /// A reset is complete, so no namespace has anything of this controller in flight.
    pub(crate) fn drained_everywhere(&mut self, cx: &mut Context<'_>) {
        let drained: Vec<Nsid> = self
            .work
            .iter()
            .filter_map(|work| match work.step {
                Step::Draining { nsid, .. } => Some(nsid),
                _ => None,
            })
            .collect();
        drained.into_iter().for_each(|nsid| self.drained(nsid, cx));
        self.work.retain(|work| !matches!(work.step, Step::Draining { .. }));
    }

    /// A backend's answer.
    pub(crate) fn answer(
        &mut self,
        ticket: Ticket,
        outcome: Result<(), Status>,
        cx: &mut Context<'_>,
    ) {
        if self.flushed(ticket) {
            return;
        }
        let waits = |work: &Work| match work.step {
            Step::Formatting(_, asked)
            | Step::Flushing(asked)
            | Step::Protecting { ticket: asked, .. } => asked == ticket,
            _ => false,
        };
        let Some(index) = self.work.iter().position(waits) else { return };
        let Some(step) = self.work.get(index).map(|work| work.step.clone()) else { return };
        let silent = match step {
            Step::Formatting(format, _) => {
                cx.subsystem.end_format(format.nsid, outcome.is_ok().then_some(format.block_shift));
                Some(format.nsid)
            }
            Step::Protecting { nsid, protection, .. } if outcome.is_ok() => {
                let nsids: Vec<Nsid> = cx
                    .subsystem
                    .namespaces()
                    .map(|(id, _)| id)
                    .filter(|&id| nsid == Nsid::BROADCAST || id == nsid)
                    .collect();
                nsids.into_iter().for_each(|nsid| cx.subsystem.set_protection(nsid, protection));
                (nsid != Nsid::BROADCAST).then_some(nsid)
            }
            _ => None,
        };
        cx.effect(Effect::SubsystemChanged);
        let version = self.synchronise(silent, cx);
        let outcome = outcome.map(|()| 0);
        if let Some(work) = self.work.get_mut(index) {
            work.step = Step::Settling { worker: None, version, outcome };
        }
    }

    fn advance(&mut self, step: Step, cx: &mut Context<'_>) -> Progress {
        match step {
            Step::Settling { worker, version, outcome } => {
                if self.settled(worker, version, cx) {
                    Progress::Over(outcome)
                } else {
                    Progress::Waits(step)
                }
            }
            Step::PlacingCq(ref command) => match self.place_cq(command, cx) {
                Ok(Step::PlacingCq(_)) => Progress::Waits(step),
                Ok(next) => Progress::Next(next),
                Err(status) => Progress::Over(Err(status)),
            },
            Step::DeletingSq { qid, worker, version } => {
                if !self.settled(Some(worker), version, cx) {
                    return Progress::Waits(step);
                }
                self.clear_doorbell(doorbell_index(qid, DoorbellKind::SubmissionTail), cx);
                free(self.segment.submission_queues.get(usize::from(qid.0)).map(|row| &row.state));
                self.publish(cx);
                Progress::Over(Ok(0))
            }
            Step::DeletingCq { qid, worker, version } => {
                if !self.settled(Some(worker), version, cx) {
                    return Progress::Waits(step);
                }
                self.clear_doorbell(doorbell_index(qid, DoorbellKind::CompletionHead), cx);
                free(self.segment.completion_queues.get(usize::from(qid.0)).map(|row| &row.state));
                self.publish(cx);
                Progress::Over(Ok(0))
            }
            Step::AbortQueued { sqid, target } => {
                if self.abort_is_busy(cx) {
                    Progress::Waits(step)
                } else {
                    self.send_abort(sqid, target, cx)
                }
            }
            Step::Aborting { worker, number } => match self.abort_answer(worker, number, cx) {
                None => Progress::Waits(step),
                Some(aborted) => Progress::Over(Ok(u32::from(!aborted))),
            },
            Step::Draining { nsid, version } => {
                if !self.acknowledged(cx.workers, version) {
                    return Progress::Waits(step);
                }
                self.drained(nsid, cx);
                Progress::Over(Ok(0))
            }
            Step::FormatDraining(format) => {
                // A paused namespace's data stay as they are.
                let may = cx.subsystem.pause_of(format.nsid).is_none();
                if may && cx.subsystem.is_drained(format.nsid) {
                    self.send_format(format, cx)
                } else {
                    Progress::Waits(step)
                }
            }
            Step::Formatting(..) | Step::Flushing(_) | Step::Protecting { .. } => {
                Progress::Waits(step)
            }
        }
    }

    fn settled(&self, worker: Option<usize>, version: u64, cx: &Context<'_>) -> bool {
        match worker {
            None => self.acknowledged(cx.workers, version),
            Some(worker) => {
                cx.workers.get(worker).is_none_or(|seat| seat.has_acknowledged(version))
            }
        }
    }

    fn send_format(&mut self, format: Format, cx: &mut Context<'_>) -> Progress {
        let Format { nsid, block_shift, erase } = format;
        let Some(namespace) = cx.subsystem.namespace(nsid) else {
            return Progress::Over(Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()));
        };
        let config = namespace.config();
        let (backend, bdev) = (config.backend.clone(), config.bdev.clone());
        let ticket = self.ticket();
        let request = Request::Format { nsid, backend, bdev, block_shift, erase };
        cx.effect(Effect::Request { ticket, request });
        Progress::Waits(Step::Formatting(format, ticket))
    }

    /// Puts the abort before the worker that serves the queue.
    fn send_abort(&mut self, sqid: QueueId, target: CommandId, cx: &mut Context<'_>) -> Progress {
        let row = self.segment.submission_queues.get(usize::from(sqid.0));
        let active =
            row.filter(|row| row.state.load(Ordering::Relaxed) == QueueState::Active as u32);
        let Some(row) = active else {
            // The queue was deleted meanwhile, and with it the command.
            return Progress::Over(Ok(1));
        };
        let worker = row.worker.load(Ordering::Relaxed) as usize;
        let settings = &self.segment.settings;
        let command = u32::from(sqid.0) << 16 | u32::from(target.0);
        settings.abort_command.store(command, Ordering::Relaxed);
        // Release: a worker that sees the number sees the command.
        let number = settings.abort_number.fetch_add(1, Ordering::Release) + 1;
        self.publish(cx);
        Progress::Next(Step::Aborting { worker, number })
    }

    /// Whether the last abort is still before some worker: its command must not change under a worker that reads it.
    fn abort_is_busy(&self, cx: &Context<'_>) -> bool {
        let number = self.segment.settings.abort_number.load(Ordering::Relaxed);
        let answered = |seat: &WorkerSeat| {
            // Acquire: pairs with the worker's Release.
            !seat.attached
                || seat.queues.acknowledged.abort_number.load(Ordering::Acquire) >= number
        };
        self.work.iter().any(|work| matches!(work.step, Step::Aborting { .. }))
            || !cx.workers.iter().all(answered)
    }

    /// The worker's answer to abort `number`; a worker that is gone aborted nothing.
    fn abort_answer(&self, worker: usize, number: u64, cx: &Context<'_>) -> Option<bool> {
        let Some(seat) = cx.workers.get(worker).filter(|seat| seat.attached) else {
            return Some(false);
        };
        let acknowledged = &seat.queues.acknowledged;
        // Acquire: pairs with the worker's Release, after `aborted`.
        let answered = acknowledged.abort_number.load(Ordering::Acquire) >= number;
        answered.then(|| acknowledged.aborted.load(Ordering::Relaxed) == 1)
    }
}

fn free(state: Option<&AtomicU32>) {
    if let Some(state) = state {
        // Release: pairs with the worker's Acquire of the state.
        state.store(QueueState::Free as u32, Ordering::Release);
    }
}
