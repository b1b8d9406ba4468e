//! Admin commands of the null target: those that the driver needs.

use std::sync::atomic::Ordering;

use nvme_spec::command::admin::{
    CreateCqDword11, CreateQueueDword10, DeleteQueueDword10, IdentifyDword10, SetFeaturesDword10,
};
use nvme_spec::feature::{FeatureId, NumberOfQueues};
use nvme_spec::identify::attributes::{EntrySizes, SglSupport, Sgls};
use nvme_spec::identify::controller::{IdentifyController, set_ascii};
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::list::NamespaceList;
use nvme_spec::identify::namespace::{IdentifyNamespace, LbaFormat, Nsattr};
use nvme_spec::identify::{Cns, IDENTIFY_SIZE};
use nvme_spec::register::{Aqa, Vs};
use nvme_spec::{AdminOpcode, BlockCount, Command, Completion, Nsid, Status};
use zerocopy::IntoBytes;

use super::queue::Queues;
use super::{Medium, NullTarget, QUEUES_MAX};

/// The one namespace.
const NSID: Nsid = Nsid(1);

impl<M: Medium> NullTarget<M> {
    /// From registers AQA, ASQ and ACQ.
    pub(super) fn create_admin_queues(&self) {
        let aqa = Aqa::from_bits(self.aqa.load(Ordering::Acquire));
        let sq = (usize::from(aqa.asqs_z()) + 1) * size_of::<Command>();
        let cq = (usize::from(aqa.acqs_z()) + 1) * size_of::<Completion>();
        let (asq, acq) = (self.asq.load(Ordering::Acquire), self.acq.load(Ordering::Acquire));
        if let Some(mut queue) = self.queue(0) {
            *queue = Queues { sq: self.find(asq, sq), cq: self.find(acq, cq), ..Queues::default() };
        }
    }

    pub(super) fn run_admin(&self, tail: u32) {
        let Some(mut queue) = self.queue(0) else { return };
        queue.run(tail, |command| self.admin(command));
    }

