//! Command dwords of the admin commands, and the commands that spread one value over several of them, parsed.
//!
//! A dword is read with `IdentifyDword10::from_bits(command.cdw10)`; it holds what the host sent, unchecked.

use bitfield_struct::bitfield;

use crate::command::Command;
use crate::feature::{FeatureId, FeatureSelect};
use crate::identify::{Cns, CommandSet};
use crate::ids::{CommandId, ControllerId, InterruptVector, QueueId};
use crate::log_page::LogPageId;
use crate::open_enum::open_enum;

open_enum! {
    /// Queue Priority (QPRIO), used with weighted round robin only. NVMe Base 2.0c figure 162.
    pub struct QueuePriority(u8) {
        URGENT = 0x0, "Urgent";
        HIGH = 0x1, "High";
        MEDIUM = 0x2, "Medium";
        LOW = 0x3, "Low";
    }
}

open_enum! {
    /// Secure Erase Settings (SES) of Format NVM. NVMe Base 2.0c 5.14.
    pub struct SecureErase(u8) {
        NONE = 0x0, "No secure erase operation requested";
        USER_DATA = 0x1, "User Data Erase";
        CRYPTOGRAPHIC = 0x2, "Cryptographic Erase";
    }
}

open_enum! {
    /// Select (SEL) of Namespace Management. NVMe Base 2.0c 5.23.
    pub struct NamespaceManagementSelect(u8) {
        CREATE = 0x0, "Create";
        DELETE = 0x1, "Delete";
    }
}

open_enum! {
    /// Select (SEL) of Namespace Attachment. NVMe Base 2.0c 5.22.
    pub struct NamespaceAttachmentSelect(u8) {
        ATTACH = 0x0, "Controller Attach";
        DETACH = 0x1, "Controller Detach";
    }
}

open_enum! {
    /// Sanitize Action (SANACT). NVMe Base 2.0c 5.24.
    pub struct SanitizeAction(u8) {
        EXIT_FAILURE_MODE = 0x1, "Exit Failure Mode";
        BLOCK_ERASE = 0x2, "Start a Block Erase sanitize operation";
        OVERWRITE = 0x3, "Start an Overwrite sanitize operation";
        CRYPTO_ERASE = 0x4, "Start a Crypto Erase sanitize operation";
    }
}

/// Dword 10 of Create I/O Completion Queue and Create I/O Submission Queue. NVMe Base 2.0c 5.4, 5.5.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateQueueDword10 {
    /// Queue Identifier (QID).
    #[bits(16)]
    pub qid: QueueId,
    /// Queue Size (QSIZE), 0's based; 0 is invalid.
    pub qsize_z: u16,
}

/// Dword 11 of Create I/O Completion Queue. NVMe Base 2.0c 5.4.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateCqDword11 {
    /// Physically Contiguous (PC): PRP1 is the queue itself, else a PRP list.
    pub pc: bool,
    /// Interrupts Enabled (IEN).
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// Interrupt Vector (IV).
    #[bits(16)]
    pub iv: InterruptVector,
}

/// Dword 11 of Create I/O Submission Queue. NVMe Base 2.0c 5.5.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateSqDword11 {
    /// Physically Contiguous (PC): PRP1 is the queue itself, else a PRP list.
    pub pc: bool,
    /// Queue Priority (QPRIO).
    #[bits(2)]
    pub qprio: QueuePriority,
    #[bits(13)]
    __: u16,
    /// Completion Queue Identifier (CQID).
    #[bits(16)]
    pub cqid: QueueId,
}

/// Dword 12 of Create I/O Submission Queue. NVMe Base 2.0c 5.5.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateSqDword12 {
    /// NVM Set Identifier (NVMSETID).
    pub nvmsetid: u16,
    #[bits(16)]
    __: u16,
}

/// Dword 10 of Delete I/O Completion Queue and Delete I/O Submission Queue. NVMe Base 2.0c 5.6, 5.7.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeleteQueueDword10 {
    /// Queue Identifier (QID).
    #[bits(16)]
    pub qid: QueueId,
    #[bits(16)]
    __: u16,
}

