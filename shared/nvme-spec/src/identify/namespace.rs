//! Identify Namespace (CNS 00h) of the NVM command set, and the command set independent one (CNS 08h). NVM Command
//! Set 1.0c 4.1.5.1, NVMe Base 2.0c 5.17.2.8.

use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::ids::{BlockCount, Eui64, Nguid};
use crate::open_enum::open_enum;

/// Most LBA formats that a namespace can offer. NVM Command Set 1.0c figure 97.
pub const LBA_FORMATS_MAX: usize = 64;

open_enum! {
    /// What a deallocated block reads as: bits 2:0 of DLFEAT. NVM Command Set 1.0c figure 97.
    pub struct DeallocatedRead(u8) {
        NOT_REPORTED = 0x0, "Not reported";
        ZEROES = 0x1, "All bytes 00h";
        ONES = 0x2, "All bytes FFh";
    }
}

/// Identify Namespace data structure of the NVM command set, 4096 bytes. NVM Command Set 1.0c figure 97.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace Size (NSZE), in logical blocks.
    pub nsze: BlockCount,
    /// Namespace Capacity (NCAP), in logical blocks that may be allocated.
    pub ncap: BlockCount,
    /// Namespace Utilization (NUSE), in logical blocks that are allocated.
    pub nuse: BlockCount,
    /// Namespace Features (NSFEAT).
    pub nsfeat: Nsfeat,
    /// Number of LBA Formats (NLBAF), 0's based.
    pub nlbaf_z: u8,
    /// Formatted LBA Size (FLBAS).
    pub flbas: Flbas,
    /// Metadata Capabilities (MC).
    pub mc: Mc,
    /// End-to-end Data Protection Capabilities (DPC).
    pub dpc: Dpc,
    /// End-to-end Data Protection Type Settings (DPS).
    pub dps: Dps,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).
    pub nmic: Nmic,
    /// Reservation Capabilities (RESCAP).
    pub rescap: Rescap,
    /// Format Progress Indicator (FPI).
    pub fpi: Fpi,
    /// Deallocate Logical Block Features (DLFEAT).
    pub dlfeat: Dlfeat,
    /// Namespace Atomic Write Unit Normal (NAWUN) in logical blocks, 0's based.
    pub nawun_z: u16,
    /// Namespace Atomic Write Unit Power Fail (NAWUPF) in logical blocks, 0's based.
    pub nawupf_z: u16,
    /// Namespace Atomic Compare & Write Unit (NACWU) in logical blocks, 0's based.
    pub nacwu_z: u16,
    /// Namespace Atomic Boundary Size Normal (NABSN) in logical blocks, 0's based unless 0: none.
    pub nabsn_z: u16,
    /// Namespace Atomic Boundary Offset (NABO), in logical blocks.
    pub nabo: u16,
    /// Namespace Atomic Boundary Size Power Fail (NABSPF) in logical blocks, 0's based unless 0: none.
    pub nabspf_z: u16,
    /// Namespace Optimal I/O Boundary (NOIOB), in logical blocks; 0 is not reported.
    pub noiob: u16,
    /// NVM Capacity (NVMCAP), in bytes.
    pub nvmcap: U128,
    /// Namespace Preferred Write Granularity (NPWG) in logical blocks, 0's based.
    pub npwg_z: u16,
    /// Namespace Preferred Write Alignment (NPWA) in logical blocks, 0's based.
    pub npwa_z: u16,
    /// Namespace Preferred Deallocate Granularity (NPDG) in logical blocks, 0's based.
    pub npdg_z: u16,
    /// Namespace Preferred Deallocate Alignment (NPDA) in logical blocks, 0's based.
    pub npda_z: u16,
    /// Namespace Optimal Write Size (NOWS) in logical blocks, 0's based.
    pub nows_z: u16,
    /// Maximum Single Source Range Length (MSSRL) of Copy, in logical blocks.
    pub mssrl: u16,
    /// Maximum Copy Length (MCL), in logical blocks.
    pub mcl: u32,
    /// Maximum Source Range Count (MSRC) of Copy, 0's based.
    pub msrc_z: u8,
    /// Reserved.
    pub reserved81: u8,
    /// Number of Unique Attribute LBA Formats (NULBAF).
    pub nulbaf: u8,
    /// Reserved.
    pub reserved83: [u8; 9],
    /// ANA Group Identifier (ANAGRPID).
    pub anagrpid: u32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace Attributes (NSATTR).
    pub nsattr: Nsattr,
    /// NVM Set Identifier (NVMSETID).
    pub nvmsetid: u16,
    /// Endurance Group Identifier (ENDGID).
    pub endgid: u16,
    /// Namespace Globally Unique Identifier (NGUID).
    pub nguid: Nguid,
    /// IEEE Extended Unique Identifier (EUI64).
    pub eui64: Eui64,
    /// LBA Format Support (LBAF0 to LBAF63).
    pub lbaf: [LbaFormat; LBA_FORMATS_MAX],
    /// Vendor specific.
    pub vendor_specific: [u8; 3712],
}

