//! Log pages that say what is supported and what it does: pages (00h), commands (05h), features (12h). NVMe Base
//! 2.0c 5.16.1.1, 5.16.1.6, 5.16.1.19.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::LogPageId;
use crate::command::{AdminOpcode, NvmOpcode};
use crate::feature::FeatureId;
use crate::open_enum::open_enum;

open_enum! {
    /// Command Submission and Execution (CSE). NVMe Base 2.0c figure 211.
    pub struct Exclusion(u8) {
        NONE = 0x0, "No restriction";
        NAMESPACE = 0x1, "No other command to the same namespace meanwhile";
        ALL = 0x2, "No other command to any namespace meanwhile";
    }
}

/// Supported Log Pages (00h), 1024 bytes. NVMe Base 2.0c 5.16.1.1.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SupportedLogPages {
    /// One entry for each log page identifier.
    pub lids: [LogPageSupport; 256],
}

/// LID Supported and Effects. NVMe Base 2.0c figure 204.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LogPageSupport {
    /// LID Supported (LSUPP).
    pub lsupp: bool,
    /// Index Offset Supported (IOS).
    pub ios: bool,
    #[bits(14)]
    __: u16,
    /// LID Specific Parameter.
    pub parameter: u16,
}

/// Commands Supported and Effects (05h), 4096 bytes. NVMe Base 2.0c 5.16.1.6.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandsSupported {
    /// Admin Command Supported 0 to 255 (ACS).
    pub acs: [CommandEffects; 256],
    /// I/O Command Supported 0 to 255 (IOCS), of the command set that CSI chose.
    pub iocs: [CommandEffects; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}

/// Commands Supported and Effects data structure. NVMe Base 2.0c figure 211.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandEffects {
    /// Command Supported (CSUPP).
    pub csupp: bool,
    /// Logical Block Content Change (LBCC).
    pub lbcc: bool,
    /// Namespace Capability Change (NCC).
    pub ncc: bool,
    /// Namespace Inventory Change (NIC).
    pub nic: bool,
    /// Controller Capability Change (CCC).
    pub ccc: bool,
    #[bits(11)]
    __: u16,
    /// Command Submission and Execution (CSE).
    #[bits(3)]
    pub cse: Exclusion,
    /// UUID Selection Supported.
    pub uuid_selection: bool,
    /// Command Scope (CSP).
    #[bits(12)]
    pub csp: Scope,
}

/// Feature Identifiers Supported and Effects (12h), 1024 bytes. NVMe Base 2.0c 5.16.1.19.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FeaturesSupported {
    /// One entry for each feature identifier.
    pub fids: [FeatureEffects; 256],
}

/// FID Supported and Effects. NVMe Base 2.0c 5.16.1.19.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureEffects {
    /// FID Supported (FSUPP).
    pub fsupp: bool,
    /// User Data Content Change (UDCC).
    pub udcc: bool,
    /// Namespace Capability Change (NCC).
    pub ncc: bool,
    /// Namespace Inventory Change (NIC).
    pub nic: bool,
    /// Controller Capability Change (CCC).
    pub ccc: bool,
    #[bits(14)]
    __: u16,
    /// UUID Selection Supported.
    pub uuid_selection: bool,
    /// FID Scope (FSP).
    #[bits(12)]
    pub fsp: Scope,
}

/// What a command or a feature acts on, 12 bits (CSP, FSP); none set: not reported. NVMe Base 2.0c figure 211.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Scope {
    /// A namespace.
    pub namespace: bool,
    /// A controller.
    pub controller: bool,
    /// An NVM Set.
    pub nvm_set: bool,
    /// An Endurance Group.
    pub endurance_group: bool,
    /// A domain.
    pub domain: bool,
    /// The NVM subsystem.
    pub subsystem: bool,
    #[bits(10)]
    __: u16,
}

impl SupportedLogPages {
    /// No page is supported.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// Says what there is of page `lid`.
    pub fn set(&mut self, lid: LogPageId, support: LogPageSupport) {
        self.lids[usize::from(lid.0)] = support;
    }
}

impl CommandsSupported {
    /// No command is supported.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// Says what there is of an admin command.
    pub fn set_admin(&mut self, opcode: AdminOpcode, effects: CommandEffects) {
        self.acs[usize::from(opcode.0)] = effects;
    }

    /// Says what there is of an I/O command of the NVM command set.
    pub fn set_nvm(&mut self, opcode: NvmOpcode, effects: CommandEffects) {
        self.iocs[usize::from(opcode.0)] = effects;
    }
}

impl FeaturesSupported {
    /// No feature is supported.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// Says what there is of feature `fid`.
    pub fn set(&mut self, fid: FeatureId, effects: FeatureEffects) {
        self.fids[usize::from(fid.0)] = effects;
    }
}

const _: () = assert!(size_of::<SupportedLogPages>() == 1024);
const _: () = assert!(size_of::<CommandsSupported>() == 4096);
const _: () = assert!(size_of::<FeaturesSupported>() == 1024);
