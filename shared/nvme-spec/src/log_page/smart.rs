//! SMART / Health Information (02h). NVMe Base 2.0c 5.16.1.3.

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// SMART / Health Information log page, 512 bytes. NVMe Base 2.0c figure 207.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmartHealth {
    /// Critical Warning.
    pub critical_warning: CriticalWarning,
    /// Composite Temperature, in kelvins.
    pub composite_temperature: U16,
    /// Available Spare, in percent.
    pub available_spare: u8,
    /// Available Spare Threshold, in percent.
    pub available_spare_threshold: u8,
    /// Percentage Used of the expected life; may exceed 100.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_group_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data Units Read, in units of 1000 times 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Data Units Written, in units of 1000 times 512 bytes, rounded up.
    pub data_units_written: U128,
    /// Host Read Commands.
    pub host_read_commands: U128,
    /// Host Write Commands.
    pub host_write_commands: U128,
    /// Controller Busy Time, in minutes.
    pub controller_busy_time: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries over the life of the controller.
    pub error_log_entries: U128,
    /// Warning Composite Temperature Time, in minutes.
    pub warning_temperature_time: u32,
    /// Critical Composite Temperature Time, in minutes.
    pub critical_temperature_time: u32,
    /// Temperature Sensor 1 to 8, in kelvins; 0 is not implemented.
    pub temperature_sensors: [u16; 8],
    /// Thermal Management Temperature 1 Transition Count.
    pub thermal_transitions_1: u32,
    /// Thermal Management Temperature 2 Transition Count.
    pub thermal_transitions_2: u32,
    /// Total Time For Thermal Management Temperature 1, in seconds.
    pub thermal_time_1: u32,
    /// Total Time For Thermal Management Temperature 2, in seconds.
    pub thermal_time_2: u32,
    /// Reserved.
    pub reserved232: [u8; 280],
}

/// Critical Warning. NVMe Base 2.0c figure 207.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CriticalWarning {
    /// The available spare is below its threshold.
    pub spare: bool,
    /// A temperature is past its threshold.
    pub temperature: bool,
    /// The reliability of the NVM subsystem is degraded.
    pub reliability: bool,
    /// All media are read only, not by write protection.
    pub read_only: bool,
    /// The backup of volatile memory failed.
    pub backup_failed: bool,
    /// The persistent memory region is read only or unreliable.
    pub pmr_unreliable: bool,
    #[bits(2)]
    __: u8,
}

impl SmartHealth {
    /// A page of zeroes.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

const _: () = assert!(size_of::<SmartHealth>() == 512);
