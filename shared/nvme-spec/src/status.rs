//! The status of a completed command. NVMe Base 2.0c 3.3.3.2.1, NVM Command Set 1.0c 3.1.1.

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::open_enum::open_enum;

open_enum! {
    /// Status Code Type (SCT): which table the status code is from. NVMe Base 2.0c figure 93.
    pub struct StatusCodeType(u8) {
        GENERIC = 0x0, "Generic Command Status";
        COMMAND_SPECIFIC = 0x1, "Command Specific Status";
        MEDIA = 0x2, "Media and Data Integrity Errors";
        PATH = 0x3, "Path Related Status";
        VENDOR = 0x7, "Vendor Specific";
    }
}

/// Status Field (SF) of a completion, without its phase tag: 15 bits. NVMe Base 2.0c figure 92.
///
/// The associated constants have neither More nor Do Not Retry set:
/// `Status::INVALID_FIELD.with_dnr()` says that trying again is of no use.
#[bitfield(u16, debug = false)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Status {
    /// Status Code (SC), from the table that the type chooses.
    #[inline]
    pub sc: u8,
    /// Status Code Type (SCT).
    #[inline]
    #[bits(3)]
    pub sct: StatusCodeType,
    /// Command Retry Delay (CRD): 0 is none, 1 to 3 choose CRDT1 to CRDT3 of Identify Controller.
    #[inline]
    #[bits(2)]
    pub crd: u8,
    #[inline]
    #[bits(1)]
    m: bool,
    #[inline]
    #[bits(1)]
    do_not_retry: bool,
    #[inline]
    #[bits(1)]
    high: bool,
}

macro_rules! statuses {
    ($($sct:ident { $($constant:ident = $sc:literal, $text:literal;)* })*) => {
        impl Status {
            $($(
                #[doc = concat!($text, " (", stringify!($sct), " ", stringify!($sc), ").")]
                pub const $constant: Self = Self::new().with_sct(StatusCodeType::$sct).with_sc($sc);
            )*)*

            /// The specification's name of the code, if it is a known one. More, Do Not Retry and the retry delay
            /// do not matter.
            pub const fn name(self) -> Option<&'static str> {
                match self.sct() {
                    $(StatusCodeType::$sct => match self.sc() {
                        $($sc => Some($text),)*
                        _ => None,
                    },)*
                    _ => None,
                }
            }

            /// Every status that has a name here.
            pub const KNOWN: &'static [Self] = &[$($(Self::$constant,)*)*];
        }
    };
}