/// Dword 10 of Abort. NVMe Base 2.0c 5.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AbortDword10 {
    /// Submission Queue Identifier (SQID) of the command to abort.
    #[bits(16)]
    pub sqid: QueueId,
    /// Command Identifier (CID) of the command to abort.
    #[bits(16)]
    pub cid: CommandId,
}

/// Dword 0 of the completion of Abort. NVMe Base 2.0c 5.1.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AbortCompletion {
    /// The command was not aborted.
    pub not_aborted: bool,
    #[bits(31)]
    __: u32,
}

/// Dword 10 of Identify. NVMe Base 2.0c 5.17.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyDword10 {
    /// Controller or Namespace Structure (CNS).
    #[bits(8)]
    pub cns: Cns,
    __: u8,
    /// Controller Identifier (CNTID).
    #[bits(16)]
    pub cntid: ControllerId,
}

/// Dword 11 of Identify. NVMe Base 2.0c 5.17.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyDword11 {
    /// CNS Specific Identifier: with CNS 04h the NVM Set Identifier (NVMSETID).
    pub nvmsetid: u16,
    __: u8,
    /// Command Set Identifier (CSI).
    #[bits(8)]
    pub csi: CommandSet,
}

/// Dword 14 of Identify, Get Features and Set Features. NVMe Base 2.0c 5.17.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct UuidDword14 {
    /// UUID Index (UUIDX).
    #[bits(7)]
    pub uuid: u8,
    #[bits(25)]
    __: u32,
}

/// Dword 10 of Get Log Page. NVMe Base 2.0c 5.16.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct LogPageDword10 {
    /// Log Page Identifier (LID).
    #[bits(8)]
    pub lid: LogPageId,
    /// Log Specific Parameter (LSP).
    #[bits(7)]
    pub lsp: u8,
    /// Retain Asynchronous Event (RAE).
    pub rae: bool,
    /// Number of Dwords, lower half (NUMDL); the whole is 0's based.
    pub numdl: u16,
}

/// Dword 11 of Get Log Page. NVMe Base 2.0c 5.16.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct LogPageDword11 {
    /// Number of Dwords, upper half (NUMDU); the whole is 0's based.
    pub numdu: u16,
    /// Log Specific Identifier (LSI).
    pub lsi: u16,
}

/// Dword 14 of Get Log Page. NVMe Base 2.0c 5.16.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct LogPageDword14 {
    /// UUID Index (UUIDX).
    #[bits(7)]
    pub uuid: u8,
    #[bits(16)]
    __: u16,
    /// Offset Type (OT): the offset is an index into a list of structures, not bytes.
    pub ot: bool,
    /// Command Set Identifier (CSI).
    #[bits(8)]
    pub csi: CommandSet,
}

/// Get Log Page, all its dwords. NVMe Base 2.0c 5.16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log Page Identifier (LID).
    pub lid: LogPageId,
    /// Log Specific Parameter (LSP).
    pub lsp: u8,
    /// Log Specific Identifier (LSI).
    pub lsi: u16,
    /// Retain Asynchronous Event (RAE).
    pub rae: bool,
    /// Number of dwords to return, 1's based: 1 to 2^32.
    pub dwords: u64,
    /// Log Page Offset (LPO): in bytes, or an index if `ot`.
    pub lpo: u64,
    /// Offset Type (OT).
    pub ot: bool,
    /// Command Set Identifier (CSI).
    pub csi: CommandSet,
    /// UUID Index (UUIDX).
    pub uuid: u8,
}

/// Dword 10 of Get Features. NVMe Base 2.0c 5.15.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetFeaturesDword10 {
    /// Feature Identifier (FID).
    #[bits(8)]
    pub fid: FeatureId,
    /// Select (SEL).
    #[bits(3)]
    pub sel: FeatureSelect,
    #[bits(21)]
    __: u32,
}

/// Dword 10 of Set Features. NVMe Base 2.0c 5.27.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SetFeaturesDword10 {
    /// Feature Identifier (FID).
    #[bits(8)]
    pub fid: FeatureId,
    #[bits(23)]
    __: u32,
    /// Save (SV): keep the value over power cycles and resets.
    pub sv: bool,
}

