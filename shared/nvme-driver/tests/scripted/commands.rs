//! Registers, queues and commands of the scripted controller.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::Region;
use nvme_spec::command::admin::{
    AbortDword10, CreateCqDword11, CreateQueueDword10, DeleteQueueDword10, IdentifyDword10,
};
use nvme_spec::feature::FeatureId;
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::identify::Cns;
use nvme_spec::identify::attributes::SglSupport;
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::identify::list::NamespaceList;
use nvme_spec::identify::namespace::IdentifyNamespace;
use nvme_spec::register::{Cap, CapCrms, CapCss, Cc, Crto, Csts, ShutdownStatus, offset};
use nvme_spec::{AdminOpcode, BlockCount, Command, Completion, Nsid, NvmOpcode, QueueId, Status};
use vfio_user::irq::Vectors;
use zerocopy::{FromBytes, IntoBytes};

use super::{Act, Script};

pub struct Mapping {
    pub iova: u64,
    pub size: u64,
    pub offset: u64,
    pub region: Arc<Region>,
}

/// A command that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub sqid: u16,
    pub command: Command,
    pub(super) completion: Completion,
}

#[derive(Default, Clone, Copy)]
struct Queue {
    base: u64,
    size: u32,
    at: u32,
    phase: bool,
    vector: Option<u16>,
}

pub struct Engine {
    pub script: Script,
    pub mappings: Vec<Mapping>,
    pub vectors: Vectors,
    /// Every command that came, with its queue.
    pub seen: Vec<(u16, Command)>,
    /// Commands that wait for [`serve_held`](Self::serve_held).
    pub held: Vec<Held>,
    /// Times that CC.EN was set.
    pub enables: usize,
    /// Times that CC.EN was cleared before CSTS.RDY was set, which nobody may do.
    pub hasty_disables: usize,
    /// Times that CC.SHN asked for a shutdown.
    pub shutdowns: usize,
    pub died: bool,
    pub media: Vec<u8>,
    pub write_protected: bool,
    doorbells: Arc<DoorbellPage>,
    registers: BTreeMap<u64, u32>,
    sqs: BTreeMap<u16, Queue>,
    cqs: BTreeMap<u16, Queue>,
    shadow: Option<(u64, u64)>,
    late: Vec<(Instant, u16, Completion)>,
    /// What CSTS is to be, and when.
    due: Vec<(Instant, Csts)>,
    /// The host takes delays of retries (ACRE).
    delays: bool,
    event_requests: VecDeque<Completion>,
    abortable: Vec<Completion>,
    disables: usize,
}

impl Engine {
    pub fn new(script: Script, page: Arc<DoorbellPage>) -> Self {
        Self {
            media: vec![0; (script.blocks as usize) << script.format.lbads()],
            write_protected: script.write_protected,
            script,
            mappings: Vec::new(),
            vectors: Vectors::new(16),
            seen: Vec::new(),
            held: Vec::new(),
            enables: 0,
            hasty_disables: 0,
            shutdowns: 0,
            died: false,
            doorbells: page,
            registers: BTreeMap::new(),
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            shadow: None,
            late: Vec::new(),
            due: Vec::new(),
            delays: false,
            event_requests: VecDeque::new(),
            abortable: Vec::new(),
            disables: 0,
        }
    }

    /// I/O commands of this opcode that came.
    pub fn count(&self, opcode: NvmOpcode) -> usize {
        self.seen
            .iter()
            .filter(|(sqid, command)| *sqid != 0 && command.nvm_opcode() == opcode)
            .count()
    }

    pub fn count_admin(&self, opcode: AdminOpcode) -> usize {
        self.seen
            .iter()
            .filter(|(sqid, command)| *sqid == 0 && command.admin_opcode() == opcode)
            .count()
    }

    /// Completes an Asynchronous Event Request.
    pub fn raise(&mut self, event: AsyncEvent) -> bool {
        let Some(completion) = self.event_requests.pop_front() else { return false };
        self.post(0, completion.with_dw0(event.into_bits()));
        true
    }

    fn register(&self, at: u64) -> u32 {
        self.registers.get(&at).copied().unwrap_or(0)
    }

