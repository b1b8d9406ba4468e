//! Identify data structures. NVMe Base 2.0c 5.17.2, NVM Command Set 1.0c 4.1.5.

/// Declares the small bit fields of these structures, each of them on the wire.
macro_rules! fields {
    ($($(#[$meta:meta])* $name:ident($int:ident) { $($body:tt)* })*) => {
        $(
            #[::bitfield_struct::bitfield($int)]
            #[derive(
                PartialEq, Eq,
                ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout,
            )]
            $(#[$meta])*
            pub struct $name { $($body)* }
        )*
    };
}

pub mod attributes;
pub mod command_set;
pub mod controller;
pub mod descriptor;
pub mod list;
pub mod namespace;
pub mod power;

use crate::open_enum::open_enum;

/// Size in bytes of every Identify data structure. NVMe Base 2.0c 5.17.
pub const IDENTIFY_SIZE: usize = 4096;

open_enum! {
    /// Controller or Namespace Structure (CNS): which structure Identify returns. NVMe Base 2.0c figure 273.
    pub struct Cns(u8) {
        NAMESPACE = 0x00, "Identify Namespace";
        CONTROLLER = 0x01, "Identify Controller";
        ACTIVE_NAMESPACES = 0x02, "Active Namespace ID list";
        NAMESPACE_DESCRIPTORS = 0x03, "Namespace Identification Descriptor list";
        NVM_SETS = 0x04, "NVM Set List";
        COMMAND_SET_NAMESPACE = 0x05, "I/O Command Set specific Identify Namespace";
        COMMAND_SET_CONTROLLER = 0x06, "I/O Command Set specific Identify Controller";
        COMMAND_SET_ACTIVE_NAMESPACES = 0x07, "I/O Command Set specific Active Namespace ID list";
        INDEPENDENT_NAMESPACE = 0x08, "I/O Command Set Independent Identify Namespace";
        NAMESPACE_FORMAT = 0x09, "Identify Namespace, user data format";
        COMMAND_SET_NAMESPACE_FORMAT = 0x0A, "I/O Command Set specific Identify Namespace, user data format";
        ALLOCATED_NAMESPACES = 0x10, "Allocated Namespace ID list";
        ALLOCATED_NAMESPACE = 0x11, "Identify Namespace of an allocated namespace";
        NAMESPACE_CONTROLLERS = 0x12, "Controller list of a namespace";
        CONTROLLERS = 0x13, "Controller list of the NVM subsystem";
        PRIMARY_CONTROLLER_CAPABILITIES = 0x14, "Primary Controller Capabilities";
        SECONDARY_CONTROLLERS = 0x15, "Secondary Controller list";
        NAMESPACE_GRANULARITY = 0x16, "Namespace Granularity List";
        UUID_LIST = 0x17, "UUID List";
        DOMAINS = 0x18, "Domain List";
        ENDURANCE_GROUPS = 0x19, "Endurance Group List";
        COMMAND_SET_ALLOCATED_NAMESPACES = 0x1A, "I/O Command Set specific Allocated Namespace ID list";
        COMMAND_SET_ALLOCATED_NAMESPACE = 0x1B, "I/O Command Set specific Identify of an allocated namespace";
        COMMAND_SETS = 0x1C, "Identify I/O Command Set";
    }
}

open_enum! {
    /// Command Set Identifier (CSI): an I/O command set. NVMe Base 2.0c figure 274.
    pub struct CommandSet(u8) {
        NVM = 0x00, "NVM Command Set";
        KEY_VALUE = 0x01, "Key Value Command Set";
        ZONED = 0x02, "Zoned Namespace Command Set";
    }
}
