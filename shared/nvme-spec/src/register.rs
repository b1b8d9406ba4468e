//! Controller registers, in BAR0. NVMe Base 2.0c 3.1.3; doorbells: NVMe over PCIe Transport 1.0c 3.1.2.

pub mod memory;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::QueueId;
use crate::open_enum::open_enum;

/// Offsets of the registers, in bytes from the start of BAR0. NVMe Base 2.0c figure 33.
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u64 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u64 = 0x08;
    /// Interrupt Mask Set, 4 bytes.
    pub const INTMS: u64 = 0x0C;
    /// Interrupt Mask Clear, 4 bytes.
    pub const INTMC: u64 = 0x10;
    /// Controller Configuration, 4 bytes.
    pub const CC: u64 = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: u64 = 0x1C;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: u64 = 0x20;
    /// Admin Queue Attributes, 4 bytes.
    pub const AQA: u64 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: u64 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: u64 = 0x30;
    /// Controller Memory Buffer Location, 4 bytes.
    pub const CMBLOC: u64 = 0x38;
    /// Controller Memory Buffer Size, 4 bytes.
    pub const CMBSZ: u64 = 0x3C;
    /// Boot Partition Information, 4 bytes.
    pub const BPINFO: u64 = 0x40;
    /// Boot Partition Read Select, 4 bytes.
    pub const BPRSEL: u64 = 0x44;
    /// Boot Partition Memory Buffer Location, 8 bytes.
    pub const BPMBL: u64 = 0x48;
    /// Controller Memory Buffer Memory Space Control, 8 bytes.
    pub const CMBMSC: u64 = 0x50;
    /// Controller Memory Buffer Status, 4 bytes.
    pub const CMBSTS: u64 = 0x58;
    /// Controller Memory Buffer Elasticity Buffer Size, 4 bytes.
    pub const CMBEBS: u64 = 0x5C;
    /// Controller Memory Buffer Sustained Write Throughput, 4 bytes.
    pub const CMBSWTP: u64 = 0x60;
    /// NVM Subsystem Shutdown, 4 bytes.
    pub const NSSD: u64 = 0x64;
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: u64 = 0x68;
    /// Persistent Memory Region Capabilities, 4 bytes.
    pub const PMRCAP: u64 = 0xE00;
    /// Persistent Memory Region Control, 4 bytes.
    pub const PMRCTL: u64 = 0xE04;
    /// Persistent Memory Region Status, 4 bytes.
    pub const PMRSTS: u64 = 0xE08;
    /// Persistent Memory Region Elasticity Buffer Size, 4 bytes.
    pub const PMREBS: u64 = 0xE0C;
    /// Persistent Memory Region Sustained Write Throughput, 4 bytes.
    pub const PMRSWTP: u64 = 0xE10;
    /// Persistent Memory Region Memory Space Control Lower, 4 bytes.
    pub const PMRMSCL: u64 = 0xE14;
    /// Persistent Memory Region Memory Space Control Upper, 4 bytes.
    pub const PMRMSCU: u64 = 0xE18;
    /// The first doorbell: the tail of the admin submission queue.
    pub const DOORBELLS: u64 = 0x1000;
}

/// What resets the NVM subsystem when written to NSSR: "NVMe". NVMe Base 2.0c 3.1.3.7.
pub const NSSR_RESET: u32 = 0x4E56_4D65;
/// What shuts the NVM subsystem down normally when written to NSSD: "Nrml". NVMe Base 2.0c 3.1.3.20.
pub const NSSD_NORMAL: u32 = 0x4E72_6D6C;
/// What shuts the NVM subsystem down abruptly when written to NSSD: "Abpt". NVMe Base 2.0c 3.1.3.20.
pub const NSSD_ABRUPT: u32 = 0x4162_7074;

/// Which doorbell of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellKind {
    /// Submission Queue y Tail Doorbell (SQyTDBL).
    SubmissionTail,
    /// Completion Queue y Head Doorbell (CQyHDBL).
    CompletionHead,
}

open_enum! {
    /// I/O Command Set Selected (CC.CSS). NVMe Base 2.0c 3.1.3.5.
    pub struct CommandSetSelected(u8) {
        NVM = 0x0, "NVM Command Set";
        ALL = 0x6, "All Supported I/O Command Sets";
        ADMIN_ONLY = 0x7, "Admin Command Set only";
    }
}

