//! I/O commands of the NVM command set: their dwords and the ranges they point to. NVM Command Set 1.0c 3.2. On the
//! hot path of a worker.
//!
//! [`Command::slba`] has the starting LBA; Flush has no dwords of its own.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::command::Command;
use crate::ids::{BlockCount, Lba};
use crate::open_enum::open_enum;

/// Most ranges of one Dataset Management command: the number of ranges has 8 bits. NVM Command Set 1.0c 3.2.3.
pub const DATASET_RANGES_MAX: usize = 256;

/// Most source ranges of one Copy command, before MSRC of the namespace. NVM Command Set 1.0c 3.2.2.
pub const COPY_RANGES_MAX: usize = 256;

open_enum! {
    /// Directive Type (DTYPE). NVMe Base 2.0c 8.7.
    pub struct DirectiveType(u8) {
        IDENTIFY = 0x0, "Identify";
        STREAMS = 0x1, "Streams";
    }
}

open_enum! {
    /// Access Frequency, the low four bits of the dataset management field. NVM Command Set 1.0c 3.2.4.
    pub struct AccessFrequency(u8) {
        NONE = 0x0, "No frequency information provided";
        TYPICAL = 0x1, "Typical number of reads and writes";
        INFREQUENT = 0x2, "Infrequent writes and infrequent reads";
        FREQUENT_READS = 0x3, "Infrequent writes and frequent reads";
        FREQUENT_WRITES = 0x4, "Frequent writes and infrequent reads";
        FREQUENT = 0x5, "Frequent writes and frequent reads";
        ONE_TIME_READ = 0x6, "One time read";
        SPECULATIVE_READ = 0x7, "Speculative read";
        OVERWRITTEN_SOON = 0x8, "To be overwritten in the near future";
    }
}

open_enum! {
    /// Access Latency that the host asks for. NVM Command Set 1.0c 3.2.4.
    pub struct AccessLatency(u8) {
        NONE = 0x0, "No latency information provided";
        IDLE = 0x1, "Longer latency acceptable";
        NORMAL = 0x2, "Typical latency";
        LOW = 0x3, "Smallest possible latency";
    }
}

open_enum! {
    /// Source range descriptor format of Copy. NVM Command Set 1.0c 3.2.2.
    pub struct CopyFormat(u8) {
        RANGES_16B_GUARD = 0x0, "Source Range Entries, 16-bit Guard";
        RANGES_64B_GUARD = 0x1, "Source Range Entries, 32-bit or 64-bit Guard";
    }
}

/// Protection Information (PRINFO). NVM Command Set 1.0c 5.2.2.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Prinfo {
    /// Check the logical block reference tag (PRCHK bit 0).
    pub check_reference: bool,
    /// Check the application tag (PRCHK bit 1).
    pub check_application: bool,
    /// Check the guard (PRCHK bit 2).
    pub check_guard: bool,
    /// Protection Information Action (PRACT): insert or strip it.
    pub pract: bool,
    #[bits(4)]
    __: u8,
}

/// Dword 12 of Read, Write, Compare, Write Zeroes, Verify and Write Uncorrectable. NVM Command Set 1.0c 3.2.1,
/// 3.2.4 to 3.2.8. What a command has no use for is reserved in it: the controller decides.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoDword12 {
    /// Number of Logical Blocks (NLB), 0's based.
    #[inline]
    pub nlb_z: u16,
    #[bits(4)]
    __: u8,
    /// Directive Type (DTYPE): Write and Write Uncorrectable.
    #[inline]
    #[bits(4)]
    pub dtype: DirectiveType,
    /// Storage Tag Check (STC).
    #[inline]
    pub stc: bool,
    /// Deallocate (DEAC): Write Zeroes only.
    #[inline]
    pub deac: bool,
    /// Protection Information (PRINFO).
    #[inline]
    #[bits(4)]
    pub prinfo: Prinfo,
    /// Force Unit Access (FUA).
    #[inline]
    pub fua: bool,
    /// Limited Retry (LR).
    #[inline]
    pub lr: bool,
}

/// Dword 13 of Read and Write. NVM Command Set 1.0c 3.2.4, 3.2.6.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoDword13 {
    /// Dataset Management (DSM): what the host expects of these blocks.
    #[inline]
    #[bits(8)]
    pub dsm: DatasetHints,
    __: u8,
    /// Directive Specific (DSPEC): Write only.
    #[inline]
    pub dspec: u16,
}

/// Dataset Management (DSM) of Read and Write. NVM Command Set 1.0c 3.2.4.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct DatasetHints {
    /// Access Frequency.
    #[bits(4)]
    pub frequency: AccessFrequency,
    /// Access Latency.
    #[bits(2)]
    pub latency: AccessLatency,
    /// Sequential Request.
    pub sequential: bool,
    /// Incompressible.
    pub incompressible: bool,
}

/// Dword 15 of the commands with protection information; dword 14 is the initial reference tag. NVM Command Set 1.0c
/// 3.2.4, 3.2.6.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoDword15 {
    /// (Expected) Logical Block Application Tag (LBAT, ELBAT).
    pub lbat: u16,
    /// (Expected) Logical Block Application Tag Mask (LBATM, ELBATM).
    pub lbatm: u16,
}