statuses! {
    GENERIC {
        SUCCESS = 0x00, "Successful Completion";
        INVALID_OPCODE = 0x01, "Invalid Command Opcode";
        INVALID_FIELD = 0x02, "Invalid Field in Command";
        COMMAND_ID_CONFLICT = 0x03, "Command ID Conflict";
        DATA_TRANSFER_ERROR = 0x04, "Data Transfer Error";
        ABORTED_POWER_LOSS = 0x05, "Commands Aborted due to Power Loss Notification";
        INTERNAL_ERROR = 0x06, "Internal Error";
        ABORT_REQUESTED = 0x07, "Command Abort Requested";
        ABORTED_SQ_DELETION = 0x08, "Command Aborted due to SQ Deletion";
        ABORTED_FAILED_FUSED = 0x09, "Command Aborted due to Failed Fused Command";
        ABORTED_MISSING_FUSED = 0x0A, "Command Aborted due to Missing Fused Command";
        INVALID_NAMESPACE_OR_FORMAT = 0x0B, "Invalid Namespace or Format";
        COMMAND_SEQUENCE_ERROR = 0x0C, "Command Sequence Error";
        INVALID_SGL_SEGMENT_DESCRIPTOR = 0x0D, "Invalid SGL Segment Descriptor";
        INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x0E, "Invalid Number of SGL Descriptors";
        DATA_SGL_LENGTH_INVALID = 0x0F, "Data SGL Length Invalid";
        METADATA_SGL_LENGTH_INVALID = 0x10, "Metadata SGL Length Invalid";
        SGL_DESCRIPTOR_TYPE_INVALID = 0x11, "SGL Descriptor Type Invalid";
        INVALID_USE_OF_CMB = 0x12, "Invalid Use of Controller Memory Buffer";
        PRP_OFFSET_INVALID = 0x13, "PRP Offset Invalid";
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14, "Atomic Write Unit Exceeded";
        OPERATION_DENIED = 0x15, "Operation Denied";
        SGL_OFFSET_INVALID = 0x16, "SGL Offset Invalid";
        HOST_ID_INCONSISTENT_FORMAT = 0x18, "Host Identifier Inconsistent Format";
        KEEP_ALIVE_TIMER_EXPIRED = 0x19, "Keep Alive Timer Expired";
        KEEP_ALIVE_TIMEOUT_INVALID = 0x1A, "Keep Alive Timeout Invalid";
        ABORTED_PREEMPT_AND_ABORT = 0x1B, "Command Aborted due to Preempt and Abort";
        SANITIZE_FAILED = 0x1C, "Sanitize Failed";
        SANITIZE_IN_PROGRESS = 0x1D, "Sanitize In Progress";
        SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x1E, "SGL Data Block Granularity Invalid";
        NOT_SUPPORTED_FOR_QUEUE_IN_CMB = 0x1F, "Command Not Supported for Queue in CMB";
        NAMESPACE_WRITE_PROTECTED = 0x20, "Namespace is Write Protected";
        COMMAND_INTERRUPTED = 0x21, "Command Interrupted";
        TRANSIENT_TRANSPORT_ERROR = 0x22, "Transient Transport Error";
        PROHIBITED_BY_LOCKDOWN = 0x23, "Command Prohibited by Command and Feature Lockdown";
        ADMIN_COMMAND_MEDIA_NOT_READY = 0x24, "Admin Command Media Not Ready";
        LBA_OUT_OF_RANGE = 0x80, "LBA Out of Range";
        CAPACITY_EXCEEDED = 0x81, "Capacity Exceeded";
        NAMESPACE_NOT_READY = 0x82, "Namespace Not Ready";
        RESERVATION_CONFLICT = 0x83, "Reservation Conflict";
        FORMAT_IN_PROGRESS = 0x84, "Format In Progress";
    }
    COMMAND_SPECIFIC {
        COMPLETION_QUEUE_INVALID = 0x00, "Completion Queue Invalid";
        INVALID_QUEUE_ID = 0x01, "Invalid Queue Identifier";
        INVALID_QUEUE_SIZE = 0x02, "Invalid Queue Size";
        ABORT_LIMIT_EXCEEDED = 0x03, "Abort Command Limit Exceeded";
        AER_LIMIT_EXCEEDED = 0x05, "Asynchronous Event Request Limit Exceeded";
        INVALID_FIRMWARE_SLOT = 0x06, "Invalid Firmware Slot";
        INVALID_FIRMWARE_IMAGE = 0x07, "Invalid Firmware Image";
        INVALID_INTERRUPT_VECTOR = 0x08, "Invalid Interrupt Vector";
        INVALID_LOG_PAGE = 0x09, "Invalid Log Page";
        INVALID_FORMAT = 0x0A, "Invalid Format";
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0B, "Firmware Activation Requires Conventional Reset";
        INVALID_QUEUE_DELETION = 0x0C, "Invalid Queue Deletion";
        FEATURE_NOT_SAVEABLE = 0x0D, "Feature Identifier Not Saveable";
        FEATURE_NOT_CHANGEABLE = 0x0E, "Feature Not Changeable";
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0F, "Feature Not Namespace Specific";
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10, "Firmware Activation Requires NVM Subsystem Reset";
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11, "Firmware Activation Requires Controller Level Reset";
        FIRMWARE_NEEDS_MAXIMUM_TIME = 0x12, "Firmware Activation Requires Maximum Time Violation";
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13, "Firmware Activation Prohibited";
        OVERLAPPING_RANGE = 0x14, "Overlapping Range";
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15, "Namespace Insufficient Capacity";
        NAMESPACE_ID_UNAVAILABLE = 0x16, "Namespace Identifier Unavailable";
        NAMESPACE_ALREADY_ATTACHED = 0x18, "Namespace Already Attached";
        NAMESPACE_IS_PRIVATE = 0x19, "Namespace Is Private";
        NAMESPACE_NOT_ATTACHED = 0x1A, "Namespace Not Attached";
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1B, "Thin Provisioning Not Supported";
        CONTROLLER_LIST_INVALID = 0x1C, "Controller List Invalid";
        SELF_TEST_IN_PROGRESS = 0x1D, "Device Self-test In Progress";
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1E, "Boot Partition Write Prohibited";
        INVALID_CONTROLLER_ID = 0x1F, "Invalid Controller Identifier";
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20, "Invalid Secondary Controller State";
        INVALID_NUMBER_OF_CONTROLLER_RESOURCES = 0x21, "Invalid Number of Controller Resources";
        INVALID_RESOURCE_ID = 0x22, "Invalid Resource Identifier";
        SANITIZE_PROHIBITED_PMR_ENABLED = 0x23, "Sanitize Prohibited While Persistent Memory Region is Enabled";
        ANA_GROUP_ID_INVALID = 0x24, "ANA Group Identifier Invalid";
        ANA_ATTACH_FAILED = 0x25, "ANA Attach Failed";
        INSUFFICIENT_CAPACITY = 0x26, "Insufficient Capacity";
        NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x27, "Namespace Attachment Limit Exceeded";
        PROHIBITION_NOT_SUPPORTED = 0x28, "Prohibition of Command Execution Not Supported";
        COMMAND_SET_NOT_SUPPORTED = 0x29, "I/O Command Set Not Supported";
        COMMAND_SET_NOT_ENABLED = 0x2A, "I/O Command Set Not Enabled";
        COMMAND_SET_COMBINATION_REJECTED = 0x2B, "I/O Command Set Combination Rejected";
        INVALID_COMMAND_SET = 0x2C, "Invalid I/O Command Set";
        IDENTIFIER_UNAVAILABLE = 0x2D, "Identifier Unavailable";
        CONFLICTING_ATTRIBUTES = 0x80, "Conflicting Attributes";
        INVALID_PROTECTION_INFORMATION = 0x81, "Invalid Protection Information";
        WRITE_TO_READ_ONLY_RANGE = 0x82, "Attempted Write to Read Only Range";
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83, "Command Size Limit Exceeded";
    }
    MEDIA {
        WRITE_FAULT = 0x80, "Write Fault";
        UNRECOVERED_READ_ERROR = 0x81, "Unrecovered Read Error";
        GUARD_CHECK_ERROR = 0x82, "End-to-end Guard Check Error";
        APPLICATION_TAG_CHECK_ERROR = 0x83, "End-to-end Application Tag Check Error";
        REFERENCE_TAG_CHECK_ERROR = 0x84, "End-to-end Reference Tag Check Error";
        COMPARE_FAILURE = 0x85, "Compare Failure";
        ACCESS_DENIED = 0x86, "Access Denied";
        DEALLOCATED_OR_UNWRITTEN = 0x87, "Deallocated or Unwritten Logical Block";
        STORAGE_TAG_CHECK_ERROR = 0x88, "End-to-end Storage Tag Check Error";
    }
    PATH {
        INTERNAL_PATH_ERROR = 0x00, "Internal Path Error";
        ANA_PERSISTENT_LOSS = 0x01, "Asymmetric Access Persistent Loss";
        ANA_INACCESSIBLE = 0x02, "Asymmetric Access Inaccessible";
        ANA_TRANSITION = 0x03, "Asymmetric Access Transition";
        CONTROLLER_PATHING_ERROR = 0x60, "Controller Pathing Error";
        HOST_PATHING_ERROR = 0x70, "Host Pathing Error";
        ABORTED_BY_HOST = 0x71, "Command Aborted By Host";
    }
}