    pub fn read_register(&self, at: u64, data: &mut [u8]) {
        let cap = Cap::new()
            .with_mqes_z(self.script.mqes_z)
            .with_cqr(true)
            .with_to(self.script.to)
            .with_mpsmin(self.script.mps)
            .with_mpsmax(self.script.mps)
            .with_crms(CapCrms::new().with_crwms(self.script.crwmt > 0))
            .with_css(CapCss::new().with_nvm(true));
        let word = |at: u64| match at {
            0 => cap.into_bits() as u32,
            4 => (cap.into_bits() >> 32) as u32,
            offset::VS => nvme_spec::register::Vs::V2_0.into_bits(),
            offset::CRTO => Crto::new().with_crwmt(self.script.crwmt).into_bits(),
            at => self.register(at),
        };
        for (index, piece) in data.chunks_mut(4).enumerate() {
            piece.copy_from_slice(&word(at + index as u64 * 4).to_le_bytes()[..piece.len()]);
        }
    }

    pub fn write_register(&mut self, at: u64, data: &[u8]) {
        for (index, piece) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes(piece.try_into().unwrap());
            let at = at + index as u64 * 4;
            if at >= offset::DOORBELLS {
                self.doorbells.store((at - offset::DOORBELLS) as usize / 4, value);
                continue;
            }
            let old = Cc::from_bits(self.register(offset::CC));
            self.registers.insert(at, value);
            if at == offset::CC {
                self.configure(old, Cc::from_bits(value));
            }
        }
    }

    fn configure(&mut self, old: Cc, new: Cc) {
        if new.en() && !old.en() && !self.script.never_ready {
            let base =
                |low| u64::from(self.register(low)) | u64::from(self.register(low + 4)) << 32;
            let (asq, acq) = (base(offset::ASQ), base(offset::ACQ));
            assert_eq!((asq | acq) % self.page(), 0, "queues begin with a page");
            assert_eq!(new.mps(), self.script.mps);
            let queue = Queue { size: 32, phase: true, ..Queue::default() };
            self.sqs.insert(0, Queue { base: asq, ..queue });
            self.cqs.insert(0, Queue { base: acq, ..queue });
            self.enables += 1;
            self.become_due(self.script.ready_after, Csts::new().with_rdy(true));
        }
        if old.en() && !new.en() {
            self.disables += 1;
            let ready = Csts::from_bits(self.register(offset::CSTS)).rdy();
            self.hasty_disables += usize::from(!ready);
            if !self.script.never_disabled {
                self.disable();
            }
        }
        if new.shn().0 != 0 && old.shn().0 == 0 {
            self.shutdowns += 1;
            let csts = Csts::from_bits(self.register(offset::CSTS));
            self.become_due(self.script.shut_after, csts.with_shst(ShutdownStatus::COMPLETE));
        }
    }

    /// Enables itself, as another host did.
    pub fn come_up(&mut self) {
        self.registers.insert(offset::CC, Cc::new().with_en(true).into_bits());
        self.become_due(self.script.ready_after, Csts::new().with_rdy(true));
    }

    /// CSTS is to be this after a time, if the controller is not disabled before.
    fn become_due(&mut self, delay: Duration, csts: Csts) {
        match delay {
            Duration::ZERO => _ = self.registers.insert(offset::CSTS, csts.into_bits()),
            _ => self.due.push((Instant::now() + delay, csts)),
        }
    }

    pub fn disable(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.late.clear();
        self.held.clear();
        self.due.clear();
        self.delays = false;
        self.event_requests.clear();
        self.abortable.clear();
        self.shadow = None;
        self.doorbells.clear();
        self.registers.insert(offset::CSTS, 0);
        self.registers.insert(offset::CC, 0);
    }

    fn doorbell(&self, index: usize) -> u32 {
        match self.shadow.filter(|_| index > 1) {
            Some((values, _)) => {
                let at = self.host(values + index as u64 * 4, 4).unwrap();
                at.load_u32(0, Ordering::Acquire).unwrap()
            }
            None => self.doorbells.load(index),
        }
    }

    /// Has CSTS be what it is to be by now; returns how often it changed.
    pub fn settle(&mut self) -> usize {
        let (now, before) = (Instant::now(), self.due.len());
        while let Some(at) = self.due.iter().position(|(time, _)| *time <= now) {
            let (_, csts) = self.due.swap_remove(at);
            self.registers.insert(offset::CSTS, csts.into_bits());
        }
        before - self.due.len()
    }

    /// Does what there is to do; returns how much that was.
    pub fn work(&mut self) -> usize {
        let mut done = self.settle();
        let now = Instant::now();
        while let Some(at) = self.late.iter().position(|(due, ..)| *due <= now) {
            let (_, cqid, completion) = self.late.swap_remove(at);
            self.post(cqid, completion);
            done += 1;
        }
        for sqid in self.sqs.keys().copied().collect::<Vec<_>>() {
            while self.step(sqid) {
                done += 1;
            }
        }
        done
    }

    /// Takes one command of a queue.
    fn step(&mut self, sqid: u16) -> bool {
        let tail = self.doorbell(usize::from(sqid) * 2);
        let Some(queue) = self.sqs.get_mut(&sqid).filter(|queue| queue.at != tail) else {
            return false;
        };
        assert!(tail < queue.size, "the driver rang tail {tail} of {}", queue.size);
        let at = queue.base + u64::from(queue.at) * 64;
        queue.at = (queue.at + 1) % queue.size;
        let sqhd = queue.at as u16;
        let words = self.host(at, 64).unwrap().load_words(0).unwrap();
        let command = Command::from_words(words);
        self.seen.push((sqid, command));
        let completion = Completion::new(QueueId(sqid), command.cid(), sqhd, Status::SUCCESS);
        let act = match sqid {
            0 => (self.script.admin)(&command),
            _ => (self.script.io)(&command),
        };
        match act {
            Act::Serve if sqid == 0 => self.admin(&command, completion),
            Act::Serve => {
                let completion = self.io(&command, completion);
                self.post(sqid, completion);
            }
            Act::Status(status) => {
                // A host that did not ask for delays gets none.
                let status = if self.delays { status } else { status.with_crd(0) };
                let completion = Completion::new(QueueId(sqid), command.cid(), sqhd, status);
                self.post(sqid, completion);
            }
            Act::Late(delay) => {
                let completion = self.io(&command, completion);
                self.late.push((Instant::now() + delay, sqid, completion));
            }
            Act::Hold => self.held.push(Held { sqid, command, completion }),
            Act::Swallow => {}
            Act::UntilAborted => self.abortable.push(completion),
            Act::Fail => {
                let csts = Csts::from_bits(self.register(offset::CSTS)).with_cfs(true);
                self.registers.insert(offset::CSTS, csts.into_bits());
            }
            Act::WrongCid => {
                let cid = nvme_spec::CommandId(0xFFF0);
                self.post(sqid, Completion::new(QueueId(sqid), cid, sqhd, Status::SUCCESS));
            }
            Act::WrongSqid => {
                let completion = Completion::new(QueueId(77), command.cid(), sqhd, Status::SUCCESS);
                self.post(sqid, completion);
            }
            Act::Die => self.died = true,
        }
        true
    }

    pub(super) fn post(&mut self, cqid: u16, completion: Completion) {
        let Some(queue) = self.cqs.get_mut(&cqid) else { return };
        let [low, high] = completion.with_phase(queue.phase).into_halves();
        let at = queue.base + u64::from(queue.at) * 16;
        queue.at += 1;
        if queue.at == queue.size {
            (queue.at, queue.phase) = (0, !queue.phase);
        }
        let vector = queue.vector;
        let head = self.doorbell(usize::from(cqid) * 2 + 1);
        let queue = self.cqs[&cqid];
        assert_ne!(queue.at, head, "the driver let completion queue {cqid} overflow");
        let slot = self.host(at, 16).unwrap();
        slot.store_u64(0, low, Ordering::Relaxed);
        slot.store_u64(8, high, Ordering::Release);
        if let Some(eventfd) = vector.and_then(|vector| self.vectors.fire(vector.into())) {
            use std::os::fd::AsFd;
            ipc::event::signal(eventfd.as_fd()).unwrap();
        }
    }

    fn admin(&mut self, command: &Command, mut completion: Completion) {
        let status = match command.admin_opcode() {
            AdminOpcode::IDENTIFY => {
                let bytes = self.identify(command);
                self.host(command.prp1().0, 4096).unwrap().copy_from(&bytes);
                Status::SUCCESS
            }
            AdminOpcode::SET_FEATURES if command.cdw10 as u8 == FeatureId::NUMBER_OF_QUEUES.0 => {
                let granted_z = u32::from(self.script.queues - 1);
                completion = completion.with_dw0(granted_z | granted_z << 16);
                Status::SUCCESS
            }
            AdminOpcode::ABORT => {
                let asked = AbortDword10::from_bits(command.cdw10);
                let is_it =
                    |held: &Completion| (held.sqid, held.cid) == (asked.sqid(), asked.cid());
                if let Some(at) = self.abortable.iter().position(is_it) {
                    let Completion { sqid, cid, sqhd, .. } = self.abortable.swap_remove(at);
                    self.post(sqid.0, Completion::new(sqid, cid, sqhd, Status::ABORT_REQUESTED));
                }
                Status::SUCCESS
            }
            AdminOpcode::SET_FEATURES => {
                if command.cdw10 as u8 == FeatureId::HOST_BEHAVIOR_SUPPORT.0 {
                    let mut acre = [0];
                    self.host(command.prp1().0, 1).unwrap().copy_to(&mut acre);
                    self.delays = acre == [1];
                }
                Status::SUCCESS
            }
            AdminOpcode::GET_LOG_PAGE => Status::SUCCESS,
            AdminOpcode::CREATE_IO_CQ | AdminOpcode::CREATE_IO_SQ => self.create(command),
            AdminOpcode::DELETE_IO_CQ | AdminOpcode::DELETE_IO_SQ => {
                let qid = DeleteQueueDword10::from_bits(command.cdw10).qid().0;
                let is_sq = command.admin_opcode() == AdminOpcode::DELETE_IO_SQ;
                let queues = if is_sq { &mut self.sqs } else { &mut self.cqs };
                queues.remove(&qid);
                self.doorbells.store(usize::from(qid) * 2 + usize::from(!is_sq), 0);
                Status::SUCCESS
            }
            AdminOpcode::DOORBELL_BUFFER_CONFIG => {
                self.shadow = Some((command.prp1().0, command.prp2().0));
                Status::SUCCESS
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => return self.event_requests.push_back(completion),
            _ => Status::INVALID_OPCODE.with_dnr(),
        };
        let Completion { dw0, sqhd, sqid, cid, .. } = completion;
        self.post(0, Completion::new(sqid, cid, sqhd, status).with_dw0(dw0));
    }

    fn create(&mut self, command: &Command) -> Status {
        let cdw10 = CreateQueueDword10::from_bits(command.cdw10);
        let size = u32::from(cdw10.qsize_z()) + 1;
        let base = command.prp1().0;
        let cq = command.admin_opcode() == AdminOpcode::CREATE_IO_CQ;
        let attributes = CreateCqDword11::from_bits(command.cdw11);
        let vector = (cq && attributes.ien()).then_some(attributes.iv().0);
        let queue = Queue { base, size, at: 0, phase: true, vector };
        assert_eq!(base % self.page(), 0, "queues begin with a page");
        let qid = cdw10.qid().0;
        if self.doorbells.load(usize::from(qid) * 2 + usize::from(cq)) != 0 {
            return Status::COMMAND_SEQUENCE_ERROR;
        }
        if cq {
            self.cqs.insert(qid, queue)
        } else {
            self.sqs.insert(qid, queue)
        };
        Status::SUCCESS
    }

    fn identify(&self, command: &Command) -> Vec<u8> {
        match IdentifyDword10::from_bits(command.cdw10).cns() {
            Cns::CONTROLLER => {
                let mut identify = IdentifyController::zeroed();
                identify.mdts = self.script.mdts;
                identify.nn = 1;
                identify.aerl_z = 3;
                identify.crdt1 = self.script.crdt1;
                identify.rtd3e = self.script.rtd3e;
                identify.oacs.set_doorbell_buffer(self.script.doorbell_buffer);
                if self.script.sgl {
                    identify.sgls.set_support(SglSupport::ANY_ALIGNMENT);
                }
                identify.as_bytes().to_vec()
            }
            Cns::NAMESPACE if command.nsid == Nsid(1) => {
                let mut identify = IdentifyNamespace::zeroed();
                identify.nsze = BlockCount(self.script.blocks);
                identify.ncap = identify.nsze;
                identify.noiob = self.script.noiob;
                identify.lbaf[0] = self.script.format;
                identify.nsattr.set_write_protected(self.write_protected);
                identify.as_bytes().to_vec()
            }
            Cns::ACTIVE_NAMESPACES if command.nsid < Nsid(1) => {
                NamespaceList::new([Nsid(1)]).as_bytes().to_vec()
            }
            _ => vec![0; 4096],
        }
    }
}

/// The ranges of a Dataset Management command, as its buffer holds them.
pub fn ranges(bytes: &[u8]) -> Vec<nvme_spec::nvm::DatasetRange> {
    bytes.chunks_exact(16).map(|range| FromBytes::read_from_bytes(range).unwrap()).collect()
}
