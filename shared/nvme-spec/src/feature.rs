//! Features and their values. NVMe Base 2.0c 5.27.1.
//!
//! A value lies in dword 11 of Set Features and in dword 0 of the completion of Get Features; those that are larger
//! lie in a buffer.

pub mod event;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::ids::InterruptVector;
use crate::open_enum::open_enum;

open_enum! {
    /// Feature Identifier (FID). NVMe Base 2.0c figure 317, NVM Command Set 1.0c figure 88.
    pub struct FeatureId(u8) {
        ARBITRATION = 0x01, "Arbitration";
        POWER_MANAGEMENT = 0x02, "Power Management";
        LBA_RANGE_TYPE = 0x03, "LBA Range Type";
        TEMPERATURE_THRESHOLD = 0x04, "Temperature Threshold";
        ERROR_RECOVERY = 0x05, "Error Recovery";
        VOLATILE_WRITE_CACHE = 0x06, "Volatile Write Cache";
        NUMBER_OF_QUEUES = 0x07, "Number of Queues";
        INTERRUPT_COALESCING = 0x08, "Interrupt Coalescing";
        INTERRUPT_VECTOR_CONFIGURATION = 0x09, "Interrupt Vector Configuration";
        WRITE_ATOMICITY_NORMAL = 0x0A, "Write Atomicity Normal";
        ASYNC_EVENT_CONFIGURATION = 0x0B, "Asynchronous Event Configuration";
        AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C, "Autonomous Power State Transition";
        HOST_MEMORY_BUFFER = 0x0D, "Host Memory Buffer";
        TIMESTAMP = 0x0E, "Timestamp";
        KEEP_ALIVE_TIMER = 0x0F, "Keep Alive Timer";
        HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10, "Host Controlled Thermal Management";
        NON_OPERATIONAL_POWER_STATE = 0x11, "Non-Operational Power State Config";
        READ_RECOVERY_LEVEL = 0x12, "Read Recovery Level Config";
        PREDICTABLE_LATENCY_MODE_CONFIG = 0x13, "Predictable Latency Mode Config";
        PREDICTABLE_LATENCY_MODE_WINDOW = 0x14, "Predictable Latency Mode Window";
        LBA_STATUS_REPORT_INTERVAL = 0x15, "LBA Status Information Report Interval";
        HOST_BEHAVIOR_SUPPORT = 0x16, "Host Behavior Support";
        SANITIZE_CONFIG = 0x17, "Sanitize Config";
        ENDURANCE_GROUP_EVENT = 0x18, "Endurance Group Event Configuration";
        COMMAND_SET_PROFILE = 0x19, "I/O Command Set Profile";
        SPINUP_CONTROL = 0x1A, "Spinup Control";
        ENHANCED_CONTROLLER_METADATA = 0x7D, "Enhanced Controller Metadata";
        CONTROLLER_METADATA = 0x7E, "Controller Metadata";
        NAMESPACE_METADATA = 0x7F, "Namespace Metadata";
        SOFTWARE_PROGRESS_MARKER = 0x80, "Software Progress Marker";
        HOST_IDENTIFIER = 0x81, "Host Identifier";
        RESERVATION_NOTIFICATION_MASK = 0x82, "Reservation Notification Mask";
        RESERVATION_PERSISTENCE = 0x83, "Reservation Persistence";
        NAMESPACE_WRITE_PROTECTION = 0x84, "Namespace Write Protection Config";
    }
}

open_enum! {
    /// Select (SEL) of Get Features: which value to return. NVMe Base 2.0c figure 195.
    pub struct FeatureSelect(u8) {
        CURRENT = 0x0, "Current";
        DEFAULT = 0x1, "Default";
        SAVED = 0x2, "Saved";
        SUPPORTED_CAPABILITIES = 0x3, "Supported capabilities";
    }
}

open_enum! {
    /// Threshold Type Select (THSEL). NVMe Base 2.0c 5.27.1.3.
    pub struct ThresholdType(u8) {
        OVER = 0x0, "Over temperature threshold";
        UNDER = 0x1, "Under temperature threshold";
    }
}

