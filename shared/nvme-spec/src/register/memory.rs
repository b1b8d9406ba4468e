//! Registers of memory that lies in the controller: controller memory buffer, persistent memory region, boot
//! partitions. NVMe Base 2.0c 3.1.3.11 to 3.1.3.28.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Controller Memory Buffer Location (CMBLOC). NVMe Base 2.0c 3.1.3.11.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmbloc {
    /// Base Indicator Register (BIR).
    #[bits(3)]
    pub bir: u8,
    /// CMB Queue Mixed Memory Support (CQMMS).
    pub cqmms: bool,
    /// CMB Queue Physically Discontiguous Support (CQPDS).
    pub cqpds: bool,
    /// CMB Data Pointer Mixed Locations Support (CDPMLS).
    pub cdpmls: bool,
    /// CMB Data Pointer and Command Independent Locations Support (CDPCILS).
    pub cdpcils: bool,
    /// CMB Data Metadata Mixed Memory Support (CDMMMS).
    pub cdmmms: bool,
    /// CMB Queue Dword Alignment (CQDA).
    pub cqda: bool,
    #[bits(3)]
    __: u8,
    /// Offset (OFST) in multiples of the size unit of CMBSZ.
    #[bits(20)]
    pub ofst: u32,
}

/// Controller Memory Buffer Size (CMBSZ). NVMe Base 2.0c 3.1.3.12.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmbsz {
    /// Submission Queue Support (SQS).
    pub sqs: bool,
    /// Completion Queue Support (CQS).
    pub cqs: bool,
    /// PRP SGL List Support (LISTS).
    pub lists: bool,
    /// Read Data Support (RDS).
    pub rds: bool,
    /// Write Data Support (WDS).
    pub wds: bool,
    #[bits(3)]
    __: u8,
    /// Size Units (SZU): `4096 << (4 * szu)` bytes.
    #[bits(4)]
    pub szu: u8,
    /// Size (SZ) in size units.
    #[bits(20)]
    pub sz: u32,
}

/// Boot Partition Information (BPINFO). NVMe Base 2.0c 3.1.3.13.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bpinfo {
    /// Boot Partition Size (BPSZ) in multiples of 128 KiB.
    #[bits(15)]
    pub bpsz: u16,
    #[bits(9)]
    __: u16,
    /// Boot Read Status (BRS).
    #[bits(2)]
    pub brs: u8,
    #[bits(5)]
    __: u8,
    /// Active Boot Partition ID (ABPID).
    #[bits(1)]
    pub abpid: u8,
}

/// Boot Partition Read Select (BPRSEL). NVMe Base 2.0c 3.1.3.14.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bprsel {
    /// Boot Partition Read Size (BPRSZ) in multiples of 4 KiB.
    #[bits(10)]
    pub bprsz: u16,
    /// Boot Partition Read Offset (BPROF) in multiples of 4 KiB.
    #[bits(20)]
    pub bprof: u32,
    #[bits(1)]
    __: u8,
    /// Boot Partition Identifier (BPID).
    #[bits(1)]
    pub bpid: u8,
}

/// Boot Partition Memory Buffer Location (BPMBL). NVMe Base 2.0c 3.1.3.15.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bpmbl {
    #[bits(12)]
    __: u16,
    /// Bits 63:12 of the Boot Partition Memory Buffer Base Address (BMBBA).
    #[bits(52)]
    pub bmbba: u64,
}

/// Controller Memory Buffer Memory Space Control (CMBMSC). NVMe Base 2.0c 3.1.3.16.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmbmsc {
    /// Capabilities Registers Enabled (CRE).
    pub cre: bool,
    /// Controller Memory Space Enable (CMSE).
    pub cmse: bool,
    #[bits(10)]
    __: u16,
    /// Bits 63:12 of the Controller Base Address (CBA).
    #[bits(52)]
    pub cba: u64,
}

/// Controller Memory Buffer Status (CMBSTS). NVMe Base 2.0c 3.1.3.17.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmbsts {
    /// Controller Base Address Invalid (CBAI).
    pub cbai: bool,
    #[bits(31)]
    __: u32,
}

/// Elasticity Buffer Size of the controller memory buffer (CMBEBS) or the persistent memory region (PMREBS).
/// NVMe Base 2.0c 3.1.3.18, 3.1.3.25.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ElasticityBufferSize {
    /// Size Units (CMBSZU, PMRSZU): 0 is bytes, 1 KiB, 2 MiB, 3 GiB.
    #[bits(4)]
    pub szu: u8,
    /// Read Bypass Behavior (CMBRBB, PMRRBB).
    pub rbb: bool,
    #[bits(3)]
    __: u8,
    /// Size (CMBWBZ, PMRWBZ) in size units; 0 is not reported.
    #[bits(24)]
    pub wbz: u32,
}

/// Sustained Write Throughput of the controller memory buffer (CMBSWTP) or the persistent memory region (PMRSWTP).
/// NVMe Base 2.0c 3.1.3.19, 3.1.3.26.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SustainedWriteThroughput {
    /// Units (CMBSWTU, PMRSWTU): 0 is bytes, 1 KiB, 2 MiB, 3 GiB per second.
    #[bits(4)]
    pub swtu: u8,
    #[bits(4)]
    __: u8,
    /// Throughput (CMBSWTV, PMRSWTV) in units; 0 is not reported.
    #[bits(24)]
    pub swtv: u32,
}

/// Persistent Memory Region Capabilities (PMRCAP). NVMe Base 2.0c 3.1.3.22.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmrcap {
    #[bits(3)]
    __: u8,
    /// Read Data Support (RDS).
    pub rds: bool,
    /// Write Data Support (WDS).
    pub wds: bool,
    /// Base Indicator Register (BIR).
    #[bits(3)]
    pub bir: u8,
    /// Persistent Memory Region Time Units (PMRTU): 0 is 500 ms, 1 is minutes.
    #[bits(2)]
    pub pmrtu: u8,
    /// Persistent Memory Region Write Barrier Mechanisms (PMRWBM).
    #[bits(4)]
    pub pmrwbm: u8,
    #[bits(2)]
    __: u8,
    /// Persistent Memory Region Timeout (PMRTO) in time units.
    pub pmrto: u8,
    /// Controller Memory Space Supported (CMSS).
    pub cmss: bool,
    #[bits(7)]
    __: u8,
}

/// Persistent Memory Region Control (PMRCTL). NVMe Base 2.0c 3.1.3.23.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmrctl {
    /// Enable (EN).
    pub en: bool,
    #[bits(31)]
    __: u32,
}

/// Persistent Memory Region Status (PMRSTS). NVMe Base 2.0c 3.1.3.24.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmrsts {
    /// Error (ERR); 0 is none.
    pub err: u8,
    /// Not Ready (NRDY).
    pub nrdy: bool,
    /// Health Status (HSTS).
    #[bits(3)]
    pub hsts: u8,
    /// Controller Base Address Invalid (CBAI).
    pub cbai: bool,
    #[bits(19)]
    __: u32,
}

/// Persistent Memory Region Memory Space Control Lower (PMRMSCL); the upper half (PMRMSCU) is bits 63:32 of the
/// address. NVMe Base 2.0c 3.1.3.27, 3.1.3.28.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pmrmscl {
    #[bits(1)]
    __: u8,
    /// Controller Memory Space Enable (CMSE).
    pub cmse: bool,
    #[bits(10)]
    __: u16,
    /// Bits 31:12 of the Controller Base Address (CBA).
    #[bits(20)]
    pub cba: u32,
}
