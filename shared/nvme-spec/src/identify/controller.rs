//! Identify Controller (CNS 01h). NVMe Base 2.0c 5.17.2.1.

use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::attributes::{
    Anacap, Cmic, ControllerType, Ctratt, EntrySizes, Fcatt, Fna, Frmw, Fuses, Hctma, Lpa, Mec,
    Nvmsr, Nwpc, Oacs, Oaes, Ocfs, Ofcs, Oncs, Sanicap, Sgls, VendorSpecificFormat, Vwc, Vwci,
};
use super::power::PowerState;
use crate::ids::ControllerId;
use crate::register::Vs;

/// Identify Controller data structure, 4096 bytes. NVMe Base 2.0c figure 275.
///
/// Text fields are ASCII, padded with spaces: see [`set_ascii`].
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI Vendor ID (VID).
    pub vid: u16,
    /// PCI Subsystem Vendor ID (SSVID).
    pub ssvid: u16,
    /// Serial Number (SN), ASCII.
    pub sn: [u8; 20],
    /// Model Number (MN), ASCII.
    pub mn: [u8; 40],
    /// Firmware Revision (FR), ASCII.
    pub fr: [u8; 8],
    /// Recommended Arbitration Burst (RAB): two to this power.
    pub rab: u8,
    /// IEEE OUI Identifier (IEEE), least significant byte first.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).
    pub cmic: Cmic,
    /// Maximum Data Transfer Size (MDTS): two to this power, in minimum memory pages; 0 is no limit.
    pub mdts: u8,
    /// Controller ID (CNTLID).
    pub cntlid: ControllerId,
    /// Version (VER), as register VS.
    pub ver: Vs,
    /// RTD3 Resume Latency (RTD3R), in microseconds; 0 is not reported.
    pub rtd3r: u32,
    /// RTD3 Entry Latency (RTD3E), in microseconds; 0 is not reported. What a host grants a shutdown.
    pub rtd3e: u32,
    /// Optional Asynchronous Events Supported (OAES).
    pub oaes: Oaes,
    /// Controller Attributes (CTRATT).
    pub ctratt: Ctratt,
    /// Read Recovery Levels Supported (RRLS), one bit a level.
    pub rrls: u16,
    /// Reserved.
    pub reserved102: [u8; 9],
    /// Controller Type (CNTRLTYPE).
    pub cntrltype: ControllerType,
    /// FRU Globally Unique Identifier (FGUID).
    pub fguid: [u8; 16],
    /// Command Retry Delay Time 1 (CRDT1), in units of 100 ms.
    pub crdt1: u16,
    /// Command Retry Delay Time 2 (CRDT2), in units of 100 ms.
    pub crdt2: u16,
    /// Command Retry Delay Time 3 (CRDT3), in units of 100 ms.
    pub crdt3: u16,
    /// Reserved.
    pub reserved134: [u8; 119],
    /// NVM Subsystem Report (NVMSR).
    pub nvmsr: Nvmsr,
    /// VPD Write Cycle Information (VWCI).
    pub vwci: Vwci,
    /// Management Endpoint Capabilities (MEC).
    pub mec: Mec,
    /// Optional Admin Command Support (OACS).
    pub oacs: Oacs,
    /// Abort Command Limit (ACL), 0's based.
    pub acl_z: u8,
    /// Asynchronous Event Request Limit (AERL), 0's based.
    pub aerl_z: u8,
    /// Firmware Updates (FRMW).
    pub frmw: Frmw,
    /// Log Page Attributes (LPA).
    pub lpa: Lpa,
    /// Error Log Page Entries (ELPE), 0's based.
    pub elpe_z: u8,
    /// Number of Power States Support (NPSS), 0's based.
    pub npss_z: u8,
    /// Admin Vendor Specific Command Configuration (AVSCC).
    pub avscc: VendorSpecificFormat,
    /// Autonomous Power State Transition Attributes (APSTA): bit 0, supported.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold (WCTEMP), in kelvins; 0 is not reported.
    pub wctemp: u16,
    /// Critical Composite Temperature Threshold (CCTEMP), in kelvins; 0 is not reported.
    pub cctemp: u16,
    /// Maximum Time for Firmware Activation (MTFA), in units of 100 ms; 0 is undefined.
    pub mtfa: u16,
    /// Host Memory Buffer Preferred Size (HMPRE), in units of 4 KiB.
    pub hmpre: u32,
    /// Host Memory Buffer Minimum Size (HMMIN), in units of 4 KiB.
    pub hmmin: u32,
    /// Total NVM Capacity (TNVMCAP), in bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM Capacity (UNVMCAP), in bytes.
    pub unvmcap: U128,
    /// Replay Protected Memory Block Support (RPMBS).
    pub rpmbs: u32,
    /// Extended Device Self-test Time (EDSTT), in minutes.
    pub edstt: u16,
    /// Device Self-test Options (DSTO): bit 0, one at a time in the NVM subsystem.
    pub dsto: u8,
    /// Firmware Update Granularity (FWUG), in units of 4 KiB; 0 is not reported, FFh no restriction.
    pub fwug: u8,
    /// Keep Alive Support (KAS), granularity of the timer in units of 100 ms; 0 is not supported.
    pub kas: u16,
    /// Host Controlled Thermal Management Attributes (HCTMA).
    pub hctma: Hctma,
    /// Minimum Thermal Management Temperature (MNTMT), in kelvins.
    pub mntmt: u16,
    /// Maximum Thermal Management Temperature (MXTMT), in kelvins.
    pub mxtmt: u16,
    /// Sanitize Capabilities (SANICAP).
    pub sanicap: Sanicap,
    /// Host Memory Buffer Minimum Descriptor Entry Size (HMMINDS), in units of 4 KiB.
    pub hmminds: u32,
    /// Host Memory Maximum Descriptors Entries (HMMAXD).
    pub hmmaxd: u16,
    /// NVM Set Identifier Maximum (NSETIDMAX).
    pub nsetidmax: u16,
    /// Endurance Group Identifier Maximum (ENDGIDMAX).
    pub endgidmax: u16,
    /// ANA Transition Time (ANATT), in seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities (ANACAP).
    pub anacap: Anacap,
    /// ANA Group Identifier Maximum (ANAGRPMAX).
    pub anagrpmax: u32,
    /// Number of ANA Group Identifiers (NANAGRPID).
    pub nanagrpid: u32,
    /// Persistent Event Log Size (PELS), in units of 64 KiB.
    pub pels: u32,
    /// Domain Identifier.
    pub domain_id: u16,
    /// Reserved.
    pub reserved358: [u8; 10],
    /// Max Endurance Group Capacity (MEGCAP), in bytes.
    pub megcap: U128,
    /// Reserved.
    pub reserved384: [u8; 128],
    /// Submission Queue Entry Size (SQES), as powers of two.
    pub sqes: EntrySizes,
    /// Completion Queue Entry Size (CQES), as powers of two.
    pub cqes: EntrySizes,
    /// Maximum Outstanding Commands (MAXCMD) of a queue; 0 is not reported.
    pub maxcmd: u16,
    /// Number of Namespaces (NN): the greatest valid namespace identifier.
    pub nn: u32,
    /// Optional NVM Command Support (ONCS).
    pub oncs: Oncs,
    /// Fused Operation Support (FUSES).
    pub fuses: Fuses,
    /// Format NVM Attributes (FNA).
    pub fna: Fna,
    /// Volatile Write Cache (VWC).
    pub vwc: Vwc,
    /// Atomic Write Unit Normal (AWUN) in logical blocks, 0's based.
    pub awun_z: u16,
    /// Atomic Write Unit Power Fail (AWUPF) in logical blocks, 0's based.
    pub awupf_z: u16,
    /// I/O Command Set Vendor Specific Command Configuration (ICSVSCC).
    pub icsvscc: VendorSpecificFormat,
    /// Namespace Write Protection Capabilities (NWPC).
    pub nwpc: Nwpc,
    /// Atomic Compare & Write Unit (ACWU) in logical blocks, 0's based.
    pub acwu_z: u16,
    /// Optional Copy Formats Supported (OCFS).
    pub ocfs: Ocfs,
    /// SGL Support (SGLS).
    pub sgls: Sgls,
    /// Maximum Number of Allowed Namespaces (MNAN); 0: as NN.
    pub mnan: u32,
    /// Maximum Domain Namespace Attachments (MAXDNA).
    pub maxdna: U128,
    /// Maximum I/O Controller Namespace Attachments (MAXCNA).
    pub maxcna: u32,
    /// Reserved.
    pub reserved564: [u8; 204],
    /// NVM Subsystem NVMe Qualified Name (SUBNQN), UTF-8, ended by a zero byte.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// I/O Queue Command Capsule Supported Size (IOCCSZ), in units of 16 bytes. Fabrics only.
    pub ioccsz: u32,
    /// I/O Queue Response Capsule Supported Size (IORCSZ), in units of 16 bytes. Fabrics only.
    pub iorcsz: u32,
    /// In Capsule Data Offset (ICDOFF), in units of 16 bytes. Fabrics only.
    pub icdoff: u16,
    /// Fabrics Controller Attributes (FCATT). Fabrics only.
    pub fcatt: Fcatt,
    /// Maximum SGL Data Block Descriptors (MSDBD) in a capsule. Fabrics only.
    pub msdbd: u8,
    /// Optional Fabric Commands Support (OFCS). Fabrics only.
    pub ofcs: Ofcs,
    /// Reserved.
    pub reserved1806: [u8; 242],
    /// Power State Descriptors (PSD0 to PSD31).
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vendor_specific: [u8; 1024],
}

impl IdentifyController {
    /// A structure of zeroes.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

/// Fills an ASCII field: `text`, cut at the field's size, then spaces. Anything that is not printable ASCII becomes
/// `?`. NVMe Base 2.0c 1.4.2.
pub fn set_ascii(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (byte, character) in field.iter_mut().zip(text.chars()) {
        *byte = match character {
            ' '..='~' => character as u8,
            _ => b'?',
        };
    }
}

const _: () = assert!(size_of::<IdentifyController>() == super::IDENTIFY_SIZE);