open_enum! {
    /// Threshold Temperature Select (TMPSEL). NVMe Base 2.0c 5.27.1.3.
    pub struct ThresholdSensor(u8) {
        COMPOSITE = 0x0, "Composite Temperature";
        SENSOR_1 = 0x1, "Temperature Sensor 1";
        SENSOR_2 = 0x2, "Temperature Sensor 2";
        SENSOR_3 = 0x3, "Temperature Sensor 3";
        SENSOR_4 = 0x4, "Temperature Sensor 4";
        SENSOR_5 = 0x5, "Temperature Sensor 5";
        SENSOR_6 = 0x6, "Temperature Sensor 6";
        SENSOR_7 = 0x7, "Temperature Sensor 7";
        SENSOR_8 = 0x8, "Temperature Sensor 8";
        ALL = 0xF, "All implemented temperature sensors";
    }
}

open_enum! {
    /// Write Protection State (WPS) of a namespace. NVMe Base 2.0c 5.27.1.28.
    pub struct WriteProtectionState(u8) {
        NONE = 0x0, "No Write Protect";
        WRITE_PROTECT = 0x1, "Write Protect";
        UNTIL_POWER_CYCLE = 0x2, "Write Protect Until Power Cycle";
        PERMANENT = 0x3, "Permanent Write Protect";
    }
}

open_enum! {
    /// How a timestamp came to be. NVMe Base 2.0c 5.27.1.11.
    pub struct TimestampOrigin(u8) {
        RESET = 0x0, "Cleared to zero by a Controller Level Reset";
        SET = 0x1, "Set by Set Features";
    }
}

/// Dword 0 of the completion of Get Features with [`FeatureSelect::SUPPORTED_CAPABILITIES`]. NVMe Base 2.0c 5.15.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FeatureCapabilities {
    /// The value can be saved.
    pub saveable: bool,
    /// The feature has a value for each namespace.
    pub namespace_specific: bool,
    /// The value can be changed.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Arbitration (01h). NVMe Base 2.0c 5.27.1.1.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Arbitration {
    /// Arbitration Burst (AB): two to this power in commands; 7 is no limit.
    #[bits(3)]
    pub ab: u8,
    #[bits(5)]
    __: u8,
    /// Low Priority Weight (LPW), 0's based.
    pub lpw_z: u8,
    /// Medium Priority Weight (MPW), 0's based.
    pub mpw_z: u8,
    /// High Priority Weight (HPW), 0's based.
    pub hpw_z: u8,
}

/// Power Management (02h). NVMe Base 2.0c 5.27.1.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PowerManagement {
    /// Power State (PS).
    #[bits(5)]
    pub ps: u8,
    /// Workload Hint (WH).
    #[bits(3)]
    pub wh: u8,
    #[bits(24)]
    __: u32,
}

/// Temperature Threshold (04h). NVMe Base 2.0c 5.27.1.3.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// Temperature Threshold (TMPTH), in kelvins.
    pub tmpth: u16,
    /// Threshold Temperature Select (TMPSEL).
    #[bits(4)]
    pub tmpsel: ThresholdSensor,
    /// Threshold Type Select (THSEL).
    #[bits(2)]
    pub thsel: ThresholdType,
    #[bits(10)]
    __: u16,
}

/// Error Recovery (05h), of a namespace. NVM Command Set 1.0c 4.1.3.2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ErrorRecovery {
    /// Time Limited Error Recovery (TLER), in units of 100 ms; 0 is no limit.
    pub tler: u16,
    /// Deallocated or Unwritten Logical Block Error Enable (DULBE).
    pub dulbe: bool,
    #[bits(15)]
    __: u16,
}

/// Volatile Write Cache (06h). NVMe Base 2.0c 5.27.1.4.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VolatileWriteCache {
    /// Volatile Write Cache Enable (WCE).
    pub wce: bool,
    #[bits(31)]
    __: u32,
}

