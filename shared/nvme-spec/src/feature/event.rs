//! Asynchronous events: what a host asks to hear of (feature 0Bh) and what it is told. NVMe Base 2.0c 5.2, 5.27.1.8.

use core::fmt;

use bitfield_struct::bitfield;

use crate::log_page::LogPageId;
use crate::log_page::smart::CriticalWarning;
use crate::open_enum::open_enum;

open_enum! {
    /// Asynchronous Event Type. NVMe Base 2.0c figure 146.
    pub struct EventType(u8) {
        ERROR = 0x0, "Error status";
        SMART_HEALTH = 0x1, "SMART / Health status";
        NOTICE = 0x2, "Notice";
        IMMEDIATE = 0x3, "Immediate";
        COMMAND_SET = 0x6, "I/O Command Specific status";
        VENDOR = 0x7, "Vendor specific";
    }
}

/// Asynchronous Event Configuration (0Bh): a set bit asks for the event. NVMe Base 2.0c 5.27.1.8.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEventConfiguration {
    /// SMART / Health Critical Warnings.
    #[bits(8)]
    pub smart: CriticalWarning,
    /// Namespace Attribute Notices.
    pub namespace_attribute: bool,
    /// Firmware Activation Notices.
    pub firmware_activation: bool,
    /// Telemetry Log Notices.
    pub telemetry_log: bool,
    /// Asymmetric Namespace Access Change Notices.
    pub ana_change: bool,
    /// Predictable Latency Event Aggregate Log Change Notices.
    pub predictable_latency: bool,
    /// LBA Status Information Notices.
    pub lba_status: bool,
    /// Endurance Group Event Aggregate Log Change Notices.
    pub endurance_group: bool,
    /// Normal NVM Subsystem Shutdown.
    pub normal_shutdown: bool,
    #[bits(11)]
    __: u16,
    /// Zone Descriptor Changed Notices.
    pub zone_descriptor: bool,
    #[bits(3)]
    __: u8,
    /// Discovery Log Page Change Notification.
    pub discovery_log: bool,
}

/// Dword 0 of the completion of Asynchronous Event Request. NVMe Base 2.0c figure 146.
#[bitfield(u32, debug = false)]
#[derive(PartialEq, Eq, Hash)]
pub struct AsyncEvent {
    /// Asynchronous Event Type.
    #[bits(3)]
    pub kind: EventType,
    #[bits(5)]
    __: u8,
    /// Asynchronous Event Information, from the table that the type chooses.
    pub info: u8,
    /// Log Page Identifier: reading that page clears the event.
    #[bits(8)]
    pub log_page: LogPageId,
    __: u8,
}

macro_rules! events {
    ($($constant:ident = $kind:ident, $info:literal, $log_page:ident, $text:literal;)*) => {
        impl AsyncEvent {
            $(
                #[doc = concat!($text, " (", stringify!($kind), " ", stringify!($info), ").")]
                pub const $constant: Self = Self::new()
                    .with_kind(EventType::$kind)
                    .with_info($info)
                    .with_log_page(LogPageId::$log_page);
            )*

            /// The specification's name, if type and information are known ones.
            pub const fn name(self) -> Option<&'static str> {
                match (self.kind(), self.info()) {
                    $((EventType::$kind, $info) => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

events! {
    INVALID_DOORBELL_REGISTER = ERROR, 0x00, ERROR_INFORMATION, "Write to Invalid Doorbell Register";
    INVALID_DOORBELL_VALUE = ERROR, 0x01, ERROR_INFORMATION, "Invalid Doorbell Write Value";
    DIAGNOSTIC_FAILURE = ERROR, 0x02, ERROR_INFORMATION, "Diagnostic Failure";
    PERSISTENT_INTERNAL_ERROR = ERROR, 0x03, ERROR_INFORMATION, "Persistent Internal Error";
    TRANSIENT_INTERNAL_ERROR = ERROR, 0x04, ERROR_INFORMATION, "Transient Internal Error";
    FIRMWARE_IMAGE_LOAD_ERROR = ERROR, 0x05, ERROR_INFORMATION, "Firmware Image Load Error";
    SUBSYSTEM_RELIABILITY = SMART_HEALTH, 0x00, SMART_HEALTH, "NVM subsystem Reliability";
    TEMPERATURE_THRESHOLD = SMART_HEALTH, 0x01, SMART_HEALTH, "Temperature Threshold";
    SPARE_BELOW_THRESHOLD = SMART_HEALTH, 0x02, SMART_HEALTH, "Spare Below Threshold";
    NAMESPACE_ATTRIBUTE_CHANGED = NOTICE, 0x00, CHANGED_NAMESPACES, "Namespace Attribute Changed";
    FIRMWARE_ACTIVATION_STARTING = NOTICE, 0x01, FIRMWARE_SLOT, "Firmware Activation Starting";
    TELEMETRY_LOG_CHANGED = NOTICE, 0x02, TELEMETRY_CONTROLLER_INITIATED, "Telemetry Log Changed";
    ANA_CHANGE = NOTICE, 0x03, ANA, "Asymmetric Namespace Access Change";
    PREDICTABLE_LATENCY_LOG_CHANGE = NOTICE, 0x04, PREDICTABLE_LATENCY_AGGREGATE,
        "Predictable Latency Event Aggregate Log Change";
    LBA_STATUS_ALERT = NOTICE, 0x05, LBA_STATUS, "LBA Status Information Alert";
    ENDURANCE_GROUP_LOG_CHANGE = NOTICE, 0x06, ENDURANCE_GROUP_AGGREGATE,
        "Endurance Group Event Aggregate Log Page Change";
    DISCOVERY_LOG_CHANGE = NOTICE, 0xF0, DISCOVERY, "Discovery Log Page Change";
    NORMAL_SUBSYSTEM_SHUTDOWN = IMMEDIATE, 0x00, SUPPORTED_LOG_PAGES, "Normal NVM Subsystem Shutdown";
    RESERVATION_LOG_AVAILABLE = COMMAND_SET, 0x00, RESERVATION_NOTIFICATION, "Reservation Log Page Available";
    SANITIZE_COMPLETED = COMMAND_SET, 0x01, SANITIZE_STATUS, "Sanitize Operation Completed";
    SANITIZE_COMPLETED_DEALLOCATED = COMMAND_SET, 0x02, SANITIZE_STATUS,
        "Sanitize Operation Completed With Unexpected Deallocation";
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "event type {:#x} information {:#04x}", self.kind().0, self.info()),
        }
    }
}

impl fmt::Debug for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsyncEvent({:#010x}: {self})", self.into_bits())
    }
}