    /// One command; `None`: it stays outstanding.
    fn admin(&self, command: &Command) -> Option<(Status, u32)> {
        let done = |status: Status| Some((status, 0));
        match command.admin_opcode() {
            AdminOpcode::ASYNC_EVENT_REQUEST => None,
            AdminOpcode::IDENTIFY => done(self.identify(command)),
            AdminOpcode::CREATE_IO_CQ => done(self.create_cq(command)),
            AdminOpcode::CREATE_IO_SQ => done(self.create_sq(command)),
            AdminOpcode::DELETE_IO_SQ | AdminOpcode::DELETE_IO_CQ => {
                let qid = DeleteQueueDword10::from_bits(command.cdw10).qid();
                let both = command.admin_opcode() == AdminOpcode::DELETE_IO_CQ;
                if let Some(mut queue) = self.queue(qid.0).filter(|_| qid.0 != 0) {
                    queue.sq = None;
                    if both {
                        *queue = Queues::default();
                    }
                }
                done(Status::SUCCESS)
            }
            AdminOpcode::SET_FEATURES => Some((Status::SUCCESS, set_feature(command))),
            AdminOpcode::GET_FEATURES => done(Status::SUCCESS),
            // Bit 0: the command was not aborted. There is none outstanding to abort.
            AdminOpcode::ABORT => Some((Status::SUCCESS, 1)),
            _ => done(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    fn create_cq(&self, command: &Command) -> Status {
        let settings = CreateQueueDword10::from_bits(command.cdw10);
        let attributes = CreateCqDword11::from_bits(command.cdw11);
        let len = (usize::from(settings.qsize_z()) + 1) * size_of::<Completion>();
        let memory = self.find(command.prp1().0, len);
        match (self.queue(settings.qid().0), memory) {
            (Some(mut queue), Some(memory)) if settings.qid().0 != 0 => {
                *queue = Queues {
                    qid: settings.qid().0,
                    cq: Some(memory),
                    vector: attributes.ien().then_some(attributes.iv().0),
                    ..Queues::default()
                };
                Status::SUCCESS
            }
            _ => Status::INVALID_FIELD.with_dnr(),
        }
    }

    fn create_sq(&self, command: &Command) -> Status {
        let settings = CreateQueueDword10::from_bits(command.cdw10);
        let len = (usize::from(settings.qsize_z()) + 1) * size_of::<Command>();
        let memory = self.find(command.prp1().0, len);
        match (self.queue(settings.qid().0), memory) {
            (Some(mut queue), Some(memory)) if queue.cq.is_some() && settings.qid().0 != 0 => {
                queue.sq = Some(memory);
                Status::SUCCESS
            }
            _ => Status::INVALID_FIELD.with_dnr(),
        }
    }

    fn identify(&self, command: &Command) -> Status {
        let cns = IdentifyDword10::from_bits(command.cdw10).cns();
        let wrong_namespace = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
        let data: [u8; IDENTIFY_SIZE] = match cns {
            Cns::CONTROLLER => bytes_of(controller().as_bytes()),
            Cns::ACTIVE_NAMESPACES => {
                let list =
                    NamespaceList::new([NSID].into_iter().filter(|nsid| *nsid > command.nsid));
                bytes_of(list.as_bytes())
            }
            Cns::NAMESPACE if command.nsid == NSID => bytes_of(self.namespace().as_bytes()),
            Cns::NAMESPACE => [0; IDENTIFY_SIZE],
            Cns::NAMESPACE_DESCRIPTORS if command.nsid == NSID => {
                NamespaceIdentifiers::default().to_list()
            }
            Cns::NAMESPACE_DESCRIPTORS => return wrong_namespace,
            _ => return Status::INVALID_FIELD.with_dnr(),
        };
        // One page, aligned: the driver gives each admin command a page of its own.
        match self.find(command.prp1().0, data.len()) {
            Some(memory) => {
                memory.with(|slice| {
                    slice.copy_from(&data);
                });
                Status::SUCCESS
            }
            None => Status::DATA_TRANSFER_ERROR,
        }
    }

    fn namespace(&self) -> IdentifyNamespace {
        let (blocks, lbads) = self.medium().size();
        let mut identify = IdentifyNamespace::zeroed();
        identify.nsze = BlockCount(blocks);
        identify.ncap = identify.nsze;
        identify.nuse = identify.nsze;
        identify.lbaf[0] = LbaFormat::new().with_lbads(lbads);
        identify.nsattr = Nsattr::new().with_write_protected(self.medium().is_write_protected());
        identify
    }
}

fn controller() -> IdentifyController {
    let mut identify = IdentifyController::zeroed();
    set_ascii(&mut identify.sn, "0");
    set_ascii(&mut identify.mn, "Null target in this process");
    set_ascii(&mut identify.fr, env!("CARGO_PKG_VERSION"));
    identify.ver = Vs::V2_0;
    identify.sqes = EntrySizes::new().with_required(6).with_maximum(6);
    identify.cqes = EntrySizes::new().with_required(4).with_maximum(4);
    identify.nn = NSID.0;
    identify.sgls = Sgls::new().with_support(SglSupport::DWORD_ALIGNED);
    identify
}

fn set_feature(command: &Command) -> u32 {
    let fid = SetFeaturesDword10::from_bits(command.cdw10).fid();
    if fid != FeatureId::NUMBER_OF_QUEUES {
        return 0;
    }
    let asked = NumberOfQueues::from_bits(command.cdw11);
    let most_z = QUEUES_MAX as u16 - 1;
    asked.with_nsq_z(asked.nsq_z().min(most_z)).with_ncq_z(asked.ncq_z().min(most_z)).into_bits()
}

fn bytes_of(structure: &[u8]) -> [u8; IDENTIFY_SIZE] {
    let mut data = [0; IDENTIFY_SIZE];
    for (to, from) in data.iter_mut().zip(structure) {
        *to = *from;
    }
    data
}