open_enum! {
    /// Arbitration Mechanism Selected (CC.AMS). NVMe Base 2.0c 3.1.3.5.
    pub struct ArbitrationSelected(u8) {
        ROUND_ROBIN = 0x0, "Round Robin";
        WEIGHTED_ROUND_ROBIN = 0x1, "Weighted Round Robin with Urgent Priority Class";
        VENDOR = 0x7, "Vendor Specific";
    }
}

open_enum! {
    /// Shutdown Notification (CC.SHN). NVMe Base 2.0c 3.1.3.5.
    pub struct ShutdownNotification(u8) {
        NONE = 0x0, "No notification";
        NORMAL = 0x1, "Normal shutdown notification";
        ABRUPT = 0x2, "Abrupt shutdown notification";
    }
}

open_enum! {
    /// Shutdown Status (CSTS.SHST). NVMe Base 2.0c 3.1.3.6.
    pub struct ShutdownStatus(u8) {
        NORMAL_OPERATION = 0x0, "Normal operation";
        OCCURRING = 0x1, "Shutdown processing occurring";
        COMPLETE = 0x2, "Shutdown processing complete";
    }
}

open_enum! {
    /// Controller Power Scope (CAP.CPS). NVMe Base 2.0c 3.1.3.1.
    pub struct PowerScope(u8) {
        NOT_REPORTED = 0x0, "Not Reported";
        CONTROLLER = 0x1, "Controller scope";
        DOMAIN = 0x2, "Domain scope";
        SUBSYSTEM = 0x3, "NVM subsystem scope";
    }
}

/// Controller Capabilities (CAP). NVMe Base 2.0c 3.1.3.1.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cap {
    /// Maximum Queue Entries Supported (MQES), 0's based; at least 1.
    pub mqes_z: u16,
    /// Contiguous Queues Required (CQR).
    pub cqr: bool,
    /// Arbitration Mechanism Supported (AMS), besides round robin.
    #[bits(2)]
    pub ams: CapAms,
    #[bits(5)]
    __: u8,
    /// Timeout (TO) of enable and disable, in units of 500 ms.
    pub to: u8,
    /// Doorbell Stride (DSTRD): doorbells lie `4 << dstrd` bytes apart.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM Subsystem Reset Supported (NSSRS).
    pub nssrs: bool,
    /// Command Sets Supported (CSS).
    #[bits(8)]
    pub css: CapCss,
    /// Boot Partition Support (BPS).
    pub bps: bool,
    /// Controller Power Scope (CPS).
    #[bits(2)]
    pub cps: PowerScope,
    /// Memory Page Size Minimum (MPSMIN): `4096 << mpsmin` bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// Memory Page Size Maximum (MPSMAX): `4096 << mpsmax` bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// Persistent Memory Region Supported (PMRS).
    pub pmrs: bool,
    /// Controller Memory Buffer Supported (CMBS).
    pub cmbs: bool,
    /// NVM Subsystem Shutdown Supported (NSSS).
    pub nsss: bool,
    /// Controller Ready Modes Supported (CRMS).
    #[bits(2)]
    pub crms: CapCrms,
    #[bits(3)]
    __: u8,
}

/// Arbitration Mechanism Supported (CAP.AMS). NVMe Base 2.0c 3.1.3.1.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct CapAms {
    /// Weighted Round Robin with Urgent Priority Class.
    pub weighted_round_robin: bool,
    /// Vendor specific.
    pub vendor: bool,
    #[bits(6)]
    __: u8,
}

/// Command Sets Supported (CAP.CSS). NVMe Base 2.0c 3.1.3.1.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct CapCss {
    /// The NVM command set, chosen by CC.CSS 000b.
    pub nvm: bool,
    #[bits(5)]
    __: u8,
    /// One or more I/O command sets, chosen by CC.CSS 110b.
    pub io_command_sets: bool,
    /// No I/O command set, the admin command set only.
    pub no_io_command_set: bool,
}

/// Controller Ready Modes Supported (CAP.CRMS). NVMe Base 2.0c 3.1.3.1.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct CapCrms {
    /// Controller Ready With Media Support (CRWMS).
    pub crwms: bool,
    /// Controller Ready Independent of Media Support (CRIMS).
    pub crims: bool,
    #[bits(6)]
    __: u8,
}

/// Version (VS). NVMe Base 2.0c 3.1.3.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vs {
    /// Tertiary Version Number (TER).
    pub ter: u8,
    /// Minor Version Number (MNR).
    pub mnr: u8,
    /// Major Version Number (MJR).
    pub mjr: u16,
}

