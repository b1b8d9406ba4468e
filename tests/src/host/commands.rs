//! Commands as the driver sends them, without their data pointer and identifier.

use nvme_spec::command::admin::{
    AbortDword10, CreateCqDword11, CreateQueueDword10, CreateSqDword11, DeleteQueueDword10,
    GetFeaturesDword10, IdentifyDword10, IdentifyDword11, LogPageDword10, LogPageDword11,
    SetFeaturesDword10,
};
use nvme_spec::feature::FeatureId;
use nvme_spec::identify::{Cns, CommandSet};
use nvme_spec::log_page::LogPageId;
use nvme_spec::nvm::IoDword12;
use nvme_spec::{AdminOpcode, Command, CommandId, Lba, Nsid, NvmOpcode, QueueId};

use super::queue::QueuePair;

fn admin(opcode: AdminOpcode) -> Command {
    Command::admin(opcode, CommandId(0))
}

/// Identify; 4096 bytes come back.
pub fn identify(cns: Cns, nsid: Nsid, csi: CommandSet) -> Command {
    Command {
        nsid,
        cdw10: IdentifyDword10::new().with_cns(cns).into_bits(),
        cdw11: IdentifyDword11::new().with_csi(csi).into_bits(),
        ..admin(AdminOpcode::IDENTIFY)
    }
}

/// Get Log Page: `bytes` (a multiple of 4) of it from `offset`.
pub fn get_log_page(lid: LogPageId, nsid: Nsid, offset: u64, bytes: u64) -> Command {
    let dwords_z = bytes / 4 - 1;
    let cdw10 = LogPageDword10::new().with_lid(lid).with_numdl(dwords_z as u16);
    let cdw11 = LogPageDword11::new().with_numdu((dwords_z >> 16) as u16);
    Command {
        nsid,
        cdw10: cdw10.into_bits(),
        cdw11: cdw11.into_bits(),
        cdw12: offset as u32,
        cdw13: (offset >> 32) as u32,
        ..admin(AdminOpcode::GET_LOG_PAGE)
    }
}

/// Get Features: its current value.
pub fn get_features(fid: FeatureId, nsid: Nsid) -> Command {
    let cdw10 = GetFeaturesDword10::new().with_fid(fid).into_bits();
    Command { nsid, cdw10, ..admin(AdminOpcode::GET_FEATURES) }
}

/// Set Features with a value in dword 11.
pub fn set_features(fid: FeatureId, nsid: Nsid, value: u32) -> Command {
    let cdw10 = SetFeaturesDword10::new().with_fid(fid).into_bits();
    Command { nsid, cdw10, cdw11: value, ..admin(AdminOpcode::SET_FEATURES) }
}

/// Create I/O Completion Queue, with interrupts.
pub fn create_cq(queue: &QueuePair) -> Command {
    let cdw10 =
        CreateQueueDword10::new().with_qid(queue.qid).with_qsize_z((queue.entries - 1) as u16);
    let cdw11 = CreateCqDword11::new()
        .with_pc(true)
        .with_ien(true)
        .with_iv(nvme_spec::ids::InterruptVector(queue.vector));
    Command {
        cdw10: cdw10.into_bits(),
        cdw11: cdw11.into_bits(),
        ..admin(AdminOpcode::CREATE_IO_CQ)
    }
    .with_prps(queue.cq.iova, nvme_spec::Iova(0))
}

/// Create I/O Submission Queue for the completion queue of the same identifier.
pub fn create_sq(queue: &QueuePair) -> Command {
    let cdw10 =
        CreateQueueDword10::new().with_qid(queue.qid).with_qsize_z((queue.entries - 1) as u16);
    let cdw11 = CreateSqDword11::new().with_pc(true).with_cqid(queue.qid);
    Command {
        cdw10: cdw10.into_bits(),
        cdw11: cdw11.into_bits(),
        ..admin(AdminOpcode::CREATE_IO_SQ)
    }
    .with_prps(queue.sq.iova, nvme_spec::Iova(0))
}

/// Delete I/O Submission Queue.
pub fn delete_sq(qid: QueueId) -> Command {
    let cdw10 = DeleteQueueDword10::new().with_qid(qid).into_bits();
    Command { cdw10, ..admin(AdminOpcode::DELETE_IO_SQ) }
}

/// Delete I/O Completion Queue.
pub fn delete_cq(qid: QueueId) -> Command {
    let cdw10 = DeleteQueueDword10::new().with_qid(qid).into_bits();
    Command { cdw10, ..admin(AdminOpcode::DELETE_IO_CQ) }
}

/// Abort.
pub fn abort(sqid: QueueId, cid: CommandId) -> Command {
    let cdw10 = AbortDword10::new().with_sqid(sqid).with_cid(cid).into_bits();
    Command { cdw10, ..admin(AdminOpcode::ABORT) }
}

/// Asynchronous Event Request.
pub fn async_event_request() -> Command {
    admin(AdminOpcode::ASYNC_EVENT_REQUEST)
}

/// A command on `blocks` blocks (1 to 65,536) from `slba`.
pub fn io(opcode: NvmOpcode, nsid: Nsid, slba: Lba, blocks: u32) -> Command {
    let cdw12 = IoDword12::new().with_nlb_z((blocks - 1) as u16).into_bits();
    Command { cdw12, ..Command::nvm(opcode, CommandId(0), nsid).with_slba(slba) }
}

/// Flush.
pub fn flush(nsid: Nsid) -> Command {
    Command::nvm(NvmOpcode::FLUSH, CommandId(0), nsid)
}