/// Dword 10 of Dataset Management. NVM Command Set 1.0c 3.2.3.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DatasetDword10 {
    /// Number of Ranges (NR), 0's based.
    pub nr_z: u8,
    #[bits(24)]
    __: u32,
}

/// Dword 11 of Dataset Management. NVM Command Set 1.0c 3.2.3.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DatasetDword11 {
    /// Attribute, Integral Dataset for Read (IDR).
    pub idr: bool,
    /// Attribute, Integral Dataset for Write (IDW).
    pub idw: bool,
    /// Attribute, Deallocate (AD).
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// A range of Dataset Management, 16 bytes. NVM Command Set 1.0c 3.2.3.1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DatasetRange {
    /// Context Attributes: hints only.
    pub attributes: ContextAttributes,
    /// Length in logical blocks, not 0's based: 0 is an empty range.
    pub length: u32,
    /// Starting LBA (SLBA).
    pub slba: Lba,
}

/// Context Attributes of a Dataset Management range. NVM Command Set 1.0c 3.2.3.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ContextAttributes {
    /// Access Frequency (AF).
    #[bits(4)]
    pub af: AccessFrequency,
    /// Access Latency (AL).
    #[bits(2)]
    pub al: AccessLatency,
    #[bits(2)]
    __: u8,
    /// Sequential Read Range (SR).
    pub sr: bool,
    /// Sequential Write Range (SW).
    pub sw: bool,
    /// Write Prepare (WP).
    pub wp: bool,
    #[bits(13)]
    __: u16,
    /// Command Access Size in logical blocks; 0 is not given.
    pub access_size: u8,
}

/// Dword 12 of Copy; dwords 10 and 11 are the starting destination LBA (SDLBA). NVM Command Set 1.0c 3.2.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CopyDword12 {
    /// Number of Ranges (NR), 0's based.
    pub nr_z: u8,
    /// Descriptor Format (DESFMT).
    #[bits(4)]
    pub desfmt: CopyFormat,
    /// Protection Information Field Read (PRINFOR).
    #[bits(4)]
    pub prinfor: Prinfo,
    #[bits(4)]
    __: u8,
    /// Directive Type (DTYPE).
    #[bits(4)]
    pub dtype: DirectiveType,
    /// Storage Tag Check Write (STCW).
    pub stcw: bool,
    /// Storage Tag Check Read (STCR).
    pub stcr: bool,
    /// Protection Information Field Write (PRINFOW).
    #[bits(4)]
    pub prinfow: Prinfo,
    /// Force Unit Access (FUA).
    pub fua: bool,
    /// Limited Retry (LR).
    pub lr: bool,
}

/// Dword 13 of Copy. NVM Command Set 1.0c 3.2.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CopyDword13 {
    #[bits(16)]
    __: u16,
    /// Directive Specific (DSPEC).
    pub dspec: u16,
}

/// A source range of Copy, descriptor format 0h, 32 bytes. NVM Command Set 1.0c 3.2.2.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CopyRange {
    /// Reserved.
    pub reserved0: [u8; 8],
    /// Starting LBA (SLBA).
    pub slba: Lba,
    /// Number of Logical Blocks (NLB), 0's based.
    pub nlb_z: u16,
    /// Reserved.
    pub reserved18: [u8; 6],
    /// Expected Initial Logical Block Reference Tag (EILBRT).
    pub eilbrt: u32,
    /// Expected Logical Block Application Tag (ELBAT).
    pub elbat: u16,
    /// Expected Logical Block Application Tag Mask (ELBATM).
    pub elbatm: u16,
}

/// What Read, Write, Compare, Write Zeroes, Verify and Write Uncorrectable say about their blocks, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockIo {
    /// Starting LBA (SLBA).
    pub slba: Lba,
    /// Number of logical blocks, 1 to 65,536.
    pub blocks: BlockCount,
    /// Dword 12, for its flags.
    pub flags: IoDword12,
}

impl BlockIo {
    /// Reads dwords 10 to 12 of `command`.
    #[inline]
    pub const fn parse(command: &Command) -> Self {
        let flags = IoDword12::from_bits(command.cdw12);
        Self { slba: command.slba(), blocks: BlockCount::from_z(flags.nlb_z()), flags }
    }
}

impl DatasetDword10 {
    /// Number of ranges, 1 to 256.
    pub const fn ranges(&self) -> usize {
        self.nr_z() as usize + 1
    }
}

impl CopyDword12 {
    /// Number of source ranges, 1 to 256.
    pub const fn ranges(&self) -> usize {
        self.nr_z() as usize + 1
    }
}

impl CopyRange {
    /// Number of logical blocks, 1 to 65,536.
    pub const fn blocks(&self) -> BlockCount {
        BlockCount::from_z(self.nlb_z)
    }
}

impl DatasetRange {
    /// Number of logical blocks, possibly none.
    pub const fn blocks(&self) -> BlockCount {
        BlockCount(self.length as u64)
    }
}

const _: () = assert!(size_of::<DatasetRange>() == 16);
const _: () = assert!(size_of::<CopyRange>() == 32);
