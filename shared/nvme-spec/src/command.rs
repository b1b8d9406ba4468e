//! Submission queue entries. NVMe Base 2.0c 3.3.3.1. On the hot path of a worker.

pub mod admin;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use crate::ids::{CommandId, Iova, Lba, Nsid};
use crate::open_enum::open_enum;
use crate::sgl::SglDescriptor;

open_enum! {
    /// Opcode of an admin command. NVMe Base 2.0c figure 138.
    pub struct AdminOpcode(u8) {
        DELETE_IO_SQ = 0x00, "Delete I/O Submission Queue";
        CREATE_IO_SQ = 0x01, "Create I/O Submission Queue";
        GET_LOG_PAGE = 0x02, "Get Log Page";
        DELETE_IO_CQ = 0x04, "Delete I/O Completion Queue";
        CREATE_IO_CQ = 0x05, "Create I/O Completion Queue";
        IDENTIFY = 0x06, "Identify";
        ABORT = 0x08, "Abort";
        SET_FEATURES = 0x09, "Set Features";
        GET_FEATURES = 0x0A, "Get Features";
        ASYNC_EVENT_REQUEST = 0x0C, "Asynchronous Event Request";
        NAMESPACE_MANAGEMENT = 0x0D, "Namespace Management";
        FIRMWARE_COMMIT = 0x10, "Firmware Commit";
        FIRMWARE_IMAGE_DOWNLOAD = 0x11, "Firmware Image Download";
        DEVICE_SELF_TEST = 0x14, "Device Self-test";
        NAMESPACE_ATTACHMENT = 0x15, "Namespace Attachment";
        KEEP_ALIVE = 0x18, "Keep Alive";
        DIRECTIVE_SEND = 0x19, "Directive Send";
        DIRECTIVE_RECEIVE = 0x1A, "Directive Receive";
        VIRTUALIZATION_MANAGEMENT = 0x1C, "Virtualization Management";
        NVME_MI_SEND = 0x1D, "NVMe-MI Send";
        NVME_MI_RECEIVE = 0x1E, "NVMe-MI Receive";
        CAPACITY_MANAGEMENT = 0x20, "Capacity Management";
        LOCKDOWN = 0x24, "Lockdown";
        DOORBELL_BUFFER_CONFIG = 0x7C, "Doorbell Buffer Config";
        FABRICS = 0x7F, "Fabrics Commands";
        FORMAT_NVM = 0x80, "Format NVM";
        SECURITY_SEND = 0x81, "Security Send";
        SECURITY_RECEIVE = 0x82, "Security Receive";
        SANITIZE = 0x84, "Sanitize";
        GET_LBA_STATUS = 0x86, "Get LBA Status";
    }
}

open_enum! {
    /// Opcode of an I/O command of the NVM command set. NVM Command Set 1.0c figure 18, NVMe Base 2.0c figure 390.
    pub struct NvmOpcode(u8) {
        FLUSH = 0x00, "Flush";
        WRITE = 0x01, "Write";
        READ = 0x02, "Read";
        WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
        COMPARE = 0x05, "Compare";
        WRITE_ZEROES = 0x08, "Write Zeroes";
        DATASET_MANAGEMENT = 0x09, "Dataset Management";
        VERIFY = 0x0C, "Verify";
        RESERVATION_REGISTER = 0x0D, "Reservation Register";
        RESERVATION_REPORT = 0x0E, "Reservation Report";
        RESERVATION_ACQUIRE = 0x11, "Reservation Acquire";
        RESERVATION_RELEASE = 0x15, "Reservation Release";
        COPY = 0x19, "Copy";
    }
}

open_enum! {
    /// Fused Operation (FUSE). NVMe Base 2.0c figure 86.
    pub struct Fuse(u8) {
        NORMAL = 0x0, "Normal operation";
        FIRST = 0x1, "Fused operation, first command";
        SECOND = 0x2, "Fused operation, second command";
    }
}

open_enum! {
    /// PRP or SGL for Data Transfer (PSDT). NVMe Base 2.0c figure 86.
    pub struct Psdt(u8) {
        PRP = 0x0, "PRPs are used";
        SGL_METADATA_BUFFER = 0x1, "SGLs are used, MPTR is the address of a buffer";
        SGL_METADATA_SGL = 0x2, "SGLs are used, MPTR is the address of an SGL segment";
    }
}

open_enum! {
    /// Data transfer direction, the two low bits of every opcode. NVMe Base 2.0c figure 138.
    pub struct DataTransfer(u8) {
        NONE = 0x0, "No data transfer";
        HOST_TO_CONTROLLER = 0x1, "Host to controller";
        CONTROLLER_TO_HOST = 0x2, "Controller to host";
        BIDIRECTIONAL = 0x3, "Bidirectional";
    }
}

/// Command Dword 0 (CDW0). NVMe Base 2.0c figure 86.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandDword0 {
    /// Opcode (OPC): of which table, the queue says.
    #[inline]
    pub opcode: u8,
    /// Fused Operation (FUSE).
    #[inline]
    #[bits(2)]
    pub fuse: Fuse,
    #[bits(4)]
    __: u8,
    /// PRP or SGL for Data Transfer (PSDT).
    #[inline]
    #[bits(2)]
    pub psdt: Psdt,
    /// Command Identifier (CID).
    #[inline]
    #[bits(16)]
    pub cid: CommandId,
}

