//! I/O queues: their memory, their creation and deletion. NVMe Base 2.0c 5.4 to 5.7.

use std::sync::PoisonError;

use ipc::event::EventFd;
use nvme_spec::command::admin::{
    CreateCqDword11, CreateQueueDword10, CreateSqDword11, DeleteQueueDword10,
};
use nvme_spec::identify::attributes::SglSupport;
use nvme_spec::ids::InterruptVector;
use nvme_spec::register::{DoorbellKind, doorbell_offset};
use nvme_spec::{AdminOpcode, Command, CommandId, Completion, Iova, QueueId};

use super::Inner;
use super::admin::AdminData;
use crate::doorbell::Bell;
use crate::error::Error;
use crate::memory::Registered;
use crate::options::DataPointer;
use crate::prp::{Lists, Pointer};
use crate::ring::{CompletionRing, SubmissionRing};

/// The rings of a queue pair and the lists of its commands, in one memory object.
pub(crate) struct QueueMemory {
    pub(crate) sq: SubmissionRing,
    pub(crate) cq: CompletionRing,
    pub(crate) lists: Lists,
}

impl Inner {
    /// Commands that a queue pair can have outstanding when `wanted` is asked for.
    pub(crate) fn depth(&self, wanted: u16) -> u16 {
        let most = match self.identify().maxcmd {
            0 => self.cap.mqes_z(),
            maxcmd => self.cap.mqes_z().min(maxcmd),
        };
        // A ring holds one less than its entries: MQES, 0's based, is that number.
        wanted.clamp(1, most.max(1))
    }

    /// Memory of a queue pair for `depth` commands.
    pub(crate) fn queue_memory(&self, depth: u16) -> Result<QueueMemory, Error> {
        let page_shift = self.page_shift();
        let page = 1_usize << page_shift;
        let sq_size = u32::from(depth) + 1;
        // Twice as long, so that its head can be told late.
        let cq_size = (2 * sq_size).min(u32::from(self.cap.mqes_z()) + 1);
        let sq_bytes = (sq_size as usize * size_of::<Command>()).next_multiple_of(page);
        let cq_bytes = (cq_size as usize * size_of::<Completion>()).next_multiple_of(page);
        let lists = sq_bytes + cq_bytes;
        let bytes = lists + Lists::size(depth.into(), page_shift);
        let memory = Registered::allocate(&self.domain, bytes)?;
        let rings = (
            SubmissionRing::new(&memory, 0, sq_size),
            CompletionRing::new(&memory, sq_bytes, cq_size),
        );
        let (Some(sq), Some(cq)) = rings else {
            return Err(Error::Argument { what: "the queues do not fit their memory" });
        };
        let lists = Lists::new(&memory, lists, page_shift, self.pointer());
        Ok(QueueMemory { sq, cq, lists })
    }

    /// How commands point to their data.
    fn pointer(&self) -> Pointer {
        let sgl = [SglSupport::ANY_ALIGNMENT, SglSupport::DWORD_ALIGNED]
            .contains(&self.identify().sgls.support());
        match self.options.data_pointer {
            DataPointer::Auto if sgl => Pointer::SglForLists,
            DataPointer::Sgl if sgl => Pointer::Sgl,
            DataPointer::Auto | DataPointer::Sgl | DataPointer::Prp => Pointer::Prp,
        }
    }

