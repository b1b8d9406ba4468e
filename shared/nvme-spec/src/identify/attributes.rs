//! Bit fields of Identify Controller, in the order in which they stand there. NVMe Base 2.0c figure 275.

use crate::open_enum::open_enum;

open_enum! {
    /// Controller Type (CNTRLTYPE). NVMe Base 2.0c figure 275.
    pub struct ControllerType(u8) {
        NOT_REPORTED = 0x0, "Controller type not reported";
        IO = 0x1, "I/O controller";
        DISCOVERY = 0x2, "Discovery controller";
        ADMINISTRATIVE = 0x3, "Administrative controller";
    }
}

open_enum! {
    /// Whether SGLs are supported for I/O, and how aligned: bits 1:0 of SGLS. NVMe Base 2.0c figure 275.
    pub struct SglSupport(u8) {
        NONE = 0x0, "SGLs are not supported";
        ANY_ALIGNMENT = 0x1, "SGLs are supported without alignment";
        DWORD_ALIGNED = 0x2, "SGLs are supported with dword alignment";
    }
}

open_enum! {
    /// What a Flush with the broadcast NSID does: bits 2:1 of VWC. NVMe Base 2.0c figure 275.
    pub struct FlushBroadcast(u8) {
        NOT_INDICATED = 0x0, "Support for the broadcast NSID is not indicated";
        NOT_SUPPORTED = 0x2, "Flush does not support the broadcast NSID";
        SUPPORTED = 0x3, "Flush supports the broadcast NSID";
    }
}

