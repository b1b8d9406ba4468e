//! Log pages. NVMe Base 2.0c 5.16.1.

use crate::open_enum::open_enum;

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