    /// Takes a queue identifier that is not in use.
    pub(crate) fn take_queue_id(&self) -> Result<QueueId, Error> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let granted = queues.len() as u16;
        let Some(index) = queues.iter().position(|&used| !used) else {
            return Err(Error::NoQueue { granted });
        };
        queues[index] = true;
        let qid = QueueId(index as u16 + 1);
        self.note(qid, true);
        Ok(qid)
    }

    /// Keeps a queue identifier from being used; `false` if it is in use or was not granted.
    pub(crate) fn reserve_queue_id(&self, qid: QueueId) -> bool {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let used = usize::from(qid.0).checked_sub(1).and_then(|at| queues.get_mut(at));
        used.is_some_and(|used| !std::mem::replace(used, true))
    }

    /// Notes for a successor who has a queue identifier. Under the lock of `queues`.
    fn note(&self, qid: QueueId, used: bool) {
        if let Some(keeping) = self.transport.keeping() {
            keeping.note(qid, used);
        }
    }

    /// Gives a queue identifier back, when the queues are deleted.
    pub(crate) fn give_queue_id_back(&self, qid: QueueId) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = usize::from(qid.0).checked_sub(1).and_then(|at| queues.get_mut(at)) {
            *used = false;
            self.note(qid, false);
        }
    }

    /// The doorbell of a queue that is about to be created, with its shadow where those are used.
    pub(crate) fn bell(&self, qid: QueueId, kind: DoorbellKind) -> Bell {
        let dstrd = self.cap.dstrd();
        let mut bell = Bell::new(self.transport.any_doorbell(doorbell_offset(dstrd, qid, kind)));
        if let Some(shadow) = &self.shadow {
            bell = bell.with_shadow(shadow, dstrd, qid, kind);
        }
        // An earlier queue of this identifier left its tail there, by which a controller that polls memory would go, and an
        // event index, by which another would not hear of the first commands.
        bell.clear(self.doorbells_are_memory());
        bell
    }

    /// The vector of a queue's interrupts and its event: vector 0 is the admin queue's if there are others.
    pub(crate) fn vector(&self, qid: QueueId) -> Option<(InterruptVector, &EventFd)> {
        let count = self.vectors.len();
        let index = match count {
            0 => return None,
            1 => 0,
            _ => 1 + usize::from(qid.0.saturating_sub(1)) % (count - 1),
        };
        // At most options.queues + 1, which is 16 bits.
        Some((InterruptVector(index as u16), &self.vectors[index]))
    }

    /// The vector of a queue that has one to itself: there are such if each queue can have one, and the admin queue.
    pub(crate) fn own_vector(&self, qid: QueueId) -> Option<InterruptVector> {
        (self.vectors.len() > usize::from(self.granted())).then_some(InterruptVector(qid.0))
    }

    /// Gives a vector the event again that it has unless somebody took it for himself.
    pub(crate) fn restore_vector(&self, vector: InterruptVector) -> Result<(), Error> {
        match self.vectors.get(usize::from(vector.0)) {
            Some(event) if !self.is_gone() => {
                Ok(self.transport.set_vector(vector.0, Some(event))?)
            }
            _ => Ok(()),
        }
    }

    /// Creates the completion queue, then the submission queue.
    pub(crate) fn create_queues(
        &self,
        qid: QueueId,
        sq: &SubmissionRing,
        cq: &CompletionRing,
        vector: Option<InterruptVector>,
    ) -> Result<(), Error> {
        let create = |opcode, size: u32, at: Iova, cdw11: u32| {
            let mut command = Command::admin(opcode, CommandId(0)).with_prps(at, Iova(0));
            let size_z = (size - 1) as u16;
            command.cdw10 =
                CreateQueueDword10::new().with_qid(qid).with_qsize_z(size_z).into_bits();
            command.cdw11 = cdw11;
            command
        };
        let attributes = CreateCqDword11::new()
            .with_pc(true)
            .with_ien(vector.is_some())
            .with_iv(vector.unwrap_or_default());
        let mut admin = self.admin();
        let command =
            create(AdminOpcode::CREATE_IO_CQ, cq.size(), cq.iova(), attributes.into_bits());
        self.command(&mut admin, command, AdminData::None)?;
        let attributes = CreateSqDword11::new().with_pc(true).with_cqid(qid);
        let command =
            create(AdminOpcode::CREATE_IO_SQ, sq.size(), sq.iova(), attributes.into_bits());
        let created = self.command(&mut admin, command, AdminData::None);
        if created.is_err() {
            let command = delete(AdminOpcode::DELETE_IO_CQ, qid);
            // The error that is told is the first one.
            self.command(&mut admin, command, AdminData::None).ok();
        }
        created.map(drop)
    }

    /// Makes queues again that a reset took: empty, and their doorbells at 0. Says of which generation they are.
    pub(crate) fn renew_queues(
        &self,
        qid: QueueId,
        (sq, sq_bell): (&mut SubmissionRing, &mut Bell),
        (cq, cq_bell): (&mut CompletionRing, &mut Bell),
        vector: Option<InterruptVector>,
    ) -> Result<u32, Error> {
        // Before the queues: a reset that comes in between is noticed.
        let generation = self.generation();
        if self.is_gone() {
            return Err(Error::Gone);
        }
        sq.clear();
        cq.clear();
        let memory = self.doorbells_are_memory();
        sq_bell.clear(memory);
        cq_bell.clear(memory);
        self.create_queues(qid, sq, cq, vector)?;
        Ok(generation)
    }

    /// Deletes the submission queue, then the completion queue: the controller is done with their commands and memory.
    pub(crate) fn delete_queues(&self, qid: QueueId) -> Result<(), Error> {
        let mut admin = self.admin();
        self.command(&mut admin, delete(AdminOpcode::DELETE_IO_SQ, qid), AdminData::None)?;
        self.command(&mut admin, delete(AdminOpcode::DELETE_IO_CQ, qid), AdminData::None)?;
        Ok(())
    }
}

fn delete(opcode: AdminOpcode, qid: QueueId) -> Command {
    let mut command = Command::admin(opcode, CommandId(0));
    command.cdw10 = DeleteQueueDword10::new().with_qid(qid).into_bits();
    command
}