fields! {
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).
    Cmic(u8) {
        /// The NVM subsystem may have several ports.
        pub multi_port: bool,
        /// The NVM subsystem may have several controllers.
        pub multi_controller: bool,
        /// The controller is of an SR-IOV virtual function.
        pub sriov: bool,
        /// Asymmetric Namespace Access Reporting is supported.
        pub ana: bool,
        #[bits(4)] __: u8,
    }

    /// Optional Asynchronous Events Supported (OAES).
    Oaes(u32) {
        __: u8,
        /// Namespace Attribute Notices.
        pub namespace_attribute: bool,
        /// Firmware Activation Notices.
        pub firmware_activation: bool,
        #[bits(1)] __: u8,
        /// Asymmetric Namespace Access Change Notices.
        pub ana_change: bool,
        /// Predictable Latency Event Aggregate Log Change Notices.
        pub predictable_latency: bool,
        /// LBA Status Information Alert Notices.
        pub lba_status: bool,
        /// Endurance Group Event Aggregate Log Change Notices.
        pub endurance_group: bool,
        /// Normal NVM Subsystem Shutdown event.
        pub normal_shutdown: bool,
        #[bits(11)] __: u16,
        /// Zone Descriptor Changed Notices.
        pub zone_descriptor: bool,
        #[bits(3)] __: u8,
        /// Discovery Log Page Change Notices.
        pub discovery_log: bool,
    }

    /// Controller Attributes (CTRATT).
    Ctratt(u32) {
        /// 128-bit Host Identifier.
        pub host_id_128: bool,
        /// Non-Operational Power State Permissive Mode.
        pub non_operational_permissive: bool,
        /// NVM Sets.
        pub nvm_sets: bool,
        /// Read Recovery Levels.
        pub read_recovery_levels: bool,
        /// Endurance Groups.
        pub endurance_groups: bool,
        /// Predictable Latency Mode.
        pub predictable_latency: bool,
        /// Traffic Based Keep Alive Support (TBKAS).
        pub tbkas: bool,
        /// Namespace Granularity.
        pub namespace_granularity: bool,
        /// SQ Associations.
        pub sq_associations: bool,
        /// UUID List.
        pub uuid_list: bool,
        /// Multi-Domain Subsystem (MDS).
        pub mds: bool,
        /// Fixed Capacity Management.
        pub fixed_capacity: bool,
        /// Variable Capacity Management.
        pub variable_capacity: bool,
        /// Delete Endurance Group.
        pub delete_endurance_group: bool,
        /// Delete NVM Set.
        pub delete_nvm_set: bool,
        /// Extended LBA Formats Supported (ELBAS).
        pub elbas: bool,
        __: u16,
    }

    /// NVM Subsystem Report (NVMSR).
    Nvmsr(u8) {
        /// Part of an NVMe Storage Device (NVMESD).
        pub nvmesd: bool,
        /// Part of an NVMe Enclosure (NVMEE).
        pub nvmee: bool,
        #[bits(6)] __: u8,
    }

    /// VPD Write Cycle Information (VWCI).
    Vwci(u8) {
        /// VPD Write Cycles Remaining (VWCR).
        #[bits(7)]
        pub vwcr: u8,
        /// VPD Write Cycles Remaining Valid (VWCRV).
        pub vwcrv: bool,
    }

    /// Management Endpoint Capabilities (MEC).
    Mec(u8) {
        /// SMBus/I2C Port Management Endpoint (SMBUSME).
        pub smbusme: bool,
        /// PCIe Port Management Endpoint (PCIEME).
        pub pcieme: bool,
        #[bits(6)] __: u8,
    }

    /// Optional Admin Command Support (OACS).
    Oacs(u16) {
        /// Security Send and Security Receive.
        pub security: bool,
        /// Format NVM.
        pub format_nvm: bool,
        /// Firmware Commit and Firmware Image Download.
        pub firmware: bool,
        /// Namespace Management and Attachment.
        pub namespace_management: bool,
        /// Device Self-test.
        pub self_test: bool,
        /// Directives.
        pub directives: bool,
        /// NVMe-MI Send and NVMe-MI Receive.
        pub nvme_mi: bool,
        /// Virtualization Management.
        pub virtualization: bool,
        /// Doorbell Buffer Config.
        pub doorbell_buffer: bool,
        /// Get LBA Status.
        pub get_lba_status: bool,
        /// Command and Feature Lockdown.
        pub lockdown: bool,
        #[bits(5)] __: u8,
    }

    /// Firmware Updates (FRMW).
    Frmw(u8) {
        /// The first slot is read only.
        pub slot1_read_only: bool,
        /// Number of firmware slots, 1 to 7.
        #[bits(3)]
        pub slots: u8,
        /// Firmware can be activated without a reset.
        pub activate_without_reset: bool,
        /// Support Multiple Update Detection (SMUD).
        pub smud: bool,
        #[bits(2)] __: u8,
    }

    /// Log Page Attributes (LPA).
    Lpa(u8) {
        /// SMART / Health log page per namespace.
        pub smart_per_namespace: bool,
        /// Commands Supported and Effects log page.
        pub commands_effects: bool,
        /// Extended data of Get Log Page: 32-bit dword count, offset.
        pub extended_data: bool,
        /// Telemetry log pages and events.
        pub telemetry: bool,
        /// Persistent Event log page.
        pub persistent_event: bool,
        /// Log pages 00h, 12h and 13h, and the scope of each command in log page 05h.
        pub supported_pages: bool,
        /// Data Area 4 of the Telemetry log pages.
        pub telemetry_area4: bool,
        #[bits(1)] __: u8,
    }

    /// Vendor Specific Command Configuration (AVSCC, ICSVSCC).
    VendorSpecificFormat(u8) {
        /// All vendor specific commands use the specification's common format.
        pub common: bool,
        #[bits(7)] __: u8,
    }

    /// Host Controlled Thermal Management Attributes (HCTMA).
    Hctma(u16) {
        /// Supported.
        pub supported: bool,
        #[bits(15)] __: u16,
    }

    /// Sanitize Capabilities (SANICAP).
    Sanicap(u32) {
        /// Crypto Erase Support (CES).
        pub ces: bool,
        /// Block Erase Support (BES).
        pub bes: bool,
        /// Overwrite Support (OWS).
        pub ows: bool,
        #[bits(26)] __: u32,
        /// No-Deallocate Inhibited (NDI).
        pub ndi: bool,
        /// No-Deallocate Modifies Media After Sanitize (NODMMAS): 0 not defined, 1 no, 2 yes.
        #[bits(2)]
        pub nodmmas: u8,
    }

    /// Asymmetric Namespace Access Capabilities (ANACAP).
    Anacap(u8) {
        /// ANA Optimized state.
        pub optimized: bool,
        /// ANA Non-Optimized state.
        pub non_optimized: bool,
        /// ANA Inaccessible state.
        pub inaccessible: bool,
        /// ANA Persistent Loss state.
        pub persistent_loss: bool,
        /// ANA Change state.
        pub change: bool,
        #[bits(1)] __: u8,
        /// ANAGRPID of a namespace does not change while it is attached.
        pub group_fixed: bool,
        /// A non-zero ANAGRPID is supported by Namespace Management.
        pub group_managed: bool,
    }

    /// Entry sizes of a queue (SQES, CQES).
    EntrySizes(u8) {
        /// Required, and least, size: two to this power in bytes.
        #[bits(4)]
        pub required: u8,
        /// Greatest size: two to this power in bytes.
        #[bits(4)]
        pub maximum: u8,
    }

    /// Optional NVM Command Support (ONCS).
    Oncs(u16) {
        /// Compare.
        pub compare: bool,
        /// Write Uncorrectable.
        pub write_uncorrectable: bool,
        /// Dataset Management.
        pub dataset_management: bool,
        /// Write Zeroes.
        pub write_zeroes: bool,
        /// Save of Set Features and Select of Get Features.
        pub save_select: bool,
        /// Reservations.
        pub reservations: bool,
        /// Timestamp feature.
        pub timestamp: bool,
        /// Verify.
        pub verify: bool,
        /// Copy.
        pub copy: bool,
        #[bits(7)] __: u8,
    }

    /// Fused Operation Support (FUSES).
    Fuses(u16) {
        /// Compare and Write.
        pub compare_and_write: bool,
        #[bits(15)] __: u16,
    }

    /// Format NVM Attributes (FNA).
    Fna(u8) {
        /// A format applies to all namespaces.
        pub format_all: bool,
        /// A secure erase applies to all namespaces.
        pub erase_all: bool,
        /// Cryptographic erase is supported.
        pub crypto_erase: bool,
        /// The broadcast NSID is not supported.
        pub no_broadcast: bool,
        #[bits(4)] __: u8,
    }

    /// Volatile Write Cache (VWC).
    Vwc(u8) {
        /// A volatile write cache is present.
        pub present: bool,
        /// Flush with the broadcast NSID.
        #[bits(2)]
        pub flush_broadcast: FlushBroadcast,
        #[bits(5)] __: u8,
    }

    /// Namespace Write Protection Capabilities (NWPC).
    Nwpc(u8) {
        /// No Write Protect and Write Protect states.
        pub write_protect: bool,
        /// Write Protect Until Power Cycle state.
        pub until_power_cycle: bool,
        /// Permanent Write Protect state.
        pub permanent: bool,
        #[bits(5)] __: u8,
    }

    /// Optional Copy Formats Supported (OCFS).
    Ocfs(u16) {
        /// Copy format 0h.
        pub format0: bool,
        /// Copy format 1h.
        pub format1: bool,
        #[bits(14)] __: u16,
    }

    /// SGL Support (SGLS).
    Sgls(u32) {
        /// Whether SGLs are supported for I/O, and how aligned.
        #[bits(2)]
        pub support: SglSupport,
        /// Keyed SGL Data Block descriptor.
        pub keyed: bool,
        #[bits(5)] __: u8,
        /// SGL Descriptor Threshold (SDT): the recommended most descriptors of a command; 0 is not given.
        pub sdt: u8,
        /// SGL Bit Bucket descriptor.
        pub bit_bucket: bool,
        /// A byte aligned contiguous metadata buffer.
        pub metadata_byte_aligned: bool,
        /// An SGL longer than the data is accepted.
        pub oversize: bool,
        /// MPTR may be the address of one SGL descriptor.
        pub metadata_sgl: bool,
        /// The address of a descriptor may be an offset.
        pub offset: bool,
        /// Transport SGL Data Block descriptor.
        pub transport: bool,
        #[bits(10)] __: u16,
    }

    /// Fabrics Controller Attributes (FCATT).
    Fcatt(u8) {
        /// The controller is of the static controller model, else of the dynamic one.
        pub static_model: bool,
        #[bits(7)] __: u8,
    }

    /// Optional Fabric Commands Support (OFCS).
    Ofcs(u16) {
        /// Disconnect.
        pub disconnect: bool,
        #[bits(15)] __: u16,
    }
}
