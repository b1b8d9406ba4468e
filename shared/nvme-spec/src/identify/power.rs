//! Power state descriptors of Identify Controller. NVMe Base 2.0c figure 276.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Power State Descriptor, 32 bytes. NVMe Base 2.0c figure 276.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PowerState {
    /// Maximum Power (MP), in units that [`PowerStateFlags::mxps`] says.
    pub mp: u16,
    /// Reserved.
    pub reserved2: u8,
    /// Unit of the maximum power; whether the state is operational.
    pub flags: PowerStateFlags,
    /// Entry Latency (ENLAT), in microseconds.
    pub enlat: u32,
    /// Exit Latency (EXLAT), in microseconds.
    pub exlat: u32,
    /// Relative Read Throughput (RRT), lower is better.
    pub rrt: u8,
    /// Relative Read Latency (RRL), lower is better.
    pub rrl: u8,
    /// Relative Write Throughput (RWT), lower is better.
    pub rwt: u8,
    /// Relative Write Latency (RWL), lower is better.
    pub rwl: u8,
    /// Idle Power (IDLP), in units that [`idle_scale`](Self::idle_scale) says.
    pub idlp: u16,
    /// Idle Power Scale (IPS).
    pub idle_scale: IdlePowerScale,
    /// Reserved.
    pub reserved19: u8,
    /// Active Power (ACTP), in units that [`active`](Self::active) says.
    pub actp: u16,
    /// Active Power Workload (APW) and Scale (APS).
    pub active: ActivePower,
    /// Reserved.
    pub reserved23: [u8; 9],
}

/// Byte 3 of a power state descriptor. NVMe Base 2.0c figure 276.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerStateFlags {
    /// Max Power Scale (MXPS): units of 0.0001 W, else of 0.01 W.
    pub mxps: bool,
    /// Non-Operational State (NOPS).
    pub nops: bool,
    #[bits(6)]
    __: u8,
}

/// Byte 18 of a power state descriptor. NVMe Base 2.0c figure 276.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IdlePowerScale {
    #[bits(6)]
    __: u8,
    /// Idle Power Scale (IPS): 0 not reported, 1 units of 0.0001 W, 2 units of 0.01 W.
    #[bits(2)]
    pub ips: u8,
}

/// Byte 22 of a power state descriptor. NVMe Base 2.0c figure 276.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ActivePower {
    /// Active Power Workload (APW).
    #[bits(3)]
    pub apw: u8,
    #[bits(3)]
    __: u8,
    /// Active Power Scale (APS): 0 not reported, 1 units of 0.0001 W, 2 units of 0.01 W.
    #[bits(2)]
    pub aps: u8,
}

const _: () = assert!(size_of::<PowerState>() == 32);