impl Status {
    /// Status of the given type and code, without flags. Bits of `sct` above the third are dropped.
    pub const fn from_code(sct: StatusCodeType, sc: u8) -> Self {
        Self::new().with_sct(StatusCodeType(sct.0 & 0x7)).with_sc(sc)
    }

    /// From any 16 bits: the uppermost, which the field has not, is dropped.
    #[inline]
    pub const fn from_raw(raw: u16) -> Self {
        Self::from_bits(raw).with_high(false)
    }

    /// The same code without More, Do Not Retry and retry delay: to compare with a constant.
    #[inline]
    pub const fn code(self) -> Self {
        Self::new().with_sc(self.sc()).with_sct(self.sct())
    }

    /// Whether the command succeeded.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.code().into_bits() == Self::SUCCESS.into_bits()
    }

    /// More (M): the error log has an entry for this.
    #[inline]
    pub const fn more(self) -> bool {
        self.m()
    }

    /// Do Not Retry (DNR): the same command is expected to fail again.
    #[inline]
    pub const fn dnr(self) -> bool {
        self.do_not_retry()
    }

    /// With More (M) set.
    #[inline]
    #[must_use]
    pub const fn with_more(self) -> Self {
        self.with_m(true)
    }

    /// With Do Not Retry (DNR) set.
    #[inline]
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        self.with_do_not_retry(true)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "status type {:#x} code {:#04x}", self.sct().0, self.sc())?,
        }
        if self.more() {
            f.write_str(", more")?;
        }
        if self.dnr() {
            f.write_str(", do not retry")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#06x}: {self})", self.into_bits())
    }
}

const _: () = assert!(size_of::<Status>() == 2);
