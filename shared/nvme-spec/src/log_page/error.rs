//! Error Information (01h). NVMe Base 2.0c 5.16.1.2.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::completion::StatusAndPhase;
use crate::ids::{CommandId, Lba, Nsid, QueueId};

/// Error Information Log Entry, 64 bytes; the page is a list of them, the newest first. NVMe Base 2.0c figure 206.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ErrorEntry {
    /// Error Count: identifies the entry, from 1; 0 is an empty entry.
    pub error_count: u64,
    /// Submission Queue ID; FFFFh if the error belongs to no command.
    pub sqid: QueueId,
    /// Command ID; FFFFh if the error belongs to no command.
    pub cid: CommandId,
    /// Status Field of the completion; the phase tag may be anything.
    pub status: StatusAndPhase,
    /// Parameter Error Location; all ones if the error belongs to no parameter.
    pub location: ParameterErrorLocation,
    /// First LBA with the error, if it belongs to one.
    pub lba: Lba,
    /// Namespace.
    pub nsid: Nsid,
    /// Vendor Specific Information Available: log page identifier, 0 if none.
    pub vendor_log_page: u8,
    /// Transport Type (TRTYPE); 0 is none.
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// Command Specific Information.
    pub command_specific: u64,
    /// Transport Type Specific Information.
    pub transport_specific: u16,
    /// Reserved.
    pub reserved42: [u8; 22],
}

/// Parameter Error Location. NVMe Base 2.0c figure 206.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParameterErrorLocation {
    /// Byte of the command, 0 to 63.
    pub byte: u8,
    /// Bit of that byte.
    #[bits(3)]
    pub bit: u8,
    #[bits(5)]
    __: u8,
}

impl ParameterErrorLocation {
    /// The error belongs to no parameter of the command.
    pub const NONE: Self = Self::from_bits(0xFFFF);
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);