/// Submission queue entry, common layout of 64 bytes. NVMe Base 2.0c 3.3.3.1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Command {
    /// Opcode, fuse, kind of data pointer, command identifier.
    pub cdw0: CommandDword0,
    /// Namespace Identifier (NSID).
    pub nsid: Nsid,
    /// Command specific.
    pub cdw2: u32,
    /// Command specific.
    pub cdw3: u32,
    /// Metadata Pointer (MPTR).
    pub mptr: u64,
    /// Data Pointer (DPTR): two PRP entries or one SGL descriptor, as [`CommandDword0::psdt`] says.
    pub dptr: [u8; 16],
    /// Command specific.
    pub cdw10: u32,
    /// Command specific.
    pub cdw11: u32,
    /// Command specific.
    pub cdw12: u32,
    /// Command specific.
    pub cdw13: u32,
    /// Command specific.
    pub cdw14: u32,
    /// Command specific.
    pub cdw15: u32,
}

impl AdminOpcode {
    /// Direction of the data, as the opcode itself says it.
    #[inline]
    pub const fn data_transfer(self) -> DataTransfer {
        DataTransfer(self.0 & 0x3)
    }
}

impl NvmOpcode {
    /// Direction of the data, as the opcode itself says it.
    #[inline]
    pub const fn data_transfer(self) -> DataTransfer {
        DataTransfer(self.0 & 0x3)
    }
}

impl Command {
    /// An admin command with everything else zero.
    pub fn admin(opcode: AdminOpcode, cid: CommandId) -> Self {
        Self { cdw0: CommandDword0::new().with_opcode(opcode.0).with_cid(cid), ..Self::default() }
    }

    /// An I/O command of the NVM command set with everything else zero.
    pub fn nvm(opcode: NvmOpcode, cid: CommandId, nsid: Nsid) -> Self {
        Self {
            cdw0: CommandDword0::new().with_opcode(opcode.0).with_cid(cid),
            nsid,
            ..Self::default()
        }
    }

    /// From the eight 64-bit words of the entry, as one volatile copy leaves them.
    #[inline]
    pub const fn from_words(words: [u64; 8]) -> Self {
        transmute!(words)
    }

    /// The same in place.
    #[inline(always)]
    pub const fn of_words(words: &[u64; 8]) -> &Self {
        zerocopy::transmute_ref!(words)
    }

    /// The eight 64-bit words of the entry.
    #[inline]
    pub const fn into_words(self) -> [u64; 8] {
        transmute!(self)
    }

    /// Opcode, if this came by the admin queue.
    #[inline]
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode(self.cdw0.opcode())
    }

    /// Opcode, if this came by an I/O queue and is for the NVM command set.
    #[inline]
    pub const fn nvm_opcode(&self) -> NvmOpcode {
        NvmOpcode(self.cdw0.opcode())
    }

    /// Command Identifier (CID).
    #[inline]
    pub const fn cid(&self) -> CommandId {
        self.cdw0.cid()
    }

    /// Fused Operation (FUSE).
    #[inline]
    pub const fn fuse(&self) -> Fuse {
        self.cdw0.fuse()
    }

    /// PRP or SGL for Data Transfer (PSDT).
    #[inline]
    pub const fn psdt(&self) -> Psdt {
        self.cdw0.psdt()
    }

    /// PRP Entry 1, if PRPs are used.
    #[inline]
    pub const fn prp1(&self) -> Iova {
        let words: [u64; 2] = transmute!(self.dptr);
        Iova(words[0])
    }

    /// PRP Entry 2, if PRPs are used: reserved, a page, or a list.
    #[inline]
    pub const fn prp2(&self) -> Iova {
        let words: [u64; 2] = transmute!(self.dptr);
        Iova(words[1])
    }

    /// SGL Entry 1, if SGLs are used.
    #[inline]
    pub const fn sgl(&self) -> SglDescriptor {
        transmute!(self.dptr)
    }

    /// Starting LBA (SLBA) in dwords 10 and 11, of the I/O commands that have one.
    #[inline]
    pub const fn slba(&self) -> Lba {
        Lba(self.cdw10 as u64 | (self.cdw11 as u64) << 32)
    }

    /// With two PRP entries as data pointer.
    #[inline]
    #[must_use]
    pub const fn with_prps(mut self, prp1: Iova, prp2: Iova) -> Self {
        let words = [prp1.0, prp2.0];
        self.dptr = transmute!(words);
        self.cdw0.set_psdt(Psdt::PRP);
        self
    }

    /// With an SGL descriptor as data pointer, metadata (if any) in one buffer.
    #[inline]
    #[must_use]
    pub const fn with_sgl(mut self, sgl: SglDescriptor) -> Self {
        self.dptr = transmute!(sgl);
        self.cdw0.set_psdt(Psdt::SGL_METADATA_BUFFER);
        self
    }

    /// With a Fused Operation (FUSE).
    #[inline]
    #[must_use]
    pub const fn with_fuse(mut self, fuse: Fuse) -> Self {
        self.cdw0.set_fuse(Fuse(fuse.0 & 0x3));
        self
    }

    /// With a Starting LBA (SLBA) in dwords 10 and 11.
    #[inline]
    #[must_use]
    pub const fn with_slba(mut self, slba: Lba) -> Self {
        self.cdw10 = slba.0 as u32;
        self.cdw11 = (slba.0 >> 32) as u32;
        self
    }
}

const _: () = assert!(size_of::<Command>() == 64);
const _: () = assert!(align_of::<Command>() == 8);