/// Controller Configuration (CC). NVMe Base 2.0c 3.1.3.5.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cc {
    /// Enable (EN).
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O Command Set Selected (CSS).
    #[bits(3)]
    pub css: CommandSetSelected,
    /// Memory Page Size (MPS): `4096 << mps` bytes.
    #[bits(4)]
    pub mps: u8,
    /// Arbitration Mechanism Selected (AMS).
    #[bits(3)]
    pub ams: ArbitrationSelected,
    /// Shutdown Notification (SHN).
    #[bits(2)]
    pub shn: ShutdownNotification,
    /// I/O Submission Queue Entry Size (IOSQES): `1 << iosqes` bytes.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O Completion Queue Entry Size (IOCQES): `1 << iocqes` bytes.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller Ready Independent of Media Enable (CRIME).
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// Controller Status (CSTS). NVMe Base 2.0c 3.1.3.6.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Csts {
    /// Ready (RDY).
    pub rdy: bool,
    /// Controller Fatal Status (CFS).
    pub cfs: bool,
    /// Shutdown Status (SHST).
    #[bits(2)]
    pub shst: ShutdownStatus,
    /// NVM Subsystem Reset Occurred (NSSRO): cleared by writing 1.
    pub nssro: bool,
    /// Processing Paused (PP).
    pub pp: bool,
    /// Shutdown Type (ST): of the NVM subsystem, not of the controller only.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// Admin Queue Attributes (AQA). NVMe Base 2.0c 3.1.3.8.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Aqa {
    /// Admin Submission Queue Size (ASQS), 0's based.
    #[bits(12)]
    pub asqs_z: u16,
    #[bits(4)]
    __: u8,
    /// Admin Completion Queue Size (ACQS), 0's based.
    #[bits(12)]
    pub acqs_z: u16,
    #[bits(4)]
    __: u8,
}

/// Admin Submission and Admin Completion Queue Base Address (ASQ, ACQ). NVMe Base 2.0c 3.1.3.9, 3.1.3.10.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AdminQueueBase {
    #[bits(12)]
    __: u16,
    /// Bits 63:12 of the address (ASQB, ACQB): its number of 4 KiB pages.
    #[bits(52)]
    pub page: u64,
}

/// Controller Ready Timeouts (CRTO). NVMe Base 2.0c 3.1.3.21.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Crto {
    /// Controller Ready With Media Timeout (CRWMT), in units of 500 ms.
    pub crwmt: u16,
    /// Controller Ready Independent of Media Timeout (CRIMT), in units of 500 ms.
    pub crimt: u16,
}

impl Vs {
    /// Version 1.4.
    pub const V1_4: Self = Self::new().with_mjr(1).with_mnr(4);
    /// Version 2.0.
    pub const V2_0: Self = Self::new().with_mjr(2);
}

impl Cc {
    /// Base two logarithm of the memory page size in bytes: 12 to 27.
    #[inline]
    pub const fn page_shift(&self) -> u32 {
        self.mps() as u32 + 12
    }
}

/// Offset in bytes from the start of BAR0 of a queue's doorbell. `dstrd` is CAP.DSTRD, of which four bits count.
/// NVMe over PCIe Transport 1.0c 3.1.2.
#[inline]
pub const fn doorbell_offset(dstrd: u8, queue: QueueId, kind: DoorbellKind) -> u64 {
    offset::DOORBELLS + shadow_doorbell_offset(dstrd, queue, kind)
}

/// Offset in bytes of a queue's entry in the shadow doorbell and event index buffers. NVMe Base 2.0c 5.8.
#[inline]
pub const fn shadow_doorbell_offset(dstrd: u8, queue: QueueId, kind: DoorbellKind) -> u64 {
    let odd = match kind {
        DoorbellKind::SubmissionTail => 0,
        DoorbellKind::CompletionHead => 1,
    };
    (queue.0 as u64 * 2 + odd) << (2 + (dstrd & 0xF) as u32)
}

/// The doorbell at `offset` bytes from the start of BAR0; `None` if there is none or `offset` is inside of one.
#[inline]
pub const fn doorbell_at(dstrd: u8, offset: u64) -> Option<(QueueId, DoorbellKind)> {
    let Some(distance) = offset.checked_sub(offset::DOORBELLS) else { return None };
    let shift = 2 + (dstrd & 0xF) as u32;
    let index = distance >> shift;
    if index << shift != distance || index > u16::MAX as u64 * 2 + 1 {
        return None;
    }
    let kind =
        if index & 1 == 0 { DoorbellKind::SubmissionTail } else { DoorbellKind::CompletionHead };
    Some((QueueId((index >> 1) as u16), kind))
}