/// I/O Command Set Independent Identify Namespace data structure, 4096 bytes. NVMe Base 2.0c figure 280.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyIndependentNamespace {
    /// Common Namespace Features (NSFEAT).
    pub nsfeat: CommonNsfeat,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).
    pub nmic: Nmic,
    /// Reservation Capabilities (RESCAP).
    pub rescap: Rescap,
    /// Format Progress Indicator (FPI).
    pub fpi: Fpi,
    /// ANA Group Identifier (ANAGRPID).
    pub anagrpid: u32,
    /// Namespace Attributes (NSATTR).
    pub nsattr: Nsattr,
    /// Reserved.
    pub reserved9: u8,
    /// NVM Set Identifier (NVMSETID).
    pub nvmsetid: u16,
    /// Endurance Group Identifier (ENDGID).
    pub endgid: u16,
    /// Namespace Status (NSTAT).
    pub nstat: Nstat,
    /// Reserved.
    pub reserved15: [u8; 4081],
}

fields! {
    /// LBA Format. NVM Command Set 1.0c figure 98.
    LbaFormat(u32) {
        /// Metadata Size (MS), in bytes of each logical block.
        pub ms: u16,
        /// LBA Data Size (LBADS): two to this power in bytes, at least 9; 0: the format is not available.
        pub lbads: u8,
        /// Relative Performance (RP): 0 best to 3 degraded.
        #[bits(2)]
        pub rp: u8,
        #[bits(6)] __: u8,
    }

    /// Namespace Features (NSFEAT) of the NVM command set.
    Nsfeat(u8) {
        /// Thin provisioning (THINP): capacity may be less than size.
        pub thinp: bool,
        /// NAWUN, NAWUPF and NACWU are defined for this namespace (NSABP).
        pub nsabp: bool,
        /// Deallocated or Unwritten Logical Block error is supported (DAE).
        pub dae: bool,
        /// NGUID and EUI64 are never reused (UIDREUSE).
        pub uidreuse: bool,
        /// NPWG, NPWA, NPDG, NPDA and NOWS are defined (OPTPERF).
        pub optperf: bool,
        #[bits(3)] __: u8,
    }

    /// Common Namespace Features (NSFEAT) of the command set independent structure.
    CommonNsfeat(u8) {
        #[bits(3)] __: u8,
        /// NGUID and EUI64 are never reused (UIDREUSE).
        pub uidreuse: bool,
        /// Rotational media (RMEDIA).
        pub rmedia: bool,
        #[bits(3)] __: u8,
    }

    /// Formatted LBA Size (FLBAS).
    Flbas(u8) {
        /// Index of the LBA format, lower four bits.
        #[bits(4)]
        pub index_low: u8,
        /// Metadata is at the end of the data, else in a buffer of its own.
        pub extended: bool,
        /// Index of the LBA format, upper two bits, valid if there are more than 16 formats.
        #[bits(2)]
        pub index_high: u8,
        #[bits(1)] __: u8,
    }

    /// Metadata Capabilities (MC).
    Mc(u8) {
        /// Metadata at the end of the data.
        pub extended: bool,
        /// Metadata in a buffer of its own.
        pub separate: bool,
        #[bits(6)] __: u8,
    }

    /// End-to-end Data Protection Capabilities (DPC).
    Dpc(u8) {
        /// Protection information type 1.
        pub type1: bool,
        /// Protection information type 2.
        pub type2: bool,
        /// Protection information type 3.
        pub type3: bool,
        /// In the first bytes of the metadata.
        pub first: bool,
        /// In the last bytes of the metadata.
        pub last: bool,
        #[bits(3)] __: u8,
    }

    /// End-to-end Data Protection Type Settings (DPS).
    Dps(u8) {
        /// Type of the protection information; 0 is none.
        #[bits(3)]
        pub pi_type: u8,
        /// In the first bytes of the metadata.
        pub first: bool,
        #[bits(4)] __: u8,
    }

    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).
    Nmic(u8) {
        /// Two or more controllers may have the namespace attached at a time.
        pub shared: bool,
        #[bits(7)] __: u8,
    }

    /// Reservation Capabilities (RESCAP).
    Rescap(u8) {
        /// Persist Through Power Loss.
        pub persist_through_power_loss: bool,
        /// Write Exclusive.
        pub write_exclusive: bool,
        /// Exclusive Access.
        pub exclusive_access: bool,
        /// Write Exclusive, Registrants Only.
        pub write_exclusive_registrants: bool,
        /// Exclusive Access, Registrants Only.
        pub exclusive_access_registrants: bool,
        /// Write Exclusive, All Registrants.
        pub write_exclusive_all: bool,
        /// Exclusive Access, All Registrants.
        pub exclusive_access_all: bool,
        /// Ignore Existing Key as of revision 1.3.
        pub ignore_existing_key: bool,
    }

    /// Format Progress Indicator (FPI).
    Fpi(u8) {
        /// Percentage that remains to be formatted.
        #[bits(7)]
        pub remaining: u8,
        /// The indicator is supported.
        pub supported: bool,
    }

    /// Deallocate Logical Block Features (DLFEAT).
    Dlfeat(u8) {
        /// What a deallocated block reads as.
        #[bits(3)]
        pub read: DeallocatedRead,
        /// Deallocate bit of Write Zeroes.
        pub write_zeroes: bool,
        /// The guard of a deallocated block is the CRC of its data, else FFFFh.
        pub guard_crc: bool,
        #[bits(3)] __: u8,
    }

    /// Namespace Attributes (NSATTR).
    Nsattr(u8) {
        /// Currently write protected.
        pub write_protected: bool,
        #[bits(7)] __: u8,
    }

    /// Namespace Status (NSTAT).
    Nstat(u8) {
        /// Namespace Ready (NRDY).
        pub nrdy: bool,
        #[bits(7)] __: u8,
    }
}

impl IdentifyNamespace {
    /// A structure of zeroes: that of an inactive namespace.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl IdentifyIndependentNamespace {
    /// A structure of zeroes: that of an inactive namespace.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl Flbas {
    /// Index of the LBA format. The upper two bits count only if there are `formats` beyond the sixteenth.
    pub const fn index(&self, formats: usize) -> usize {
        let high = if formats > 16 { self.index_high() as usize } else { 0 };
        self.index_low() as usize | high << 4
    }
}

const _: () = assert!(size_of::<IdentifyNamespace>() == super::IDENTIFY_SIZE);
const _: () = assert!(size_of::<IdentifyIndependentNamespace>() == super::IDENTIFY_SIZE);
const _: () = assert!(size_of::<LbaFormat>() == 4);
