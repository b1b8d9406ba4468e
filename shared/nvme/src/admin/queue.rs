//! Creation and deletion of I/O queues. NVMe Base 2.0c 5.4 to 5.7.
//!
//! A queue is a row in the controller segment; the worker that serves it takes it over, and only then does the command
//! complete. Queues that share a completion queue are on one worker: that of the completion queue, which is the one
//! with the fewest.

use crate::admin::{INVALID_FIELD, Outcome};
use crate::controller::doorbell::doorbell_index;
use crate::controller::work::{Step, Work};
use crate::controller::{Context, Controller};
use crate::prp::PageShift;
use ipc::layout::MAX_QUEUE_ENTRIES;
use ipc::layout::controller::{CompletionQueueRow, QueueState, SubmissionQueueRow};
use nvme_spec::command::Command;
use nvme_spec::command::admin::{
    CreateCqDword11, CreateQueueDword10, CreateSqDword11, CreateSqDword12, DeleteQueueDword10,
};
use nvme_spec::register::DoorbellKind;
use nvme_spec::{QueueId, Status};
use std::sync::atomic::{AtomicU32, Ordering};

/// Entry sizes of the NVM command set, as powers of two (SQES, CQES).
pub(crate) const SQES: u8 = 6;
/// See [`SQES`].
pub(crate) const CQES: u8 = 4;

const INVALID_QUEUE_ID: Status = Status::INVALID_QUEUE_ID.with_dnr();
const INVALID_QUEUE_SIZE: Status = Status::INVALID_QUEUE_SIZE.with_dnr();

impl Controller {
    pub(crate) fn create_cq(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let step = self.place_cq(command, cx)?;
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }

    /// Checks the command and puts the queue on the worker that has the fewest; while none serves the controller (it
    /// was told just now, or died and is started again) the command waits for one.
    pub(crate) fn place_cq(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Step, Status> {
        let cdw10 = CreateQueueDword10::from_bits(command.cdw10);
        let cdw11 = CreateCqDword11::from_bits(command.cdw11);
        let qid = self.free_qid(cdw10.qid(), |row| &row.state, &self.segment.completion_queues)?;
        if self.registers.cc.iocqes() != CQES {
            return Err(INVALID_QUEUE_SIZE);
        }
        let entries = entries(cdw10)?;
        if !cdw11.pc() {
            return Err(INVALID_FIELD);
        }
        if cdw11.ien() && cdw11.iv().0 >= self.config.vectors {
            return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
        }
        let base = self.queue_base(command)?;
        let Some(worker) = self.least_loaded(cx) else { return Ok(Step::PlacingCq(*command)) };
        let Some(row) = self.segment.completion_queues.get(usize::from(qid.0)) else {
            return Err(INVALID_QUEUE_ID);
        };
        self.clear_doorbell(doorbell_index(qid, DoorbellKind::CompletionHead), cx);
        row.generation.fetch_add(1, Ordering::Relaxed);
        row.entries.store(entries, Ordering::Relaxed);
        row.vector.store(u32::from(cdw11.iv().0), Ordering::Relaxed);
        row.interrupts.store(u32::from(cdw11.ien()), Ordering::Relaxed);
        row.worker.store(worker as u32, Ordering::Relaxed);
        row.base.store(base, Ordering::Relaxed);
        // Release: pairs with the worker's Acquire; it sees the row.
        row.state.store(QueueState::Active as u32, Ordering::Release);
        Ok(self.settling(worker, cx))
    }

    pub(crate) fn create_sq(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let cdw10 = CreateQueueDword10::from_bits(command.cdw10);
        let cdw11 = CreateSqDword11::from_bits(command.cdw11);
        let qid = self.free_qid(cdw10.qid(), |row| &row.state, &self.segment.submission_queues)?;
        if self.registers.cc.iosqes() != SQES {
            return Err(INVALID_QUEUE_SIZE);
        }
        let entries = entries(cdw10)?;
        if cdw11.cqid().is_admin() || cdw11.cqid().0 > self.config.io_queues {
            return Err(INVALID_QUEUE_ID);
        }
        let cq = self.active_cq(cdw11.cqid()).ok_or(Status::COMPLETION_QUEUE_INVALID.with_dnr())?;
        let worker = cq.worker.load(Ordering::Relaxed);
        if !cdw11.pc() || CreateSqDword12::from_bits(command.cdw12).nvmsetid() != 0 {
            return Err(INVALID_FIELD);
        }
        let base = self.queue_base(command)?;
        let Some(row) = self.segment.submission_queues.get(usize::from(qid.0)) else {
            return Err(INVALID_QUEUE_ID);
        };
        self.clear_doorbell(doorbell_index(qid, DoorbellKind::SubmissionTail), cx);
        row.generation.fetch_add(1, Ordering::Relaxed);
        row.entries.store(entries, Ordering::Relaxed);
        row.cqid.store(u32::from(cdw11.cqid().0), Ordering::Relaxed);
        row.worker.store(worker, Ordering::Relaxed);
        row.priority.store(u32::from(cdw11.qprio().0), Ordering::Relaxed);
        row.base.store(base, Ordering::Relaxed);
        // Release: pairs with the worker's Acquire; it sees the row.
        row.state.store(QueueState::Active as u32, Ordering::Release);
        let step = self.settling(worker as usize, cx);
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }

    pub(crate) fn delete_sq(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let qid = DeleteQueueDword10::from_bits(command.cdw10).qid();
        let row = self.active_sq(qid).ok_or(INVALID_QUEUE_ID)?;
        row.state.store(QueueState::Deleting as u32, Ordering::Release);
        let worker = row.worker.load(Ordering::Relaxed) as usize;
        let version = self.publish(cx);
        let step = Step::DeletingSq { qid, worker, version };
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }

    pub(crate) fn delete_cq(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let qid = DeleteQueueDword10::from_bits(command.cdw10).qid();
        let row = self.active_cq(qid).ok_or(INVALID_QUEUE_ID)?;
        let served = self.segment.submission_queues.iter().any(|sq| {
            sq.state.load(Ordering::Relaxed) != QueueState::Free as u32
                && sq.cqid.load(Ordering::Relaxed) == u32::from(qid.0)
        });
        if served {
            return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
        }
        row.state.store(QueueState::Deleting as u32, Ordering::Release);
        let worker = row.worker.load(Ordering::Relaxed) as usize;
        let version = self.publish(cx);
        let step = Step::DeletingCq { qid, worker, version };
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }

    /// The row of an I/O submission queue that is served.
    pub(crate) fn active_sq(&self, qid: QueueId) -> Option<&SubmissionQueueRow> {
        let row = self.segment.submission_queues.get(usize::from(qid.0))?;
        let active = row.state.load(Ordering::Relaxed) == QueueState::Active as u32;
        (active && !qid.is_admin()).then_some(row)
    }

    /// Whether any I/O queue is there.
    pub(crate) fn has_io_queues(&self) -> bool {
        let used = |state: &AtomicU32| state.load(Ordering::Relaxed) != QueueState::Free as u32;
        self.segment.completion_queues.iter().any(|row| used(&row.state))
            || self.segment.submission_queues.iter().any(|row| used(&row.state))
    }

    fn active_cq(&self, qid: QueueId) -> Option<&CompletionQueueRow> {
        let row = self.segment.completion_queues.get(usize::from(qid.0))?;
        let active = row.state.load(Ordering::Relaxed) == QueueState::Active as u32;
        (active && !qid.is_admin()).then_some(row)
    }

    /// `qid` if it is one of those granted and free.
    fn free_qid<Row>(
        &self,
        qid: QueueId,
        state: impl Fn(&Row) -> &AtomicU32,
        rows: &[Row],
    ) -> Result<QueueId, Status> {
        let row = rows.get(usize::from(qid.0)).ok_or(INVALID_QUEUE_ID)?;
        let free = state(row).load(Ordering::Relaxed) == QueueState::Free as u32;
        if qid.is_admin() || qid.0 > self.config.io_queues || !free {
            return Err(INVALID_QUEUE_ID);
        }
        Ok(qid)
    }

    /// The queue's address, which starts a page.
    fn queue_base(&self, command: &Command) -> Result<u64, Status> {
        let page = PageShift::clamped(self.registers.cc.page_shift()).bytes();
        let base = command.prp1().0;
        if base & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        Ok(base)
    }

    /// The attached worker with the fewest completion queues of this controller.
    fn least_loaded(&self, cx: &Context<'_>) -> Option<usize> {
        let load = |worker: usize| {
            let rows = self.segment.completion_queues.iter();
            rows.filter(|row| {
                row.state.load(Ordering::Relaxed) != QueueState::Free as u32
                    && row.worker.load(Ordering::Relaxed) as usize == worker
            })
            .count()
        };
        let attached = cx.workers.iter().enumerate().filter(|(_, seat)| seat.attached);
        attached.map(|(index, _)| index).min_by_key(|&index| load(index))
    }

    /// The command is complete when the worker has taken the queue over.
    fn settling(&mut self, worker: usize, cx: &mut Context<'_>) -> Step {
        let version = self.publish(cx);
        Step::Settling { worker: Some(worker), version, outcome: Ok(0) }
    }
}

/// Entries of the queue: 2 to MQES + 1.
fn entries(cdw10: CreateQueueDword10) -> Result<u32, Status> {
    let entries = u32::from(cdw10.qsize_z()) + 1;
    if (2..=MAX_QUEUE_ENTRIES).contains(&entries) { Ok(entries) } else { Err(INVALID_QUEUE_SIZE) }
}