/// Dword 10 of Format NVM. NVMe Base 2.0c 5.14.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FormatNvmDword10 {
    /// LBA Format, lower four bits (LBAFL).
    #[bits(4)]
    pub lbafl: u8,
    /// Metadata Settings (MSET): metadata at the end of the data.
    pub mset: bool,
    /// Protection Information (PI): type, or 0 for none.
    #[bits(3)]
    pub pi: u8,
    /// Protection Information Location (PIL): the first bytes of the metadata.
    pub pil: bool,
    /// Secure Erase Settings (SES).
    #[bits(3)]
    pub ses: SecureErase,
    /// LBA Format, upper two bits (LBAFU), valid if there are more than 16 formats.
    #[bits(2)]
    pub lbafu: u8,
    #[bits(18)]
    __: u32,
}

/// Dword 10 of Namespace Management. NVMe Base 2.0c 5.23.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceManagementDword10 {
    /// Select (SEL).
    #[bits(4)]
    pub sel: NamespaceManagementSelect,
    #[bits(28)]
    __: u32,
}

/// Dword 11 of Namespace Management. NVMe Base 2.0c 5.23.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceManagementDword11 {
    #[bits(24)]
    __: u32,
    /// Command Set Identifier (CSI) of the namespace to create.
    #[bits(8)]
    pub csi: CommandSet,
}

/// Dword 10 of Namespace Attachment. NVMe Base 2.0c 5.22.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceAttachmentDword10 {
    /// Select (SEL).
    #[bits(4)]
    pub sel: NamespaceAttachmentSelect,
    #[bits(28)]
    __: u32,
}

/// Dword 10 of Sanitize; dword 11 is the overwrite pattern. NVMe Base 2.0c 5.24.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SanitizeDword10 {
    /// Sanitize Action (SANACT).
    #[bits(3)]
    pub sanact: SanitizeAction,
    /// Allow Unrestricted Sanitize Exit (AUSE).
    pub ause: bool,
    /// Overwrite Pass Count (OWPASS): 0 is 16 passes.
    #[bits(4)]
    pub owpass: u8,
    /// Overwrite Invert Pattern Between Overwrite Passes (OIPBP).
    pub oipbp: bool,
    /// No-Deallocate After Sanitize (NDAS).
    pub ndas: bool,
    #[bits(22)]
    __: u32,
}

/// Dword 10 of Firmware Commit. NVMe Base 2.0c 5.12.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FirmwareCommitDword10 {
    /// Firmware Slot (FS); 0 leaves the choice to the controller.
    #[bits(3)]
    pub fs: u8,
    /// Commit Action (CA).
    #[bits(3)]
    pub ca: u8,
    #[bits(25)]
    __: u32,
    /// Boot Partition ID (BPID).
    #[bits(1)]
    pub bpid: u8,
}

impl GetLogPage {
    /// Reads dwords 10 to 14 of `command`.
    pub const fn parse(command: &Command) -> Self {
        let cdw10 = LogPageDword10::from_bits(command.cdw10);
        let cdw11 = LogPageDword11::from_bits(command.cdw11);
        let cdw14 = LogPageDword14::from_bits(command.cdw14);
        let numd_z = cdw10.numdl() as u64 | (cdw11.numdu() as u64) << 16;
        Self {
            lid: cdw10.lid(),
            lsp: cdw10.lsp(),
            lsi: cdw11.lsi(),
            rae: cdw10.rae(),
            dwords: numd_z + 1,
            lpo: command.cdw12 as u64 | (command.cdw13 as u64) << 32,
            ot: cdw14.ot(),
            csi: cdw14.csi(),
            uuid: cdw14.uuid(),
        }
    }

    /// Number of bytes to return: a multiple of 4, up to 16 GiB.
    pub const fn bytes(&self) -> u64 {
        self.dwords * 4
    }
}

impl FormatNvmDword10 {
    /// Index of the LBA format. The upper two bits count only if there are `formats` beyond the sixteenth.
    pub const fn lba_format(&self, formats: usize) -> usize {
        let upper = if formats > 16 { self.lbafu() as usize } else { 0 };
        self.lbafl() as usize | upper << 4
    }
}