/// Number of Queues (07h): those asked for in the command, those granted in the completion. NVMe Base 2.0c 5.27.1.5.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NumberOfQueues {
    /// Number of I/O Submission Queues (NSQR, NSQA), 0's based; FFFFh is invalid in a command.
    pub nsq_z: u16,
    /// Number of I/O Completion Queues (NCQR, NCQA), 0's based; FFFFh is invalid in a command.
    pub ncq_z: u16,
}

/// Interrupt Coalescing (08h). NVMe Base 2.0c 5.27.1.6.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// Aggregation Threshold (THR) in completions per vector, 0's based.
    pub thr_z: u8,
    /// Aggregation Time (TIME), in units of 100 microseconds; 0 is no delay.
    pub time: u8,
    __: u16,
}

/// Interrupt Vector Configuration (09h). NVMe Base 2.0c 5.27.1.7.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptVectorConfiguration {
    /// Interrupt Vector (IV).
    #[bits(16)]
    pub iv: InterruptVector,
    /// Coalescing Disable (CD).
    pub cd: bool,
    #[bits(15)]
    __: u16,
}

/// Write Atomicity Normal (0Ah). NVM Command Set 1.0c 4.1.3.3.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WriteAtomicity {
    /// Disable Normal (DN): AWUN, NAWUN, ACWU and NACWU need not be honoured, AWUPF and NAWUPF must.
    pub dn: bool,
    #[bits(31)]
    __: u32,
}

/// Timestamp (0Eh), 8 bytes in a buffer. NVMe Base 2.0c 5.27.1.11.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Timestamp {
    /// Milliseconds since midnight 1970-01-01 UTC, 48 bits; or since the last reset, if so is the origin.
    pub milliseconds: [u8; 6],
    /// How the value came to be; reserved in Set Features.
    pub attributes: TimestampAttributes,
    /// Reserved.
    pub reserved7: u8,
}

/// Byte 6 of a Timestamp. NVMe Base 2.0c 5.27.1.11.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TimestampAttributes {
    /// Synch: the controller may have stopped counting for a time.
    pub synch: bool,
    /// Timestamp Origin.
    #[bits(3)]
    pub origin: TimestampOrigin,
    #[bits(4)]
    __: u8,
}

/// Host Behavior Support (16h), 512 bytes in a buffer. NVMe Base 2.0c 5.27.1.18. Each of the bytes is 0 or 1.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostBehaviorSupport {
    /// Advanced Command Retry Enable (ACRE): the host honours the retry delay of a status.
    pub acre: u8,
    /// Extended Telemetry Data Area 4 Supported (ETDAS).
    pub etdas: u8,
    /// LBA Format Extension Enable (LBAFEE).
    pub lbafee: u8,
    /// Reserved.
    pub reserved3: [u8; 509],
}

/// I/O Command Set Profile (19h). NVMe Base 2.0c 5.27.1.21.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CommandSetProfile {
    /// I/O Command Set Combination Index (IOCSCI) into Identify I/O Command Set.
    #[bits(9)]
    pub iocsci: u16,
    #[bits(23)]
    __: u32,
}

/// Namespace Write Protection Config (84h). NVMe Base 2.0c 5.27.1.28.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceWriteProtection {
    /// Write Protection State (WPS).
    #[bits(3)]
    pub wps: WriteProtectionState,
    #[bits(29)]
    __: u32,
}

impl Timestamp {
    /// A timestamp of `milliseconds`, of which 48 bits count.
    pub const fn new(milliseconds: u64, attributes: TimestampAttributes) -> Self {
        let [a, b, c, d, e, f, _, _] = milliseconds.to_le_bytes();
        Self { milliseconds: [a, b, c, d, e, f], attributes, reserved7: 0 }
    }

    /// The milliseconds as a number.
    pub const fn milliseconds(&self) -> u64 {
        let [a, b, c, d, e, f] = self.milliseconds;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl HostBehaviorSupport {
    /// A structure of zeroes: the default.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

const _: () = assert!(size_of::<Timestamp>() == 8);
const _: () = assert!(size_of::<HostBehaviorSupport>() == 512);
