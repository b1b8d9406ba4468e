//! Log pages. NVMe Base 2.0c 5.16.1.

pub mod effects;
pub mod error;
pub mod smart;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::identify::list::NamespaceList;
use crate::ids::Nsid;
use crate::open_enum::open_enum;

/// Most namespaces that the Changed Namespace List names; beyond, its first entry is the broadcast NSID. NVMe Base
/// 2.0c 5.16.1.5.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

open_enum! {
    /// Log Page Identifier (LID). NVMe Base 2.0c figure 202.
    pub struct LogPageId(u8) {
        SUPPORTED_LOG_PAGES = 0x00, "Supported Log Pages";
        ERROR_INFORMATION = 0x01, "Error Information";
        SMART_HEALTH = 0x02, "SMART / Health Information";
        FIRMWARE_SLOT = 0x03, "Firmware Slot Information";
        CHANGED_NAMESPACES = 0x04, "Changed Namespace List";
        COMMANDS_SUPPORTED_AND_EFFECTS = 0x05, "Commands Supported and Effects";
        DEVICE_SELF_TEST = 0x06, "Device Self-test";
        TELEMETRY_HOST_INITIATED = 0x07, "Telemetry Host-Initiated";
        TELEMETRY_CONTROLLER_INITIATED = 0x08, "Telemetry Controller-Initiated";
        ENDURANCE_GROUP_INFORMATION = 0x09, "Endurance Group Information";
        PREDICTABLE_LATENCY_PER_SET = 0x0A, "Predictable Latency Per NVM Set";
        PREDICTABLE_LATENCY_AGGREGATE = 0x0B, "Predictable Latency Event Aggregate";
        ANA = 0x0C, "Asymmetric Namespace Access";
        PERSISTENT_EVENT = 0x0D, "Persistent Event Log";
        LBA_STATUS = 0x0E, "LBA Status Information";
        ENDURANCE_GROUP_AGGREGATE = 0x0F, "Endurance Group Event Aggregate";
        MEDIA_UNIT_STATUS = 0x10, "Media Unit Status";
        SUPPORTED_CAPACITY_CONFIGURATIONS = 0x11, "Supported Capacity Configuration List";
        FEATURES_SUPPORTED_AND_EFFECTS = 0x12, "Feature Identifiers Supported and Effects";
        MI_COMMANDS_SUPPORTED_AND_EFFECTS = 0x13, "NVMe-MI Commands Supported and Effects";
        LOCKDOWN = 0x14, "Command and Feature Lockdown";
        BOOT_PARTITION = 0x15, "Boot Partition";
        ROTATIONAL_MEDIA = 0x16, "Rotational Media Information";
        DISCOVERY = 0x70, "Discovery";
        RESERVATION_NOTIFICATION = 0x80, "Reservation Notification";
        SANITIZE_STATUS = 0x81, "Sanitize Status";
    }
}

/// Firmware Slot Information (03h), 512 bytes. NVMe Base 2.0c 5.16.1.4.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlots {
    /// Active Firmware Info (AFI).
    pub afi: ActiveFirmware,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Firmware Revision for Slot 1 to 7 (FRS1 to FRS7), ASCII; zeroes: empty.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

/// Active Firmware Info (AFI). NVMe Base 2.0c 5.16.1.4.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ActiveFirmware {
    /// Slot of the active firmware.
    #[bits(3)]
    pub active: u8,
    #[bits(1)]
    __: u8,
    /// Slot of the firmware that the next Controller Level Reset activates; 0 is none.
    #[bits(3)]
    pub next: u8,
    #[bits(1)]
    __: u8,
}

/// Changed Namespace List (04h), 4096 bytes. NVMe Base 2.0c 5.16.1.5.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ChangedNamespaces(pub NamespaceList);

impl FirmwareSlots {
    /// A page of zeroes.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

impl ChangedNamespaces {
    /// The list of `nsids`, which come in ascending order; if they are too many, the list that says so.
    pub fn new(nsids: impl IntoIterator<Item = Nsid>) -> Self {
        let mut nsids = nsids.into_iter();
        let list = NamespaceList::new(nsids.by_ref().take(CHANGED_NAMESPACES_MAX));
        match nsids.next() {
            Some(_) => Self(NamespaceList::new([Nsid::BROADCAST])),
            None => Self(list),
        }
    }
}

const _: () = assert!(size_of::<FirmwareSlots>() == 512);
const _: () = assert!(size_of::<ChangedNamespaces>() == 4096);
