//! Identify structures that belong to one I/O command set, and the list of command sets. NVM Command Set 1.0c 4.1.5,
//! NVMe Base 2.0c 5.17.2.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::namespace::LBA_FORMATS_MAX;

/// Number of I/O command set combinations that a controller can offer. NVMe Base 2.0c figure 290.
pub const COMBINATIONS_MAX: usize = 512;

/// NVM Command Set Identify Namespace data structure (CNS 05h, CSI 00h), 4096 bytes. NVM Command Set 1.0c figure 100.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NvmNamespace {
    /// Logical Block Storage Tag Mask (LBSTM).
    pub lbstm: u64,
    /// Protection Information Capabilities (PIC).
    pub pic: Pic,
    /// Reserved.
    pub reserved9: [u8; 3],
    /// Extended LBA Format Support (ELBAF0 to ELBAF63).
    pub elbaf: [ExtendedLbaFormat; LBA_FORMATS_MAX],
    /// Reserved.
    pub reserved268: [u8; 3828],
}

/// Protection Information Capabilities (PIC). NVM Command Set 1.0c figure 100.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pic {
    /// 16b Guard Protection Information Storage Tag Support (16BPISTS).
    pub storage_tag_16b: bool,
    /// 16b Guard Protection Information Storage Tag Mask (16BPISTM): the mask must be all ones.
    pub storage_tag_mask_16b: bool,
    /// Storage Tag Check Read Support (STCRS).
    pub stcrs: bool,
    #[bits(5)]
    __: u8,
}

/// Extended LBA Format. NVM Command Set 1.0c figure 101.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExtendedLbaFormat {
    /// Storage Tag Size (STS), in bits.
    #[bits(7)]
    pub sts: u8,
    /// Protection Information Format (PIF): 0 16b, 1 32b, 2 64b guard.
    #[bits(2)]
    pub pif: u8,
    #[bits(23)]
    __: u32,
}

/// NVM Command Set Identify Controller data structure (CNS 06h, CSI 00h), 4096 bytes. NVM Command Set 1.0c
/// figure 102. A limit of 0 is no limit, or not reported.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NvmController {
    /// Verify Size Limit (VSL): two to this power, in minimum memory pages.
    pub vsl: u8,
    /// Write Zeroes Size Limit (WZSL): two to this power, in minimum memory pages.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit (WUSL): two to this power, in minimum memory pages.
    pub wusl: u8,
    /// Dataset Management Ranges Limit (DMRL): most ranges of a command.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit (DMRSL), in logical blocks of one range.
    pub dmrsl: u32,
    /// Dataset Management Size Limit (DMSL), in logical blocks of all ranges.
    pub dmsl: u64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}

/// Identify I/O Command Set data structure (CNS 1Ch), 4096 bytes. NVMe Base 2.0c figure 290.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandSets {
    /// Combinations of I/O command sets that may be enabled together; the first empty one ends the list.
    pub combinations: [CommandSetVector; COMBINATIONS_MAX],
}

/// I/O Command Set Vector: one combination. NVMe Base 2.0c figure 291.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandSetVector {
    /// NVM Command Set.
    pub nvm: bool,
    /// Key Value Command Set.
    pub key_value: bool,
    /// Zoned Namespace Command Set.
    pub zoned: bool,
    #[bits(61)]
    __: u64,
}

impl NvmNamespace {
    /// A structure of zeroes: no protection information beyond that with a 16-bit guard.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl NvmController {
    /// A structure of zeroes: no limits.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl CommandSets {
    /// The one combination of the NVM command set alone.
    pub fn nvm_only() -> Self {
        let mut sets = Self::new_zeroed();
        sets.combinations[0] = CommandSetVector::new().with_nvm(true);
        sets
    }
}

const _: () = assert!(size_of::<NvmNamespace>() == super::IDENTIFY_SIZE);
const _: () = assert!(size_of::<NvmController>() == super::IDENTIFY_SIZE);
const _: () = assert!(size_of::<CommandSets>() == super::IDENTIFY_SIZE);
